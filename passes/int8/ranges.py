"""From what a tensor's values were to the scale and zero point of its 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Ends = tuple[float, float]
    Losses = Callable[["Seen", Sequence[Ends]], Any]

METHODS = ("mse", "minmax", "percentile", "entropy")
EVEN = np.linspace(0.2, 1.0, 41)  # by what a range is drawn in
FAR = 2.0 ** np.arange(-10, -2.5, 0.5)  # an outlier may be a thousand times what all other values reach
PERCENTILE = 99.99  # of the values, between which the range of `percentile` reaches


@dataclass(frozen=True)
class Codes:
    """The integers that stand for a tensor's values; symmetric: 0 stands for 0."""

    name: str = "uint8"
    symmetric: bool = False

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Of the integers."""
        return np.dtype(self.name)

    @cached_property
    def least(self) -> int:
        """The smallest of them."""
        return int(np.iinfo(self.dtype).min)

    @cached_property
    def steps(self) -> int:
        """Between the smallest and the largest of them."""
        return int(np.iinfo(self.dtype).max) - self.least


UINT8 = Codes("uint8")
INT8 = Codes("int8")


@dataclass(frozen=True)
class Affine:
    """`real = scale · (code − zero)`."""

    scale: float
    zero: int
    codes: Codes = UINT8

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the codes."""
        return self.codes.dtype

    @property
    def scale_array(self) -> Array:
        """The scale as the operators take it."""
        return np.array(self.scale, np.float32)

    @property
    def zero_array(self) -> Array:
        """The zero point as the operators take it."""
        return np.array(self.zero, self.dtype)

    def quantize(self, value: Array) -> Array:
        """The codes of `value`, as QuantizeLinear gives them."""
        # > float32: beyond 2^24 codes no type here reaches
        codes = np.rint(value / np.float32(self.scale)) + self.zero
        clipped: Array = np.clip(codes, self.codes.least, self.codes.least + self.codes.steps)
        return clipped.astype(self.dtype)


