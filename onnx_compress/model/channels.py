"""Which channels live together: integer labels carried through the graph, and the units that can be removed whole.

Each index of each static axis of each tensor carries a label; symbolic axes carry none. Ops that move indices move
labels, elementwise ops tie them, Conv and MatMul consume the labels of the contracted axis and create new ones, and a
Reshape that merges or splits axes records a grid. What cannot go is pinned, with a reason. The rules, one an op, are in
`model/rules`; there is no matching of topologies.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.shapes import Shape
    from onnx_compress.model.surgery import Surgery

    Array = NDArray[Any]
    Labels = NDArray[np.int64]
    Axes = list[Labels | None]  # of one tensor; None: a symbolic axis
    Keep = Callable[[Labels], NDArray[np.bool_]]  # which of these labels survive a removal


@dataclass(frozen=True)
class Grid:
    """Cells in C order against the labels of their axes: a cell goes if and only if one of its lines goes.

    lines: one label array an axis; cells: labels of shape (len of each line array).
    """

    lines: tuple[Labels, ...]
    cells: Labels


@dataclass(frozen=True)
class Unit:
    """What goes together: `labels`, and where they sit: (tensor, axis) -> indices, weights only."""

    labels: frozenset[int]
    places: dict[tuple[str, int], Labels]

    @property
    def kind(self) -> frozenset[tuple[str, int]]:
        """The weight axes it takes from: units of one kind are alternatives to each other."""
        return frozenset(self.places)


class Channels:
    """The labels of every tensor of the main graph of `surgery`.

    shapes: of every tensor, ints for static and strings or None for symbolic axes (`model.shapes.infer`).
    """

    def __init__(self, surgery: Surgery, shapes: dict[str, Shape]) -> None:
        from onnx_compress.model.rules import RULES, barrier

        self.surgery = surgery
        self.shapes = shapes
        self.constants: dict[str, gs.Constant] = {}
        self.grids: list[Grid] = []
        self._axes: dict[str, Axes] = {}
        self._parent: list[int] = []
        self._pins: dict[int, str] = {}
        self._removals: list[Callable[[Keep], None]] = []
        for value in surgery.graph.inputs:
            self.fresh_axes(value, "a graph input")
        for node in surgery.graph.nodes:
            rule = RULES.get(node.op) if (node.domain or "") in _DOMAINS else None
            if rule is None or not all(self._known(t) for t in [*node.inputs, *node.outputs]):
                barrier(self, node)
            else:
                rule(self, node)
            for output in node.outputs:
                self._settle(node, output)
        for value in surgery.graph.outputs:
            self.pin_all(value, "a graph output")

    # what rules say

    def axes(self, tensor: gs.Tensor) -> Axes:
        """The labels of `tensor`, one entry an axis; those of a weight are made when it is first asked for."""
        if tensor.name not in self._axes:
            if isinstance(tensor, gs.Constant):
                self.constants[tensor.name] = tensor
                self._axes[tensor.name] = [self.fresh(size) for size in tensor.shape]
            else:
                self.fresh_axes(tensor, "made where no label is followed")
        return self._axes[tensor.name]

    def set(self, tensor: gs.Tensor, axes: Axes) -> None:
        """These are the labels of `tensor`."""
        self._axes[tensor.name] = list(axes)

    def fresh(self, size: int, pin: str | None = None) -> Labels:
        """New labels; a single one cannot go, so it is pinned."""
        labels = np.arange(len(self._parent), len(self._parent) + size)
        self._parent.extend(labels.tolist())
        if pin is not None or size == 1:
            self.pin(labels, pin or "the only one of its axis")
        return labels

    def fresh_axes(self, tensor: gs.Tensor, pin: str | None) -> None:
        """New labels on every static axis of `tensor`."""
        shape = self.shapes.get(tensor.name) or ()
        self.set(tensor, [self.fresh(size, pin) if isinstance(size, int) else None for size in shape])

    def tie(self, a: Labels | None, b: Labels | None, why: str = "meets a symbolic axis") -> None:
        """These labels are the same, one by one. A static axis that meets a symbolic one is pinned."""
        if a is None or b is None or len(a) != len(b):
            for labels in (a, b):
                if labels is not None:
                    self.pin(labels, why)
            return
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            self._union(x, y)

    def pin(self, labels: Labels | None, why: str) -> None:
        """These labels cannot go."""
        if labels is not None:
            for label in labels.tolist():
                self._pins.setdefault(self._find(label), why)

    def pin_all(self, tensor: gs.Tensor, why: str) -> None:
        """No label of `tensor` can go."""
        for labels in self.axes(tensor):
            self.pin(labels, why)

    def grid(self, lines: Sequence[Labels], cells: Labels) -> None:
        """Records a merge or a split: `cells`, in C order, against the labels of their axes."""
        shape = tuple(len(line) for line in lines)
        self.grids.append(Grid(tuple(lines), cells.reshape(shape)))

    def on_removal(self, edit: Callable[[Keep], None]) -> None:
        """`edit` is called when channels are removed, to rewrite what counts them."""
        self._removals.append(edit)

    def shape(self, tensor: gs.Tensor) -> Shape:
        """The shape of `tensor`."""
        if isinstance(tensor, gs.Constant):
            return tuple(int(size) for size in tensor.shape)
        return self.shapes[tensor.name]

    # what passes ask

    def units(self) -> tuple[list[Unit], dict[str, str]]:
        """Every unit that can be removed, and for each weight axis with none ("name[axis]"), what pins it."""
        return _Closure(self).units()

    def remove(self, units: Iterable[Unit]) -> None:
        """Removes the union of these units from the view: weights, attributes and the constants that count channels."""
        dead = frozenset().union(*(unit.labels for unit in units))
        if not dead:
            return

        def keep(labels: Labels) -> NDArray[np.bool_]:
            return np.array([self._find(label) not in dead for label in labels.tolist()], bool)

        for edit in self._removals:
            edit(keep)
        changed = []
        for name, axes in self._axes.items():
            masks = [None if labels is None else keep(labels) for labels in axes]
            if all(mask is None or mask.all() for mask in masks):
                continue
            changed.append(name)
            if name in self.constants:
                constant = self.constants[name]
                value = constant.values
                for axis, mask in enumerate(masks):
                    if mask is not None and not mask.all():
                        value = np.compress(mask, value, axis=axis)
                constant.values = np.ascontiguousarray(value)
        self.surgery.forget_shapes(changed)

    # inside

    def _known(self, tensor: gs.Tensor) -> bool:
        return (
            tensor.is_empty() or isinstance(tensor, gs.Constant) or self.shapes.get(tensor.name) is not None
        )

    def _settle(self, node: gs.Node, output: gs.Tensor) -> None:
        """Every output has labels as long as its axes; where a rule disagrees with the shapes, nothing can go."""
        if output.is_empty():
            return
        shape = self.shapes.get(output.name) or ()
        axes = self._axes.get(output.name)
        if axes is None:
            self.fresh_axes(output, f"made by {node.op}")
            return
        fits = len(axes) == len(shape) and all(
            labels is None or not isinstance(size, int) or len(labels) == size
            for labels, size in zip(axes, shape, strict=False)
        )
        if not fits:
            for tensor in [*node.inputs, output]:
                if not tensor.is_empty():
                    self.pin_all(tensor, f"the shapes around {node.name} are not understood")
            self.fresh_axes(output, f"the shapes around {node.name} are not understood")

    def _find(self, label: int) -> int:
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def _union(self, a: int, b: int) -> None:
        a, b = self._find(a), self._find(b)
        if a == b:
            return
        low, high = min(a, b), max(a, b)
        self._parent[high] = low
        if high in self._pins:
            self._pins.setdefault(low, self._pins.pop(high))


_DOMAINS = {"", "ai.onnx"}


@dataclass
class _Closure:
    """Units as closures of seed labels over ties and grids, computed on the roots of the union-find."""

    channels: Channels
    lines: dict[int, list[tuple[int, int, int]]] = field(default_factory=lambda: defaultdict(list))
    cells: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    grids: list[Grid] = field(default_factory=list)

    def __post_init__(self) -> None:
        find = np.vectorize(self.channels._find, otypes=[np.int64])  # noqa: SLF001
        for number, grid in enumerate(self.channels.grids):
            lines = tuple(find(line) for line in grid.lines)
            cells = find(grid.cells)
            self.grids.append(Grid(lines, cells))
            for axis, line in enumerate(lines):
                for index, root in enumerate(line.tolist()):
                    self.lines[root].append((number, axis, index))
            for flat, root in enumerate(cells.ravel().tolist()):
                self.cells[root].append((number, flat))

    def units(self) -> tuple[list[Unit], dict[str, str]]:
        places = self._places()
        units: dict[frozenset[int], Unit] = {}
        why: dict[int, str] = {}
        for seed in places:
            if seed in self.cells:
                continue
            dead = self._close(seed)
            if isinstance(dead, str):
                why[seed] = dead
            elif dead not in units:
                units[dead] = Unit(dead, _gather(dead, places))
        free = {place for unit in units.values() for place in unit.places}
        pinned: dict[str, str] = {}
        for root, spots in places.items():
            for name, axis in spots:
                if (name, axis) not in free and len(self.channels._axes[name][axis]) > 1:  # type: ignore[arg-type]  # noqa: SLF001
                    reason = why.get(root) or self.channels._pins.get(root)  # noqa: SLF001
                    if reason is not None:
                        pinned.setdefault(f"{name}[{axis}]", reason)
        return list(units.values()), pinned

    def _places(self) -> dict[int, dict[tuple[str, int], list[int]]]:
        """Root -> (weight, axis) -> the indices that carry it. Lines without a weight of their own count as well."""
        places: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(dict)
        for name in self.channels.constants:
            for axis, labels in enumerate(self.channels._axes[name]):  # noqa: SLF001
                if labels is None:
                    continue
                for index, label in enumerate(labels.tolist()):
                    places[self.channels._find(label)].setdefault((name, axis), []).append(index)  # noqa: SLF001
        for grid in self.grids:
            for line in grid.lines:
                for root in line.tolist():
                    places[root]  # a line is a seed even where only its cells sit in weights
        return dict(places)

    def _close(self, seed: int) -> frozenset[int] | str:
        """The closure of `seed`, or what pins it."""
        pins = self.channels._pins  # noqa: SLF001
        dead: set[int] = set()
        waiting = [seed]
        while waiting:
            open_cells: list[tuple[int, int]] = []
            while waiting:
                root = waiting.pop()
                if root in dead:
                    continue
                if root in pins:
                    return pins[root]
                dead.add(root)
                for number, axis, index in self.lines.get(root, ()):
                    line = np.take(self.grids[number].cells, index, axis=axis)
                    waiting += [cell for cell in np.unique(line).tolist() if cell not in dead]
                open_cells += self.cells.get(root, ())
            for number, flat in open_cells:
                line_root = self._cover(self.grids[number], flat, dead)
                if isinstance(line_root, str):
                    return line_root
                if line_root is not None:
                    waiting.append(line_root)
                    break  # that line may cover the other cells as well
            if waiting:
                self._reopen(dead, waiting)
        return frozenset(dead)

    def _reopen(self, dead: set[int], waiting: list[int]) -> None:
        """Cells already dead are looked at again once the line that was chosen is dead."""
        again = [root for root in dead if root in self.cells]
        dead.difference_update(again)
        waiting += again

    def _cover(self, grid: Grid, flat: int, dead: set[int]) -> int | str | None:
        """None where a dead line covers the cell; else its cheapest line that can go, or why none can."""
        index = np.unravel_index(flat, grid.cells.shape)
        roots = [int(line[i]) for line, i in zip(grid.lines, index, strict=True)]
        if any(root in dead for root in roots):
            return None
        pins = self.channels._pins  # noqa: SLF001
        sizes = [grid.cells.size // len(line) for line in grid.lines]
        free = [(size, root) for size, root in zip(sizes, roots, strict=True) if root not in pins]
        if not free:
            return pins[roots[0]]
        return min(free)[1]


def _gather(
    dead: frozenset[int], places: dict[int, dict[tuple[str, int], list[int]]]
) -> dict[tuple[str, int], Labels]:
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    for root in dead:
        for place, indices in places.get(root, {}).items():
            found[place] += indices
    return {place: np.array(sorted(indices)) for place, indices in found.items()}
