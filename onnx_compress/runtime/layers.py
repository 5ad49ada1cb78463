"""How a layer unfolds its input into the columns its weight multiplies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.model.domains import is_standard

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Shape = tuple[int | str | None, ...]

Kind = Literal["conv", "matmul", "transpose"]


@dataclass(frozen=True)
class LayerInput:
    """How a layer reads the tensor `tensor`: y = W x for every column x that it unfolds to.

    kind: "conv"; "matmul" (Gemm too): a column is a line along `channel_axis`; "transpose" (ConvTranspose): a column is
    the input's channels at one position, unfolded as 1x1. That is the layer's contraction *before* the overlapping
    products are summed into the output, so a Gram matrix of it serves the input side, and there is no target for it.
    kernel, strides, dilations: one each spatial axis; pads: all begins, then all ends, as in ONNX.
    channel_axis, output_axis: of K in the input and of N in the output (negative for matmul: any rank goes).
    sample_axis: which of the axes left, once the channel axis is taken out, counts the samples.

    K = C/group · kernel elements, in the order of `weight.reshape(N, -1)` of a Conv. Layers with equal LayerInputs
    have the same Gram matrix, whatever their weights: q, k and v share one.
    """

    tensor: str
    kind: Kind
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    group: int = 1
    channel_axis: int = 1
    output_axis: int = 1
    sample_axis: int = 0
    auto_pad: str = "NOTSET"

    @property
    def taps(self) -> int:
        """Elements of the kernel."""
        return math.prod(self.kernel)

    def padding(self, spatial: Sequence[int]) -> list[tuple[int, int]]:
        """(begin, end) of each spatial axis of an input of this size; auto_pad resolved."""
        axes = len(self.kernel)
        if self.auto_pad == "VALID":
            return [(0, 0)] * axes
        if not self.auto_pad.startswith("SAME"):
            return [(self.pads[i], self.pads[i + axes]) for i in range(axes)]
        pairs = []
        for size, kernel, stride, dilation in zip(
            spatial, self.kernel, self.strides, self.dilations, strict=True
        ):
            reach = dilation * (kernel - 1) + 1
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            small, large = total // 2, total - total // 2
            pairs.append((large, small) if self.auto_pad == "SAME_LOWER" else (small, large))
        return pairs

    def positions(self, spatial: Sequence[int]) -> tuple[int, ...]:
        """The size of the output along each spatial axis, for an input of this size."""
        pairs = self.padding(spatial)
        return tuple(
            max((size + sum(pair) - dilation * (kernel - 1) - 1) // stride + 1, 0)
            for size, pair, kernel, stride, dilation in zip(
                spatial, pairs, self.kernel, self.strides, self.dilations, strict=True
            )
        )


def layer_input(node: gs.Node, shapes: Mapping[str, Shape] | None = None) -> LayerInput | str:
    """How `node` (Conv, ConvTranspose, Gemm, MatMul) unfolds its input, or why it cannot be said.

    shapes: of tensors by name; used to find the axis that counts samples where it is not the first.
    """
    if not is_standard(node):
        return f"{node.domain}.{node.op} is no standard layer"
    if node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return f"{node.op} multiplies no weight matrix"
    if len(node.inputs) < 2:
        return "the node lacks its weight"
    if node.op in ("Conv", "ConvTranspose"):
        return _conv(node)
    return _matmul(node, shapes or {})


def weight_index(node: gs.Node) -> int:
    """Which input of a layer that `layer_input` accepts is its weight."""
    return 1 if node.op.startswith("Conv") or isinstance(node.inputs[1], gs.Constant) else 0


def own_bias(node: gs.Node, outputs: int) -> Array | None:
    """What a layer adds to its product on each of its `outputs` channels, (outputs,) float64: zeros for nothing.

    None where it is computed in the graph, or differs along another axis than that of the outputs.
    """
    bias = node.inputs[2] if node.op != "MatMul" and len(node.inputs) > 2 and node.inputs[2].name else None
    beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
    if bias is None or beta == 0:
        return np.zeros(outputs)
    if not isinstance(bias, gs.Constant):
        return None
    value = beta * np.asarray(bias.values, np.float64)
    rows = 2 if weight_index(node) == 0 else 1  # from the last: the axis of the outputs
    vector = value.ndim >= rows and value.shape[-rows] == value.size == outputs
    if value.size == 1:
        return np.full(outputs, value.item())
    return value.reshape(-1) if vector else None


def weight_rows(node: gs.Node, weight: Array) -> Array:
    """The weight of a layer as matrices (groups, N/groups, K) that multiply the columns of its LayerInput.

    Gemm's alpha is not in it.
    """
    group = int(node.attrs.get("group", 1))
    if node.op == "Conv":
        return weight.reshape(group, weight.shape[0] // group, -1)
    if node.op == "ConvTranspose":
        return np.swapaxes(weight.reshape(group, weight.shape[0] // group, -1), 1, 2)
    return (weight.T if _stored_transposed(node) else weight)[np.newaxis]


def weight_from_rows(node: gs.Node, rows: Array, kernel: Sequence[int] = ()) -> Array:
    """The stored form of the matrices `rows` (groups, N/groups, K): undoes `weight_rows`.

    kernel: of a convolution, whose channel counts may differ from the node's present weight.
    """
    groups, outputs, inputs = rows.shape
    if node.op == "Conv":
        return rows.reshape(groups * outputs, inputs // math.prod(kernel), *kernel)
    if node.op == "ConvTranspose":
        stored = np.swapaxes(rows, 1, 2)
        return stored.reshape(groups * inputs, outputs // math.prod(kernel), *kernel)
    return np.ascontiguousarray(rows[0].T if _stored_transposed(node) else rows[0])


def _stored_transposed(node: gs.Node) -> bool:
    """Whether a Gemm's or MatMul's weight is stored as (K, N)."""
    left = weight_index(node) == 0
    flipped = bool(node.attrs.get("transA" if left else "transB", 0)) if node.op == "Gemm" else False
    return left == flipped


def _conv(node: gs.Node) -> LayerInput | str:
    source, weight = node.inputs[:2]
    if not isinstance(weight, gs.Constant):
        return "its weight is computed"
    if isinstance(source, gs.Constant):
        return "its input is a constant"
    axes = len(weight.shape) - 2
    if axes < 1:
        return "its weight has no spatial axis"
    group = int(node.attrs.get("group", 1))
    ones, zeros = (1,) * axes, (0,) * (2 * axes)
    if node.op == "ConvTranspose":
        return LayerInput(source.name, "transpose", ones, ones, zeros, ones, group)
    auto_pad = node.attrs.get("auto_pad", "NOTSET") or "NOTSET"
    explicit = auto_pad == "NOTSET"
    return LayerInput(
        source.name,
        "conv",
        tuple(int(size) for size in weight.shape[2:]),
        _ints(node, "strides", ones),
        _ints(node, "pads", zeros) if explicit else zeros,
        _ints(node, "dilations", ones),
        group,
        auto_pad=auto_pad,
    )


def _ints(node: gs.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    value = node.attrs.get(name)
    return tuple(int(v) for v in value) if value else default


def _matmul(node: gs.Node, shapes: Mapping[str, Shape]) -> LayerInput | str:
    at = weight_index(node)
    weight, source = node.inputs[at], node.inputs[1 - at]
    if not isinstance(weight, gs.Constant):
        return "it multiplies two computed tensors"
    if isinstance(source, gs.Constant):
        return "both its inputs are constants"
    if len(weight.shape) != 2:
        return f"its weight has {len(weight.shape)} axes, not 2"
    right = at == 1
    flipped = node.op == "Gemm" and bool(node.attrs.get("transA" if right else "transB", 0))
    channel_axis = -1 if right != flipped else -2
    shape = shapes.get(source.name)
    if shape is not None and len(shape) == 1:
        channel_axis = -1
    output_axis = -1 if right or (shape is not None and len(shape) == 1) else -2
    sample_axis = _sample_axis(shape, channel_axis)
    return LayerInput(
        source.name,
        "matmul",
        channel_axis=channel_axis,
        output_axis=output_axis,
        sample_axis=sample_axis,
    )


def _sample_axis(shape: Shape | None, channel_axis: int) -> int:
    """The first axis of unknown size, else the first; counted without the channel axis."""
    if shape is None:
        return 0
    channel = channel_axis % len(shape)
    left = [size for axis, size in enumerate(shape) if axis != channel]
    return next((axis for axis, size in enumerate(left) if not isinstance(size, int)), 0)
