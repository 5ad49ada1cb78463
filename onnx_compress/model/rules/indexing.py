"""Ops that look along some axes by values or places, and leave the others alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.model.rules.barriers import barrier
from onnx_compress.model.rules.movement import given, operand

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_graphsurgeon as gs

    from onnx_compress.model.channels import Axes, Channels


def _apart(graph: Channels, node: gs.Node, gone: Iterable[int], why: str) -> None:
    """The labels of the first input pass, but those of the axes `gone` are pinned, and new in the outputs."""
    axes = graph.axes(node.inputs[0])
    fixed = {int(axis) % len(axes) for axis in gone}
    for axis in fixed:
        graph.pin(axes[axis], why)
    for output in node.outputs:
        if output.is_empty():
            continue
        shape = graph.shape(output)
        out: Axes = list(axes)
        for axis in fixed:
            size = shape[axis]
            out[axis] = graph.fresh(size, why) if isinstance(size, int) else None
        graph.set(output, out)


def cumulative(graph: Channels, node: gs.Node) -> None:
    """CumSum, CumProd: each entry along the axis depends on those before it."""
    axis = operand(node, 1, "axis")
    if axis is None:
        barrier(graph, node)
        return
    _apart(graph, node, [int(np.ravel(axis)[0])], f"accumulated by {node.op}")


def top_k(graph: Channels, node: gs.Node) -> None:
    """The axis that is ranked is pinned."""
    _apart(graph, node, [int(node.attrs.get("axis", -1))], "ranked by TopK")


def trilu(graph: Channels, node: gs.Node) -> None:
    """The two axes of the matrices are pinned."""
    _apart(graph, node, [-1, -2], "a triangle is cut from it")


def reverse_sequence(graph: Channels, node: gs.Node) -> None:
    """Time and batch are pinned."""
    fixed = [int(node.attrs.get("time_axis", 0)), int(node.attrs.get("batch_axis", 1))]
    _apart(graph, node, fixed, "time or batch of ReverseSequence")


def compress(graph: Channels, node: gs.Node) -> None:
    """What stays along the axis is data."""
    if "axis" not in node.attrs:
        barrier(graph, node)
        return
    _apart(graph, node, [int(node.attrs["axis"])], "picked by Compress")


def center_crop_pad(graph: Channels, node: gs.Node) -> None:
    """The axes that get a size are pinned."""
    fixed = node.attrs.get("axes")
    rank = len(graph.axes(node.inputs[0]))
    _apart(graph, node, range(rank) if fixed is None else fixed, "cropped or padded around its centre")


def mean_variance(graph: Channels, node: gs.Node) -> None:
    """MeanVarianceNormalization: the axes it is taken over are pinned, by default all but the channels."""
    _apart(graph, node, node.attrs.get("axes", [0, 2, 3]), "normalised by MeanVarianceNormalization")


def elements(graph: Channels, node: gs.Node) -> None:
    """GatherElements, ScatterElements: the axis of the indices is pinned, the others are tied where all have the same."""
    axes = graph.axes(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % len(axes)
    others = [graph.axes(tensor) for tensor in node.inputs[1:]]
    sizes = [graph.shape(tensor) for tensor in node.inputs]
    for place, labels in enumerate(axes):
        same = place != axis and len({size[place] for size in sizes}) == 1
        for other in others:
            if same:
                graph.tie(labels, other[place])
            else:
                graph.pin(labels, f"looked up by {node.op}")
                graph.pin(other[place], f"looked up by {node.op}")
    out: Axes = list(axes)
    if node.op == "GatherElements":
        out = [
            labels if place != axis and sizes[0][place] == sizes[1][place] else others[0][place]
            for place, labels in enumerate(axes)
        ]
    graph.set(node.outputs[0], out)


def gather_nd(graph: Channels, node: gs.Node) -> None:
    """The leading axes are looked up by data, the trailing ones pass."""
    data, places = graph.axes(node.inputs[0]), graph.axes(node.inputs[1])
    depth = graph.shape(node.inputs[1])[-1]
    if not isinstance(depth, int):
        barrier(graph, node)
        return
    lead = int(node.attrs.get("batch_dims", 0)) + depth
    for labels in [*data[:lead], *places]:
        graph.pin(labels, "looked up by GatherND")
    graph.set(node.outputs[0], [*places[:-1], *data[lead:]])


def scatter_nd(graph: Channels, node: gs.Node) -> None:
    """The leading axes are written at places that are data, the trailing ones are those of the updates."""
    data, places, updates = (graph.axes(tensor) for tensor in node.inputs)
    depth = graph.shape(node.inputs[1])[-1]
    if not isinstance(depth, int):
        barrier(graph, node)
        return
    rest = len(data) - depth
    for labels in [*data[:depth], *places, *updates[: len(updates) - rest]]:
        graph.pin(labels, "written by ScatterND")
    for labels, update in zip(data[depth:], updates[len(updates) - rest :], strict=True):
        graph.tie(labels, update)
    graph.set(node.outputs[0], data)


def tensor_scatter(graph: Channels, node: gs.Node) -> None:
    """A cache (batch, ..., steps, ...) and its update: batch and steps are pinned, the rest is tied."""
    cache, update = graph.axes(node.inputs[0]), graph.axes(node.inputs[1])
    axis = int(node.attrs.get("axis", -2)) % len(cache)
    for place, (labels, new) in enumerate(zip(cache, update, strict=True)):
        if place in {0, axis}:
            graph.pin(labels, "batch or steps of a cache")
            graph.pin(new, "batch or steps of a cache")
        else:
            graph.tie(labels, new)
    for extra in node.inputs[2:]:
        if not extra.is_empty():
            graph.pin_all(extra, "places in a cache")
    graph.set(node.outputs[0], cache)


def regions(graph: Channels, node: gs.Node) -> None:
    """RoiAlign, MaxRoiPool, GridSample: channels pass, places are data."""
    axes = graph.axes(node.inputs[0])
    for labels in [axes[0], *axes[2:]]:
        graph.pin(labels, "a spatial axis")
    for places in node.inputs[1:]:
        graph.pin_all(places, f"places of {node.op}")
    shape = graph.shape(node.outputs[0])
    out: Axes = [graph.fresh(size, "a spatial axis") if isinstance(size, int) else None for size in shape]
    out[1] = axes[1]
    graph.set(node.outputs[0], out)


def col2im(graph: Channels, node: gs.Node) -> None:
    """(batch, C · block, places) to (batch, C, image): channels are a line of the grid (C, block)."""
    axes = graph.axes(node.inputs[0])
    block = operand(node, 2, "block_shape")
    channels, size = axes[1], int(np.prod(block)) if block is not None else 0
    if channels is None or not size or len(channels) % size:
        barrier(graph, node)
        return
    graph.pin(axes[2], "a spatial axis")
    out = graph.fresh(len(channels) // size)
    if size > 1:
        graph.grid((out, graph.fresh(size, "a place in a block")), channels)
    else:
        graph.tie(out, channels)
    image = graph.shape(node.outputs[0])[2:]
    spatial: Axes = [graph.fresh(s, "a spatial axis") if isinstance(s, int) else None for s in image]
    graph.set(node.outputs[0], [axes[0], out, *spatial])


def quantize(graph: Channels, node: gs.Node) -> None:
    """QuantizeLinear, DequantizeLinear: one scale, or one an index of `axis`; blocks of a shared scale pin it."""
    axes = graph.axes(node.inputs[0])
    for parameter in node.inputs[1:]:
        if parameter.is_empty():
            continue
        own: Any = graph.axes(parameter)
        if len(own) == 1 and own[0] is not None and len(own[0]) > 1:
            graph.tie(own[0], axes[int(node.attrs.get("axis", 1)) % len(axes)])
        elif len(own) > 1:
            graph.pin_all(parameter, "scaled in blocks")
            graph.pin_all(node.inputs[0], "scaled in blocks")
    if given(node, 1, "y_scale") and node.attrs.get("block_size", 0):
        graph.pin_all(node.inputs[0], "scaled in blocks")
    graph.set(node.outputs[0], axes)
