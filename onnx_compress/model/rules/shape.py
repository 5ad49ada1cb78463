"""Ops that reshape: merges and splits of axes are grids, and constants that count channels are written anew."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.model.channels import Axes, Channels, Keep
    from onnx_compress.model.shapes import Shape

    Labels = NDArray[np.int64]


def reshape(graph: Channels, node: gs.Node) -> None:
    """Equal axes pass through, a merge or a split of axes is a grid, everything else is pinned."""
    data, output = node.inputs[0], node.outputs[0]
    out = _relabel(graph, graph.axes(data), graph.shape(data), graph.shape(output))
    graph.set(output, out)
    if len(node.inputs) > 1:
        keep_sizes(graph, node, 1, out)
    elif "shape" in node.attrs:

        def edit(keep: Keep) -> None:
            for axis, labels in enumerate(out):
                if labels is not None and not keep(labels).all():
                    node.attrs["shape"][axis] = int(keep(labels).sum())

        graph.on_removal(edit)


def flatten(graph: Channels, node: gs.Node) -> None:
    """A Reshape to two axes that counts for itself."""
    data, output = node.inputs[0], node.outputs[0]
    graph.set(output, _relabel(graph, graph.axes(data), graph.shape(data), graph.shape(output)))


def squeeze(graph: Channels, node: gs.Node) -> None:
    """Axes of size 1 go or come; which ones follows from the shapes."""
    flatten(graph, node)


def expand(graph: Channels, node: gs.Node) -> None:
    """Axes of size 1 are stretched: the new indices are all the same, so any of them may go."""
    data, output = node.inputs[0], node.outputs[0]
    axes, before, after = graph.axes(data), graph.shape(data), graph.shape(output)
    out: Axes = []
    for place in range(-len(after), 0):
        size = after[place]
        labels = axes[place] if len(axes) >= -place else None
        old = before[place] if len(before) >= -place else 1
        if labels is not None and old == size:
            out.append(labels)
        else:
            graph.pin(labels, "stretched")
            out.append(graph.fresh(size) if isinstance(size, int) else None)
    graph.set(output, out)
    keep_sizes(graph, node, 1, out)


def constant_of_shape(graph: Channels, node: gs.Node) -> None:
    """The same value everywhere: any index may go."""
    graph.fresh_axes(node.outputs[0], None)
    keep_sizes(graph, node, 0, graph.axes(node.outputs[0]))


def shape_of(graph: Channels, node: gs.Node) -> None:
    """Sizes of labelled axes keep their old values for whoever reads them as data; those who read them as sizes
    write theirs anew (`keep_sizes`).
    """
    axes = graph.axes(node.inputs[0])
    sizes = graph.shape(node.inputs[0])
    low, high, _ = slice(node.attrs.get("start", 0), node.attrs.get("end")).indices(len(axes))
    graph.fresh_axes(node.outputs[0], "a size")
    picked = axes[low:high]
    result = node.outputs[0]

    def edit(keep: Keep) -> None:
        changed = {i: sizes[low + i] for i, labels in enumerate(picked) if _shrinks(labels, keep)}
        if changed:
            _overwrite(graph, result, changed, after=node)

    graph.on_removal(edit)


def keep_sizes(graph: Channels, node: gs.Node, index: int, axes: Axes) -> None:
    """Input `index` of `node` counts the labels of `axes`: it is written anew when some of them go."""
    original = node.inputs[index]

    def edit(keep: Keep) -> None:
        sizes = {
            i: int(keep(labels).sum())
            for i, labels in enumerate(axes)
            if labels is not None and _shrinks(labels, keep)
        }
        if not sizes:
            return
        if isinstance(original, gs.Constant):
            value = np.array(original.values)
            for axis, size in sizes.items():
                if value[axis] > 0:
                    value[axis] = size
            if not np.array_equal(value, original.values):
                node.inputs[index] = graph.surgery.constant(f"{node.name}_sizes", value)
        else:
            _overwrite(graph, original, sizes, before=node, index=index)

    graph.on_removal(edit)


def _shrinks(labels: Labels | None, keep: Keep) -> bool:
    return labels is not None and not bool(keep(labels).all())


def _overwrite(
    graph: Channels,
    tensor: gs.Tensor,
    values: dict[int, Any],
    *,
    after: gs.Node | None = None,
    before: gs.Node | None = None,
    index: int = 0,
) -> None:
    """`tensor`, a vector of sizes, with these entries replaced: for all its readers, or for one input of one node."""
    surgery = graph.surgery
    length = graph.shape(tensor)[0]
    assert isinstance(length, int)
    mask, value = np.zeros(length, bool), np.zeros(length, np.int64)
    for place, number in values.items():
        mask[place], value[place] = True, number
    readers = [
        (reader, i) for reader in list(tensor.outputs) for i, t in enumerate(reader.inputs) if t is tensor
    ]
    constants = [surgery.constant(f"{tensor.name}_mask", mask), surgery.constant(f"{tensor.name}_old", value)]
    where = surgery.node("Where", f"{tensor.name}_sizes", [*constants, tensor])
    nodes = surgery.holder(after if before is None else before).nodes
    if before is not None:
        before.inputs[index] = where.outputs[0]
        at = next(i for i, other in enumerate(nodes) if other is before)
    else:
        for reader, i in readers:
            reader.inputs[i] = where.outputs[0]
        at = next(i for i, other in enumerate(nodes) if other is after) + 1
    nodes.insert(at, where)


def _relabel(graph: Channels, axes: Axes, before: Shape, after: Shape) -> Axes:
    """The labels after a reshape from `before` to `after`."""
    out: Axes = [graph.fresh(1) if size == 1 else None for size in after]
    old = [i for i, size in enumerate(before) if size != 1]
    new = [i for i, size in enumerate(after) if size != 1]
    numbers_old, numbers_new = _numbered([before[i] for i in old], [after[i] for i in new])
    for run_old, run_new in _runs(numbers_old, numbers_new):
        sources, targets = [old[i] for i in run_old], [new[i] for i in run_new]
        _run(graph, axes, out, after, sources, targets)
    return out


def _run(
    graph: Channels, axes: Axes, out: Axes, after: Shape, sources: list[int], targets: list[int]
) -> None:
    """One smallest run of equal product."""
    lines = [axes[i] for i in sources]
    sizes = [after[i] for i in targets]
    if len(lines) == 1 and len(sizes) == 1:
        out[targets[0]] = lines[0] if isinstance(sizes[0], int) else None
        if not isinstance(sizes[0], int):
            graph.pin(lines[0], "reshaped to an unknown size")
        return
    known = [labels for labels in lines if labels is not None]
    if len(known) < len(lines) or not all(isinstance(size, int) for size in sizes):
        for labels in known:
            graph.pin(labels, "reshaped together with an axis of unknown size")
        for i in targets:
            size = after[i]
            out[i] = (
                graph.fresh(size, "reshaped together with an axis of unknown size")
                if isinstance(size, int)
                else None
            )
        return
    cells = known[0] if len(known) == 1 else graph.fresh(int(np.prod([len(labels) for labels in known])))
    if len(known) > 1:
        graph.grid(known, cells)
    if len(targets) == 1:
        out[targets[0]] = cells
        return
    fresh = [graph.fresh(int(size)) for size in sizes if isinstance(size, int)]
    graph.grid(fresh, cells)
    for i, labels in zip(targets, fresh, strict=True):
        out[i] = labels


def _numbered(before: list[Any], after: list[Any]) -> tuple[list[int], list[int]]:
    """Sizes as numbers: symbols stand as distinct primes; the only unknown of one side is what the other side leaves."""
    primes = iter(_PRIMES)
    known = {name: next(primes) for name in {size for size in [*before, *after] if isinstance(size, str)}}
    left = [size if isinstance(size, int) else known.get(size, 0) for size in before]
    right = [size if isinstance(size, int) else known.get(size, 0) for size in after]
    shared = (set(left) & set(right)) - {0}
    odd_left = [i for i, size in enumerate(before) if not isinstance(size, int) and left[i] not in shared]
    odd_right = [i for i, size in enumerate(after) if not isinstance(size, int) and right[i] not in shared]
    for odd, side, others, other in ((odd_right, right, odd_left, left), (odd_left, left, odd_right, right)):
        if len(odd) == 1:
            for i in others:
                other[i] = next(primes)
            whole = math.prod(other)
            rest = math.prod(number for i, number in enumerate(side) if i != odd[0])
            if rest and whole % rest == 0:
                side[odd[0]] = whole // rest
                break
    return [number or next(primes) for number in left], [number or next(primes) for number in right]


_PRIMES = (1_000_003, 1_000_033, 1_000_037, 1_000_039, 1_000_081, 1_000_099, 1_000_117, 1_000_121, 1_000_133, 1_000_151,
           1_000_159, 1_000_171, 1_000_183, 1_000_187, 1_000_193, 1_000_199, 1_000_211, 1_000_213, 1_000_231, 1_000_249)  # fmt: skip


def _runs(before: list[int], after: list[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes of equal product, from the left; what is left over is one last run."""
    runs: list[tuple[list[int], list[int]]] = []
    left: list[int] = []
    right: list[int] = []
    i = j = 0
    product_left = product_right = 1
    while i < len(before) or j < len(after):
        if (product_left <= product_right and i < len(before)) or j == len(after):
            product_left *= before[i]
            left.append(i)
            i += 1
        else:
            product_right *= after[j]
            right.append(j)
            j += 1
        if product_left == product_right and left and right:
            runs.append((left, right))
            left, right, product_left, product_right = [], [], 1, 1
    if left or right:
        runs.append((left, right))
    return runs
