"""k-means in one dimension: codebooks for weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

EXACT = 1 << 17  # distinct values up to which each is a point of its own; above, they share 2^16 bins
BINS = 8  # for each centre, where the optimum is sought
REACH = 6  # times the usual cell, what a cell may span
ROUNDS = 200


def codebook(values: Array, clusters: int, mass: Array | None = None, *, kind: str = "kmeans") -> Array:
    """At most `clusters` sorted values, of the type of `values`, one of which each value is to be replaced by.

    mass: the weight of each value's squared error (None: equal). kind: "kmeans" makes that error (locally) least;
    "linear" spaces the values evenly over the range. Zero is kept: where a value is 0, 0 is in the codebook. Where there
    are no more than `clusters` distinct values, they are the codebook.
    """
    few = distinct(values, clusters)
    if few is not None:
        return few
    zero = bool((values == 0).any())
    if kind == "linear":
        centres = _linear(float(values.min()), float(values.max()), clusters, zero=zero)
    else:
        points, weights = _points(values, mass)
        centres = kmeans(points, weights, clusters, zero=zero)
    return np.unique(centres.astype(values.dtype))


def assign(values: Array, book: Array) -> Array:
    """The index of the nearest value of the sorted `book`, uint8, in the shape of `values`.

    >>> assign(np.float32([-0.9, 0.1, 3]), np.float32([-1, 0, 1]))
    array([0, 1, 2], dtype=uint8)
    """
    wide = book.astype(np.float64)
    middles = (wide[1:] + wide[:-1]) / 2
    found = np.searchsorted(middles, values.reshape(-1), side="left")
    return found.astype(np.uint8).reshape(values.shape)


def distinct(values: Array, most: int) -> Array | None:
    """The distinct values, sorted, or None where there are more than `most`."""
    flat = values.reshape(-1)
    # a sample settles most cases without sorting all
    if len(np.unique(flat[:: max(1, flat.size // 4096)])) > most:
        return None
    found = np.unique(flat)
    return found if len(found) <= most else None


def kmeans(points: Array, mass: Array, clusters: int, *, zero: bool = False) -> Array:
    """Sorted centres c that make Σ mass (x − nearest c)² least.

    points: sorted, distinct, float64, more than `clusters`; mass: > 0. zero: one centre is 0.
    Cells of sorted points are ranges, so dynamic programming over range ends finds the optimum (Wang & Song 2011,
    doi:10.32614/RJ-2011-015), here of a few bins of neighbours; Lloyd's iteration (1982, doi:10.1109/TIT.1982.1056489)
    takes it to the points themselves.
    """
    shift = 0.0 if zero else float(points.mean())  # > sums of squares far from zero would cancel
    x = points - shift
    sums = _prefix_sums(x, mass)
    centres = _optimum(*_bins(x, mass, max(BINS * clusters, 64)), clusters)
    for _ in range(ROUNDS):
        if zero:
            centres[np.abs(centres).argmin()] = 0.0
        cuts = np.searchsorted(x, (centres[1:] + centres[:-1]) / 2, side="right")
        edges = np.concatenate([[0], cuts, [len(x)]])
        total, first = (s[edges[1:]] - s[edges[:-1]] for s in sums[:2])
        moved = np.divide(first, total, out=centres.copy(), where=total > 0)
        if zero:
            moved[np.abs(centres).argmin()] = 0.0
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres + shift


def _optimum(x: Array, mass: Array, clusters: int) -> Array:
    """The best centres of a few points, by the least cost of m cells that end at each point, for m = 1, 2, ...

    A cell ends at j and starts at most `reach` points before it: REACH times as far as cells of equal share of p^(1/3) would.
    """
    if len(x) <= clusters:
        return x.copy()
    place = _places(x, mass)
    nearest = np.searchsorted(place, place - REACH * place[-1] / clusters)
    reach = int((np.arange(len(x)) - nearest).max()) + 1
    # row j, column c: the cell of the points j - reach + c .. j - 1
    sums = _prefix_sums(x, mass)
    total, first, second = (s[:, None] - _windows(s, reach, np.nan) for s in sums)
    cost = second - np.divide(first * first, total, out=np.zeros_like(total), where=total > 0)
    cost[np.isnan(cost)] = np.inf
    least = np.full(len(x) + 1, np.inf)
    least[0] = 0.0
    rows = np.arange(len(least))
    found = np.zeros((clusters, len(least)), np.int32)
    for cell in range(clusters):
        trial = cost + _windows(least, reach, np.inf)
        best = trial.argmin(1)
        least, found[cell] = trial[rows, best], rows - reach + best
    cuts = [len(x)]
    for cell in range(clusters - 1, -1, -1):
        cuts.append(int(found[cell][cuts[-1]]))
    edges = np.unique(cuts)
    return np.add.reduceat(mass * x, edges[:-1]) / np.add.reduceat(mass, edges[:-1])


def _windows(values: Array, width: int, outside: float) -> Array:
    """Row j: the `width` values before j."""
    padded = np.concatenate([np.full(width, outside), values])
    return np.lib.stride_tricks.sliding_window_view(padded, width)[: len(values)]


def _bins(x: Array, mass: Array, count: int) -> tuple[Array, Array]:
    """Means and masses of at most `count` runs of neighbours.

    Their density goes with p^(1/3), as that of many centres does (Panter & Dite 1951, doi:10.1109/JRPROC.1951.230419).
    """
    if len(x) <= count:
        return x, mass
    place = _places(x, mass)
    found = np.minimum((place * (count / place[-1])).astype(np.int64), count - 1)
    starts = np.flatnonzero(np.diff(found, prepend=-1))
    total = np.add.reduceat(mass, starts)
    return np.add.reduceat(mass * x, starts) / total, total


def _places(x: Array, mass: Array) -> Array:
    """The integral of p^(1/3) up to each point."""
    gaps = np.diff(x, prepend=x[0])
    return np.cumsum(np.cbrt(mass * gaps * gaps))


def _prefix_sums(x: Array, mass: Array) -> list[Array]:
    return [np.concatenate([[0.0], np.cumsum(mass * x**power)]) for power in (0, 1, 2)]


def _points(values: Array, mass: Array | None) -> tuple[Array, Array]:
    """Sorted distinct points and their mass; of many values, the means of narrow bins."""
    flat = values.reshape(-1).astype(np.float64)
    weights = np.ones(flat.size) if mass is None else np.broadcast_to(mass, values.shape).reshape(-1)
    if flat.size <= EXACT:
        points, inverse = np.unique(flat, return_inverse=True)
        return points, np.bincount(inverse, weights)
    low, high = flat.min(), flat.max()
    bins = np.minimum(((flat - low) * (2**16 / (high - low))).astype(np.int64), 2**16 - 1)
    total = np.bincount(bins, weights, 2**16)
    first = np.bincount(bins, weights * flat, 2**16)
    used = total > 0
    return first[used] / total[used], total[used]


def _linear(low: float, high: float, clusters: int, *, zero: bool) -> Array:
    step = (high - low) / (clusters - 1)
    grid = low + step * np.arange(clusters)
    if zero:
        grid -= grid[np.abs(grid).argmin()]
        grid[np.abs(grid).argmin()] = 0.0
    return grid
