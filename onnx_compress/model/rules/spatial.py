"""Pooling, resizing and reductions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_compress.model.rules.movement import given, operand
from onnx_compress.model.rules.shape import keep_sizes

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnx_compress.model.channels import Axes, Channels


def pool(graph: Channels, node: gs.Node) -> None:
    """Batch and channels pass; the spatial axes are new."""
    axes = graph.axes(node.inputs[0])
    for labels in axes[2:]:
        graph.pin(labels, "a spatial axis")
    for output in node.outputs:
        if output.is_empty():
            continue
        shape = graph.shape(output)
        spatial: Axes = [graph.fresh(s, "a spatial axis") if isinstance(s, int) else None for s in shape[2:]]
        graph.set(output, [*axes[:2], *spatial])
    if len(node.outputs) > 1 and not node.outputs[1].is_empty():
        graph.pin(axes[1], "pooling that returns places counted over channels")


def resize(graph: Channels, node: gs.Node) -> None:
    """Axes whose size stays pass, the others are new; sizes given for the channels are written anew."""
    axes, before = graph.axes(node.inputs[0]), graph.shape(node.inputs[0])
    after = graph.shape(node.outputs[0])
    out: Axes = []
    for labels, old, new in zip(axes, before, after, strict=True):
        if old == new and labels is not None:
            out.append(labels)
        else:
            graph.pin(labels, "resized")
            out.append(graph.fresh(new, "resized") if isinstance(new, int) else None)
    if "axes" in node.attrs:
        for axis in node.attrs["axes"]:
            graph.pin(out[axis], "resized")
    if given(node, 1, "roi") and node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        for labels in axes:
            graph.pin(labels, "cropped while it is resized")
    graph.set(node.outputs[0], out)
    if len(node.inputs) > 3 and not node.inputs[3].is_empty() and "axes" not in node.attrs:
        keep_sizes(graph, node, 3, out)


def reduce(graph: Channels, node: gs.Node) -> None:
    """A sum drops the reduced axes: a removed channel adds nothing to it. A mean is over the channels kept."""
    axes = graph.axes(node.inputs[0])
    reduced = operand(node, 1, "axes")
    if reduced is None and given(node, 1, "axes"):
        for labels in axes:
            graph.pin(labels, "reduced over axes that are data")
        return
    if reduced is None:
        reduced = [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(len(axes)))
    gone = {int(axis) % len(axes) for axis in reduced}
    out: Axes = []
    for axis, labels in enumerate(axes):
        if axis not in gone:
            out.append(labels)
            continue
        if node.op not in _ADDITIVE:
            graph.pin(labels, f"reduced by {node.op}, where a zero counts")
        if node.attrs.get("keepdims", 1):
            out.append(graph.fresh(1))
    graph.set(node.outputs[0], out)


_ADDITIVE = {"ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare"}


def arg_reduce(graph: Channels, node: gs.Node) -> None:
    """ArgMax, ArgMin: the reduced axis is pinned, since its indices are the result."""
    axes = graph.axes(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % len(axes)
    graph.pin(axes[axis], f"indices along it are the result of {node.op}")
    middle: Axes = [graph.fresh(1)] if node.attrs.get("keepdims", 1) else []
    graph.set(node.outputs[0], [*axes[:axis], *middle, *axes[axis + 1 :]])
