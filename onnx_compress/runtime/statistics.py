"""Streamed statistics of the values of one tensor: the same, whatever the batch size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from onnx_compress.runtime.requests import (
    Extremes,
    Histogram,
    HistogramStat,
    Moments,
    MomentStat,
    Range,
    ZeroFraction,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

HISTOGRAM_VALUES = 16384  # values of each sample that a histogram counts, at most
_FINEST = -120  # exponent of the narrowest bin: its reciprocal is still a float32


@dataclass(frozen=True)
class Values:
    """One batch of a tensor. finite: which values are, or None where all are; low, high: of these."""

    x: Array
    samples: int
    low: float
    high: float
    finite: Array | None

    @classmethod
    def of(cls, x: Array, samples: int) -> Values:
        """The batch `x` as float32 or float64, looked at once."""
        if x.dtype not in (np.float32, np.float64):
            x = x.astype(np.float64 if x.dtype.kind in "iu" and x.dtype.itemsize > 2 else np.float32)
        low, high = float(x.min()), float(x.max())
        if math.isfinite(low) and math.isfinite(high):
            return cls(x, samples, low, high, None)
        finite = np.isfinite(x)
        kept = x[finite]
        if kept.size == 0:
            return cls(x, samples, math.inf, -math.inf, finite)
        return cls(x, samples, float(kept.min()), float(kept.max()), finite)


class Statistic(Protocol):
    """Takes in batches, gives the statistic of all of them."""

    def update(self, values: Values) -> None:
        """Takes in one batch."""

    def value(self) -> Any:
        """The statistic of every batch so far."""


def statistic(request: Range | Extremes | Moments | Histogram | ZeroFraction) -> Statistic:
    """An empty statistic of the kind asked for."""
    match request:
        case Range():
            return _Range()
        case Extremes(axis=axis):
            return _Extremes(axis)
        case Moments(axis=axis):
            return _Moments(axis)
        case Histogram(bins=bins):
            return _Histogram(bins)
        case ZeroFraction(axis=axis):
            return _ZeroFraction(axis)


class _Range:
    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf

    def update(self, values: Values) -> None:
        self.low, self.high = min(self.low, values.low), max(self.high, values.high)

    def value(self) -> tuple[float, float]:
        return (self.low, self.high) if self.low <= self.high else (0.0, 0.0)


class _Extremes:
    def __init__(self, axis: int) -> None:
        self.axis = axis
        self.low: Any = math.inf
        self.high: Any = -math.inf

    def update(self, values: Values) -> None:
        x = _around(values.x, self.axis)
        where: Any = True if values.finite is None else _around(values.finite, self.axis)
        self.low = np.minimum(self.low, x.min(axis=(0, 2), initial=math.inf, where=where))
        self.high = np.maximum(self.high, x.max(axis=(0, 2), initial=-math.inf, where=where))

    def value(self) -> tuple[Array, Array]:
        """Zeros where nothing was finite."""
        none = self.low > self.high
        return tuple(np.where(none, 0.0, np.asarray(end, np.float64)) for end in (self.low, self.high))  # type: ignore[return-value]


class _Moments:
    """Sums of x − shift and its square, shift = the first sample's mean: no cancellation where the mean is large."""

    def __init__(self, axis: int | None) -> None:
        self.axis = axis
        self.shift: Array | None = None
        self.first: Any = 0.0
        self.second: Any = 0.0
        self.count: Any = 0

    def update(self, values: Values) -> None:
        x, finite = _around(values.x, self.axis), None
        if values.finite is not None:
            finite = _around(values.finite, self.axis)
            x = np.where(finite, x, 0)
        if self.shift is None:
            self.shift = x[0].mean(axis=-1, dtype=np.float64).astype(x.dtype)
        apart = x - self.shift[:, np.newaxis]
        if finite is not None:
            apart *= finite
        # each sample's own sum first, in float32 but pairwise: so it is the same in any batch
        self.first = self.first + apart.sum(axis=-1).sum(axis=0, dtype=np.float64)
        np.multiply(apart, apart, out=apart)
        self.second = self.second + apart.sum(axis=-1).sum(axis=0, dtype=np.float64)
        self.count = self.count + (
            x.shape[0] * x.shape[2] if finite is None else np.count_nonzero(finite, axis=(0, 2))
        )

    def value(self) -> MomentStat:
        if self.shift is None:
            return MomentStat(np.zeros(0), np.zeros(0), 0)
        count = np.maximum(self.count, 1)
        mean = self.first / count
        var = np.maximum(self.second / count - mean**2, 0.0)
        return MomentStat(mean + self.shift, var, int(np.max(self.count)))


