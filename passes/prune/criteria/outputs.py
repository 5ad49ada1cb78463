"""Criteria that look at what a unit does to the model's outputs: a run for each unit, on gates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.passes.prune.curves import Curve, by_score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit
    from onnx_compress.passes.prune.criteria.context import Context

    Array = NDArray[Any]

STEP = 0.05  # of a gate, for the finite difference
MASKS = 16  # random masks tried for each kind
SHARE = 0.5  # of the units that a mask removes


def oracle(context: Context, units: Sequence[Unit]) -> Curve:
    """The measured output error of leaving the unit out. Molchanov et al. 2017, section 2.1."""
    plain = context.gates.run([], 1.0)
    return by_score(units, np.array([_error(context, plain, [unit], 0.0) for unit in units]))


def taylor(context: Context, units: Sequence[Unit]) -> Curve:
    """|∂L/∂gate|, the first-order change of the loss when the unit goes. Molchanov et al. 2017.

    L is the cross-entropy of the model's answers to its own winners (mean squared error would have no slope there);
    the slope is a one-sided difference.
    """
    plain = _loss(context, context.gates.run([], 1.0))
    scores = [abs(_loss(context, context.gates.run([unit], 1 - STEP)) - plain) / STEP for unit in units]
    return by_score(units, np.array(scores))


def random_mask(context: Context, units: Sequence[Unit]) -> Curve:
    """The best of some random masks that remove half of the kind; within each half the order is as drawn.

    Anwar & Sung 2016.
    """
    plain = context.gates.run([], 1.0)
    best: tuple[float, Array] | None = None
    for _ in range(MASKS):
        order = context.rng.permutation(len(units))
        error = _error(context, plain, [units[u] for u in order[: int(len(units) * SHARE)]], 0.0)
        if best is None or error < best[0]:
            best = (error, order)
    assert best is not None
    return Curve(tuple(units[u] for u in best[1]), np.linspace(0, 1, len(units) + 1))


def _error(context: Context, plain: list[dict[str, Array]], units: Sequence[Unit], scale: float) -> float:
    """Σ‖y − y₀‖² of all float outputs, each over its own energy."""
    changed = context.gates.run(units, scale)
    total = 0.0
    for name in context.gates.outputs:
        before = np.concatenate([np.ravel(batch[name]) for batch in plain])
        after = np.concatenate([np.ravel(batch[name]) for batch in changed])
        if before.dtype.kind == "f" and before.shape == after.shape:
            total += float(np.sum((after - before) ** 2) / max(float(np.sum(before**2)), 1e-30))
    return total


def _loss(context: Context, outputs: list[dict[str, Array]]) -> float:
    """The mean cross-entropy of the first output to the winners of the plain model."""
    name = context.gates.outputs[0]
    values = [np.asarray(batch[name], np.float64) for batch in outputs]
    rows = np.concatenate([value.reshape(len(value), -1) for value in values])
    rows = rows - rows.max(axis=1, keepdims=True)
    probability = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    winners = context.classes[: len(rows)] % rows.shape[1]
    return float(-probability[np.arange(len(rows)), winners].mean())
