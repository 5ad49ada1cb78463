"""Tucker-2 and CP: what has a rank is found again, and every refit only helps."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnx_compress.numerics.cp import cp_factors, cp_product
from onnx_compress.numerics.lowrank import energy
from onnx_compress.numerics.tucker import tucker_factors, tucker_product, tucker_spectra

Array = NDArray[Any]
SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)


def gram_of(size: int, rng: np.random.Generator, falling: float = 10.0) -> Array:
    """A Gram matrix of a falling spectrum, as of real inputs."""
    mix = rng.normal(size=(size, size)) * np.exp(-np.arange(size) / falling)
    product: Array = mix @ mix.T
    return product


def polyadic(shape: tuple[int, ...], rank: int, rng: np.random.Generator) -> Array:
    """A (N, C, kernel...) filter of `rank` random components."""
    return cp_product(
        [*(rng.normal(size=(rank, size)) for size in shape[1:]), rng.normal(size=(shape[0], rank))]
    )


@SETTINGS
@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(st.integers(2, 8), st.integers(2, 8), st.integers(1, 9)),
    ranks=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    with_data=st.booleans(),
)
def test_tucker_finds_a_filter_of_its_ranks_again(
    seed: int, sizes: tuple[int, int, int], ranks: tuple[int, int], *, with_data: bool
) -> None:
    """Whatever the norm, no other filter of these ranks has no error at all."""
    rng = np.random.default_rng(seed)
    n, c, taps = sizes
    inner, outer = min(ranks[0], c, n * taps), min(ranks[1], n, c * taps)
    weight = tucker_product(
        rng.normal(size=(inner, c)), rng.normal(size=(outer, inner, taps)), rng.normal(size=(n, outer))
    )
    gram = gram_of(c * taps, rng) if with_data else None
    product = tucker_product(*tucker_factors(weight, gram, inner, outer))
    lost = energy((product - weight).reshape(n, -1), gram)
    assert lost <= 1e-6 * energy(weight.reshape(n, -1), gram) + 1e-12


def test_tucker_sweeps_only_improve() -> None:
    """Each half step minimises the same loss over a part of the factors."""
    rng = np.random.default_rng(0)
    weight, gram = rng.normal(size=(8, 6, 9)), gram_of(54, rng)
    losses = []
    for sweeps in (0, 1, 2, 4, 8):
        product = tucker_product(*tucker_factors(weight, gram, 4, 5, sweeps=sweeps))
        losses.append(energy((weight - product).reshape(8, -1), gram))
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(losses))
    assert losses[-1] < losses[0]


def test_tucker_by_data_beats_tucker_by_weights() -> None:
    """In the norm that counts."""
    rng = np.random.default_rng(1)
    weight, gram = rng.normal(size=(12, 10, 9)), gram_of(90, rng, 20)
    plain, aware = (tucker_product(*tucker_factors(weight, g, 5, 6)) for g in (None, gram))
    lost = [energy((weight - product).reshape(12, -1), gram) for product in (plain, aware)]
    assert lost[1] < 0.5 * lost[0]


def test_tucker_spectra_bound_the_error() -> None:
    """The output side's tail is below the error, for no filter of that rank does better."""
    rng = np.random.default_rng(2)
    weight, gram = rng.normal(size=(8, 6, 9)), gram_of(54, rng)
    _, outer = tucker_spectra(weight, gram)
    for rank in (2, 4, 6):
        product = tucker_product(*tucker_factors(weight, gram, 6, rank))
        lost = energy((weight - product).reshape(8, -1), gram)
        # with all inputs kept the output side is the whole error
        assert lost == pytest.approx(outer[rank:].sum(), rel=1e-4)


@pytest.mark.parametrize(("inner", "outer"), [(0, 2), (2, 0), (7, 2), (2, 9)])
def test_tucker_refuses_ranks_that_are_none(inner: int, outer: int) -> None:
    with pytest.raises(ValueError, match="ranks"):
        tucker_factors(np.ones((8, 6, 9)), None, inner, outer)


@SETTINGS
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(4, 12), st.integers(4, 12), st.integers(2, 3), st.integers(2, 3)),
    rank=st.integers(1, 4),
    with_data=st.booleans(),
)
def test_cp_recovers_a_filter_of_its_rank(
    seed: int, shape: tuple[int, ...], rank: int, *, with_data: bool
) -> None:
    """Up to the number of channels the components are eigenvectors: found, not searched."""
    rng = np.random.default_rng(seed)
    weight = polyadic(shape, rank, rng)
    gram = gram_of(weight[0].size, rng, 30) if with_data else None
    parts = cp_factors(weight, gram, rank)
    assert parts is not None
    assert np.linalg.norm(cp_product(parts) - weight) < 1e-3 * np.linalg.norm(weight)


def test_cp_takes_any_number_of_axes() -> None:
    rng = np.random.default_rng(3)
    for shape in ((7, 6, 5), (6, 7, 2, 3, 2)):
        weight = polyadic(shape, 4, rng)
        parts = cp_factors(weight, None, 4)
        assert parts is not None
        assert [part.shape for part in parts] == [*((4, size) for size in shape[1:]), (shape[0], 4)]
        np.testing.assert_allclose(cp_product(parts), weight, atol=1e-3 * np.abs(weight).max())


def test_cp_sweeps_only_improve() -> None:
    rng = np.random.default_rng(4)
    weight, gram = rng.normal(size=(8, 6, 3, 3)), gram_of(54, rng)
    losses = []
    for sweeps in (1, 2, 4, 8, 16):
        parts = cp_factors(weight, gram, 12, sweeps=sweeps)
        assert parts is not None
        losses.append(energy((weight - cp_product(parts)).reshape(8, -1), gram))
    assert losses == sorted(losses, reverse=True)


def test_cp_refuses_components_that_cancel() -> None:
    """((a + εb)³ − a³) / ε nears a filter of rank 3 with two components, which grow without bound and cancel."""
    a, b = np.eye(4)[:2]
    weight = (
        np.einsum("n,c,k->nck", a, a, b) + np.einsum("n,c,k->nck", a, b, a) + np.einsum("n,c,k->nck", b, a, a)
    )
    near = a + 1e-3 * b
    start = [np.stack([near, a]), np.stack([near, a]), np.stack([near / 1e-3, -a / 1e-3], axis=1)]
    assert np.abs(cp_product(start) - weight).max() < 3e-3
    assert cp_factors(weight, None, 2, sweeps=1, start=start) is None
    assert cp_factors(weight, None, 3) is not None


def test_cp_refuses_rank_0() -> None:
    with pytest.raises(ValueError, match="rank 0"):
        cp_factors(np.ones((4, 4, 3)), None, 0)
