"""Ops of onnxruntime's own (domain com.microsoft) that its optimizer leaves in a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_compress.model.rules import linear
from onnx_compress.model.rules.barriers import barrier
from onnx_compress.model.rules.elementwise import together

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnx_compress.model.channels import Axes, Channels


def skip_layer_norm(graph: Channels, node: gs.Node) -> None:
    """(x + skip + bias) normalised over the last axis, scaled and shifted; the sum may be an output (the fourth)."""
    operands = [tensor for tensor in node.inputs if not tensor.is_empty()]
    rank = len(graph.shape(node.inputs[0]))
    out: Axes = []
    for axis in range(-rank, 0):
        reach = [tensor for tensor in operands if len(graph.shape(tensor)) >= -axis]
        out.append(together(graph, [(graph.axes(t)[axis], graph.shape(t)[axis]) for t in reach]))
    for index, output in enumerate(node.outputs):
        if output.is_empty():
            continue
        if index in {0, 3}:
            graph.set(output, out)
        else:
            graph.fresh_axes(output, "a statistic over channels")


def embed_layer_norm(graph: Channels, node: gs.Node) -> None:
    """Rows of the tables for words, places and segments, added and normalised: their columns are one axis."""
    ids, segments, word, *rest = node.inputs
    width = graph.axes(word)[1]
    graph.pin(graph.axes(word)[0], "looked up by an index that is data")
    for table in rest[:2]:
        if not table.is_empty():
            graph.pin(graph.axes(table)[0], "looked up by an index that is data")
            graph.tie(graph.axes(table)[1], width)
    for vector in rest[2:4]:
        graph.tie(graph.axes(vector)[0], width)
    for indices in [ids, segments, *rest[4:]]:
        if not indices.is_empty():
            graph.pin_all(indices, "an index")
    for index, output in enumerate(node.outputs):
        if output.is_empty():
            continue
        if index == 1:
            graph.fresh_axes(output, "a mask of steps")
        else:
            graph.set(output, [*graph.axes(ids), width])


def matmul(graph: Channels, node: gs.Node) -> None:
    """FusedMatMul: MatMul of either side transposed, times alpha."""
    if node.attrs.get("transBatchA", 0) or node.attrs.get("transBatchB", 0):
        barrier(graph, node)
        return
    sides = []
    for tensor, attribute in zip(node.inputs, ("transA", "transB"), strict=True):
        axes = list(graph.axes(tensor))
        if node.attrs.get(attribute, 0) and len(axes) > 1:
            axes[-2:] = axes[:-3:-1]
        sides.append(axes)
    graph.set(node.outputs[0], linear.product(graph, node, *sides))


def conv(graph: Channels, node: gs.Node) -> None:
    """FusedConv: Conv, an activation after it, and perhaps a tensor added before that (the fourth input)."""
    linear.conv(graph, node)
    if len(node.inputs) > 3 and not node.inputs[3].is_empty():
        for labels, other in zip(graph.axes(node.outputs[0]), graph.axes(node.inputs[3]), strict=True):
            graph.tie(labels, other)
