"""Refits against least squares on the activations themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from numerics_cases import SETTINGS, gram_of, mean_square, problem, seeds

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
