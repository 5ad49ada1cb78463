"""Factors of matrices and filters: the best of their rank in the norm of their inputs, exact where the rank is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numerics_cases import SETTINGS, gram_of, mean_square, problem, seeds

from onnx_compress.numerics.lowrank import decompose, energy, even_scale
from onnx_compress.numerics.spatial import spatial_factors, spatial_product, spectrum


def test_whitened_factors_are_the_best_of_their_rank() -> None:
    """Eckart-Young in the Gram's norm: no random factors, and not the plain ones, do better."""
    rng = np.random.default_rng(4)
    weight, mix = rng.normal(size=(7, 10)), rng.normal(size=(10, 10))
    gram = mix @ mix.T
    parts = decompose(weight, gram)
    for rank in range(1, 8):
        first, second = parts.at(rank)
        lost = energy(weight - second @ first, gram)
        assert lost == pytest.approx(parts.energies[rank:].sum(), rel=1e-6, abs=1e-6)
        plain = decompose(weight).at(rank)
        assert lost <= energy(weight - plain[1] @ plain[0], gram) + 1e-9


def test_a_dead_input_and_few_samples_do_no_harm() -> None:
    """A singular Gram matrix still gives finite factors that are exact at full rank."""
    rng = np.random.default_rng(5)
    weight, columns = rng.normal(size=(6, 9)), rng.normal(size=(9, 3))
    columns[4] = 0
    parts = decompose(weight, columns @ columns.T)
    first, second = parts.at(6)
    assert np.isfinite(first).all()
    assert np.isfinite(second).all()
    np.testing.assert_allclose(second @ first, weight, atol=1e-6)


def test_alternating_least_squares_only_improves() -> None:
    """Each half step minimises the same loss over one factor."""
    rng = np.random.default_rng(6)
    weight = rng.normal(size=(8, 6, 3, 3))
    mix = rng.normal(size=(54, 54)) * np.exp(-np.arange(54) / 10)
    gram = mix @ mix.T
    losses = []
    for sweeps in (0, 1, 2, 4, 8):
        product = spatial_product(*spatial_factors(weight, gram, 9, sweeps=sweeps))
        losses.append(energy((weight - product).reshape(8, -1), gram))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]


def test_separable_filters_have_their_rank() -> None:
    """A filter built from two spatial factors is found again, with or without data."""
    rng = np.random.default_rng(7)
    weight = spatial_product(rng.normal(size=(3, 5, 3)), rng.normal(size=(6, 3, 4)))
    energies = spectrum(weight, None)[0]
    assert energies[3:].max() < 1e-9 * energies[0]
    mix = rng.normal(size=(60, 60))
    for gram in (None, mix @ mix.T):
        product = spatial_product(*spatial_factors(weight, gram, 3))
        np.testing.assert_allclose(product, weight, atol=1e-6)


def test_scales_are_shared_evenly() -> None:
    """int8 wants neither factor, nor the tensor between, to span more than it must."""
    rng = np.random.default_rng(8)
    first, second = rng.normal(size=(3, 8)) * [[100], [1], [0]], rng.normal(size=(5, 3)) * [0.01, 1, 1]
    scale = even_scale(first, second)
    one, two = first * scale[:, None], second / scale
    np.testing.assert_allclose(two @ one, second @ first, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(one, axis=1)[:2], np.linalg.norm(two, axis=0)[:2])
    assert np.isfinite(one).all()


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
