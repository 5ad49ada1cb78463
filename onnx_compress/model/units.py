"""Units: the smallest sets of labels that can go together, as closures over ties and grids."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
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


_QUIET = {"part of a kernel", "a spatial axis"}


@dataclass
class Closure:
    """Units as closures of seed labels over ties and grids, computed on the roots of the union-find."""

    channels: Channels
    lines: dict[int, list[tuple[int, int, int]]] = field(default_factory=lambda: defaultdict(list))
    cells: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    grids: list[Grid] = field(default_factory=list)
    pins: list[int] = field(default_factory=list)  # by root: the number of its reason, 0 where it is free

    def __post_init__(self) -> None:
        ties = self.channels.ties
        everything = [
            Grid(tuple(ties.roots(line) for line in grid.lines), ties.roots(grid.cells))
            for grid in self.channels.grids
        ]
        while sum(self._spread(grid) for grid in everything):
            pass
        self.pins = ties.pins(np.arange(ties.size)).tolist()
        for grid in everything:
            if not ties.pins(grid.cells).all():
                self._index(len(self.grids), grid)
                self.grids.append(grid)

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
            for index, root in enumerate(line.tolist()):
                self.lines[root].append((number, axis, index))
        for flat, root in enumerate(grid.cells.ravel().tolist()):
            self.cells[root].append((number, flat))

    def units(self) -> tuple[list[Unit], dict[str, str]]:
        """Every unit that can go, and for each weight axis with none what pins it."""
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
                unit = Unit(dead, _gather(dead, places))
                whole = any(len(indices) == self._size(place) for place, indices in unit.places.items())
                if whole:
                    why[seed] = "all of its axis would go at once"
                elif unit.places:
                    units[dead] = unit
        return list(units.values()), self._pinned(list(units.values()), why)

    def _size(self, place: tuple[str, int]) -> int:
        return int(self.channels.constants[place[0]].shape[place[1]])

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
        dead: set[int] = set()
        waiting = [seed]
        while waiting:
            open_cells: list[tuple[int, int]] = []
            while waiting:
                root = waiting.pop()
                if root in dead:
                    continue
                if self.pins[root]:
                    return self.channels.ties.reasons[self.pins[root]]
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
        sizes = [grid.cells.size // len(line) for line in grid.lines]
        free = [(size, root) for size, root in zip(sizes, roots, strict=True) if not self.pins[root]]
        if not free:
            return self.channels.ties.reasons[self.pins[roots[0]]]
        return min(free)[1]


def _gather(
    dead: frozenset[int], places: dict[int, dict[tuple[str, int], list[int]]]
) -> dict[tuple[str, int], Labels]:
    found: dict[tuple[str, int], list[int]] = defaultdict(list)
    for root in dead:
        for place, indices in places.get(root, {}).items():
            found[place] += indices
    return {place: np.array(sorted(indices)) for place, indices in found.items()}
