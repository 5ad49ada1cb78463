"""The ridge of a refit follows what its columns can tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnx_compress.numerics.leastsquares import refit
from onnx_compress.numerics.ridge import evidence

Array = NDArray[Any]
INPUTS, KEPT, OUTPUTS, DAMPING = 48, 24, 8, 1e-3


def columns(rng: np.random.Generator, mixing: Array, count: int, noise: float) -> Array:
    return mixing @ rng.standard_normal((mixing.shape[1], count)) + noise * rng.standard_normal(
        (INPUTS, count)
    )


def unseen(level: float, weight: Array, x: Array, others: Array) -> float:
    """The error on other columns of a refit to `x` with this damping."""
    kept = refit(weight, x @ x.T / x.shape[1], np.arange(KEPT), level)
    return float(np.square(weight @ others - kept @ others[:KEPT]).sum())


@pytest.mark.parametrize("count", [36, 72, 400])
@pytest.mark.parametrize(("rank", "noise"), [(12, 0.01), (12, 0.3), (48, 1.0)])
def test_it_is_near_the_best_ridge_for_other_columns(count: int, rank: int, noise: float) -> None:
    """From redundant inputs, which a refit makes up for, to inputs of which none tells of another."""
    errors: dict[str, list[float]] = {"evidence": [], "none": [], "as many inputs as columns": []}
    best = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        mixing = rng.standard_normal((INPUTS, rank)) * (rank < INPUTS)
        weight = rng.standard_normal((OUTPUTS, INPUTS))
        x, others = columns(rng, mixing, count, noise), columns(rng, mixing, 1000, noise)
        found = evidence(weight, x @ x.T / count, np.arange(KEPT), count, DAMPING)
        levels = {"evidence": found, "none": DAMPING, "as many inputs as columns": DAMPING + KEPT / count}
        for name, level in levels.items():
            errors[name].append(unseen(level, weight, x, others))
        best.append(min(unseen(level, weight, x, others) for level in np.geomspace(DAMPING, 2.0, 8)))
    mean = {name: float(np.mean(found)) for name, found in errors.items()}
    # a ridge known before the other columns are seen loses to the best in hindsight: half as much again is near
    assert mean["evidence"] <= 1.5 * float(np.mean(best)), (mean, np.mean(best))
    assert mean["evidence"] <= 1.05 * mean["as many inputs as columns"]
    if noise == 1.0:
        assert mean["evidence"] < mean["none"]


def test_inputs_that_never_fire_do_no_harm() -> None:
    """All zero: there is nothing to explain and nothing to explain it with."""
    assert evidence(np.ones((2, 8)), np.zeros((8, 8)), np.arange(4), 16, DAMPING) > 0


def test_no_columns_are_no_evidence() -> None:
    """Of a layer whose every column holds NaN nothing was seen: its weight is held as one of few columns is."""
    weight = np.ones((OUTPUTS, INPUTS))
    assert evidence(weight, np.zeros((INPUTS, INPUTS)), np.arange(KEPT), 0, DAMPING) == DAMPING + KEPT
