"""Codebooks of numbers against brute force: near the optimum, small, and zero where the numbers are."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_compress.numerics.kmeans import assign, codebook, kmeans


def cost(points: Any, mass: Any, centres: Any) -> float:
    return float((mass * ((points[:, None] - centres) ** 2).min(1)).sum())


def best(points: Any, mass: Any, clusters: int) -> float:
    """The least cost by brute force: cells of the optimum are ranges of the sorted points."""
    found = np.inf
    for cuts in itertools.combinations(range(1, len(points)), clusters - 1):
        edges = [0, *cuts, len(points)]
        cells = [slice(*edge) for edge in itertools.pairwise(edges)]
        centres = np.array([np.average(points[cell], weights=mass[cell]) for cell in cells])
        found = min(found, cost(points, mass, centres))
    return found


@settings(deadline=None, max_examples=40)
@given(
    points=st.lists(st.integers(-50, 50), min_size=5, max_size=11, unique=True),
    clusters=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_kmeans_finds_the_optimum(points: list[int], clusters: int, seed: int) -> None:
    """Few points are their own bins, on which the search is exact; Lloyd's steps then change nothing."""
    x = np.sort(np.array(points, float))
    mass = np.random.default_rng(seed).uniform(0.1, 3, len(x))
    assert cost(x, mass, kmeans(x, mass, clusters)) <= best(x, mass, clusters) + 1e-9


def least(x: Any, clusters: int) -> float:
    """The least cost of clusters of the sorted `x`, over all range ends."""
    sums = [np.concatenate([[0], np.cumsum(x**power)]) for power in (0, 1, 2)]
    count, first, second = (s[None] - s[:, None] for s in sums)
    cells = np.where(count > 0, second - first**2 / np.maximum(count, 1), np.inf)
    found = cells[0]
    for _ in range(clusters - 1):
        found = (found[:, None] + cells).min(0)
    return float(found[-1])


@pytest.mark.parametrize("draw", ["standard_normal", "standard_cauchy"])
@pytest.mark.parametrize("clusters", [4, 32, 128])
def test_kmeans_of_many_points_is_near_the_optimum(draw: str, clusters: int) -> None:
    """Within 3 %: binned to 8 points a centre, then taken to the points themselves."""
    x = np.sort(getattr(np.random.default_rng(2), draw)(600))
    assert cost(x, np.ones(600), kmeans(x, np.ones(600), clusters)) <= 1.03 * least(x, clusters)


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=60),
    clusters=st.integers(2, 20),
    kind=st.sampled_from(["kmeans", "linear"]),
)
def test_a_codebook_is_small_keeps_zeros_and_takes_the_nearest(
    values: list[float], clusters: int, kind: str
) -> None:
    array = np.array(values, np.float32)
    book = codebook(array, clusters, kind=kind)
    chosen = book[assign(array, book)]
    assert len(book) <= clusters
    assert book.dtype == np.float32
    assert not chosen[array == 0].any()
    gaps = np.abs(array.astype(float)[:, None] - book.astype(float)).min(1)
    assert np.allclose(np.abs(array.astype(float) - chosen), gaps, rtol=1e-6, atol=0)


def test_many_values_share_bins_as_well_as_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """2^16 bins over the range are 2,000 times finer than 32 cells."""
    values = np.random.default_rng(0).standard_normal(30000).astype(np.float32)
    apart = codebook(values, 32)
    monkeypatch.setattr("onnx_compress.numerics.kmeans.EXACT", 1000)
    binned = codebook(values, 32)
    errors = [float(np.square(values - book[assign(values, book)]).sum()) for book in (apart, binned)]
    assert errors[1] <= errors[0] * 1.01
