"""What a choice of units leaves: MACs and parameters of the model without them, by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit

    Array = NDArray[Any]


class Measure(Protocol):
    """Something that a budget bounds: how much of it is left once the union of `units` is gone."""

    def after(self, units: Iterable[Unit]) -> float:
        """Multiply-adds, parameters or milliseconds."""
        ...


@dataclass(frozen=True)
class Macs:
    """The shape of every weight, and the multiply-adds of the node that multiplies it."""

    shapes: dict[str, tuple[int, ...]]
    macs: dict[str, int]

    def after(self, units: Iterable[Unit]) -> float:
        """Multiply-adds: each weight's own, times the share of the weight that stays."""
        left = shares(self.shapes, units)
        return sum(work * left.get(name, 1.0) for name, work in self.macs.items())


@dataclass(frozen=True)
class Params:
    """The shape of every weight."""

    shapes: dict[str, tuple[int, ...]]

    def after(self, units: Iterable[Unit]) -> float:
        """Parameters."""
        left = shares(self.shapes, units)
        return sum(float(np.prod(shape)) * left.get(name, 1.0) for name, shape in self.shapes.items())


def shares(shapes: dict[str, tuple[int, ...]], units: Iterable[Unit]) -> dict[str, float]:
    """The share of each weight that stays, where some of it goes."""
    found: dict[str, float] = {}
    for (name, axis), count in removed(units).items():
        found[name] = found.get(name, 1.0) * (1 - count / shapes[name][axis])
    return found


def removed(units: Iterable[Unit]) -> dict[tuple[str, int], int]:
    """How many indices of each weight axis the union of `units` takes."""
    gone: dict[tuple[str, int], list[Array]] = {}
    for unit in units:
        for place, indices in unit.places.items():
            gone.setdefault(place, []).append(indices)
    return {place: len(np.unique(np.concatenate(pieces))) for place, pieces in gone.items()}


def saved(measure: Measure, units: Sequence[Unit], counts: Sequence[int]) -> Array:
    """What removing the first `counts[i]` of `units` alone saves."""
    whole = measure.after(())
    return np.array([whole - measure.after(units[:count]) for count in counts])
