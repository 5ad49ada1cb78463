"""The shared mathematics against brute force."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_compress.numerics.leastsquares import (
    centred,
    cholesky,
    drop_loss,
    output_error,
    refit,
    refit_with_bias,
    solve,
    solve_with_bias,
)
from onnx_compress.numerics.lowrank import decompose, even_scale
from onnx_compress.numerics.obs import Elimination, joint_order, order
from onnx_compress.numerics.rounding import (
    affine,
    feedback,
    gptq,
    mse_clip,
    mse_scales,
    nearest,
    symmetric_scales,
)

Array = np.ndarray[Any, Any]
SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)


def problem(seed: int, outputs: int = 4, inputs: int = 9, columns: int = 60) -> tuple[Array, Array]:
    """A weight, and inputs (K, n) that are correlated and not centred."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((inputs, inputs)) + np.eye(inputs)
    x = mix @ rng.standard_normal((inputs, columns)) + rng.standard_normal((inputs, 1))
    return rng.standard_normal((outputs, inputs)), x


def gram_of(x: Array) -> Array:
    gram: Array = x @ x.T / x.shape[1]
    return gram


def mean_square(y: Array) -> float:
    return float(np.square(y).sum() / y.shape[1])


# least squares


@SETTINGS
@given(seeds)
def test_refit_is_least_squares_on_the_activations(seed: int) -> None:
    weight, x = problem(seed)
    keep = np.array([5, 0, 2, 7])
    brute = np.linalg.lstsq(x[keep].T, (weight @ x).T, rcond=None)[0].T
    fitted = refit(weight, gram_of(x), keep, 0.0)
    np.testing.assert_allclose(fitted, brute, rtol=1e-6, atol=1e-8)
    drop = np.setdiff1d(np.arange(9), keep)
    loss = mean_square(weight @ x - fitted @ x[keep])
    assert drop_loss(weight, gram_of(x), drop) == pytest.approx(loss, rel=1e-8)
    change = weight.copy()
    change[:, keep] -= fitted
    assert output_error(change, gram_of(x)) == pytest.approx(loss, rel=1e-8)


@SETTINGS
@given(seeds)
def test_refit_with_bias_is_least_squares_with_a_constant(seed: int) -> None:
    weight, x = problem(seed)
    keep = np.array([1, 3, 8])
    ones = np.vstack([x[keep], np.ones(x.shape[1])])
    brute = np.linalg.lstsq(ones.T, (weight @ x).T, rcond=None)[0].T
    fitted, shift = refit_with_bias(weight, gram_of(x), x.mean(axis=1), keep, 0.0)
    np.testing.assert_allclose(np.column_stack([fitted, shift]), brute, rtol=1e-6, atol=1e-7)
    with_bias = mean_square(weight @ x - fitted @ x[keep] - shift[:, np.newaxis])
    assert with_bias <= mean_square(weight @ x - refit(weight, gram_of(x), keep, 0.0) @ x[keep]) * (1 + 1e-9)


@SETTINGS
@given(seeds)
def test_solve_aims_at_any_target_and_leans_on_its_prior(seed: int) -> None:
    """The ridge toward the prior is least squares with √λ I appended to x and √λ W0 to y."""
    prior, x = problem(seed)
    y = np.random.default_rng(seed + 1).standard_normal((4, x.shape[1]))
    gram, cross, damping = gram_of(x), x @ y.T / x.shape[1], 0.1
    ridge = np.sqrt(damping * np.trace(gram) / 9 * x.shape[1])
    longer_x = np.hstack([x, ridge * np.eye(9)])
    longer_y = np.hstack([y, ridge * prior])
    brute = np.linalg.lstsq(longer_x.T, longer_y.T, rcond=None)[0].T
    np.testing.assert_allclose(solve(gram, cross, prior, damping), brute, rtol=1e-6, atol=1e-8)
    weight, bias = solve_with_bias(gram, x.mean(axis=1), cross, y.mean(axis=1), prior, damping=0.0)
    plain = np.linalg.lstsq(np.vstack([x, np.ones(x.shape[1])]).T, y.T, rcond=None)[0].T
    np.testing.assert_allclose(np.column_stack([weight, bias]), plain, rtol=1e-6, atol=1e-7)


def test_keeping_everything_changes_nothing() -> None:
    weight, x = problem(0)
    assert (refit(weight, gram_of(x), np.arange(9)) == weight).all()
    np.testing.assert_allclose(solve(gram_of(x), gram_of(x) @ weight.T, weight), weight, atol=1e-12)


