"""The layers whose weights contract channels that may go: where a removal costs, and where it can be repaired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.runtime.layers import LayerInput, layer_input, weight_index, weight_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit
    from onnx_compress.model.shapes import Shape
    from onnx_compress.model.surgery import Surgery

    Array = NDArray[Any]


@dataclass(frozen=True, eq=False)  # two layers are never the same one
class Consumer:
    """A layer, how it unfolds its input, and the axes of its stored weight that it contracts and that it outputs.

    output: the tensor it makes, a bias added right after it included.
    """

    node: gs.Node
    weight: gs.Constant
    layer: LayerInput
    inner: int
    outer: int
    output: str
    group: int = 1

    @property
    def name(self) -> str:
        """The node's name."""
        return str(self.node.name)

    def rows(self) -> Array:
        """The weight as matrices (groups, N/groups, K), float64."""
        if self.node.op in _RECURRENT:
            stored = np.asarray(self.weight.values, np.float64)
            return np.concatenate(list(stored))[np.newaxis]
        alpha = float(self.node.attrs.get("alpha", 1.0)) if self.node.op == "Gemm" else 1.0
        return alpha * np.asarray(weight_rows(self.node, self.weight.values), np.float64)

    def columns(self, unit: Unit) -> Array:
        """The columns of `rows` that the channels of `unit` feed; empty where it feeds none."""
        indices = unit.places.get((self.weight.name, self.inner))
        if indices is None:
            return np.empty(0, np.intp)
        if self.node.op == "ConvTranspose":
            # > its stored weight has the channels of every group one after the other; a group that goes whole takes no column
            width = int(self.weight.shape[self.inner]) // self.group
            indices = np.flatnonzero(np.bincount(indices % width, minlength=width) == self.group)
        return (indices[:, np.newaxis] * self.layer.taps + np.arange(self.layer.taps)).ravel()

    def channels(self, unit: Unit) -> Array:
        """The channels of the layer's input tensor that are the unit's; of a grouped layer, one in every group."""
        indices = unit.places.get((self.weight.name, self.inner), np.empty(0, np.intp))
        groups = self.group if self.node.op == "Conv" else 1
        width = int(self.weight.shape[self.inner])
        return (np.arange(groups)[:, np.newaxis] * width + indices).ravel()

    def kept(self, units: list[Unit], axis: int) -> Array:
        """Which indices of this axis of the stored weight stay."""
        mask = np.ones(self.weight.shape[axis], bool)
        for unit in units:
            indices = unit.places.get((self.weight.name, axis))
            if indices is not None:
                mask[indices] = False
        return mask


_RECURRENT = ("LSTM", "GRU", "RNN")


def consumers(surgery: Surgery, shapes: Mapping[str, Shape]) -> list[Consumer]:
    """Every layer of the main graph whose own float weight contracts the channels of a tensor, in graph order."""
    found: list[Consumer] = []
    for node in surgery.graph.nodes:
        if node.op in _RECURRENT:
            found += _recurrent(node)
            continue
        layer = layer_input(node, shapes)
        if isinstance(layer, str):
            continue
        weight = node.inputs[weight_index(node)]
        if not isinstance(weight, gs.Constant) or weight.dtype != np.float32:
            continue
        inner, outer = _axes(node)
        output = bias_add(node) or node
        found.append(
            Consumer(
                node,
                weight,
                layer,
                inner,
                outer,
                output.outputs[0].name,
                int(node.attrs.get("group", 1)),
            )
        )
    return found


def _axes(node: gs.Node) -> tuple[int, int]:
    """(contracted axis, output axis) of the stored weight."""
    if node.op == "Conv":
        return 1, 0
    if node.op == "ConvTranspose":
        return 0, 1
    left = weight_index(node) == 0
    flipped = bool(node.attrs.get("transA" if left else "transB", 0)) if node.op == "Gemm" else False
    return (1, 0) if left != flipped else (0, 1)


def _recurrent(node: gs.Node) -> list[Consumer]:
    """The input weight W and the recurrent weight R (which contracts the layer's own output) of one direction or two."""
    found = []
    for index, tensor in ((1, node.inputs[0]), (2, node.outputs[0])):
        weight = node.inputs[index]
        usable = isinstance(weight, gs.Constant) and weight.dtype == np.float32 and not tensor.is_empty()
        if not usable or isinstance(tensor, gs.Constant):
            continue
        # with two directions Y holds (seq, 2, batch, H): both directions' states are seen, and R is judged on them
        layer = LayerInput(tensor.name, "matmul", channel_axis=-1, output_axis=-1, sample_axis=0)
        found.append(Consumer(node, weight, layer, 2, 1, ""))
    return found


def bias_add(node: gs.Node) -> gs.Node | None:
    """The Add of a constant vector over its outputs that is the only reader of a MatMul, if there is one."""
    if node.op != "MatMul" or len(node.outputs[0].outputs) != 1 or weight_index(node) == 0:
        return None
    add = node.outputs[0].outputs[0]
    if add.op != "Add":
        return None
    other = next((t for t in add.inputs if isinstance(t, gs.Constant)), None)
    return add if other is not None and len(other.shape) <= 1 else None
