"""Ops that work index by index: labels of all operands are tied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnx_compress.model.channels import Axes, Channels


def passes_through(graph: Channels, node: gs.Node) -> None:
    """The first output has the labels of the first input (activations, Cast, Identity)."""
    graph.set(node.outputs[0], graph.axes(node.inputs[0]))


def broadcast(graph: Channels, node: gs.Node) -> None:
    """Operands aligned from the right; an axis of size 1 that is stretched ties nothing."""
    operands = [tensor for tensor in node.inputs if not tensor.is_empty()]
    rank = max(len(graph.shape(tensor)) for tensor in operands)
    out: Axes = []
    for axis in range(-rank, 0):
        out.append(_aligned(graph, operands, axis))
    graph.set(node.outputs[0], out)


def _aligned(graph: Channels, operands: list[Any], axis: int) -> Any:
    """The labels of one axis of the result, counted from the right."""
    columns = [
        (graph.axes(tensor)[axis], graph.shape(tensor)[axis])
        for tensor in operands
        if len(graph.shape(tensor)) >= -axis
    ]
    return together(graph, columns)


def together(graph: Channels, columns: list[tuple[Any, Any]]) -> Any:
    """The labels that axes (labels, size) of several operands have in common, once they are tied."""
    known = [(labels, size) for labels, size in columns if labels is not None and isinstance(size, int)]
    full = [labels for labels, size in known if size != 1]
    if len(known) < len(columns):
        for labels in full:
            graph.pin(labels, "meets an axis of unknown size")
        return full[0] if full else None
    if not full:
        return known[0][0]
    for labels in full[1:]:
        graph.tie(full[0], labels)
    return full[0]


def prelu(graph: Channels, node: gs.Node) -> None:
    """Slopes broadcast onto the input from the right."""
    broadcast(graph, node)


def clip(graph: Channels, node: gs.Node) -> None:
    """Bounds are scalars."""
    passes_through(graph, node)


def dropout(graph: Channels, node: gs.Node) -> None:
    """Data and mask have the labels of the input."""
    for output in node.outputs:
        graph.set(output, graph.axes(node.inputs[0]))


def softmax(graph: Channels, node: gs.Node) -> None:
    """The axis that is normalised is pinned: without one of its entries the others change.

    Before opset 13 every axis from `axis` (1) on is one.
    """
    axes = graph.axes(node.inputs[0])
    rank = len(axes)
    if (graph.surgery.graph.opset or 13) >= 13:
        normalised = [int(node.attrs.get("axis", -1)) % rank] if rank else []
    else:
        normalised = list(range(int(node.attrs.get("axis", 1)) % rank, rank)) if rank else []
    for axis in normalised:
        graph.pin(axes[axis], f"normalised by {node.op}")
    graph.set(node.outputs[0], axes)
