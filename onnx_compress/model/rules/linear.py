"""Ops that consume the labels of a contracted axis and create new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_compress.model.rules.barriers import barrier

if TYPE_CHECKING:
    import numpy as np
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from onnx_compress.model.channels import Axes, Channels, Keep

    Labels = NDArray[np.int64]


def conv(graph: Channels, node: gs.Node) -> None:
    """Weight (O, I/g, k...): axis 1 is tied to the input's channels, axis 0 is the output's.

    Grouped: input and output channels are grids (group, index within the group), the weight's axis 1 the inner line.
    """
    data, weight = node.inputs[0], node.inputs[1]
    x, w = graph.axes(data), graph.axes(weight)
    group = int(node.attrs.get("group", 1))
    _pin_spatial(graph, w[2:], "part of a kernel")
    _pin_spatial(graph, x[2:], "a spatial axis")
    if group == 1:
        graph.tie(x[1], w[1])
    else:
        _groups(graph, node, x[1], w[1], w[0], group)
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        graph.tie(graph.axes(node.inputs[2])[0], w[0])
    _set_conv_output(graph, node, x[0], w[0])


def conv_transpose(graph: Channels, node: gs.Node) -> None:
    """Weight (I, O/g, k...): axis 0 is tied to the input's channels, axis 1 is the output's (of each group)."""
    data, weight = node.inputs[0], node.inputs[1]
    x, w = graph.axes(data), graph.axes(weight)
    group = int(node.attrs.get("group", 1))
    _pin_spatial(graph, w[2:], "part of a kernel")
    _pin_spatial(graph, x[2:], "a spatial axis")
    graph.tie(x[1], w[0])
    out = w[1]
    if group > 1:
        assert w[1] is not None
        out = graph.fresh(group * len(w[1]))
        _groups(graph, node, out, w[1], w[0], group)
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        graph.tie(graph.axes(node.inputs[2])[0], out)
    _set_conv_output(graph, node, x[0], out)


def deformable(graph: Channels, node: gs.Node) -> None:
    """DeformConv (x, weight, offsets, bias, mask): offsets are places; channels that share theirs in groups are pinned."""
    x, w = graph.axes(node.inputs[0]), graph.axes(node.inputs[1])
    if int(node.attrs.get("group", 1)) > 1 or int(node.attrs.get("offset_group", 1)) > 1:
        barrier(graph, node)
        return
    _pin_spatial(graph, w[2:], "part of a kernel")
    _pin_spatial(graph, x[2:], "a spatial axis")
    graph.tie(x[1], w[1])
    for index in (2, 4):
        if len(node.inputs) > index and not node.inputs[index].is_empty():
            graph.pin_all(node.inputs[index], "places of a deformed kernel")
    if len(node.inputs) > 3 and not node.inputs[3].is_empty():
        graph.tie(graph.axes(node.inputs[3])[0], w[0])
    _set_conv_output(graph, node, x[0], w[0])


def _groups(
    graph: Channels,
    node: gs.Node,
    split: Labels | None,
    within: Labels | None,
    rows: Labels | None,
    group: int,
) -> None:
    """`split` is a grid (group, within); `rows` is a grid (group, rows of one group)."""
    assert within is not None
    assert rows is not None
    if split is None or len(split) != group * len(within) or len(rows) % group:
        for labels in (split, within, rows):
            graph.pin(labels, f"the groups of {node.name} do not divide its channels")
        return
    lines = _line(graph, split, group, len(within))
    if lines is not split:
        graph.grid((lines, within), split)
    if len(rows) == group:
        graph.tie(rows, lines)
    else:
        graph.grid((lines, graph.fresh(len(rows) // group)), rows)

    def edit(keep: Keep) -> None:
        node.attrs["group"] = int(keep(lines).sum())

    graph.on_removal(edit)


def _line(graph: Channels, split: Labels, group: int, within: int) -> Labels:
    """A label for each group: the channel itself where a group has one (depthwise)."""
    return split if within == 1 else graph.fresh(group)


def _pin_spatial(graph: Channels, axes: Axes, why: str) -> None:
    for labels in axes:
        graph.pin(labels, why)


def _set_conv_output(graph: Channels, node: gs.Node, batch: Labels | None, channels: Labels | None) -> None:
    shape = graph.shape(node.outputs[0])
    spatial: Axes = [
        graph.fresh(size, "a spatial axis") if isinstance(size, int) else None for size in shape[2:]
    ]
    graph.set(node.outputs[0], [batch, channels, *spatial])


def gemm(graph: Channels, node: gs.Node) -> None:
    """Y = A B + C, with A or B transposed."""
    a, b = graph.axes(node.inputs[0]), graph.axes(node.inputs[1])
    rows, inner_a = (a[1], a[0]) if node.attrs.get("transA", 0) else (a[0], a[1])
    inner_b, columns = (b[1], b[0]) if node.attrs.get("transB", 0) else (b[0], b[1])
    graph.tie(inner_a, inner_b)
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        addend = graph.axes(node.inputs[2])
        for labels, target in zip(reversed(addend), (columns, rows), strict=False):
            if labels is not None and len(labels) > 1:
                graph.tie(labels, target)
    graph.set(node.outputs[0], [rows, columns])


def matmul(graph: Channels, node: gs.Node) -> None:
    """Batched matrix product: leading axes broadcast, the contracted axes are tied."""
    graph.set(node.outputs[0], product(graph, node, graph.axes(node.inputs[0]), graph.axes(node.inputs[1])))


def product(graph: Channels, node: gs.Node, a: Axes, b: Axes) -> Axes:
    """The axes of a matrix product."""
    a, b = list(a), list(b)
    if not a or not b:
        graph.fresh_axes(node.outputs[0], "a product of scalars")
        return graph.axes(node.outputs[0])
    inner_a = a.pop()
    inner_b = b.pop() if len(b) == 1 else b.pop(-2)
    graph.tie(inner_a, inner_b)
    row = [a.pop()] if a else []
    column = [b.pop()] if b else []
    rank = max(len(a), len(b))
    batch: Axes = []
    for axis in range(-rank, 0):
        sides = [side[axis] for side in (a, b) if len(side) >= -axis]
        batch.append(_batch_axis(graph, sides))
    return [*batch, *row, *column]


def _batch_axis(graph: Channels, sides: list[Any]) -> Any:
    full = [labels for labels in sides if labels is None or len(labels) > 1]
    if not full:
        return sides[0]
    if len(full) == 2:
        graph.tie(full[0], full[1])
        return full[0] if full[0] is not None else full[1]
    return full[0]


def recurrent(graph: Channels, node: gs.Node) -> None:
    """LSTM, GRU, RNN: hidden units are one line of the grid (gates, hidden), the same in both directions.

    X (seq, batch, I), or with layout 1 (batch, seq, I); W (dirs, gates H, I); R (dirs, gates H, H); B (dirs, 2 gates H); states (dirs, batch, H).
    """
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[node.op]
    inputs = [None if t.is_empty() else t for t in node.inputs] + [None] * 8
    x = graph.axes(inputs[0])
    w, r = graph.axes(inputs[1]), graph.axes(inputs[2])
    for labels in (x[0], x[1], w[0], r[0]):
        graph.pin(labels, "time, batch or direction")
    graph.tie(x[2], w[2])
    hidden = r[2]
    assert hidden is not None
    for labels, count in ((w[1], gates), (r[1], gates)):
        _gate_grid(graph, labels, count, hidden)
    if inputs[3] is not None:
        bias = graph.axes(inputs[3])
        graph.pin(bias[0], "direction")
        _gate_grid(graph, bias[1], 2 * gates, hidden)
    if inputs[4] is not None:
        graph.pin_all(inputs[4], "lengths of the sequences")
    for state in inputs[5:7]:
        if state is not None:
            axes = graph.axes(state)
            for labels in axes[:2]:
                graph.pin(labels, "batch or direction")
            graph.tie(axes[2], hidden)
    if node.op == "LSTM" and inputs[7] is not None:
        peepholes = graph.axes(inputs[7])
        graph.pin(peepholes[0], "direction")
        _gate_grid(graph, peepholes[1], 3, hidden)
    for output in node.outputs:
        if not output.is_empty():
            _recurrent_output(graph, output, hidden)

    def edit(keep: Keep) -> None:
        if "hidden_size" in node.attrs:
            node.attrs["hidden_size"] = int(keep(hidden).sum())

    graph.on_removal(edit)


def _gate_grid(graph: Channels, labels: Labels | None, count: int, hidden: Labels) -> None:
    if labels is None or len(labels) != count * len(hidden):
        graph.pin(labels, "gates that do not divide")
        graph.pin(hidden, "gates that do not divide")
    elif count == 1:
        graph.tie(labels, hidden)
    else:
        graph.grid((graph.fresh(count, "a gate"), hidden), labels)


def _recurrent_output(graph: Channels, output: gs.Tensor, hidden: Labels) -> None:
    shape = graph.shape(output)
    leading: Axes = [
        graph.fresh(size, "time, batch or direction") if isinstance(size, int) else None
        for size in shape[:-1]
    ]
    graph.set(output, [*leading, hidden])
