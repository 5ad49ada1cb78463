"""Adaptive rounding against every choice there is."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.numerics.adaround import adaround
from onnx_compress.numerics.rounding import nearest, symmetric_scales

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def error(weight: Array, codes: Array, scales: Array, gram: Array) -> Array:
    apart = weight - codes * scales[:, np.newaxis]
    return np.einsum("nk,nk->n", apart @ gram, apart)


def problem(seed: int, rows: int = 4, inputs: int = 8) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((inputs, inputs)) + 1.5 * rng.standard_normal((1, inputs))
    x = rng.standard_normal((200, inputs)) @ mixed
    return rng.standard_normal((rows, inputs)), x.T @ x / len(x)


def test_it_is_close_to_the_best_of_all_roundings() -> None:
    """All 2^8 roundings of each row are tried; no local search need find the best, but never does it lose to nearest."""
    away, left = 0.0, 0.0
    for seed in range(12):
        weight, gram = problem(seed)
        scales = symmetric_scales(weight, 3)
        low = np.floor(weight / scales[:, np.newaxis])
        choices = np.array(list(product((0, 1), repeat=weight.shape[1])))
        allowed = np.abs(low[:, np.newaxis] + choices) <= 3
        every = np.stack([error(weight, low + choice, scales, gram) for choice in choices], axis=1)
        best = np.where(allowed.all(axis=2), every, np.inf).min(axis=1)
        found = error(weight, adaround(weight, gram, scales, 3), scales, gram)
        plain = error(weight, nearest(weight, scales, 3), scales, gram)
        assert (found <= plain + 1e-12).all()
        away += float((plain - best).sum())
        left += float((found - best).sum())
    assert left <= 0.25 * away


def test_no_single_change_improves_it_and_it_beats_nearest() -> None:
    weight, gram = problem(7, rows=16, inputs=24)
    scales = symmetric_scales(weight, 4)
    found = adaround(weight, gram, scales, 4)
    least = error(weight, found, scales, gram)
    assert least.sum() < error(weight, nearest(weight, scales, 4), scales, gram).sum()
    low = np.clip(np.floor(weight / scales[:, np.newaxis]), -7, 7)
    for at in range(weight.shape[1]):
        other = found.copy()
        other[:, at] += np.where(found[:, at] > low[:, at], -1, 1)
        inside = (np.abs(other[:, at]) <= 7) & (found[:, at] - low[:, at] <= 1)
        assert (error(weight, other, scales, gram) >= least - 1e-9)[inside].all()


def test_each_code_is_a_neighbour_and_zeros_stay() -> None:
    weight, gram = problem(3, rows=8, inputs=16)
    weight[:, ::3] = 0
    scales = symmetric_scales(weight, 4)
    codes = adaround(weight, gram, scales, 4)
    assert (np.abs(codes - weight / scales[:, np.newaxis]) < 1 + 1e-9).all()
    assert (codes[weight == 0] == 0).all()


def test_a_gram_matrix_of_nothing_gives_the_nearest() -> None:
    weight, gram = problem(1)
    scales = symmetric_scales(weight)
    assert (adaround(weight, 0 * gram, scales) == nearest(weight, scales)).all()
