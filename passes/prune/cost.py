"""What a choice of units leaves: MACs and parameters of the model without them, by arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit

    Array = NDArray[Any]


Gone = Mapping[
    tuple[str, int], Any
]  # (weight, axis) -> how many of its indices go: one number, or an array of them


class Measure(Protocol):
    """Something that a budget bounds: multiply-adds, parameters or milliseconds."""

    def of(self, gone: Gone) -> Any:
        """What is left of it: one number, or one for each entry of the arrays in `gone`."""
        ...


def after(measure: Measure, units: Iterable[Unit]) -> float:
    """How much of it is left once the union of `units` is gone."""
    return float(measure.of(removed(units)))


@dataclass(frozen=True)
class Macs:
    """The shape of every weight, and the multiply-adds of the node that multiplies it."""

    shapes: dict[str, tuple[int, ...]]
    macs: dict[str, int]

    def of(self, gone: Gone) -> Any:
        """Each weight's own multiply-adds, times the share of the weight that stays."""
        left = shares(self.shapes, gone)
        return sum(work * left.get(name, 1.0) for name, work in self.macs.items())


@dataclass(frozen=True)
class Params:
    """The shape of every weight."""

    shapes: dict[str, tuple[int, ...]]

    def of(self, gone: Gone) -> Any:
        """Elements of all weights."""
        left = shares(self.shapes, gone)
        return sum(float(np.prod(shape)) * left.get(name, 1.0) for name, shape in self.shapes.items())


def shares(shapes: dict[str, tuple[int, ...]], gone: Gone) -> dict[str, Any]:
    """The share of each weight that stays, where some of it goes."""
    found: dict[str, Any] = {}
    for (name, axis), count in gone.items():
        found[name] = found.get(name, 1.0) * (1 - count / shapes[name][axis])
    return found


def removed(units: Iterable[Unit]) -> dict[tuple[str, int], int]:
    """How many indices of each weight axis the union of `units` takes."""
    gone: dict[tuple[str, int], list[Array]] = {}
    for unit in units:
        for place, indices in unit.places.items():
            gone.setdefault(place, []).append(indices)
    return {place: len(np.unique(np.concatenate(pieces))) for place, pieces in gone.items()}


class Tally:
    """How many indices of each weight axis go with the first `numbers[i]` units of each kind i.

    What each kind takes of an axis is counted once; only where several kinds take from one axis (heads and their width)
    is the union taken anew.
    """

    def __init__(self, kinds: Sequence[Sequence[Unit]]) -> None:
        self._kinds = kinds
        self.taken = [progress(units) for units in kinds]
        owners: dict[tuple[str, int], list[int]] = {}
        for kind, taken in enumerate(self.taken):
            for place in taken:
                owners.setdefault(place, []).append(kind)
        self._contested = {place: kinds for place, kinds in owners.items() if len(kinds) > 1}

    def gone(self, numbers: Sequence[int]) -> dict[tuple[str, int], int]:
        """The indices that go, counted."""
        found = {
            place: int(along[number])
            for taken, number in zip(self.taken, numbers, strict=True)
            for place, along in taken.items()
        }
        for place, kinds in self._contested.items():
            pieces = [
                u.places[place] for k in kinds for u in self._kinds[k][: numbers[k]] if place in u.places
            ]
            found[place] = len(np.unique(np.concatenate(pieces))) if pieces else 0
        return found

    def saved(self, measure: Measure, kind: int, counts: Sequence[int]) -> Array:
        """What removing the first `counts[i]` units of one kind alone saves."""
        gone = {place: along[list(counts)] for place, along in self.taken[kind].items()}
        return np.asarray(measure.of({}) - measure.of(gone) * np.ones(len(counts)))


def progress(units: Sequence[Unit]) -> dict[tuple[str, int], Array]:
    """How many indices of each weight axis the first 0, 1, 2... of `units` take together: an array an axis.

    Each index counts where it is first met, so the whole takes one sort an axis.
    """
    pieces: dict[tuple[str, int], list[tuple[int, Array]]] = {}
    for number, unit in enumerate(units):
        for place, indices in unit.places.items():
            pieces.setdefault(place, []).append((number, indices))
    found = {}
    for place, parts in pieces.items():
        owner = np.repeat([number for number, _ in parts], [len(indices) for _, indices in parts])
        _, first = np.unique(np.concatenate([indices for _, indices in parts]), return_index=True)
        fresh = np.bincount(owner[first], minlength=len(units))
        found[place] = np.concatenate([[0], np.cumsum(fresh)])
    return found