def test_inputs_that_never_fire_do_no_harm() -> None:
    weight, x = problem(0)
    x[[2, 5]] = 0.0
    keep = np.array([0, 1, 2, 3])
    fitted = refit(weight, gram_of(x), keep)
    assert np.isfinite(fitted).all()
    np.testing.assert_allclose(fitted[:, 2], weight[:, 2])
    assert np.isfinite(refit(weight, gram_of(x), keep, 0.0)).all()
    assert (refit(weight, np.zeros((9, 9)), keep) == weight[:, keep]).all()


def test_damping_grows_until_the_gram_is_definite() -> None:
    """Five columns cannot determine nine inputs; nor can a matrix with a negative eigenvalue."""
    _, x = problem(0, columns=5)
    _, level = cholesky(gram_of(x), 0.0)
    assert level > 0
    indefinite = gram_of(x) - 0.1 * np.eye(9)
    (lower, _), level = cholesky(indefinite, 1e-6)
    assert level > 0.1
    lower = np.tril(lower)
    np.testing.assert_allclose(lower @ lower.T, indefinite + level * np.eye(9), atol=1e-9)


def test_centred_is_the_covariance() -> None:
    _, x = problem(0)
    np.testing.assert_allclose(centred(gram_of(x), x.mean(axis=1)), np.cov(x, bias=True), atol=1e-12)


# optimal brain surgeon

GROUPS = [np.array([0, 1]), np.array([2]), np.array([3, 4, 5]), np.array([6, 7]), np.array([8])]


def damped(gram: Array, damping: float) -> Array:
    whole: Array = gram + damping * np.trace(gram) / len(gram) * np.eye(len(gram))
    return whole


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


# whitened factors


@SETTINGS
@given(seeds, st.sampled_from([(4, 9), (9, 4), (6, 6)]), st.sampled_from([60, 3]))
def test_output_error_is_the_tail_of_the_spectrum(seed: int, shape: tuple[int, int], columns: int) -> None:
    """Three columns: a Gram matrix of rank 3 is no trouble."""
    weight, x = problem(seed, *shape, columns)
    parts = decompose(weight, gram_of(x))
    values = parts.energies
    assert len(values) == min(shape)
    assert (np.diff(values) <= 0).all()
    brute = np.linalg.svd(weight @ x / np.sqrt(columns), compute_uv=False)
    np.testing.assert_allclose(values[: len(brute)], brute[: len(values)] ** 2, atol=1e-9 * values[0])
    for rank in range(1, min(shape) + 1):
        b, a = parts.at(rank)
        scale = even_scale(b, a)
        b, a = b * scale[:, None], a / scale
        assert a.shape == (shape[0], rank)
        assert b.shape == (rank, shape[1])
        error = mean_square((weight - a @ b) @ x)
        assert error == pytest.approx(values[rank:].sum(), rel=1e-6, abs=1e-9 * values[0])
        assert error == pytest.approx(
            parts.lost(weight @ gram_of(x))[rank:].sum(), rel=1e-6, abs=1e-9 * values[0]
        )
        np.testing.assert_allclose(np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=1))


def test_full_rank_is_the_weight_itself() -> None:
    weight, x = problem(0)
    parts = decompose(weight, gram_of(x))
    first, second = parts.at(4)
    np.testing.assert_allclose(second @ first, weight, atol=1e-10)
    with pytest.raises(ValueError, match="rank 5"):
        parts.at(5)


def test_no_data_is_the_plain_svd() -> None:
    weight, _ = problem(0)
    first, second = decompose(weight, np.eye(9)).at(2)
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    np.testing.assert_allclose(second @ first, (u[:, :2] * s[:2]) @ vt[:2], atol=1e-10)


def test_a_diagonal_norm_is_that_of_the_matrix_with_it() -> None:
    """Only the energy of each input given: the same factors, without a matrix of inputs times inputs."""
    weight, x = problem(1)
    diagonal = (x * x).mean(1)
    for one, two in zip(
        decompose(weight, diagonal).at(2), decompose(weight, np.diag(diagonal)).at(2), strict=True
    ):
        np.testing.assert_allclose(np.abs(one), np.abs(two), atol=1e-9)


# rounding


def test_rounding_to_nearest_is_off_by_half_a_step_at_most() -> None:
    weight, _ = problem(0, 5, 40)
    scales = symmetric_scales(weight)
    integers = nearest(weight, scales)
    assert np.abs(integers).max(axis=1).tolist() == [127] * 5
    assert (np.abs(weight - integers * scales[:, np.newaxis]) <= scales[:, np.newaxis] * (0.5 + 1e-9)).all()
    assert np.unique(symmetric_scales(weight, per_row=False)).size == 1