def affine(low: float, high: float, codes: Codes = UINT8) -> Affine:
    """The finest scale that reaches from `low` to `high` and represents zero exactly.

    >>> affine(-1.0, 1.55).zero
    100
    >>> affine(-1.0, 1.27, Codes("int8", symmetric=True)).zero
    0
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if codes.symmetric:
        high = max(high, -low)
        low = -high
        scale = float(np.float32(high / (codes.steps // 2)))
    else:
        scale = float(np.float32((high - low) / codes.steps))
    if scale < np.finfo(np.float32).tiny:
        return Affine(1.0, 0 if codes.symmetric else codes.least, codes)  # always zero: any scale does
    return Affine(scale, 0 if codes.symmetric else round(-low / scale) + codes.least, codes)


@dataclass(frozen=True)
class Seen:
    """What was seen of the tensors that share one scale: values in ascending order, how often, and their bounds."""

    values: Array
    counts: Array
    low: float
    high: float


def seen(histograms: list[tuple[Array, float, float]]) -> Seen:
    """Histograms (counts, low, high) as weighted points: the middles of the bins, zero itself where a bin starts there."""
    values, weights = [], []
    for counts, low, high in histograms:
        edges = np.linspace(low, high, len(counts) + 1)
        middles = (edges[:-1] + edges[1:]) / 2
        middles[np.isclose(edges[:-1], 0.0, atol=1e-12 * max(high - low, 1e-30))] = 0.0
        there = counts > 0
        values.append(middles[there])
        weights.append(np.asarray(counts, np.float64)[there])
    every, often = np.concatenate(values), np.concatenate(weights)
    order = np.argsort(every, kind="stable")
    return Seen(
        every[order], often[order], min(low for _, low, _ in histograms), max(high for *_, high in histograms)
    )


def merged(every: list[Seen]) -> Seen:
    """What was seen of several tensors, as of one."""
    if len(every) == 1:
        return every[0]
    values = np.concatenate([one.values for one in every])
    order = np.argsort(values, kind="stable")
    return Seen(
        values[order],
        np.concatenate([one.counts for one in every])[order],
        min(one.low for one in every),
        max(one.high for one in every),
    )


def choose(points: Seen, method: str, codes: Codes = UINT8) -> Affine:
    """The scale for values as seen, by one of METHODS."""
    low, high = min(points.low, 0.0), max(points.high, 0.0)
    if method == "minmax" or not len(points.values) or low == high:
        return affine(low, high, codes)
    if method == "percentile":
        return affine(*_percentile(points, low, high), codes)
    if method == "entropy":
        return affine(
            *_least(points, low, high, partial(divergences, codes=codes), list(EVEN[EVEN > 0.3])), codes
        )
    return affine(*_least(points, low, high, partial(squared_errors, codes=codes), [*EVEN, *FAR]), codes)


def _percentile(points: Seen, low: float, high: float) -> tuple[float, float]:
    share = np.cumsum(points.counts) / points.counts.sum()
    out = (1 - PERCENTILE / 100) / 2
    first = points.values[min(int(np.searchsorted(share, out)), len(share) - 1)]
    last = points.values[min(int(np.searchsorted(share, 1 - out)), len(share) - 1)]
    return max(low, min(float(first), 0.0)), min(high, max(float(last), 0.0))


def _least(points: Seen, low: float, high: float, losses: Losses, shrink: Sequence[float]) -> Ends:
    """The range of the least loss: both ends drawn in together, then each alone around the best."""

    def best_of(tried: list[Ends]) -> Ends:
        return tried[int(np.argmin(losses(points, tried)))]

    best = best_of([(low * s, high * s) for s in shrink])
    for fine in (np.linspace(0.7, 1.3, 25), np.linspace(0.95, 1.05, 11)):
        best = best_of([(max(best[0] * s, low), best[1]) for s in fine])
        best = best_of([(best[0], min(best[1] * s, high)) for s in fine])
    return best


def squared_errors(points: Seen, ranges: Sequence[Ends], codes: Codes = UINT8) -> Array:
    """Of each range, Σ (x − Q(x))² over the points, rounded and clipped to codes from its low to its high."""
    found = [affine(low, high, codes) for low, high in ranges]
    scale = np.array([[one.scale] for one in found])
    least = np.array([[codes.least - one.zero] for one in found])
    # > in place: of a large model these are millions of values
    values = points.values / scale
    np.rint(values, out=values)
    np.clip(values, least, least + codes.steps, out=values)
    values *= scale
    values -= points.values
    errors: Array = np.square(values, out=values) @ points.counts
    return errors


def _codes(values: Array, scale: Affine) -> Array:
    """The codes of `values`, less the zero point, in float64."""
    least = scale.codes.least - scale.zero
    clipped: Array = np.clip(np.rint(values / scale.scale), least, least + scale.codes.steps)
    return clipped


def divergences(points: Seen, ranges: Sequence[Ends], codes: Codes = UINT8) -> list[float]:
    """The `divergence` of each range."""
    return [divergence(points, low, high, codes) for low, high in ranges]


def divergence(points: Seen, low: float, high: float, codes: Codes = UINT8) -> float:
    """Kullback-Leibler divergence of the points, clipped to low..high, from what the codes leave of their distribution.

    Zeros are left out, for they are exact: the many of a Relu would count as spread. What is clipped counts at the outermost points of the one and is missing in the other, in which each code's mass is
    spread evenly over its points, as Migacz 2017 (8-bit inference with TensorRT) has it.
    """
    there = points.values != 0
    values, counts = points.values[there], points.counts[there]
    inside = np.flatnonzero((values >= low) & (values <= high))
    if len(inside) < 2:
        return float("inf")
    kept = counts[inside]
    places = _codes(values[inside], affine(low, high, codes)).astype(np.int64)
    places -= places.min()
    q = (np.bincount(places, kept) / np.maximum(np.bincount(places), 1))[places]
    p = kept.copy()
    p[0] += counts[: inside[0]].sum()
    p[-1] += counts[inside[-1] + 1 :].sum()
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())
