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


@dataclass
class Closure:
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
