"""Scales, clips and roundings against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numerics_cases import SETTINGS, Array, damped, gram_of, problem, seeds

from onnx_compress.numerics.leastsquares import output_error
from onnx_compress.numerics.rounding import (
    affine,
    feedback,
    gptq,
    mse_clip,
    mse_scales,
    nearest,
    symmetric_scales,
)


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
