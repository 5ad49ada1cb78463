"""BatchNormalization, and constant scales and shifts by channel, become part of the layer they follow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.model.domains import is_standard
from onnx_compress.model.prepare.edits import Edit
from onnx_compress.model.prepare.passthrough import remove

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.shapes import Shape
    from onnx_compress.model.surgery import Surgery

    Array = NDArray[Any]


@dataclass(frozen=True)
class Affine:
    """y = scale·x + shift by channel; both (channels,), or (1,) where all channels have the same, float64."""

    scale: Array
    shift: Array


@dataclass(frozen=True)
class _Weights:
    """Changes the weights of nodes. returned: the ids of the tensors that graphs return."""

    surgery: Surgery
    returned: set[int]

    def assign(self, node: gs.Node, index: int, values: Array, name: str) -> None:
        """Input `index` of `node` becomes `values`, in place where nobody else reads it."""
        if index == len(node.inputs):
            node.inputs.append(self.surgery.constant(name, values))
            return
        old = node.inputs[index]
        alone = len(old.outputs) == 1 and id(old) not in self.returned
        if isinstance(old, gs.Constant) and alone and tuple(old.shape) == values.shape:
            old.values = values
        else:
            node.inputs[index] = self.surgery.constant(name, values)


def fold_affine(surgery: Surgery, shapes: Mapping[str, Shape]) -> list[Edit]:
    """Folds what follows a Conv, ConvTranspose, Gemm or 2-D MatMul, and is its only reader, into that layer's weights.

    s·(W x + b) + t = (s·W) x + (s·b + t) by channel, computed in float64 and rounded once. A weight that other layers
    share is copied first. shapes: as far as known; a MatMul is 2-D where they say so.
    """
    returned = {id(tensor) for graph in surgery.graphs() for tensor in graph.outputs}
    edits = []
    for graph in surgery.graphs():
        gone: set[int] = set()
        own = {id(node) for node in graph.nodes}
        for node in graph.nodes:
            if graph.opset < 7 or node.op not in _AFFINE or not is_standard(node):
                continue
            layer = _producer(node, own, returned)
            shift = layer if layer is not None and layer.op == "Add" else None
            if shift is not None:
                layer = _producer(shift, own, returned)
            if layer is None or not _is_layer(layer, shapes) or (shift is not None and layer.op != "MatMul"):
                continue
            fold = _fold_matmul if layer.op == "MatMul" else _fold_layer
            if fold(_Weights(surgery, returned), layer, shift, node):
                edits.append(Edit(node.name, "fold", node.op, f"part of {layer.op} {layer.name}"))
                if fold is _fold_layer or node.op != "Add":
                    (shift or layer).outputs[0] = node.outputs[0]
                    gone.add(id(node))
        if gone:
            remove(graph, gone)
    return edits


_AFFINE = {"BatchNormalization", "Add", "Sub", "Mul", "Div"}


def _producer(node: gs.Node, own: set[int], returned: set[int]) -> gs.Node | None:
    """The node of the same graph whose only reader is `node`."""
    moving = 1 if node.op != "BatchNormalization" and isinstance(node.inputs[0], gs.Constant) else 0
    tensor = node.inputs[moving]
    if len(tensor.inputs) != 1 or len(tensor.outputs) != 1 or id(tensor) in returned:
        return None
    producer = tensor.inputs[0]
    return producer if id(producer) in own and is_standard(producer) else None


def _is_layer(layer: gs.Node, shapes: Mapping[str, Shape]) -> bool:
    if layer.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or not _is_float(layer.inputs[1]):
        return False
    if layer.op != "MatMul":
        return True
    return len(layer.inputs[1].shape) == 2 and len(shapes.get(layer.inputs[0].name, ())) == 2


def _is_float(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant) and tensor.dtype.kind == "f"


def _affine(node: gs.Node, channels: int, rank: int) -> Affine | None:
    """What `node` does to its input, whose axis 1 has `channels`; None where that is not one number a channel."""
    if node.op == "BatchNormalization":
        return _normalization(node, channels)
    constant = next((tensor for tensor in node.inputs if isinstance(tensor, gs.Constant)), None)
    if constant is None or constant.dtype.kind != "f" or len(constant.shape) > rank:
        return None
    sizes = (1,) * (rank - len(constant.shape)) + tuple(constant.shape)
    if math.prod(sizes) != sizes[1] or sizes[1] not in (1, channels):
        return None
    value = constant.values.astype(np.float64).reshape(-1)
    one, zero = np.ones(1), np.zeros(1)
    if node.op == "Add":
        return Affine(one, value)
    if node.op == "Mul":
        return Affine(value, zero)
    first = node.inputs[0] is constant
    if node.op == "Sub":
        return Affine(-one, value) if first else Affine(one, -value)
    return None if first or not value.all() else Affine(1 / value, zero)


def _normalization(node: gs.Node, channels: int) -> Affine | None:
    """The scale and shift of a BatchNormalization at inference."""
    if is_training(node) or node.attrs.get("spatial", 1) == 0:
        return None
    if not all(_is_float(tensor) and tuple(tensor.shape) == (channels,) for tensor in node.inputs[1:5]):
        return None
    gamma, beta, mean, variance = (tensor.values.astype(np.float64) for tensor in node.inputs[1:5])
    with np.errstate(all="ignore"):  # what is not finite is not folded
        scale = gamma / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
        return Affine(scale, beta - mean * scale)


def is_training(node: gs.Node) -> bool:
    """Whether a BatchNormalization may be in training mode: said so, or (before opset 14) by its further outputs."""
    return node.attrs.get("training_mode", 0) != 0 or any(
        not tensor.is_empty() for tensor in node.outputs[1:]
    )


def _fold_layer(weights: _Weights, layer: gs.Node, _: gs.Node | None, node: gs.Node) -> bool:
    """Folds `node` into a Conv, ConvTranspose or Gemm; False where that cannot be."""
    weight, group = layer.inputs[1], int(layer.attrs.get("group", 1))
    by_column = layer.op == "Gemm" and not layer.attrs.get("transB", 0)
    channels = weight.shape[1 if by_column or layer.op == "ConvTranspose" else 0]
    channels *= group if layer.op == "ConvTranspose" else 1
    affine = _affine(node, channels, len(weight.shape))
    bias = layer.inputs[2] if len(layer.inputs) > 2 and not layer.inputs[2].is_empty() else None
    old = _bias(layer, bias, channels)
    if affine is None or old is None:
        return False
    scale = np.broadcast_to(affine.scale, channels)
    new_bias = affine.scale * old + affine.shift
    values = weight.values.astype(np.float64)
    if layer.op == "ConvTranspose":
        blocks = values.reshape(group, -1, *weight.shape[1:])
        blocks = blocks * scale.reshape(group, 1, weight.shape[1], *[1] * (len(weight.shape) - 2))
        values = blocks.reshape(values.shape)
    elif by_column:
        values = values * scale
    else:
        values = values * scale.reshape(-1, *[1] * (len(weight.shape) - 1))
    new = _rounded(values, weight), _rounded(new_bias, weight)
    if new[0] is None or new[1] is None:
        return False
    if (affine.scale != 1).any():
        weights.assign(layer, 1, new[0], weight.name)
    if bias is not None or new[1].any():
        weights.assign(layer, 2, new[1], f"{layer.name}.bias" if bias is None else bias.name)
        if layer.op == "Gemm" and "beta" in layer.attrs:
            layer.attrs["beta"] = 1.0
    return True


def _bias(layer: gs.Node, bias: gs.Tensor | None, channels: int) -> Array | None:
    """What `layer` adds to each channel, (channels,) float64; None where that is no constant vector."""
    if bias is None:
        return np.zeros(channels)
    if not _is_float(bias) or math.prod(bias.shape) not in (1, channels):
        return None
    if len(bias.shape) > 1 and bias.shape[-1] != math.prod(bias.shape):
        return None  # a Gemm may add a column
    beta = layer.attrs.get("beta", 1.0) if layer.op == "Gemm" else 1.0
    value = beta * bias.values.astype(np.float64).reshape(-1)
    return np.array(np.broadcast_to(value, channels))


def _fold_matmul(weights: _Weights, layer: gs.Node, shift: gs.Node | None, node: gs.Node) -> bool:
    """Folds the scale of `node` into a MatMul; its shift into the Add between, or `node` becomes that Add."""
    weight = layer.inputs[1]
    channels = weight.shape[1]
    affine = _affine(node, channels, 2)
    between = Affine(np.ones(1), np.zeros(1)) if shift is None else _affine(shift, channels, 2)
    if (
        affine is None
        or between is None
        or (node.op in ("Add", "Sub") and affine.scale[0] == 1 and shift is None)
    ):
        return False
    total = _rounded(affine.scale * between.shift + affine.shift, weight)
    values = _rounded(weight.values.astype(np.float64) * affine.scale, weight)
    if total is None or values is None:
        return False
    if (affine.scale != 1).any():
        weights.assign(layer, 1, values, weight.name)
    if shift is not None:
        index = 0 if isinstance(shift.inputs[0], gs.Constant) else 1
        weights.assign(shift, index, np.array(np.broadcast_to(total, channels)), shift.inputs[index].name)
    elif total.any():
        vector = weights.surgery.constant(f"{node.name}.shift", np.array(np.broadcast_to(total, channels)))
        node.op = "Add"
        node.attrs.clear()
        node.inputs = [layer.outputs[0], vector]
    return True


def _rounded(values: Array, like: gs.Constant) -> Array | None:
    """`values` in the type of `like`, None where one of them is not finite there."""
    with np.errstate(all="ignore"):
        result: Array = np.ascontiguousarray(values.astype(like.dtype))
    return result if np.isfinite(result).all() else None
