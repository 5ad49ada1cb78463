"""Adaptive rounding: each weight up or down, as is best for the layer's output and not for the weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.numerics.rounding import gptq

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

ITERATIONS = 200
RATE = 0.05  # of Adam, on the rounding variables
WEIGHT = 0.02  # of the regularizer, against an error in units of the mean E[x²]
BETA = (20.0, 2.0)  # the regularizer's exponent, from the first step that has it to the last
WARM = 0.2  # share of the steps without it
FLIPS = 4  # times K single flips at most, each of the variable that gains most in its row
ZETA, GAMMA = 1.2, -0.1  # the sigmoid is stretched to gamma..gamma + zeta and cut to 0..1


def adaround(weight: Array, gram: Array, scales: Array, bits: int = 8) -> Array:
    """Integers (N, K), each ⌊w/s⌋ or one more, whose tr[(W − sQ) G (W − sQ)ᵀ] is small.

    Minimises ‖W x − s Q x‖² + λ Σ (1 − |2h − 1|^β), Q = ⌊W/s⌋ + h, h = clip(1.2 σ(V) − 0.1, 0, 1), in closed form on the Gram
    matrix: the gradient of the first term is 2 (Q − W/s) G. Then single variables flip while that lowers the error, also
    from the nearest integers and from `gptq`; each row is the best of the three. Zeros stay zero.
    weight (N, K); gram (K, K); scales (N,). Nagel et al. 2020, arXiv:2004.10568.
    """
    gram = np.asarray(gram, np.float64)
    level = float(np.trace(gram)) / max(len(gram), 1)
    scaled = np.asarray(weight, np.float64) / np.asarray(scales, np.float64)[:, np.newaxis]
    top = 2 ** (bits - 1) - 1
    near = np.clip(np.rint(scaled), -top, top)
    if not level > 0:
        return near.astype(np.int64)
    gram = gram / level
    low = np.clip(np.floor(scaled), -top, top)
    # > nothing to choose at the ends of the range, nor for what is a code already (zero among them)
    free = (low < top) & (scaled > low)
    up = np.where(free, _relaxed(scaled, low, free, gram) >= 0.5, False)
    best, least = near, _errors(near - scaled, gram)
    guided = np.asarray(gptq(weight, gram, scales, bits, act_order=True), np.float64)
    for codes in (low + up, near, np.clip(guided, low, low + free)):
        flipped = _flipped(codes, scaled, low, free, gram)
        errors = _errors(flipped - scaled, gram)
        better = errors < least
        best, least = np.where(better[:, np.newaxis], flipped, best), np.where(better, errors, least)
    return np.asarray(best, np.int64)


def _relaxed(scaled: Array, low: Array, free: Array, gram: Array) -> Array:
    """The variables h after ITERATIONS steps of Adam, from h = w/s − ⌊w/s⌋."""
    share = np.clip(scaled - low, 0.01, 0.99)
    variable = -np.log(ZETA / (share - GAMMA) - 1)
    first, second = np.zeros_like(variable), np.zeros_like(variable)
    warm = int(WARM * ITERATIONS)
    for step in range(ITERATIONS):
        sigmoid = 1 / (1 + np.exp(-variable))
        raw = ZETA * sigmoid + GAMMA
        h = np.clip(raw, 0.0, 1.0)
        gradient = 2 * ((low + h - scaled) @ gram)
        if step >= warm:
            beta = BETA[1] + (BETA[0] - BETA[1]) * (1 - (step - warm) / max(ITERATIONS - warm - 1, 1))
            apart = 2 * h - 1
            gradient -= WEIGHT * 2 * beta * np.sign(apart) * np.abs(apart) ** (beta - 1)
        gradient *= ZETA * sigmoid * (1 - sigmoid) * free * ((raw > 0) & (raw < 1))
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        sizes = np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-12
        variable -= RATE * first / (1 - 0.9 ** (step + 1)) / sizes
    relaxed: Array = np.clip(ZETA / (1 + np.exp(-variable)) + GAMMA, 0.0, 1.0)
    return relaxed


def _flipped(codes: Array, scaled: Array, low: Array, free: Array, gram: Array) -> Array:
    """The codes after single changes between ⌊w/s⌋ and one more, in every row the best one while there is one.

    A change by δ of variable k adds 2 δ (d G)_k + δ² G_kk to a row's error d G dᵀ.
    """
    codes = codes.copy()
    pull = (codes - scaled) @ gram
    diagonal = np.diagonal(gram)
    rows = np.arange(len(codes))
    for _ in range(FLIPS * codes.shape[1]):
        change = np.where(codes > low, -1.0, 1.0)
        gain = np.where(free, 2 * change * pull + diagonal, np.inf)
        at = gain.argmin(axis=1)
        going = gain[rows, at] < -1e-12
        if not going.any():
            break
        chosen = np.flatnonzero(going)
        step = change[chosen, at[chosen]]
        codes[chosen, at[chosen]] += step
        pull[chosen] += step[:, np.newaxis] * gram[at[chosen]]
    return codes


def _errors(apart: Array, gram: Array) -> Array:
    """The error d G dᵀ of each row."""
    errors: Array = np.einsum("nk,nk->n", apart @ gram, apart)
    return errors
