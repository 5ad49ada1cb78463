"""Attention as one op: heads and the width of a head are the two lines of each grid of channels.

Grouped queries: the heads of the queries are themselves a grid (heads of keys, queries of each).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnx_compress.model.rules.barriers import barrier

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from onnx_compress.model.channels import Axes, Channels, Keep

    Labels = NDArray[np.int64]
    Lines = tuple[Labels, Labels]  # of heads and of the width of one


def attention(graph: Channels, node: gs.Node) -> None:
    """The standard op: Q, K, V of rank 4 (batch, heads, steps, width), or of rank 3 with heads and width merged."""
    query, key, value = (graph.axes(tensor) for tensor in node.inputs[:3])
    count, groups = int(node.attrs.get("q_num_heads", 0)), int(node.attrs.get("kv_num_heads", 0))
    lines = [_lines(graph, axes, heads) for axes, heads in ((query, count), (key, groups), (value, groups))]
    q, k, v = lines
    if q is None or k is None or v is None:
        barrier(graph, node)
        return
    _meet(graph, q, k, v)
    _steps(graph, node, [query, key, value])
    _mask(graph, _input(node, 3), q[0])
    _past(graph, node, (4, 5), k, v)
    graph.set(node.outputs[0], _result(graph, query, q, v))
    _present(graph, node, (1, 2), k, v)
    for output in node.outputs[3:]:
        if not output.is_empty():
            graph.fresh_axes(output, "scores of attention")
            graph.tie(graph.axes(output)[1], q[0])

    def edit(keep: Keep) -> None:
        if len(query) == 3:
            node.attrs["q_num_heads"] = int(keep(q[0]).sum())
            node.attrs["kv_num_heads"] = int(keep(k[0]).sum())
        _keep_scale(node, keep, q[1])

    graph.on_removal(edit)


def multi_head_attention(graph: Channels, node: gs.Node) -> None:
    """com.microsoft: query, key, value (batch, steps, heads · width), one bias for the three; packed forms pin."""
    heads = int(node.attrs["num_heads"])
    known = [_input(node, i) for i in range(3)]
    if any(tensor is None or len(graph.axes(tensor)) not in {3, 4} for tensor in known):
        barrier(graph, node)
        return
    query, key, value = (graph.axes(tensor) for tensor in node.inputs[:3])
    q, k, v = (_lines(graph, axes, heads) for axes in (query, key, value))
    if q is None or k is None or v is None or len(query) != 3:
        barrier(graph, node)
        return
    _meet(graph, q, k, v)
    _steps(graph, node, [query, key, value])
    bias = _input(node, 3)
    if bias is not None:
        labels = graph.axes(bias)[0]
        assert labels is not None
        ends = np.cumsum([len(line[0]) * len(line[1]) for line in (q, k)])
        for line, piece in zip((q, k, v), np.split(labels, ends), strict=True):
            graph.grid(line, piece)
    padding = _input(node, 4)
    if padding is not None:
        graph.pin_all(padding, "a mask of steps")
    _mask(graph, _input(node, 5), q[0])
    _past(graph, node, (6, 7), k, v)
    for tensor in node.inputs[8:]:
        if not tensor.is_empty():
            graph.pin_all(tensor, "kept between calls")
    graph.set(node.outputs[0], _result(graph, query, q, v))
    _present(graph, node, (1, 2), k, v)
    for output in node.outputs[3:]:
        if not output.is_empty():
            graph.fresh_axes(output, "scores of attention")
            graph.tie(graph.axes(output)[1], q[0])

    def edit(keep: Keep) -> None:
        node.attrs["num_heads"] = int(keep(q[0]).sum())
        _keep_scale(node, keep, q[1])

    graph.on_removal(edit)


def packed_attention(graph: Channels, node: gs.Node) -> None:
    """com.microsoft.Attention: one weight (I, q + k + v) and one bias for the three projections."""
    x, w = graph.axes(node.inputs[0]), graph.axes(node.inputs[1])
    heads, columns = int(node.attrs["num_heads"]), w[1]
    assert columns is not None
    sizes = [int(s) for s in node.attrs.get("qkv_hidden_sizes") or [len(columns) // 3] * 3]
    if _input(node, 4) is not None or node.attrs.get("do_rotary", 0) or any(size % heads for size in sizes):
        barrier(graph, node)
        return
    graph.tie(x[2], w[0])
    _steps(graph, node, [x])
    bias = _input(node, 2)
    if bias is not None:
        graph.tie(graph.axes(bias)[0], columns)
    line = graph.fresh(heads)
    widths = [graph.fresh(size // heads) for size in sizes]
    graph.tie(widths[0], widths[1])
    for width, piece in zip(widths, np.split(columns, np.cumsum(sizes)[:2]), strict=True):
        graph.grid((line, width), piece)
    for index in (3, 6):
        tensor = _input(node, index)
        if tensor is not None:
            graph.pin_all(tensor, "a mask of steps")
    _mask(graph, _input(node, 5), line)
    graph.set(node.outputs[0], _result(graph, x, (line, widths[0]), (line, widths[2])))
    for output in node.outputs[1:]:
        if not output.is_empty():
            graph.pin(line, "kept between calls")
            for width in widths:
                graph.pin(width, "kept between calls")

    def edit(keep: Keep) -> None:
        count = int(keep(line).sum())
        node.attrs["num_heads"] = count
        if not all(keep(width).all() for width in [line, *widths]):
            node.attrs["qkv_hidden_sizes"] = [count * int(keep(width).sum()) for width in widths]
        _keep_scale(node, keep, widths[0])

    graph.on_removal(edit)


def rotary(graph: Channels, node: gs.Node) -> None:
    """RotaryEmbedding turns pairs of one head's channels by tables: heads can go, the width of a head cannot."""
    axes = graph.axes(node.inputs[0])
    for table in node.inputs[1:]:
        if not table.is_empty():
            graph.pin_all(table, "tables of rotations")
    if len(axes) == 4:
        graph.pin(axes[3], "turned in pairs")
    else:
        table = node.inputs[2 if node.domain else 1]
        width = int(node.attrs.get("rotary_embedding_dim", 0)) or 2 * int(graph.shape(table)[-1] or 0)
        heads = int(node.attrs.get("num_heads", 0)) or len(axes[2] if axes[2] is not None else ()) // width
        lines = _lines(graph, axes, heads)
        if lines is None:
            barrier(graph, node)
            return
        graph.pin(lines[1], "turned in pairs")
        line = lines[0]

        def edit(keep: Keep) -> None:
            if node.attrs.get("num_heads", 0):
                node.attrs["num_heads"] = int(keep(line).sum())

        graph.on_removal(edit)
    graph.set(node.outputs[0], axes)


