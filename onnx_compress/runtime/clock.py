"""Measures whether one model is faster than another, and remembers what was decided so that a replay needs no clock."""

from __future__ import annotations

import math
from collections import defaultdict, deque
from typing import TYPE_CHECKING, Any, Literal

from onnx_compress.errors import UsageError
from onnx_compress.runtime import alignment
from onnx_compress.runtime.decision import Decision
from onnx_compress.runtime.race import GAIN, RUNS, Ratio, Runner, Times, quiet, race, times
from onnx_compress.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnx_compress.model.document import Model
    from onnx_compress.runtime.race import Feeds, Rule

LONGER = 3  # times as many, where the second model seems faster and the noise leaves it open
CLOSE = 0.9  # ratio from which on a busy machine may be mistaken
SURE = 100  # pairs, then
ROUNDS = 6  # sets of candidates that are timed


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
        first = Runner(Session(a, threads=self.threads), feeds)
        again = Runner(Session(a, threads=self.threads), feeds)
        second = Runner(Session(b, threads=self.threads), feeds)
        return race(first, again, second, runs)

    def measure(self, model: Model, feeds: Feeds, runs: int = RUNS) -> Times:
        """Milliseconds `model` takes for one batch."""
        runner = Runner(Session(model, threads=self.threads), feeds)
        with quiet():
            return times([runner.sample()[0] for _ in range(runs)])

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
        """`decide`, but a close call is timed again, as long as a run's proof times it, and that decides: noise may hide that
        the second model is slower, so it is not to seem so by more than GAIN either.
        """
        first = self.decide(node, what, a, b, feeds, rule)
        if first.ratio is None or not (CLOSE <= first.ratio < 1 or first.kept != (first.ratio >= 1)):
            return first
        earlier = self._earlier(node, what)
        if earlier is not None:
            return self._record(earlier)
        ratio = self.compare(a, b, feeds, runs=SURE)
        kept = ratio.allows(rule) and ratio.median > 1 - GAIN
        return self._record(_decision(node, what, 0.0, kept, ratio))

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
        first = Runner(Session(baseline, threads=self.threads), feeds)
        again = Runner(Session(baseline, threads=self.threads), feeds)
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
                second = Runner(Session(build(names), threads=self.threads), feeds)
                ratio = race(first, again, second, RUNS)
                # > the first set has its proposals on its side: against them one look is not enough
                if rule == "faster" and ratio.low <= 1 and (ratio.median > 1 or len(tried) == 1):
                    ratio = race(first, again, second, LONGER * RUNS)
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
            runners[width] = Runner(Session(model, threads=self.threads), feeds)
        best = dict.fromkeys(runners, math.inf)
        with quiet():
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
