"""The clock: what it decides and records. No test asserts a wall-clock time."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from onnx_compress.errors import UsageError
from onnx_compress.model.document import Model
from onnx_compress.runtime import alignment, clock, race
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.race import RUNS, Ratio, Times, interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEEDS: dict[str, NDArray[Any]] = {"x": np.ones((1, 32), np.float32)}
T = Times(1.0, 1.0, 20)


def mlp(layers: int) -> Model:
    body = "\n".join(f"h{i + 1} = MatMul(h{i}, w)" for i in range(layers))
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 32] x) => (float[N, 32] h{layers}) <float[32, 32] w> {{ h0 = Identity(x) {body} }}"""
    )
    weight = np.eye(32, dtype=np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return Model.from_proto(model)


def ratio(median: float, low: float, high: float, noise: float = 0.001) -> Ratio:
    return Ratio(median, low, high, noise, T, T)


@pytest.mark.parametrize(("n", "rank"), [(20, 6), (30, 10), (50, 18), (100, 40)])
def test_interval_ranks_are_those_of_the_tables(n: int, rank: int) -> None:
    # Conover, Practical Nonparametric Statistics: ranks of the 95 % interval of a median
    assert interval(list(range(1, n + 1))) == (rank, n + 1 - rank)


def test_interval_covers_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for values in rng.exponential(size=(2000, 20)):
        low, high = interval(values.tolist())
        hits += low <= math.log(2) <= high
    # coverage is 95.86 % for n = 20; 5 sd of a binomial of 2000 is 2.2 %
    assert 0.936 <= hits / 2000 <= 0.981


def test_interval_of_few_values_is_their_range() -> None:
    assert interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert interval([3.0]) == (3.0, 3.0)


def test_rules() -> None:
    faster, unclear, slower = ratio(1.5, 1.2, 1.8), ratio(1.0, 0.9, 1.1), ratio(0.7, 0.6, 0.99)
    assert [r.allows("faster") for r in (faster, unclear, slower)] == [True, False, False]
    assert [r.allows("not-slower") for r in (faster, unclear, slower)] == [True, True, False]
    assert [r.allows("always") for r in (faster, unclear, slower)] == [True, True, True]


def test_a_proposal_gains_more_than_three_percent_and_three_deviations() -> None:
    assert ratio(1.05, 1, 1.1, noise=0.01).promising
    assert not ratio(1.05, 1, 1.1, noise=0.02).promising
    assert not ratio(1.029, 1, 1.1, noise=0.0001).promising


def test_a_proposal_that_the_noise_leaves_open_is_timed_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        ratio(1.05, 1, 1.1, noise=0.02),
        ratio(1.05, 1, 1.1, noise=0.01),
        ratio(1.01, 1, 1.1, noise=0.1),
    ]
    asked: list[int] = []

    def compare(*_: Any, runs: int = RUNS) -> Ratio:
        asked.append(runs)
        return answers.pop(0)

    timing = Clock(threads=1)
    monkeypatch.setattr(timing, "compare", compare)
    assert timing.propose("a", mlp(1), mlp(1), FEEDS).kept
    assert asked == [RUNS, 3 * RUNS]
    assert not timing.propose("b", mlp(1), mlp(1), FEEDS).kept
    assert asked[2:] == [RUNS]


def test_compare_finds_the_model_with_a_hundredth_of_the_layers_faster() -> None:
    result = Clock(threads=1).compare(mlp(100), mlp(1), FEEDS)
    assert result.low <= result.median <= result.high
    assert result.low > 1
    assert result.noise >= 0
    assert result.first.runs >= 20


def test_no_runner_follows_itself_and_the_order_alternates() -> None:
    taken: list[str] = []

    class Runner:
        def __init__(self, name: str) -> None:
            self.name = name

        def sample(self) -> tuple[float, float]:
            taken.append(self.name)
            return 1.0, 1.0

    a, again, b = Runner("a"), Runner("again"), Runner("b")
    result = race.race(a, again, b, runs=3)  # type: ignore[arg-type]
    assert (result.median, result.low, result.high, result.noise) == (1.0, 1.0, 1.0, 0.0)
    assert len(taken) == 3 * 20
    assert all(first != second for first, second in itertools.pairwise(taken))
    firsts = [next(name for name in taken[i : i + 3] if name != "again") for i in range(0, 60, 3)]
    assert firsts == ["a", "b"] * 10


