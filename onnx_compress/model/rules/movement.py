"""Ops that move indices along axes: they run on label arrays as they run on data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.model.channels import Axes, Channels, Keep

    Labels = NDArray[np.int64]


def operand(node: gs.Node, index: int, attribute: str) -> Any:
    """A list that is an attribute in old opsets and a constant input in new ones; None where it is neither."""
    if attribute in node.attrs:
        return node.attrs[attribute]
    if len(node.inputs) > index and isinstance(node.inputs[index], gs.Constant):
        return np.asarray(node.inputs[index].values).tolist()
    return None


def given(node: gs.Node, index: int, attribute: str) -> bool:
    """The operand is there, constant or not."""
    return attribute in node.attrs or (len(node.inputs) > index and not node.inputs[index].is_empty())


def set_operand(graph: Channels, node: gs.Node, index: int, attribute: str, value: list[int]) -> None:
    """Writes what `operand` reads; a constant input is replaced by one of its own, since others may share it."""
    if attribute in node.attrs:
        node.attrs[attribute] = value
    else:
        dtype = np.asarray(node.inputs[index].values).dtype
        node.inputs[index] = graph.surgery.constant(f"{node.name}_{attribute}", np.array(value, dtype))


def transpose(graph: Channels, node: gs.Node) -> None:
    """Axes in another order."""
    axes = graph.axes(node.inputs[0])
    order = node.attrs.get("perm") or list(range(len(axes)))[::-1]
    graph.set(node.outputs[0], [axes[i] for i in order])


def concat(graph: Channels, node: gs.Node) -> None:
    """Labels one after the other along the axis, tied along the others."""
    parts = [graph.axes(tensor) for tensor in node.inputs]
    rank = len(parts[0])
    joined = int(node.attrs["axis"]) % rank
    out: Axes = []
    for axis in range(rank):
        column = [part[axis] for part in parts]
        if axis == joined:
            known = [labels for labels in column if labels is not None]
            if len(known) == len(column):
                out.append(np.concatenate(known))
                continue
            for some in known:
                graph.pin(some, "joined with an axis of unknown size")
            out.append(None)
        else:
            first = column[0]
            for labels in column[1:]:
                graph.tie(first, labels)
            out.append(first)
    graph.set(node.outputs[0], out)


def split(graph: Channels, node: gs.Node) -> None:
    """Runs of labels; the sizes are written anew when channels go."""
    axes = graph.axes(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % len(axes)
    labels = axes[axis]
    sizes = [graph.shape(output)[axis] for output in node.outputs]
    if labels is None or not all(isinstance(size, int) for size in sizes) or sum(sizes) != len(labels):  # type: ignore[arg-type]
        graph.pin(labels, "split in sizes computed in the graph")
        for output in node.outputs:
            size = graph.shape(output)[axis]
            piece = (
                graph.fresh(size, "split in sizes computed in the graph") if isinstance(size, int) else None
            )
            graph.set(output, [*axes[:axis], piece, *axes[axis + 1 :]])
        return
    pieces = np.split(labels, np.cumsum(sizes)[:-1])  # type: ignore[arg-type]
    for output, piece in zip(node.outputs, pieces, strict=True):
        graph.set(output, [*axes[:axis], piece, *axes[axis + 1 :]])

    def edit(keep: Keep) -> None:
        kept = [int(keep(piece).sum()) for piece in pieces]
        if kept == sizes:
            return
        node.attrs.pop("num_outputs", None)
        if (graph.surgery.graph.opset or 13) < 13:
            node.attrs["split"] = kept
        elif len(node.inputs) > 1:
            set_operand(graph, node, 1, "split", kept)
        else:
            node.inputs.append(graph.surgery.constant(f"{node.name}_split", np.array(kept, np.int64)))

    graph.on_removal(edit)
    for piece in pieces:
        _keep_one(graph, piece)


def _keep_one(graph: Channels, labels: Labels) -> None:
    """A piece of one channel cannot vanish."""
    if len(labels) == 1:
        graph.pin(labels, "the only channel of its piece")


def slice_(graph: Channels, node: gs.Node) -> None:
    """Constant bounds with step 1 are written anew when channels go; any other cut pins its axis."""
    axes = list(graph.axes(node.inputs[0]))
    starts, ends = operand(node, 1, "starts"), operand(node, 2, "ends")
    cut = operand(node, 3, "axes")
    if cut is None and not given(node, 3, "axes") and starts is not None:
        cut = list(range(len(starts)))
    steps = operand(node, 4, "steps")
    if steps is None and not given(node, 4, "steps"):
        steps = [1] * len(cut or ())
    shape = graph.shape(node.outputs[0])
    if starts is None or ends is None or cut is None or steps is None:
        for axis, size in enumerate(shape):
            graph.pin(axes[axis], "cut at a place computed in the graph")
            axes[axis] = (
                graph.fresh(size, "cut at a place computed in the graph") if isinstance(size, int) else None
            )
        graph.set(node.outputs[0], axes)
        return
    moving: dict[int, tuple[Labels, slice]] = {}
    for position, axis in enumerate(int(a) % len(axes) for a in cut):
        labels = axes[axis]
        if labels is None:
            size = shape[axis]
            axes[axis] = (
                graph.fresh(size, "cut from an axis of unknown size") if isinstance(size, int) else None
            )
            continue
        step = int(steps[position])
        window = slice(*_bounds(int(starts[position]), int(ends[position]), step, len(labels)))
        axes[axis] = labels[window]
        _keep_one(graph, labels[window])
        if step == 1:
            moving[position] = (labels, window)
        else:
            graph.pin(labels, "cut with a step")
    graph.set(node.outputs[0], axes)

    def edit(keep: Keep) -> None:
        new_starts, new_ends = [int(v) for v in starts], [int(v) for v in ends]
        for position, (labels, window) in moving.items():
            kept = keep(labels)
            if not kept.all():
                new_starts[position] = int(kept[: window.start].sum())
                new_ends[position] = int(kept[: window.stop].sum())
        if new_starts != list(starts) or new_ends != list(ends):
            set_operand(graph, node, 1, "starts", new_starts)
            set_operand(graph, node, 2, "ends", new_ends)

    graph.on_removal(edit)


def _bounds(start: int, end: int, step: int, size: int) -> tuple[int, int | None, int]:
    """Python's bounds for ONNX's: clipped, negative ones counted from the end."""
    low, high, step = slice(start, end, step).indices(size)
    return low, (None if high < 0 else high), step


def gather(graph: Channels, node: gs.Node) -> None:
    """Constant indices pick labels and are written anew; other indices look up by data, which pins their axis."""
    data = graph.axes(node.inputs[0])
    axis = int(node.attrs.get("axis", 0)) % len(data)
    labels, picked = data[axis], node.inputs[1]
    if not isinstance(picked, gs.Constant) or labels is None:
        graph.pin(labels, "looked up by an index that is data")
        middle = graph.axes(picked)
        graph.set(node.outputs[0], [*data[:axis], *middle, *data[axis + 1 :]])
        return
    indices = np.asarray(picked.values)
    wrapped = np.where(indices < 0, indices + len(labels), indices)
    if indices.ndim != 1:
        graph.pin(labels[np.unique(wrapped)], "picked one by one")
        middle = [graph.fresh(size, "picked one by one") for size in indices.shape]
    else:
        middle = [labels[wrapped]]
        _keep_one(graph, labels[wrapped])
    graph.set(node.outputs[0], [*data[:axis], *middle, *data[axis + 1 :]])

    def edit(keep: Keep) -> None:
        kept = keep(labels)
        if not kept.all():
            place = np.cumsum(kept) - 1
            new = place[wrapped]
            if indices.ndim == 1:
                new = new[kept[wrapped]]
            hint = f"{node.name}_indices"
            node.inputs[1] = graph.surgery.constant(hint, new.astype(indices.dtype))

    graph.on_removal(edit)


def pad(graph: Channels, node: gs.Node) -> None:
    """Padding with a constant adds indices of its own, which go by padding less."""
    axes = graph.axes(node.inputs[0])
    rank = len(axes)
    pads = operand(node, 1, "pads")
    some = operand(node, 3, "axes")
    mode = node.attrs.get("mode", "constant")
    out: Axes = []
    added: dict[int, tuple[Labels, Labels]] = {}
    for axis, labels in enumerate(axes):
        size = graph.shape(node.outputs[0])[axis]
        amounts = _pads(pads, some, axis, rank)
        if amounts == (0, 0) or labels is None:
            out.append(labels if amounts == (0, 0) else None)
        elif amounts is None or min(amounts) < 0 or mode != "constant":
            graph.pin(labels, "padded with its own values or by an amount computed in the graph")
            out.append(graph.fresh(size, "padded") if isinstance(size, int) else None)
        else:
            before, after = (graph.ties.fresh(n) for n in amounts)
            added[axis] = before, after
            out.append(np.concatenate([before, labels, after]))
    graph.set(node.outputs[0], out)

    def edit(keep: Keep) -> None:
        new = [int(amount) for amount in pads]
        padded = [int(a) % rank for a in some] if some is not None else list(range(rank))
        for axis, sides in added.items():
            for side, place in zip(sides, (0, len(padded)), strict=True):
                new[padded.index(axis) + place] = int(keep(side).sum())
        if new != list(pads):
            set_operand(graph, node, 1, "pads", new)

    if added:
        graph.on_removal(edit)


def _pads(pads: Any, some: Any, axis: int, rank: int) -> tuple[int, int] | None:
    if pads is None:
        return None
    axes = [int(a) % rank for a in some] if some is not None else list(range(rank))
    if axis not in axes:
        return (0, 0)
    at = axes.index(axis)
    return int(pads[at]), int(pads[at + len(axes)])


def tile(graph: Channels, node: gs.Node) -> None:
    """Labels repeated."""
    axes = graph.axes(node.inputs[0])
    repeats = operand(node, 1, "repeats")
    out: Axes = []
    for axis, labels in enumerate(axes):
        size = graph.shape(node.outputs[0])[axis]
        if labels is None:
            out.append(None)
        elif repeats is None:
            graph.pin(labels, "repeated a number of times that is data")
            out.append(graph.fresh(size, "repeated") if isinstance(size, int) else None)
        else:
            out.append(np.tile(labels, int(repeats[axis])))
    graph.set(node.outputs[0], out)


def depth_to_space(graph: Channels, node: gs.Node) -> None:
    """Channels are a grid (block, block, C), or (C, block, block) in mode CRD, whose blocks are pinned."""
    axes = graph.axes(node.inputs[0])
    block, channels = int(node.attrs["blocksize"]), axes[1]
    if channels is None:
        graph.fresh_axes(node.outputs[0], "made of an axis of unknown size")
        return
    out = graph.fresh(len(channels) // block**2)
    blocks = [graph.fresh(block, "a place in a block") for _ in range(2)]
    lines = [out, *blocks] if node.attrs.get("mode", "DCR") == "CRD" else [*blocks, out]
    graph.grid(lines, channels)
    _set_spatial(graph, node, axes, out)


def space_to_depth(graph: Channels, node: gs.Node) -> None:
    """The new channels are a grid (block, block, C)."""
    axes = graph.axes(node.inputs[0])
    block, channels = int(node.attrs["blocksize"]), axes[1]
    if channels is None:
        graph.fresh_axes(node.outputs[0], "made of an axis of unknown size")
        return
    out = graph.fresh(len(channels) * block**2)
    blocks = [graph.fresh(block, "a place in a block") for _ in range(2)]
    graph.grid([*blocks, channels], out)
    _set_spatial(graph, node, axes, out)


def _set_spatial(graph: Channels, node: gs.Node, axes: Axes, channels: Labels) -> None:
    for labels in axes[2:]:
        graph.pin(labels, "a spatial axis")
    shape = graph.shape(node.outputs[0])
    spatial: Axes = [graph.fresh(s, "a spatial axis") if isinstance(s, int) else None for s in shape[2:]]
    graph.set(node.outputs[0], [axes[0], channels, *spatial])
