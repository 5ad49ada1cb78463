"""Which indices of a tensor's axis stay, and how the graph is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from onnx_compress.model.channels import Channels
    from onnx_compress.model.surgery import Surgery

    Array = NDArray[Any]


class Mask:
    """Which indices of a tensor's axis stay, and the edits that say so in the graph, whose floats are of type `dtype`."""

    def __init__(
        self, surgery: Surgery, channels: Channels, dead: frozenset[int], dtype: Any = np.float32
    ) -> None:
        self.surgery = surgery
        self.channels = channels
        self.dead = dead
        self.dtype = dtype

    def kept(self, tensor: gs.Tensor, axis: int) -> Array:
        """1 for each index that stays, 0 for each that goes; a single 1 for a symbolic axis."""
        labels = self.channels.axes(tensor)[axis]
        if labels is None:
            return np.ones(1)
        return np.array([root not in self.dead for root in self.channels.ties.roots(labels).tolist()], float)

    def weight(self, node: gs.Node, index: int, axis: int) -> None:
        """Zeroes the dead slices of a weight along an axis."""
        tensor = node.inputs[index]
        keep = self.kept(tensor, axis)
        if keep.all():
            return
        shape = [1] * len(tensor.shape)
        shape[axis] = -1
        value = (tensor.values * keep.reshape(shape)).astype(tensor.values.dtype)
        node.inputs[index] = self.surgery.constant(f"{tensor.name}_masked", value)
        self.channels.set(node.inputs[index], self.channels.axes(tensor))

    def activation(self, node: gs.Node, index: int, axis: int, scale: float = 1.0) -> None:
        """Multiplies what the node reads by zero where it is dead, and by `scale` where it is not."""
        tensor = node.inputs[index]
        keep = self.kept(tensor, axis)
        if keep.all():
            return
        shape = [1] * len(self.channels.axes(tensor))
        shape[axis] = -1
        factor = self.surgery.constant(
            f"{tensor.name}_mask", (keep.reshape(shape) * scale).astype(self.dtype)
        )
        product = self.surgery.node("Mul", f"{node.name}_mask", [tensor, factor])
        self.channels.set(product.outputs[0], self.channels.axes(tensor))
        nodes = self.surgery.holder(node).nodes
        at = next(i for i, other in enumerate(nodes) if other is node)
        nodes.insert(at, product)
        node.inputs[index] = product.outputs[0]

    def operand(self, node: gs.Node, index: int, axis: int) -> None:
        """Zeroes an operand along the axis that the node contracts."""
        import onnx_graphsurgeon as gs

        place = axis % len(self.channels.axes(node.inputs[index]))
        if isinstance(node.inputs[index], gs.Constant):
            self.weight(node, index, place)
        else:
            self.activation(node, index, place)


class Steps:
    """New nodes, one after the other, that take the place of one node."""

    def __init__(self, mask: Mask, node: gs.Node) -> None:
        self.mask = mask
        self.node = node
        self.nodes: list[gs.Node] = []

    def constant(self, value: Any, dtype: Any = None) -> gs.Tensor:
        """A new constant."""
        kind = self.mask.dtype if dtype is None else dtype
        return self.mask.surgery.constant(f"{self.node.name}_value", np.asarray(value, kind))

    def op(self, kind: str, *inputs: gs.Tensor, **attributes: Any) -> gs.Tensor:
        """A new node's output."""
        hint = f"{self.node.name}_{kind}"
        self.nodes.append(self.mask.surgery.node(kind, hint, list(inputs), **attributes))
        return self.nodes[-1].outputs[0]

    def reduce(self, kind: str, x: gs.Tensor, axes: list[int]) -> gs.Tensor:
        """A reduction that keeps its axes, written as the model's opset wants it."""
        if (self.mask.surgery.graph.opset or 18) >= 18:
            return self.op(kind, x, self.constant(axes, np.int64), keepdims=1)
        return self.op(kind, x, axes=axes, keepdims=1)

    def finish(self, results: dict[int, gs.Tensor]) -> None:
        """These tensors take the place of the node's outputs."""
        outputs = dict(enumerate(self.node.outputs))
        for index, tensor in results.items():
            if index in outputs and not outputs[index].is_empty():
                name = f"{self.node.name}_same"
                same = self.mask.surgery.node("Identity", name, [tensor], [outputs[index]])
                self.nodes.append(same)
        graph = self.mask.surgery.holder(self.node)
        at = next(i for i, other in enumerate(graph.nodes) if other is self.node)
        self.node.inputs.clear()
        self.node.outputs.clear()
        graph.nodes[at : at + 1] = self.nodes
