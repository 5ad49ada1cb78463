"""How many zeros each layer takes, for the least harm to the model's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

# shares of zeros at which a layer's error is measured
LEVELS = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.87, 0.92, 0.96, 0.98)
STEPS = 128  # parts of a layer that are shared out one by one
MOST = 0.985  # of a layer that may go while another has more


@dataclass(frozen=True)
class Curve:
    """What zeros in one layer cost. size: its entries; zeros: those that are zero now; levels: shares of zeros, ascending;
    errors: of the outputs at each.
    """

    size: int
    zeros: int
    levels: Array
    errors: Array

    def prices(self) -> tuple[Array, Array]:
        """The counts of zeros in steps up from today's, and what a zero costs in each step; never falling."""
        top = max(int(MOST * self.size), self.zeros)
        counts = np.unique(np.linspace(self.zeros, top, STEPS + 1).astype(np.int64))
        here = self.zeros / self.size
        rising = [(s - here, e) for s, e in zip(self.levels, self.errors, strict=True) if s > here + 1e-9]
        if not rising:
            return counts, np.full(len(counts) - 1, np.inf)
        x, y = np.array(rising).T
        y = np.maximum.accumulate(np.maximum(y, 1e-30))
        # > a layer with every weight gone errs about as much as it can
        x, y = np.append(x, 1.0 - here), np.append(y, 2 * y[-1])
        # powers of the share between the levels, from none at none
        at = np.log(np.maximum((counts - self.zeros) / self.size, 1e-9))
        x, y = np.append(np.log(x[0]) - 20, np.log(x)), np.append(np.log(y[0]) - 40, np.log(y))
        errors = np.exp(np.interp(at, x, y))
        slopes = np.diff(errors) / np.maximum(np.diff(counts), 1)
        return counts, np.maximum.accumulate(slopes)


def share_out(curves: Sequence[Curve], zeros: int) -> list[int]:
    """`zeros` zeros in all, each where it costs least; as many as there are entries for below MOST.

    Below the first level the error grows as the square of the share, so nine times the error means a ninth of the zeros:

    >>> flat = np.linspace(0, 1, 3)
    >>> share_out([Curve(100, 0, flat, flat), Curve(100, 0, flat, 9 * flat)], 60)
    [54, 6]
    """
    found = [curve.zeros for curve in curves]
    left = zeros - sum(found)
    steps = []
    for number, curve in enumerate(curves):
        counts, prices = curve.prices()
        steps += [
            (float(price), number, int(n)) for price, n in zip(prices, np.diff(counts), strict=True) if n
        ]
    for _, number, count in sorted(steps, key=lambda step: step[0]):
        if left <= 0:
            break
        taken = min(count, left)
        found[number] += taken
        left -= taken
    if left > 0:  # > beyond MOST: evenly
        for number, curve in enumerate(curves):
            more = min(left, max(curve.size - 1 - found[number], 0))
            found[number] += more
            left -= more
    return found


def even(sizes: Sequence[int], zeros: int) -> list[int]:
    """`zeros` zeros in all, the same share of each layer."""
    ends = np.floor(np.cumsum(sizes) * (zeros / max(sum(sizes), 1)) + 1e-9).astype(np.int64)
    return [int(n) for n in np.diff(ends, prepend=0)]


def cheapest(costs: Sequence[float], gains: Sequence[int]) -> list[int]:
    """Layers that take a pattern as a whole or not at all, in the order of what a zero costs."""
    prices = np.asarray(costs, np.float64) / np.maximum(gains, 1)
    return [int(n) for n in np.argsort(prices, kind="stable")]