def _lines(graph: Channels, axes: Axes, heads: int) -> Lines | None:
    """Heads and width of one operand; None where they are not known."""
    if len(axes) == 4:
        return None if axes[1] is None or axes[3] is None else (axes[1], axes[3])
    cells = axes[2]
    if cells is None or heads < 1 or len(cells) % heads:
        return None
    lines = graph.fresh(heads), graph.fresh(len(cells) // heads)
    graph.grid(lines, cells)
    return lines


def _meet(graph: Channels, q: Lines, k: Lines, v: Lines) -> None:
    """Queries are contracted with keys, weights with values."""
    graph.tie(q[1], k[1])
    graph.tie(k[0], v[0])
    if len(q[0]) == len(k[0]):
        graph.tie(q[0], k[0])
    else:
        graph.grid((k[0], graph.fresh(len(q[0]) // len(k[0]))), q[0])


def _steps(graph: Channels, node: gs.Node, operands: list[Axes]) -> None:
    for axes in operands:
        for labels in (axes[0], axes[1] if len(axes) == 3 else axes[2]):
            graph.pin(labels, f"batch or steps of {node.op}")


def _mask(graph: Channels, mask: gs.Tensor | None, heads: Labels) -> None:
    """A mask or bias of the scores (..., heads or 1, steps, steps)."""
    if mask is None:
        return
    for axis, labels in enumerate(reversed(graph.axes(mask))):
        if axis == 2 and labels is not None and len(labels) > 1:
            graph.tie(labels, heads)
        else:
            graph.pin(labels, "a mask of steps")


def _past(graph: Channels, node: gs.Node, indices: tuple[int, int], k: Lines, v: Lines) -> None:
    for index, (heads, width) in zip(indices, (k, v), strict=True):
        tensor = _input(node, index)
        if tensor is not None:
            axes = graph.axes(tensor)
            graph.pin(axes[0], "a batch")
            graph.pin(axes[2], "steps")
            graph.tie(axes[1], heads)
            graph.tie(axes[3], width)


def _present(graph: Channels, node: gs.Node, indices: tuple[int, int], k: Lines, v: Lines) -> None:
    for index, (heads, width) in zip(indices, (k, v), strict=True):
        if len(node.outputs) > index and not node.outputs[index].is_empty():
            shape = graph.shape(node.outputs[index])
            batch, steps = (graph.fresh(s, "steps") if isinstance(s, int) else None for s in shape[::2])
            graph.set(node.outputs[index], [batch, heads, steps, width])


def _result(graph: Channels, query: Axes, q: Lines, v: Lines) -> Axes:
    """As the query, with the values' width."""
    if len(query) == 4:
        return [query[0], q[0], query[2], v[1]]
    cells = graph.fresh(len(q[0]) * len(v[1]))
    graph.grid((q[0], v[1]), cells)
    return [query[0], query[1], cells]


def _keep_scale(node: gs.Node, keep: Keep, width: Labels) -> None:
    """The scores keep the scale that the whole width gave them."""
    if not node.attrs.get("scale") and not keep(width).all():
        node.attrs["scale"] = float(1 / np.sqrt(len(width)))


def _input(node: gs.Node, index: int) -> gs.Tensor | None:
    given = len(node.inputs) > index and not node.inputs[index].is_empty()
    return node.inputs[index] if given else None
