"""What a choice of units costs and saves: MACs and parameters of the model without them, by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit

    Array = NDArray[Any]


@dataclass(frozen=True)
class Work:
    """The sizes of every weight, and the MACs of the node that multiplies it (0: none)."""

    shapes: dict[str, tuple[int, ...]]
    macs: dict[str, int]

    def after(self, units: Iterable[Unit]) -> tuple[float, float]:
        """(MACs, parameters) once the union of `units` is gone."""
        gone: dict[tuple[str, int], list[Array]] = {}
        for unit in units:
            for place, indices in unit.places.items():
                gone.setdefault(place, []).append(indices)
        shares: dict[str, float] = {}
        for (name, axis), pieces in gone.items():
            left = 1 - len(np.unique(np.concatenate(pieces))) / self.shapes[name][axis]
            shares[name] = shares.get(name, 1.0) * left
        macs = sum(work * shares.get(name, 1.0) for name, work in self.macs.items())
        params = sum(float(np.prod(shape)) * shares.get(name, 1.0) for name, shape in self.shapes.items())
        return macs, params


def saved(work: Work, units: Sequence[Unit], counts: Sequence[int], *, by: int) -> Array:
    """What removing the first `counts[i]` of `units` alone saves; by: 0 MACs, 1 parameters."""
    whole = work.after(())[by]
    return np.array([whole - work.after(units[:count])[by] for count in counts])
