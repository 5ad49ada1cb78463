"""What became of a model: its outputs, the user's metric and its speed beside the original's, measured in the same run."""

from __future__ import annotations

import importlib
import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.errors import InputError, UsageError
from onnx_compress.runtime.agreement import LIMIT_DB, Agreement, Comparison, batch_rows
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.race import RUNS, SAMPLE
from onnx_compress.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.runtime.data import Data
    from onnx_compress.runtime.race import Ratio

    Array = NDArray[Any]
    Outputs = Mapping[str, Any]
    Score = Callable[[Outputs, Outputs], float]

BUDGET = 4.0  # seconds of timing, beyond the least number of pairs
MOST_RUNS = 100


@dataclass(frozen=True)
class Metric:
    """A score of both models on all samples of --eval; higher is better, drop = before - after."""

    name: str
    before: float
    after: float
    samples: int

    @property
    def drop(self) -> float:
        """How far the score fell."""
        return self.before - self.after


@dataclass(frozen=True)
class Latency:
    """Time of the original (ratio.first) and of the result (ratio.second) for one batch, taken in turns."""

    threads: int
    batch: int
    ratio: Ratio


@dataclass(frozen=True)
class Limits:
    """What the user demands; None demands nothing."""

    max_drop: float | None = None
    min_sqnr: float | None = None
    min_speedup: float | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in (self.max_drop, self.min_sqnr, self.min_speedup))


@dataclass(frozen=True)
class Threshold:
    """A limit of the user's and what was measured."""

    name: str
    limit: float
    value: float
    met: bool

    def __str__(self) -> str:
        """In words, for the error that ends the run."""
        if math.isnan(self.value):
            return f"--{self.name.replace('_', '-')} {self.limit:g} cannot be told: it was not measured"
        words = {
            "max_drop": "the metric fell by {0:.4g}, more than --max-drop {1:g}",
            "min_sqnr": "the outputs agree to {0:.4g} dB, less than --min-sqnr {1:g}",
            "min_speedup": "the speedup is {0:.4g}, less than --min-speedup {1:g}",
        }
        return words[self.name].format(self.value, self.limit)


@dataclass(frozen=True)
class Verification:
    """What was measured of the original and the result."""

    agreement: list[Agreement] = field(default_factory=list)
    metric: Metric | None = None
    latency: Latency | None = None

    @property
    def worst_sqnr(self) -> float:
        """That of the worst float output; without float outputs the limit up or down, as all are equal or not."""
        if not self.agreement:
            return math.nan
        found = [row.sqnr_db for row in self.agreement if row.sqnr_db is not None]
        return (
            min(found) if found else LIMIT_DB if all(row.argmax == 1 for row in self.agreement) else -LIMIT_DB
        )

    def thresholds(self, limits: Limits) -> list[Threshold]:
        """Each of the user's limits, met or missed. What could not be measured is missed."""
        found = []
        if limits.max_drop is not None:
            drop = self.metric.drop if self.metric else math.nan
            # 1e-9: 0.9 - 0.89 is a little more than 0.01
            found.append(Threshold("max_drop", limits.max_drop, drop, drop <= limits.max_drop + 1e-9))
        if limits.min_sqnr is not None:
            worst = self.worst_sqnr
            found.append(Threshold("min_sqnr", limits.min_sqnr, worst, worst >= limits.min_sqnr))
        if limits.min_speedup is not None:
            speedup = self.latency.ratio.median if self.latency else math.nan
            found.append(Threshold("min_speedup", limits.min_speedup, speedup, speedup >= limits.min_speedup))
        return found


def verify(
    before: Model,
    after: Model,
    data: Data,
    *,
    score: tuple[str, Score] | None = None,
    feeds: Mapping[str, Array] | None = None,
    threads: int = 0,
    batch: int = 1,
    clock: Clock | None = None,
    progress: Callable[[int, int, str], None] = lambda _done, _total, _what: None,
) -> Verification:
    """Agreement over all samples of `data`, the metric `score` (from `metric`) on them, and latency on the batch `feeds`.

    Latency is left out where `feeds` is None.
    """
    agreement, scored = _sweep(before, after, data, score, threads, progress)
    latency = None
    if feeds is not None:
        progress(0, 1, "timing")
        latency = _latency(before, after, feeds, clock or Clock(threads), batch)
    return Verification(agreement, scored, latency)


def _latency(before: Model, after: Model, feeds: Mapping[str, Array], clock: Clock, batch: int) -> Latency:
    seconds = max(clock.measure(before, feeds, 3).median_ms / 1000, SAMPLE)
    runs = min(MOST_RUNS, max(RUNS, int(BUDGET / (3 * seconds))))
    return Latency(clock.threads, batch, clock.compare(before, after, feeds, runs=runs))


