"""How many values each weight needs for the model to keep to a tolerance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.runtime.agreement import Reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from onnx_compress.contract import Job
    from onnx_compress.passes.cluster.study import Study
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]

MOST = 8  # bits of an index
DENSE = MOST + 1  # stands for a weight left as it is
PROBES = 32  # samples that show how much one weight matters
TRIES = 8  # whole models measured


def keep_tolerance(
    study: Study, job: Job, held: Data, tolerance: float, bits: int
) -> tuple[list[int | None], float]:
    """The values of each weight with which the outputs keep to the original's, and the error they add.

    All weights start at 2^bits values. Where that adds more than `tolerance` on `held`, each weight is clustered alone to
    see how much it matters; an error falls fourfold with each bit, and errors add up (Panter & Dite 1951), so the weights
    that gain most for their size get more bits, those that need more than 8 stay as they are. The sum is corrected by
    what the whole model measures, and the search goes on until that keeps to the tolerance.
    """
    reference = Reference(job.original, held)
    base = reference.error(job.model)
    levels = np.full(len(study.weights), bits)
    matters: Array | None = None
    scale = 1.0
    for turn in range(TRIES):
        job.progress(turn, TRIES, "tolerance")
        clusters = _clusters(levels)
        if all(count is None for count in clusters):
            break
        added = reference.error(study.dense(clusters)) - base
        if added <= tolerance:
            return clusters, added
        if matters is None:
            matters = _matters(study, held, bits, job.progress)
        expected = _expected(matters, levels, bits)
        # > an infinite or tiny expectation cannot be scaled
        scale = max(added / expected, 1e-3) if 0 < expected < np.inf and added < np.inf else scale * 4
        levels = _raise(levels, matters * scale, _sizes(study), tolerance * 0.9, bits)
    return [None] * len(study.weights), 0.0


def keep_weights(study: Study, tolerance: float, bits: int) -> list[int | None]:
    """Without data: for each weight the fewest values, at least 2^bits, with an error in the weight within `tolerance`."""
    found: list[int | None] = []
    for number in range(len(study.weights)):
        fits = (2**b for b in range(bits, MOST + 1) if study.error(number, 2**b) <= tolerance)
        found.append(next(fits, None))
    return found


def _matters(study: Study, held: Data, bits: int, progress: Callable[[int, int, str], None]) -> Array:
    """The output error of each weight alone at 2^bits values, on a few samples, against the model it is in."""
    few = Reference(study.model, held.take(PROBES))
    count = len(study.weights)
    errors = np.empty(count)
    for number in range(count):
        progress(number, count, "sensitivity")
        alone = [2**bits if number == other else None for other in range(count)]
        errors[number] = few.error(study.dense(alone))
    return np.maximum(np.nan_to_num(errors, posinf=1e9), 1e-12)


def _expected(matters: Array, levels: Array, bits: int) -> float:
    return float(np.where(levels < DENSE, matters * 0.25 ** (levels - bits), 0.0).sum())


def _raise(levels: Array, matters: Array, sizes: Array, target: float, bits: int) -> Array:
    """More bits, one at a time where they help most for their size, until the expected error is within `target`."""
    levels = levels.copy()
    changed = False
    while not changed or _expected(matters, levels, bits) > target:
        now = matters * 0.25 ** (levels - bits)
        gain = np.where(levels < MOST, 0.75 * now / sizes, np.where(levels < DENSE, now / sizes / 24, -1.0))
        best = int(gain.argmax())
        if gain[best] < 0:
            break
        levels[best] += 1
        changed = True
    return levels


def _clusters(levels: Array) -> list[int | None]:
    return [None if level >= DENSE else int(2**level) for level in levels]


def _sizes(study: Study) -> Array:
    return np.array([weight.values.size for weight in study.weights])
