"""Measures whether one model is faster than another, and remembers what was decided so that a replay needs no clock.

A sample is at least 2 ms; samples of both models are taken in turns, with a second session of the first model among them
(an A/A pair) that shows what a ratio of 1 looks like in this noise.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from onnx_compress.errors import UsageError
from onnx_compress.runtime import alignment
from onnx_compress.runtime.decision import Decision
from onnx_compress.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model

    Array = NDArray[Any]
    Feeds = Mapping[str, Array]

Rule = Literal["faster", "not-slower", "always"]
SAMPLE = 0.002  # seconds: what one sample takes at least
RUNS = 20  # pairs
LONGER = 3  # times as many, where the second model seems faster and the noise leaves it open
CLOSE = 0.9  # ratio from which on a busy machine may be mistaken
ROUNDS = 6  # sets of candidates that are timed
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


class Clock:
    """Times models with `threads` threads, and keeps every decision in `decisions`.

    replay: decisions of an earlier run (a report's dicts), which are given again, in their order, without timing.
    Raises UsageError where a replay lacks the decision asked for.
    """

    def __init__(
        self, threads: int = 0, seed: int = 0, replay: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        self.threads = threads
        self.seed = seed
        self.decisions: list[Decision] = []
        self._multiples: dict[str, int] = {}
        self._replay: dict[tuple[str, str], deque[Mapping[str, Any]]] | None = None
        if replay is not None:
            self._replay = defaultdict(deque)
            for entry in replay:
                self._replay[entry["node"], entry["what"]].append(entry)

    @property
    def replaying(self) -> bool:
        """Whether decisions come from an earlier run."""
        return self._replay is not None

    def successor(self, replay: Sequence[Mapping[str, Any]] | None = None) -> Clock:
        """A clock for the next pass: no decisions yet, but nothing about the machine is measured twice."""
        clock = Clock(self.threads, self.seed, replay)
        clock._multiples = self._multiples
        return clock

    def compare(self, a: Model, b: Model, feeds: Feeds, *, runs: int = RUNS) -> Ratio:
        """Time of `a` over time of `b` on one batch."""
        first = _Runner(Session(a, threads=self.threads), feeds)
        again = _Runner(Session(a, threads=self.threads), feeds)
        second = _Runner(Session(b, threads=self.threads), feeds)
        return _race(first, again, second, runs)

    def measure(self, model: Model, feeds: Feeds, runs: int = RUNS) -> Times:
        """Milliseconds `model` takes for one batch."""
        runner = _Runner(Session(model, threads=self.threads), feeds)
        with _quiet():
            return _times([runner.sample()[0] for _ in range(runs)])

    def decide(
        self,
        node: str,
        what: Literal["keep", "round_to", "time"],
        a: Model,
        b: Model,
        feeds: Feeds,
        rule: Rule,
        value: float = 0.0,
    ) -> Decision:
        """Whether `b` may replace `a`, by `rule`; recorded for `node`."""
        earlier = self._earlier(node, what)
        if earlier is not None:
            return self._record(earlier)
        if rule == "always":
            return self._record(_decision(node, what, value, True))
        ratio = self.compare(a, b, feeds)
        return self._record(_decision(node, what, value, ratio.allows(rule), ratio))

    def settle(
        self, node: str, what: Literal["keep"], a: Model, b: Model, feeds: Feeds, rule: Rule
    ) -> Decision:
        """`decide`, but a close call is timed again, and the second timing decides."""
        first = self.decide(node, what, a, b, feeds, rule)
        close = first.ratio is not None and (CLOSE <= first.ratio < 1 or first.kept != (first.ratio >= 1))
        return self.decide(node, what, a, b, feeds, rule) if close else first

    def propose(self, node: str, a: Model, b: Model, feeds: Feeds) -> Decision:
        """Whether micro-model `b` is faster than `a` by more than 3 % and 3 sd, worth a trial in the whole model.

        Where it is 3 % but not 3 sd, it is timed LONGER. The decision's value is the gain: the share of a's time that is saved.
        """
        earlier = self._earlier(node, "time")
        if earlier is not None:
            return self._record(earlier)
        ratio = self.compare(a, b, feeds)
        if ratio.median - 1 > GAIN and not ratio.promising:
            ratio = self.compare(a, b, feeds, runs=LONGER * RUNS)
        return self._record(_decision(node, "time", 1 - 1 / ratio.median, ratio.promising, ratio))

    def time(self, node: str, model: Model, feeds: Feeds, runs: int = RUNS) -> float:
        """Milliseconds `model` takes, as a recorded decision."""
        earlier = self._earlier(node, "time")
        if earlier is not None:
            return self._record(earlier).value
        return self._record(_decision(node, "time", self.measure(model, feeds, runs).median_ms, True)).value

    def note(self, node: str, milliseconds: float) -> float:
        """What the caller measured of a part of a model, as a recorded decision; in a replay, what was recorded."""
        earlier = self._earlier(node, "time")
        return self._record(earlier or _decision(node, "time", milliseconds, True)).value

    def keep_best(
        self,
        baseline: Model,
        gains: Mapping[str, float],
        build: Callable[[set[str]], Model],
        feeds: Feeds,
        rule: Rule = "faster",
    ) -> set[str]:
        """The candidates to keep, decided on the whole model.

        gains: of each candidate (a node's name), what its proposal promised; build: the whole model with these
        candidates in. All are tried together; a set that `rule` does not allow is tried half by half, the better half
        first, each beside what is kept by then; ROUNDS sets at most. A set that seems faster, but by less than the
        noise, is timed LONGER, and so is the whole where it seems slower than its parts promised. `baseline` and what `build` returns are to be as the model will be shipped (`Job.finish`).
        """
        if self.replaying:
            earlier = [self._earlier(node, "keep") for node in sorted(gains)]
            decisions = [self._record(entry) for entry in earlier if entry is not None]
            return {decision.node for decision in decisions if decision.kept}
        kept, ratio = self._bisect(baseline, gains, build, feeds, rule)
        for node in sorted(gains):
            self._record(_decision(node, "keep", gains[node], node in kept, ratio))
        return kept

    def _bisect(
        self,
        baseline: Model,
        gains: Mapping[str, float],
        build: Callable[[set[str]], Model],
        feeds: Feeds,
        rule: Rule,
    ) -> tuple[set[str], Ratio | None]:
        """The candidates to keep, and the ratio with them in; where none are kept, that of the last set tried."""
        best_first = sorted(gains, key=lambda node: (-gains[node], node))
        if rule == "always" or not best_first:
            return set(best_first), None
        first = _Runner(Session(baseline, threads=self.threads), feeds)
        again = _Runner(Session(baseline, threads=self.threads), feeds)
        kept: set[str] = set()
        best: Ratio | None = None
        ratio: Ratio | None = None
        tried: set[frozenset[str]] = set()
        waiting = [best_first]
        while waiting and len(tried) < ROUNDS:
            part = waiting.pop()
            names = kept.union(part)
            if names not in tried:  # > both halves of a set that was refused are that set again
                tried.add(frozenset(names))
                second = _Runner(Session(build(names), threads=self.threads), feeds)
                ratio = _race(first, again, second, RUNS)
                # > the first set has its proposals on its side: against them one look is not enough
                if rule == "faster" and ratio.low <= 1 and (ratio.median > 1 or len(tried) == 1):
                    ratio = _race(first, again, second, LONGER * RUNS)
                if ratio.allows(rule) and (rule != "faster" or best is None or ratio.median >= best.median):
                    kept, best = names, ratio
                    continue
            if len(part) > 1:
                half = len(part) // 2
                waiting += [part[half:], part[:half]]
        return kept, best or ratio

    def round_to(self, kind: Literal["conv", "gemm"] = "conv", *, quantized: bool = False) -> int:
        """The multiple that this machine's kernels want of a layer's width: 4, 8 or 16, measured once."""
        node = f"{kind} int8" if quantized else kind
        earlier = self._earlier(node, "round_to")
        if earlier is not None:
            return int(self._record(earlier).value)
        if node not in self._multiples:
            self._multiples[node] = alignment.multiple(self._width_times(kind, quantized))
        return int(self._record(_decision(node, "round_to", self._multiples[node], True)).value)

    def _width_times(self, kind: Literal["conv", "gemm"], quantized: bool) -> dict[int, float]:
        """Seconds of the micro-model at each width, the best of samples taken in turns."""
        runners = {}
        for width in alignment.WIDTHS:
            model, feeds = alignment.micro_model(kind, width, quantized=quantized)
            runners[width] = _Runner(Session(model, threads=self.threads), feeds)
        best = dict.fromkeys(runners, math.inf)
        with _quiet():
            for _ in range(RUNS):
                for width, runner in runners.items():
                    best[width] = min(best[width], runner.sample()[1])
        return best

    def _earlier(self, node: str, what: str) -> Decision | None:
        """The decision of the run that is replayed, or None where there is a clock."""
        if self._replay is None:
            return None
        waiting = self._replay.get((node, what))
        if not waiting:
            raise UsageError(
                f"--decisions holds no decision {what!r} about {node!r}: it is of another model, recipe, seed or data"
            )
        entry = waiting.popleft()
        return _decision(node, what, entry["value"], entry["kept"], entry)

    def _record(self, decision: Decision) -> Decision:
        self.decisions.append(decision)
        return decision


def _decision(
    node: str, what: str, value: float, kept: bool, ratio: Ratio | Mapping[str, Any] | None = None
) -> Decision:
    if ratio is None:
        return Decision(node, what, value, kept)
    if isinstance(ratio, Ratio):
        return Decision(node, what, value, kept, ratio.median, ratio.low, ratio.high)
    return Decision(node, what, value, kept, ratio.get("ratio"), ratio.get("low"), ratio.get("high"))


class _Runner:
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
        times = [now()]
        for _ in range(loop):
            run(feeds)
            times.append(now())
        return [end - start for start, end in itertools.pairwise(times)]


class _quiet:  # noqa: N801 - reads as a statement
    """No garbage collection while the block runs."""

    def __enter__(self) -> None:
        self._was = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was:
            gc.enable()


def _race(first: _Runner, again: _Runner, second: _Runner, runs: int) -> Ratio:
    """Samples in turns. No runner follows itself: it would find its weights in the cache."""
    orders = ((first, second, again), (second, first, again))
    with _quiet():
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
    times = (_times([mean for mean, _ in taken]) for taken in (a, b))
    return Ratio(statistics.median(ratios), low * math.exp(-apart), high * math.exp(apart), noise, *times)


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


def _times(seconds: Sequence[float]) -> Times:
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, math.ceil(0.95 * len(ordered)) - 1)]
    return Times(statistics.median(ordered) * 1000, p95 * 1000, len(ordered))
