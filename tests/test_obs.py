"""The order in which units go, and what each costs, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numerics_cases import SETTINGS, damped, gram_of, mean_square, problem, seeds

from onnx_compress.numerics.leastsquares import drop_loss, refit
from onnx_compress.numerics.obs import Elimination, joint_order, order

GROUPS = [np.array([0, 1]), np.array([2]), np.array([3, 4, 5]), np.array([6, 7]), np.array([8])]


@SETTINGS
@given(seeds, st.sampled_from([0.0, 1e-2]))
def test_scores_are_the_exact_loss_of_each_unit(seed: int, damping: float) -> None:
    weight, x = problem(seed)
    scores = Elimination(weight, gram_of(x), GROUPS, damping).scores()
    exact = [drop_loss(weight, gram_of(x), group, damping) for group in GROUPS]
    np.testing.assert_allclose(scores, exact, rtol=1e-6)


@SETTINGS
@given(seeds)
def test_removal_is_greedy_and_its_loss_exact_at_each_step(seed: int) -> None:
    """After each removal the loss is the closed form of all removed at once, and the weight the refitted one."""
    weight, x = problem(seed)
    gram, damping = gram_of(x), 1e-2
    found = order(weight, gram, GROUPS, damping)
    layer = Elimination(weight, gram, GROUPS, damping)
    assert sorted(found.units) == list(range(5))
    for step, (unit, loss) in enumerate(zip(found.units, found.losses, strict=True)):
        others = [c for c in range(5) if c not in found.units[:step]]
        gone = [np.concatenate([GROUPS[c] for c in (*found.units[:step], other)]) for other in others]
        losses = [drop_loss(weight, gram, drop, damping) for drop in gone]
        assert loss == pytest.approx(min(losses), rel=1e-7)
        assert others[int(np.argmin(losses))] == unit
        layer.remove(unit)
        removed = np.concatenate([GROUPS[c] for c in found.units[: step + 1]])
        keep = np.setdiff1d(np.arange(9), removed)
        exact = np.zeros_like(weight)
        whole = damped(gram, damping)
        if len(keep):
            exact[:, keep] = refit(weight, whole, keep, 0.0)
        np.testing.assert_allclose(layer.weight, exact, rtol=1e-6, atol=1e-7)


def test_coupled_layers_sum_their_scores() -> None:
    """The unit removed first is the one whose losses in all layers are least together; some touch one layer only."""
    (one, x), (two, z) = problem(1), problem(2, inputs=5)
    others = [np.array([0]), np.array([1]), np.array([2, 3]), np.zeros(0, np.intp), np.array([4])]
    layers = [Elimination(one, gram_of(x), GROUPS, 0.0), Elimination(two, gram_of(z), others, 0.0)]
    exact = [
        drop_loss(one, gram_of(x), a) + 3 * (drop_loss(two, gram_of(z), b) if len(b) else 0.0)
        for a, b in zip(GROUPS, others, strict=True)
    ]
    found = joint_order(layers, 1, [1.0, 3.0])
    assert found.units == [int(np.argmin(exact))]
    assert found.losses[0] == pytest.approx(min(exact))


def test_overlapping_units_remove_their_union() -> None:
    """Rows and columns of a 3 by 3 grid of inputs."""
    weight, x = problem(3)
    grid = np.arange(9).reshape(3, 3)
    groups = [*grid, *grid.T]
    layer = Elimination(weight, gram_of(x), groups, 0.0)
    for unit in (1, 3, 5):
        expected = layer.scores()[unit]
        assert layer.remove(unit) == pytest.approx(expected)
    drop = np.unique(np.concatenate([groups[unit] for unit in (1, 3, 5)]))
    assert layer.loss == pytest.approx(drop_loss(weight, gram_of(x), drop), rel=1e-6)
    assert (layer.weight[:, drop] == 0).all()


@pytest.mark.parametrize("late", [4, 96])
def test_updates_put_off_lead_to_the_same_losses(late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_compress.numerics.obs.LATE", late)
    weight, x = problem(4, inputs=24, columns=200)
    groups = list(np.arange(24).reshape(8, 3))
    found = order(weight, gram_of(x), groups, 0.0)
    for step in (1, 4, 7):
        drop = np.concatenate([groups[unit] for unit in found.units[:step]])
        assert found.losses[step - 1] == pytest.approx(drop_loss(weight, gram_of(x), drop), rel=1e-6)
    assert found.losses[-1] == pytest.approx(mean_square(weight @ x), rel=1e-6)
