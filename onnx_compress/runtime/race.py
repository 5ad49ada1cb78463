"""Which of two models is faster, and how sure that is: samples of both in turns.

A sample is at least 2 ms; a second session of the first model runs among them (an A/A pair) and shows what a ratio of 1 looks like
in this noise.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.runtime.session import Session

    Array = NDArray[Any]
    Feeds = Mapping[str, Array]

Rule = Literal["faster", "not-slower", "always"]
SAMPLE = 0.002  # seconds: what one sample takes at least
RUNS = 20  # pairs
GAIN = 0.03  # below this a micro-model's gain proposes nothing


@dataclass(frozen=True)
class Times:
    """Milliseconds a run, over `runs` samples."""

    median_ms: float
    p95_ms: float
    runs: int


@dataclass(frozen=True)
class Ratio:
    """Time of the first model over time of the second (above 1: the second is faster), paired.

    median, with its 95 % interval low..high, widened by how far the A/A pair's median is from 1; noise: what that pair
    shows of a ratio that is 1, as one standard deviation of the median; first, second: the models' own times.
    """

    median: float
    low: float
    high: float
    noise: float
    first: Times
    second: Times

    def allows(self, rule: Rule) -> bool:
        """Whether the second model may replace the first."""
        if rule == "faster":
            return self.low > 1
        return rule == "always" or self.high >= 1

    @property
    def promising(self) -> bool:
        """Whether a micro-model with this ratio is worth a trial in the whole model."""
        return self.median - 1 > max(GAIN, 3 * self.noise)


class Runner:
    """A session and its feeds, warmed up, with the number of runs that fill a sample."""

    def __init__(self, session: Session, feeds: Feeds) -> None:
        self._session = session
        self._feeds = session.encoded({name: feeds[name] for name in session.inputs if name in feeds})
        session.run(self._feeds)  # once with our own errors
        self._loop = max(1, math.ceil(SAMPLE / max(min(self._seconds(3)), 1e-7)))
        self._seconds(self._loop)

    def sample(self) -> tuple[float, float]:
        """Seconds a run: the mean and the best of the sample. The best leaves out what other processes took."""
        runs = self._seconds(self._loop)
        return sum(runs) / len(runs), min(runs)

    def _seconds(self, loop: int) -> list[float]:
        run, feeds, now = self._session.run_raw, self._feeds, time.perf_counter
        marks = [now()]
        for _ in range(loop):
            run(feeds)
            marks.append(now())
        return [end - start for start, end in itertools.pairwise(marks)]


class quiet:  # noqa: N801 - reads as a statement
    """No garbage collection while the block runs."""

    def __enter__(self) -> None:
        self._was = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was:
            gc.enable()


def race(first: Runner, again: Runner, second: Runner, runs: int) -> Ratio:
    """Samples in turns. No runner follows itself: it would find its weights in the cache."""
    orders = ((first, second, again), (second, first, again))
    with quiet():
        samples = [
            {id(runner): runner.sample() for runner in orders[number % 2]}
            for number in range(max(runs, RUNS))
        ]
    a, aa, b = ([taken[id(runner)] for taken in samples] for runner in (first, again, second))
    null = _ratios(a, aa)
    low, high = interval(null)
    # two sessions of one model may differ for good, by where their memory lies or what else runs
    apart = abs(math.log(statistics.median(null)))
    noise = max(math.expm1(apart), (high - low) / (2 * 1.96))
    ratios = _ratios(a, b)
    low, high = interval(ratios)
    both = (times([mean for mean, _ in taken]) for taken in (a, b))
    return Ratio(statistics.median(ratios), low * math.exp(-apart), high * math.exp(apart), noise, *both)


def _ratios(a: Sequence[tuple[float, float]], b: Sequence[tuple[float, float]]) -> list[float]:
    """The ratios of the best runs, pair by pair."""
    return [x / y for (_, x), (_, y) in zip(a, b, strict=True)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median, from order statistics: no distribution is assumed.

    The k-th smallest and k-th largest value, k the largest with 2 P(Binomial(n, 1/2) < k) <= 5 %.

    >>> interval(range(1, 21))  # n = 20: k = 6
    (6, 15)
    """
    ordered = sorted(values)
    n, k, tail = len(ordered), 0, 0.0
    while k < (n + 1) // 2:
        tail += math.comb(n, k) / 2**n
        if 2 * tail > 0.05:
            break
        k += 1
    k = max(k, 1)
    return ordered[k - 1], ordered[n - k]


def times(seconds: Sequence[float]) -> Times:
    """The median and the 95th percentile of samples in seconds."""
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, math.ceil(0.95 * len(ordered)) - 1)]
    return Times(statistics.median(ordered) * 1000, p95 * 1000, len(ordered))