def test_the_interval_holds_what_the_aa_pair_shows() -> None:
    class Runner:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def sample(self) -> tuple[float, float]:
            return self.seconds, self.seconds

    result = race.race(Runner(1.0), Runner(1.1), Runner(1.05), 20)  # type: ignore[arg-type]
    assert result.median == pytest.approx(1 / 1.05)
    assert (result.low, result.high) == pytest.approx((1 / 1.05 / 1.1, 1.1 / 1.05))
    assert result.noise == pytest.approx(0.1)
    assert result.allows("not-slower")


def test_decide_records_and_replays_without_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Clock(threads=1)
    kept = first.decide("conv1", "keep", mlp(100), mlp(1), FEEDS, "faster", 8.0)
    assert kept.kept
    assert kept.value == 8.0
    assert first.decisions == [kept]
    monkeypatch.setattr(clock, "race", None)
    replay = Clock(replay=[dataclasses.asdict(kept)])
    assert replay.decide("conv1", "keep", mlp(1), mlp(100), FEEDS, "faster", 8.0) == kept
    assert replay.decisions == [kept]


@pytest.mark.parametrize(
    ("first", "timings"),
    [((0.97, 0.93, 1.01), 2), ((0.93, 0.9, 0.96), 2), ((1.2, 1.1, 1.3), 1), ((0.5, 0.4, 0.6), 1)],
)
@pytest.mark.parametrize(
    ("second", "kept"), [((0.95, 0.94, 0.96), False), ((0.95, 0.9, 1.05), False), ((0.98, 0.95, 1.01), True)]
)
def test_a_close_call_is_timed_again_and_the_second_timing_decides(
    first: tuple[float, float, float],
    timings: int,
    second: tuple[float, float, float],
    kept: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is slower in the middle, but not wholly, is kept only if it is not slower a second time, looked at for longer."""
    seen = iter([ratio(*first), ratio(*second)])
    timed, looks = Clock(), []

    def compare(*_: object, runs: int = 0) -> Ratio:
        looks.append(runs)
        return next(seen)

    monkeypatch.setattr(timed, "compare", compare)
    decision = timed.settle("n", "keep", mlp(1), mlp(1), FEEDS, "not-slower")
    assert len(timed.decisions) == timings
    assert decision.kept == (kept if timings == 2 else first[2] >= 1)
    assert looks == sorted(set(looks))


def test_always_needs_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "race", None)
    assert Clock().decide("n", "keep", mlp(1), mlp(1), FEEDS, "always").kept


def test_a_missing_replay_entry_is_named() -> None:
    replay = Clock(replay=[])
    with pytest.raises(UsageError, match=r"--decisions holds no decision 'keep' about 'conv7'"):
        replay.decide("conv7", "keep", mlp(1), mlp(1), FEEDS, "faster")
    with pytest.raises(UsageError, match=r"'round_to' about 'conv'"):
        replay.round_to()


def test_replayed_decisions_about_one_node_come_in_their_order() -> None:
    entries = [{"node": "n", "what": "time", "value": value, "kept": True} for value in (1.0, 2.0)]
    replay = Clock(replay=entries)
    assert [replay.time("n", mlp(1), FEEDS) for _ in range(2)] == [1.0, 2.0]


def keep_best(
    monkeypatch: pytest.MonkeyPatch, good: set[str], gains: dict[str, float]
) -> tuple[Clock, set[str], list[set[str]]]:
    """The whole-model procedure with a race that only sets without bad candidates win."""
    tried: list[set[str]] = []
    timing = Clock(threads=1)

    def build(kept: set[str]) -> Model:
        tried.append(kept)
        return mlp(1)

    def race(*_: Any) -> Ratio:
        return ratio(1.2, 1.1, 1.3) if tried[-1] <= good else ratio(0.9, 0.8, 1.05)

    monkeypatch.setattr(clock, "race", race)
    kept = timing.keep_best(mlp(1), gains, build, FEEDS)
    return timing, kept, tried


def test_keep_best_finds_the_good_candidates_half_by_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one half keeps stays in while the other is tried; a set is timed once."""
    gains = {"a": 0.5, "b": 0.4, "c": 0.3, "d": 0.2}
    timing, kept, tried = keep_best(monkeypatch, {"a", "b", "d"}, gains)
    assert tried == [{"a", "b", "c", "d"}, {"a", "b"}, {"a", "b", "c"}, {"a", "b", "d"}]
    assert kept == {"a", "b", "d"}
    assert {d.node: d.kept for d in timing.decisions} == {n: n in kept for n in gains}
    assert all((d.what, d.ratio) == ("keep", 1.2) for d in timing.decisions)


def test_keep_best_looks_at_the_weaker_half_where_the_stronger_is_no_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, kept, tried = keep_best(monkeypatch, {"c"}, {"a": 0.5, "b": 0.4, "c": 0.3})
    assert tried == [{"a", "b", "c"}, {"a"}, {"b", "c"}, {"b"}, {"c"}]
    assert kept == {"c"}


def test_keep_best_times_longer_what_seems_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interval that reaches 1 is no answer where the median is above: three times the pairs are."""
    asked: list[int] = []

    def race(*words: Any) -> Ratio:
        asked.append(words[-1])
        return ratio(1.08, 0.99, 1.2) if len(asked) == 1 else ratio(1.07, 1.02, 1.1)

    monkeypatch.setattr(clock, "race", race)
    assert Clock(threads=1).keep_best(mlp(1), {"a": 0.1}, lambda _: mlp(1), FEEDS) == {"a"}
    assert asked == [RUNS, 3 * RUNS]


def test_keep_best_replays_to_the_same_set(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = {"a": 0.5, "b": 0.4, "c": 0.3}
    timing, kept, _ = keep_best(monkeypatch, {"a"}, gains)
    replay = Clock(replay=[dataclasses.asdict(d) for d in timing.decisions])
    assert replay.keep_best(mlp(1), gains, lambda _: pytest.fail("built"), FEEDS) == kept == {"a"}
    assert replay.decisions == timing.decisions


def test_keep_best_gives_up_after_six_rounds_or_with_none_left(monkeypatch: pytest.MonkeyPatch) -> None:
    _, kept, tried = keep_best(monkeypatch, set(), {f"n{i}": i / 100 for i in range(100)})
    assert kept == set()
    assert [len(t) for t in tried] == [100, 50, 25, 12, 6, 3]
    _, kept, tried = keep_best(monkeypatch, set(), {"a": 0.1})
    assert (kept, tried) == (set(), [{"a"}])


def test_keep_best_of_nothing_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    timing, kept, tried = keep_best(monkeypatch, set(), {})
    assert (timing.decisions, kept, tried) == ([], set(), [])


@pytest.mark.parametrize("step", [4, 8, 16])
def test_multiple_is_the_padding_of_the_kernel(step: int) -> None:
    padded = {width: float(-(-width // step) * step) for width in alignment.WIDTHS}
    assert alignment.multiple(padded) == step


@pytest.mark.parametrize("kind", ["conv", "gemm"])
@pytest.mark.parametrize("quantized", [False, True])
def test_round_to_is_measured_once_and_recorded(
    kind: Any, quantized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = Clock(threads=1)
    multiple = timing.round_to(kind, quantized=quantized)
    assert multiple in {4, 8, 16}
    monkeypatch.setattr(timing, "_width_times", None)
    assert timing.round_to(kind, quantized=quantized) == multiple
    (decision, again) = timing.decisions
    assert decision == again
    assert (decision.what, decision.value) == ("round_to", multiple)
    following = timing.successor()
    monkeypatch.setattr(Clock, "_width_times", None)
    assert following.round_to(kind, quantized=quantized) == multiple
    assert len(following.decisions) == 1


def test_measure_gives_a_median_below_its_p95() -> None:
    times = Clock(threads=1).measure(mlp(2), {**FEEDS, "unused": FEEDS["x"]}, runs=5)
    assert 0 < times.median_ms <= times.p95_ms
    assert times.runs == 5