def _sweep(
    before: Model,
    after: Model,
    data: Data,
    score: tuple[str, Score] | None,
    threads: int,
    progress: Callable[[int, int, str], None],
) -> tuple[list[Agreement], Metric | None]:
    first, second = Session(before, threads=threads), Session(after, threads=threads)
    comparison = Comparison()
    outputs: tuple[list[Outputs], list[Outputs]] = ([], [])
    inputs: list[Outputs] = []
    done = 0
    for feeds in data.batches(32):
        expected, actual = first.run(feeds), second.run(feeds)
        rows = batch_rows(feeds)
        comparison.add(expected, actual, rows)
        if score is not None:
            outputs[0].append(expected)
            outputs[1].append(actual)
            inputs.append(feeds)
        done += rows
        progress(done, data.samples, "verifying")
    if score is None:
        return comparison.agreements(), None
    name, function = score
    given = {**stacked(inputs), **data.targets}
    before_score, after_score = (function(stacked(part), given) for part in outputs)
    return comparison.agreements(), Metric(name, before_score, after_score, data.samples)


def stacked(batches: Sequence[Outputs]) -> dict[str, Any]:
    """Each array of all batches along axis 0; of samples whose shapes differ, one object array."""
    if not batches:
        return {}
    found: dict[str, Any] = {}
    for name in batches[0]:
        values = [batch[name] for batch in batches]
        if not all(isinstance(value, np.ndarray) for value in values):
            found[name] = [
                item for value in values for item in (value if isinstance(value, list) else [value])
            ]
        elif len({value.shape[1:] for value in values}) == 1 and values[0].ndim:
            found[name] = np.concatenate(values)
        else:
            rows = [row for value in values for row in (value if value.ndim else [value])]
            found[name] = np.empty(len(rows), object)
            found[name][:] = rows
    return found


def metric(name: str) -> Score:
    """The function of a metric: of the outputs and of the data (inputs and targets), all samples stacked.

    name: top1, top5, mse (negated), or package.module:function. Higher is better.
    Raises UsageError where it is none of these or cannot be imported.
    """
    if name in METRICS:
        return METRICS[name]
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise UsageError(f"no metric {name!r}; write top1, top5, mse or package.module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(f"the metric {name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise UsageError(f"the metric {name!r} is no function")

    def score(outputs: Outputs, data: Outputs) -> float:
        try:
            value = float(found(dict(outputs), dict(data)))
        except Exception as error:
            words = " ".join(str(error).split())
            raise UsageError(f"the metric {name!r} failed: {type(error).__name__}: {words}") from error
        if not math.isfinite(value):
            raise UsageError(f"the metric {name!r} gave {value}, no finite number")
        return value

    return score


def _top(count: int) -> Score:
    def score(outputs: Outputs, data: Outputs) -> float:
        labels = _labels(data).reshape(-1)
        for value in outputs.values():
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
                continue
            if value.ndim >= 2 and len(value) == len(labels) and value.size > len(labels):
                return _hits(value.reshape(len(labels), -1), labels, count)
        for value in outputs.values():
            # the model has picked the class itself
            if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size == len(labels):
                return float((value.reshape(-1) == labels).mean())
        raise UsageError(
            f"--metric top{count}: no output has one row of class scores a sample; use another metric"
        )

    return score


def _hits(scores: Array, labels: Array, count: int) -> float:
    """The share of samples with fewer than `count` classes before the labelled one; the first of equals is before."""
    if labels.min(initial=0) < 0 or labels.max(initial=0) >= scores.shape[1]:
        raise InputError(
            f"labels go from {labels.min()} to {labels.max()}, but the model has {scores.shape[1]} classes"
        )
    scores = np.nan_to_num(scores.astype(np.float64), nan=-np.inf)
    own = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    before = (scores > own) | ((scores == own) & earlier)
    return float((before.sum(1) < count).mean())


def _negated_mse(outputs: Outputs, data: Outputs) -> float:
    labels = _labels(data)
    for value in outputs.values():
        if isinstance(value, np.ndarray) and value.size == labels.size:
            difference = value.astype(np.float64).reshape(-1) - labels.astype(np.float64).reshape(-1)
            return -float((difference**2).mean())
    raise UsageError(f"--metric mse: no output has the {labels.size} values of the array 'label'")


def check_targets(name: str, targets: Outputs) -> None:
    """Raises UsageError where the metric `name` needs labels and there are none."""
    if name in METRICS:
        _labels(targets)


def _labels(data: Outputs) -> Array:
    if "label" not in data:
        raise UsageError("--eval has no array 'label'; the metrics top1, top5 and mse need one")
    return np.asarray(data["label"])


METRICS: dict[str, Score] = {"top1": _top(1), "top5": _top(5), "mse": _negated_mse}


def costliest(scores: Sequence[tuple[str, float]]) -> str:
    """The stage after which the score fell most; `scores`: of the original and after each stage, higher is better.

    >>> costliest([("original", 0.9), ("prune", 0.85), ("int8", 0.7)])
    'int8'
    """
    falls = [(before - after, name) for (_, before), (name, after) in itertools.pairwise(scores)]
    return max(falls, key=lambda fall: fall[0])[1]
