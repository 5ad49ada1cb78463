"""What a pruned model must equal: the original with the removed channels zeroed at their consumers.

A sum over channels loses the terms of the removed ones, so their weights, or the activation itself where the consumer
has no weight, are multiplied by zero there; a mean and a normalisation over channels are taken over those that stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.model.channels import Channels
from onnx_compress.model.rules.movement import operand
from onnx_compress.model.surgery import Surgery

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape

    Array = NDArray[Any]


def masked(model: Model, shapes: Mapping[str, Shape], units: Iterable[Unit]) -> Model:
    """`model`, all its tensors of their old shapes, with the channels of `units` zeroed wherever they are consumed."""
    surgery = Surgery(model)
    channels = Channels(surgery, dict(shapes))
    dead = frozenset().union(*(unit.labels for unit in units))
    mask = _Mask(surgery, channels, dead)
    for node in list(surgery.graph.nodes):
        edit = _EDITS.get(node.op)
        if edit is not None:
            edit(mask, node)
    return surgery.commit()


class _Mask:
    """Which indices of a tensor's axis stay, and the edits that say so in the graph."""

    def __init__(self, surgery: Surgery, channels: Channels, dead: frozenset[int]) -> None:
        self.surgery = surgery
        self.channels = channels
        self.dead = dead

    def kept(self, tensor: gs.Tensor, axis: int) -> Array:
        """1 for each index that stays, 0 for each that goes; all ones for a symbolic axis."""
        labels = self.channels.axes(tensor)[axis]
        if labels is None:
            return np.ones(1)
        find = self.channels._find  # noqa: SLF001
        return np.array([find(label) not in self.dead for label in labels.tolist()], float)

    def weight(self, node: gs.Node, index: int, axis: int) -> None:
        """Zeroes the dead slices of a weight along the axis that contracts them."""
        tensor = node.inputs[index]
        keep = self.kept(tensor, axis)
        if keep.all():
            return
        shape = [1] * len(tensor.shape)
        shape[axis] = -1
        value = (tensor.values * keep.reshape(shape)).astype(tensor.values.dtype)
        node.inputs[index] = self.surgery.constant(f"{tensor.name}_masked", value)
        labels = self.channels.axes(tensor)
        self.channels.set(node.inputs[index], labels)

    def activation(self, node: gs.Node, index: int, axis: int, scale: float = 1.0) -> None:
        """Multiplies what the node reads by zero where it is dead, and by `scale` where it is not."""
        tensor = node.inputs[index]
        keep = self.kept(tensor, axis)
        if keep.all():
            return
        rank = len(self.channels.axes(tensor))
        shape = [1] * rank
        shape[axis] = -1
        value = (keep.reshape(shape) * scale).astype(np.float32)
        factor = self.surgery.constant(f"{tensor.name}_mask", value)
        product = self.surgery.node("Mul", f"{node.name}_mask", [tensor, factor])
        self.channels.set(product.outputs[0], self.channels.axes(tensor))
        self.insert(node, [product])
        node.inputs[index] = product.outputs[0]

    def insert(self, node: gs.Node, new: list[gs.Node]) -> None:
        """New nodes right before `node`."""
        nodes = self.surgery.graph.nodes
        at = next(i for i, other in enumerate(nodes) if other is node)
        nodes[at:at] = new


def _contraction(mask: _Mask, node: gs.Node, index: int, axis: int) -> None:
    if isinstance(node.inputs[index], gs.Constant):
        mask.weight(node, index, axis % len(node.inputs[index].shape))
    else:
        mask.activation(node, index, axis % len(mask.channels.axes(node.inputs[index])))


def _conv(mask: _Mask, node: gs.Node) -> None:
    _contraction(mask, node, 1, 1)


def _conv_transpose(mask: _Mask, node: gs.Node) -> None:
    _contraction(mask, node, 1, 0)


def _gemm(mask: _Mask, node: gs.Node) -> None:
    _contraction(mask, node, 1, 1 if node.attrs.get("transB", 0) else 0)


def _matmul(mask: _Mask, node: gs.Node) -> None:
    left, right = node.inputs
    if isinstance(right, gs.Constant):
        _contraction(mask, node, 1, -2 if len(right.shape) > 1 else -1)
    else:
        _contraction(mask, node, 0, -1)
    del left


def _recurrent(mask: _Mask, node: gs.Node) -> None:
    _contraction(mask, node, 1, 2)
    _contraction(mask, node, 2, 2)


def _reduce(mask: _Mask, node: gs.Node) -> None:
    """The dead add nothing; a mean divides by the number that stays."""
    data = node.inputs[0]
    rank = len(mask.channels.axes(data))
    axes = operand(node, 1, "axes") or range(rank)
    for axis in axes:
        keep = mask.kept(data, int(axis) % rank)
        scale = len(keep) / keep.sum() if node.op == "ReduceMean" else 1.0
        mask.activation(node, 0, int(axis) % rank, scale)


def _layer_norm(mask: _Mask, node: gs.Node) -> None:
    """(x − mean) / √(var + ε) over the channels that stay, spelled out in plain ops."""
    data = node.inputs[0]
    keep = mask.kept(data, -1)
    if keep.all():
        return
    make, surgery = surgery_node(mask), mask.surgery
    share = surgery.constant("keep", keep.astype(np.float32))
    count = surgery.constant("count", np.array(keep.sum(), np.float32))
    epsilon = surgery.constant("epsilon", np.array(node.attrs.get("epsilon", 1e-5), np.float32))
    axes = surgery.constant("axes", np.array([-1], np.int64))
    new: list[gs.Node] = []
    x = data
    if node.op == "LayerNormalization":
        mean = make(new, "Div", make(new, "ReduceSum", make(new, "Mul", data, share), axes), count)
        x = make(new, "Sub", data, mean)
    x = make(new, "Mul", x, share)
    square = make(new, "ReduceSum", make(new, "Mul", x, x), axes)
    root = make(new, "Sqrt", make(new, "Add", make(new, "Div", square, count), epsilon))
    out = make(new, "Mul", make(new, "Div", x, root), node.inputs[1])
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        out = make(new, "Add", out, node.inputs[2])
    new.append(surgery.node("Identity", f"{node.name}_same", [out]))
    surgery.replace(surgery.graph, node, new)


def surgery_node(mask: _Mask) -> Any:
    """A function that appends a node of this op on these inputs to a list and gives its output."""

    def make(new: list[gs.Node], op: str, *inputs: gs.Tensor) -> gs.Tensor:
        new.append(mask.surgery.node(op, f"masked_{op}", list(inputs)))
        return new[-1].outputs[0]

    return make


_SUMS = ("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare")

_EDITS = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(_SUMS, _reduce),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _layer_norm),
}
