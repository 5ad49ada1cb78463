"""Units: the smallest sets of labels that can go together, as closures over ties and grids."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.model.channels import Channels

    Labels = NDArray[np.int64]


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


CHOICES = 20_000  # looks at grids, about 1 s, after which what a unit has is no seed of another; after 3 times as many, none is
_QUIET = {"part of a kernel", "a spatial axis"}


class Closure:
    """Units as closures of seed labels over ties and grids, computed on the roots of the union-find."""

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        ties = channels.ties
        everything = [
            Grid(tuple(ties.roots(line) for line in grid.lines), ties.roots(grid.cells))
            for grid in channels.grids
        ]
        while sum(self._spread(grid) for grid in everything):
            pass
        self.pins = ties.pins(np.arange(ties.size))
        self.grids = [grid for grid in everything if not ties.pins(grid.cells).all()]
        self.choices = 0
        self.dead = np.zeros(ties.size, bool)
        self.is_line = np.zeros(ties.size, bool)
        self.lines: dict[int, list[Labels]] = defaultdict(list)  # the cells of each line
        self.owners = [np.full(ties.size, -1)]  # the grids that a root is a cell of, one array an occurrence
        for number, grid in enumerate(self.grids):
            self._index(number, grid)

    def _spread(self, grid: Grid) -> bool:
        """A cell none of whose lines can go is pinned, and so is a line with a cell that cannot; whether any was."""
        ties = self.channels.ties
        before = sum(int(np.count_nonzero(ties.pins(roots))) for roots in (*grid.lines, grid.cells))
        shape = grid.cells.shape
        held = np.full(shape, np.iinfo(np.int32).max)
        for axis, line in enumerate(grid.lines):
            numbers = ties.pins(line).reshape([-1 if i == axis else 1 for i in range(len(shape))])
            held = np.minimum(held, numbers)
        ties.give(grid.cells.ravel(), held.ravel().astype(np.int32))
        cells = ties.pins(grid.cells)
        for axis, line in enumerate(grid.lines):
            ties.give(line, cells.max(axis=tuple(i for i in range(len(shape)) if i != axis)))
        after = sum(int(np.count_nonzero(ties.pins(roots))) for roots in (*grid.lines, grid.cells))
        return after > before

    def _index(self, number: int, grid: Grid) -> None:
        for axis, line in enumerate(grid.lines):
            self.is_line[line] = True
            for index, root in enumerate(line.tolist()):
                self.lines[root].append(np.take(grid.cells, index, axis=axis).ravel())
        cells = np.unique(grid.cells)
        for owner in self.owners:
            free = owner[cells] < 0
            owner[cells[free]] = number
            cells = cells[~free]
        if cells.size:
            self.owners.append(np.full(len(self.dead), -1))
            self.owners[-1][cells] = number

    def units(self) -> tuple[list[Unit], dict[str, str]]:
        """Every unit that can go, and for each weight axis with none what pins it."""
        places = self._places()
        units: dict[frozenset[int], Unit] = {}
        why: dict[int, str] = {}
        covered: set[int] = set()
        axes = self._axes()
        for seed in places:
            if self.owners[0][seed] >= 0 or (self.choices > CHOICES and seed in covered):
                continue
            dead = self._close(seed) if self.choices < 3 * CHOICES else "too entangled to be followed"
            if isinstance(dead, str):
                why[seed] = dead
            elif dead not in units:
                unit = Unit(dead, _gather(dead, places))
                if any(axis <= dead for root in dead for axis in axes.get(root, ())):
                    why[seed] = "all of its axis would go at once"
                elif unit.places:
                    units[dead] = unit
                    covered |= dead
        return list(units.values()), self._pinned(list(units.values()), why)

    def _axes(self) -> dict[int, list[frozenset[int]]]:
        """The labels of every axis, of weights and of what flows between them, that could all go; by one of them."""
        found: dict[int, list[frozenset[int]]] = defaultdict(list)
        for roots in {frozenset(roots.tolist()) for roots in self.channels.every_axis()}:
            if roots and not self.pins[list(roots)].any():
                found[min(roots)].append(roots)
        return found

    def _pinned(self, units: list[Unit], why: dict[int, str]) -> dict[str, str]:
        """What holds each axis of a float weight that no unit takes from; parts of kernels are not worth a word."""
        free = {place for unit in units for place in unit.places}
        ties = self.channels.ties
        pinned: dict[str, str] = {}
        for name, constant in self.channels.constants.items():
            if np.dtype(constant.dtype).kind in "iub" and np.dtype(constant.dtype).itemsize > 1:
                continue
            for axis, labels in enumerate(self.channels.axes(constant)):
                if labels is None or len(labels) < 2 or (name, axis) in free:
                    continue
                roots = ties.roots(labels)
                reasons = [ties.reasons[self.pins[root]] or why.get(root, "") for root in roots[:64].tolist()]
                reason = next((reason for reason in reasons if reason), None)
                if reason is not None and reason not in _QUIET:
                    pinned[f"{name}[{axis}]"] = reason
        return pinned

    def _places(self) -> dict[int, dict[tuple[str, int], list[int]]]:
        """Root -> (weight, axis) -> the indices that carry it. Lines without a weight of their own count as well."""
        places: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(dict)
        ties = self.channels.ties
        for name, constant in self.channels.constants.items():
            for axis, labels in enumerate(self.channels.axes(constant)):
                if labels is None:
                    continue
                roots = ties.roots(labels)
                free = np.flatnonzero(ties.pins(roots) == 0)
                for index, root in zip(free.tolist(), roots[free].tolist(), strict=True):
                    places[root].setdefault((name, axis), []).append(index)
        for grid in self.grids:
            for line in grid.lines:
                for root in line[ties.pins(line) == 0].tolist():
                    places[root]  # a line is a seed even where only its cells sit in weights
        return dict(places)

    def _close(self, seed: int) -> frozenset[int] | str:
        """The closure of `seed`, or what pins it."""
        marked: list[Labels] = []
        try:
            reason = self._fill(seed, marked)
            return reason or frozenset(np.concatenate(marked).tolist())
        finally:
            for roots in marked:
                self.dead[roots] = False

    def _fill(self, seed: int, marked: list[Labels]) -> str | None:
        """Marks everything that goes with `seed` as dead, until a pin is met: its reason."""
        touched: set[int] = set()
        batch = np.array([seed])
        while batch.size:
            new = batch[~self.dead[batch]]
            pins = self.pins[new]
            if pins.any():
                return self.channels.ties.reasons[pins.max()]
            self.dead[new] = True
            marked.append(new)
            for owner in self.owners:
                touched.update(np.unique(owner[new]).tolist())
            cells = [part for root in new[self.is_line[new]].tolist() for part in self.lines[root]]
            batch = np.unique(np.concatenate(cells)) if cells else new[:0]
            while touched and not batch.size:
                # > one line at a time: it may bring others that cover the cells that are left
                line = self._uncovered(touched)
                if isinstance(line, str):
                    return line
                batch = batch if line is None else np.array([line])
        return None

    def _uncovered(self, touched: set[int]) -> int | str | None:
        """The cheapest line of a dead cell without a dead line, or why none can go; None where one grid has none."""
        self.choices += 1
        number = min(touched)
        if number < 0:
            touched.discard(number)
            return None
        grid = self.grids[number]
        open_ = self.dead[grid.cells]
        for axis, line in enumerate(grid.lines):
            open_ = open_ & ~self.dead[line].reshape([-1 if i == axis else 1 for i in range(open_.ndim)])
        if not open_.any():
            touched.discard(number)
            return None
        index = np.unravel_index(int(open_.argmax()), open_.shape)
        roots = [int(line[i]) for line, i in zip(grid.lines, index, strict=True)]
        sizes = [grid.cells.size // len(line) for line in grid.lines]
        free = [(size, root) for size, root in zip(sizes, roots, strict=True) if not self.pins[root]]
        return min(free)[1] if free else self.channels.ties.reasons[self.pins[roots[0]]]


def _gather(
    dead: frozenset[int], places: dict[int, dict[tuple[str, int], list[int]]]
) -> dict[tuple[str, int], Labels]:
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    for root in dead:
        for place, indices in places.get(root, {}).items():
            found[place] += indices
    return {place: np.array(sorted(indices)) for place, indices in found.items()}