class _ZeroFraction:
    def __init__(self, axis: int | None) -> None:
        self.axis = axis
        self.zeros: Any = 0
        self.count = 0

    def update(self, values: Values) -> None:
        x = _around(values.x, self.axis)
        size = x.shape[0] * x.shape[2]
        self.zeros = self.zeros + (size - np.count_nonzero(x, axis=(0, 2)))
        self.count += size

    def value(self) -> Array:
        return np.asarray(self.zeros / max(self.count, 1), np.float64)


class _Histogram:
    """Bins of width 2^exponent at multiples of it; halving their number is exact, so the end does not depend on the way."""

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self.low, self.high = math.inf, -math.inf
        self.exponent: int | None = None
        self.start = 0
        self.counts = np.zeros(0, np.int64)

    def update(self, values: Values) -> None:
        if values.low > values.high:
            return
        self.low, self.high = min(self.low, values.low), max(self.high, values.high)
        self._widen(_exponent(self.low, self.high, self.bins))
        assert self.exponent is not None
        index = np.floor(_thin(values) * values.x.dtype.type(2.0**-self.exponent)).astype(np.intp)
        index -= self.start
        self.counts += np.bincount(index, minlength=self.bins)

    def _widen(self, exponent: int) -> None:
        start = math.floor(math.ldexp(self.low, -exponent))
        fresh = np.zeros(self.bins, np.int64)
        if self.exponent is not None:
            used = np.flatnonzero(self.counts)
            moved = ((used + self.start) >> (exponent - self.exponent)) - start
            np.add.at(fresh, moved, self.counts[used])
        self.exponent, self.start, self.counts = exponent, start, fresh

    def value(self) -> HistogramStat:
        if self.exponent is None:
            return HistogramStat(np.zeros(self.bins, np.int64), 0.0, 0.0)
        width = 2.0**self.exponent
        return HistogramStat(self.counts, self.start * width, (self.start + self.bins) * width)


def _exponent(low: float, high: float, bins: int) -> int:
    """The least exponent for which `bins` aligned bins of width 2^exponent cover low..high.

    It never falls as the range grows. Not below float32's own resolution, so an index stays exact.
    """
    top = max(abs(low), abs(high))
    least = max(math.frexp(top)[1] - 24, _FINEST) if top else _FINEST
    exponent = max(least, math.frexp(max(high - low, 2.0**-140) / bins)[1] - 1)
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= bins:
        exponent += 1
    return exponent


def _thin(values: Values) -> Array:
    """At most HISTOGRAM_VALUES finite values of each sample, evenly spread."""
    x, finite = values.x, values.finite
    if x.ndim > 1 and len(x) % values.samples == 0:
        size = x.size // values.samples
        step = -(-size // HISTOGRAM_VALUES)
        while math.gcd(step, size) > 1:
            step += 1
        x = x.reshape(values.samples, -1)[:, ::step]
        finite = None if finite is None else finite.reshape(values.samples, -1)[:, ::step]
    return x.ravel() if finite is None else x[finite]


def _around(x: Array, axis: int | None) -> Array:
    """`x` as (before, axis, after); axis None: (first axis, 1, the rest)."""
    if axis is None or x.ndim == 0:
        return x.reshape(len(x) if x.ndim else 1, 1, -1)
    axis %= x.ndim
    return x.reshape(math.prod(x.shape[:axis]), x.shape[axis], -1)
