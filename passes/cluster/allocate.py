"""How many values each weight gets, for the least error of the outputs in the fewest bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.runtime.agreement import Reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from onnx_compress.contract import Job
    from onnx_compress.passes.cluster.study import Solution, Study
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]

MOST = 8  # bits of an index
PROBES = 32  # samples that show how much one weight matters
PROBE = 0.01  # relative error of a weight with which it does, about
TRIES = 5  # whole models measured
GAIN = 0.25  # what solving leaves of an error, about
ROOM = 0.85  # of the tolerance, aimed at: close enough to stop
LEAST = 1e-12


@dataclass(frozen=True)
class Choice:
    """The values of each weight (None: as it is), the weights solved for them, and the error this adds to the outputs."""

    clusters: list[int | None]
    solution: Solution | None = None
    error: float | None = None


class Table:
    """What each step of a ladder costs each weight. steps: numbers of values, ascending; the last step leaves it dense.

    bytes, errors: (weights, steps + 1); an error is of the outputs, from a weight's own by how much it matters.
    """

    def __init__(self, study: Study, steps: list[int], matters: Array) -> None:
        self.steps: list[int | None] = [*steps, None]
        numbers = range(len(study.weights))
        errors = [[study.error(number, step) for step in steps] + [0.0] for number in numbers]
        self.errors = np.array(errors) * matters[:, np.newaxis]
        self.bytes = np.array([[study.size(number, step) for step in self.steps] for number in numbers])

    def cheapest(self, allowed: float, scale: float, start: int) -> Array:
        """The step of each weight whose errors, times `scale`, sum up to `allowed` at most."""
        return self._climb(start, lambda levels: self.total(levels) * scale <= allowed)

    def within(self, budget: float, start: int) -> Array:
        """The step of each weight with the least error whose bytes sum up to `budget` at most, or the smallest of all."""
        levels = self._smallest(start)
        rows = np.arange(len(levels))
        while True:
            best, gain = self._best(levels, budget - self.bytes[rows, levels].sum())
            if gain <= 0:
                return levels
            levels[best[0]] = best[1]

    def total(self, levels: Array) -> float:
        """The error of all weights together."""
        return float(self.errors[np.arange(len(levels)), levels].sum())

    def clusters(self, levels: Array) -> list[int | None]:
        """The number of values at each level."""
        return [self.steps[level] for level in levels]

    def _smallest(self, start: int) -> Array:
        return np.full(len(self.bytes), min(start, len(self.steps) - 1))

    def _climb(self, start: int, enough: Callable[[Array], bool]) -> Array:
        levels = self._smallest(start)
        while not enough(levels):
            best, gain = self._best(levels, np.inf)
            if gain <= 0:
                break
            levels[best[0]] = best[1]
        return levels

    def _best(self, levels: Array, room: float) -> tuple[tuple[int, int], float]:
        """The (weight, step) that takes most error off for a byte more, of those that fit; and how much."""
        rows = np.arange(len(levels))
        gain = self.errors[rows, levels][:, np.newaxis] - self.errors
        price = self.bytes - self.bytes[rows, levels][:, np.newaxis]
        higher = np.arange(self.bytes.shape[1]) > levels[:, np.newaxis]
        rate = np.where(higher & (price <= room), gain / np.maximum(price, 1), -1.0)
        place = int(rate.argmax())
        weight, step = divmod(place, rate.shape[1])
        return (weight, step), float(rate[weight, step])


def keep_tolerance(
    study: Study, job: Job, fit: Data | None, held: Data, tolerance: float, steps: list[int], start: int
) -> Choice:
    """The choice of fewest bytes with which the outputs keep to the original's.

    Each weight clustered alone, on a few samples, shows how much its error matters; errors add up (Panter & Dite 1951 for
    how they fall with the number of values, here measured). Their sum is corrected by what whole models add on `held`, solved
    as they will be, until that is within `tolerance` and not far below. fit: None where weights go to their nearest values.
    """
    reference = Reference(job.original, held, threads=study.threads)
    base = reference.error(job.model)
    table = Table(study, steps, _matters(study, held, steps, job.progress))
    best = Choice([None] * len(study.weights))
    smallest = np.inf
    # errors solved for are a fraction of those of nearest values, with which weights were compared
    scale, low, high = 1.0 if fit is None else GAIN, 0.0, np.inf
    tried: set[tuple[int, ...]] = set()
    for turn in range(TRIES):
        job.progress(turn, TRIES, "tolerance")
        levels = table.cheapest(tolerance, scale, start)
        clusters, expected = table.clusters(levels), table.total(levels)
        added = 0.0
        if any(count is not None for count in clusters):
            if tuple(levels) in tried:
                break
            tried.add(tuple(levels))
            solution = None if fit is None else study.solve(clusters, fit)
            added = reference.error(study.dense(clusters, solution)) - base
            size = float(table.bytes[np.arange(len(levels)), levels].sum())
            if added <= tolerance and size < smallest:
                best, smallest = Choice(clusters, solution, added), size
        if added <= tolerance:
            high = scale
            if added >= ROOM * tolerance or (levels == start).all():
                break
        else:
            low = scale
        scale = _next_scale(scale, low, high, added, expected, tolerance)
    return best


def _next_scale(
    scale: float, low: float, high: float, added: float, expected: float, tolerance: float
) -> float:
    """What the expected errors are to be multiplied by: by what was measured, kept between what was too little and enough."""
    found = max(added, 0.02 * tolerance) / expected / (0.5 * (1 + ROOM)) if expected > 0 else np.inf
    if low < found < high and np.isfinite(found):
        return float(found)
    if low > 0 and np.isfinite(high):
        return float(np.sqrt(low * high))
    return scale * 4 if low > 0 else scale / 4


def keep_size(
    study: Study, job: Job, held: Data | None, size: float, steps: list[int]
) -> tuple[list[int | None], bool]:
    """The values of each weight with the least error for which the model is `size` of what it is; and whether it can be."""
    count = len(study.weights)
    matters = np.ones(count) if held is None else _matters(study, held, steps, job.progress)
    table = Table(study, steps, matters)
    most = size * job.model.nbytes
    budget = most - (job.model.nbytes - float(table.bytes[:, -1].sum()))
    clusters: list[int | None] = [None] * count
    for _ in range(TRIES):
        clusters = table.clusters(table.within(budget, 0))
        over = study.stored(clusters).nbytes - most
        if over <= 0:
            return clusters, True
        budget -= over + 1  # > nodes and names are not foreseen to the byte
    return clusters, False


def keep_weights(study: Study, tolerance: float, steps: list[int]) -> list[int | None]:
    """Without data: for each weight the fewest values with an error in the weight within `tolerance`."""
    found: list[int | None] = []
    for number in range(len(study.weights)):
        fits = (step for step in steps if study.error(number, step) <= tolerance)
        found.append(next(fits, None))
    return found


def _matters(study: Study, held: Data, steps: list[int], progress: Callable[[int, int, str], None]) -> Array:
    """The error of the outputs for each weight's own, by one weight clustered at a time, against the model it is in."""
    few = Reference(study.base, held.take(PROBES), threads=study.threads)
    count = len(study.weights)
    ratios = np.zeros(count)
    for number in range(count):
        progress(number, count, "sensitivity")
        own = [(abs(np.log(max(study.error(number, step), LEAST) / PROBE)), step) for step in steps]
        step = min(own)[1]
        error = study.error(number, step)
        if error > 0:
            alone = [step if number == other else None for other in range(count)]
            ratios[number] = few.error(study.dense(alone)) / error
    finite = np.where(np.isfinite(ratios), ratios, 1e9)
    found: Array = np.maximum(finite, 1e-9 * finite.max(initial=LEAST))
    return found