@pytest.mark.parametrize("bits", [4, 8])
def test_mse_scales_never_lose_to_the_full_range(bits: int) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 200)) ** 3
    energy = np.random.default_rng(1).uniform(0, 1, 200)
    full, best = symmetric_scales(weight, bits), mse_scales(weight, bits, energy)

    def error(scales: Array) -> Array:
        apart: Array = weight - nearest(weight, scales, bits) * scales[:, np.newaxis]
        return np.asarray(np.square(apart) @ energy)

    assert (error(best) <= error(full)).all()
    if bits == 4:
        assert (error(best) < error(full)).all()


def quantized(x: Array, low: float, high: float, levels: int) -> Array:
    scale, zero = affine(low, high, levels)
    rounded: Array = (np.clip(np.rint(x / scale) + zero, 0, levels - 1) - zero) * scale
    return rounded


def test_mse_clip_beats_every_range_of_a_grid() -> None:
    """Two far outliers on a bell: a search over both ends finds none better by more than its own coarseness."""
    x = np.append(np.random.default_rng(0).standard_normal(20_000), [-30.0, 40.0])
    counts, edges = np.histogram(x, 2048)
    low, high = mse_clip(counts, edges[0], edges[-1], 16)

    def error(a: float, b: float) -> float:
        return float(np.square(x - quantized(x, a, b, 16)).mean())

    grid = [error(-a, b) for a, b in itertools.product(np.linspace(0.5, 30, 60), np.linspace(0.5, 40, 80))]
    assert error(low, high) < 1.1 * min(grid)
    assert error(low, high) < 0.2 * error(-30.0, 40.0)


def test_mse_clip_keeps_zero_and_one_sided_ranges() -> None:
    x = np.maximum(np.random.default_rng(0).standard_normal(5000), 0)
    counts, edges = np.histogram(x, 1024, range=(0, 8))
    low, high = mse_clip(counts, 0.0, float(edges[-1]))
    assert low == 0.0
    assert 2 < high <= x.max() + 0.01
    low, high = mse_clip(counts, 0.0, float(edges[-1]), symmetric=True)
    assert low == -high
    assert mse_clip(np.zeros(8), 1.0, 2.0) == (0.0, 2.0)


def brute_gptq(weight: Array, gram: Array, scales: Array, bits: int, damping: float) -> Array:
    """Column by column, the inverse over what is left taken afresh each time."""
    left, hessian = weight.copy(), damped(gram, damping)
    top = 2 ** (bits - 1) - 1
    done = np.zeros(weight.shape, np.int64)
    for q in range(weight.shape[1]):
        inverse = np.linalg.inv(hessian[q:, q:])
        done[:, q] = np.clip(np.rint(left[:, q] / scales), -top, top)
        error = (left[:, q] - done[:, q] * scales) / inverse[0, 0]
        left[:, q:] -= np.outer(error, inverse[0])
    return done


@SETTINGS
@given(seeds, st.sampled_from([1, 4, 128]))
def test_gptq_equals_column_by_column_feedback(seed: int, block: int) -> None:
    weight, x = problem(seed, inputs=12)
    scales = symmetric_scales(weight, 4)
    brute = brute_gptq(weight, gram_of(x), scales, 4, 1e-2)
    assert (gptq(weight, gram_of(x), scales, 4, block=block) == brute).all()


def test_gptq_beats_nearest_on_correlated_inputs() -> None:
    weight, x = problem(0, 16, 48, 400)
    gram, scales = gram_of(x), symmetric_scales(weight, 4)

    def error(integers: Array) -> float:
        return output_error(weight - integers * scales[:, np.newaxis], gram)

    plain = error(nearest(weight, scales, 4))
    assert error(gptq(weight, gram, scales, 4)) < plain
    assert error(gptq(weight, gram, scales, 4, act_order=True)) < plain


def test_gptq_of_uncorrelated_inputs_is_nearest() -> None:
    weight, _ = problem(0)
    scales = symmetric_scales(weight)
    assert (gptq(weight, np.diag(np.arange(9.0)), scales, act_order=True) == nearest(weight, scales)).all()


def test_feedback_leaves_a_weight_that_needs_no_rounding() -> None:
    weight, x = problem(0)
    assert (feedback(weight, gram_of(x), lambda column, _: column, act_order=True) == weight).all()
