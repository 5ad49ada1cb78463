"""Scales and rounding: real numbers to a few integers with the least harm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

from onnx_compress.numerics.leastsquares import cholesky

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[Any]

WIDE = 512  # inputs from which feedback is in float32
NEAR = 16  # columns between two updates within a block
STEPS = 64  # clips tried between a quarter of the range and all of it


def symmetric_scales(weight: Array, bits: int = 8, *, per_row: bool = True) -> Array:
    """The scale of each row of `weight` (N, K) for integers −(2^(bits−1) − 1)..2^(bits−1) − 1 with nothing clipped: (N,).

    An all-zero row has scale 1. The most negative integer is left out, so that the range is symmetric.

    >>> symmetric_scales(np.array([[127.0, -254.0], [0.0, 0.0]]))
    array([2., 1.])
    """
    top = np.abs(np.asarray(weight, np.float64)).max(axis=1, initial=0.0)
    if not per_row:
        top = np.full_like(top, top.max(initial=0.0))
    return np.where(top > 0, top / (2 ** (bits - 1) - 1), 1.0)


def mse_scales(weight: Array, bits: int = 8, energy: Array | None = None) -> Array:
    """The scale of each row of `weight` (N, K) with the least Σ_k energy_k (w_k − Q(w_k))²: (N,).

    energy (K,): E[x²] of each input, or ones. The best of STEPS clips from a quarter of the range to all of it; never
    worse than `symmetric_scales`.
    """
    weight = np.asarray(weight, np.float64)
    full = symmetric_scales(weight, bits)
    best, least = full, _row_error(weight, full, bits, energy)
    for share in np.linspace(1.0, 0.25, STEPS)[1:]:
        error = _row_error(weight, full * share, bits, energy)
        better = error < least
        best, least = np.where(better, full * share, best), np.where(better, error, least)
    return best


def _row_error(weight: Array, scales: Array, bits: int, energy: Array | None) -> Array:
    apart = weight - nearest(weight, scales, bits) * scales[:, np.newaxis]
    errors: Array = np.square(apart) @ (np.ones(weight.shape[1]) if energy is None else energy)
    return errors


def nearest(weight: Array, scales: Array, bits: int = 8) -> Array:
    """The nearest integers to weight / scale, clipped to the symmetric range: (N, K) int64; ties to even."""
    top = 2 ** (bits - 1) - 1
    scaled = np.asarray(weight, np.float64) / np.asarray(scales, np.float64)[:, np.newaxis]
    return np.clip(np.rint(scaled), -top, top).astype(np.int64)


def affine(low: float, high: float, levels: int = 256) -> tuple[float, int]:
    """Scale and zero point of integers 0..levels−1 that cover low..high; zero is always one of the values.

    >>> affine(-1.0, 254.0)
    (1.0, 1)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (levels - 1)
    if not scale > 0:
        return 1.0, 0
    return scale, int(np.clip(np.rint(-low / scale), 0, levels - 1))


def mse_clip(
    counts: Array, low: float, high: float, levels: int = 256, *, symmetric: bool = False
) -> tuple[float, float]:
    """The range a..b inside low..high for which E[(x − Q(x))²] is least, x spread as the histogram says.

    counts: of equal bins over low..high; Q: rounds to the `levels` values of `affine(a, b)`, or to levels − 1 of them around
    zero where symmetric. Either end in turn, the best of STEPS, until neither moves.
    """
    counts = np.asarray(counts, np.float64)
    used = np.flatnonzero(counts)
    if len(used) == 0:
        return min(low, 0.0), max(high, 0.0)
    width = (high - low) / len(counts)
    x, share = low + width * (used + 0.5), counts[used]
    bottom, top = min(low + width * used[0], 0.0), max(low + width * (used[-1] + 1), 0.0)
    shares = np.linspace(1.0, 1.0 / STEPS, STEPS)
    if symmetric:
        reach = max(-bottom, top)
        errors = _clip_errors(x, share, -reach * shares, reach * shares, levels - 1)
        best = float(reach * shares[np.argmin(errors)])
        return -best, best
    a, b = bottom, top
    for _ in range(8):
        before = a, b
        b = top * float(shares[np.argmin(_clip_errors(x, share, np.full(STEPS, a), top * shares, levels))])
        a = bottom * float(
            shares[np.argmin(_clip_errors(x, share, bottom * shares, np.full(STEPS, b), levels))]
        )
        if (a, b) == before:
            break
    return a, b


def _clip_errors(x: Array, share: Array, lows: Array, highs: Array, levels: int) -> Array:
    """Σ share (x − Q(x))² for each pair of ends."""
    scale = np.maximum((highs - lows) / (levels - 1), 1e-300)[:, np.newaxis]
    zero = np.rint(-lows[:, np.newaxis] / scale)
    rounded = (np.clip(np.rint(x / scale) + zero, 0, levels - 1) - zero) * scale
    errors: Array = np.square(rounded - x) @ share
    return errors


def gptq(
    weight: Array,
    gram: Array,
    scales: Array,
    bits: int = 8,
    *,
    damping: float = 1e-2,
    act_order: bool = False,
    block: int = 128,
) -> Array:
    """Integers (N, K) whose E‖W x − s Q x‖² is small: each column's rounding error is made up for by those after it.

    weight (N, K), its zeros stay zero; gram (K, K); scales (N,), kept as they are; act_order: columns of the largest E[x²]
    first.
    Frantar et al. 2023, arXiv:2210.17323.
    """
    scales = np.asarray(scales, np.float64)
    top = 2 ** (bits - 1) - 1
    kept: Array = np.asarray(weight).T.astype(bool)
    holed = set(np.flatnonzero(~np.asarray(kept.all(axis=1))).tolist())

    def rounded(column: Array, at: int) -> Array:
        codes = np.clip(np.rint(column / scales), -top, top)
        if at in holed:
            codes[~kept[at]] = 0
        return codes * scales

    values = feedback(weight, gram, rounded, damping=damping, act_order=act_order, block=block)
    return np.rint(values / scales[:, np.newaxis]).astype(np.int64)


def feedback(
    weight: Array,
    gram: Array,
    rounded: Callable[[Array, int], Array],
    *,
    damping: float = 1e-2,
    act_order: bool = False,
    block: int = 128,
) -> Array:
    """The weight (N, K) with every column replaced by rounded(column, its index), and the error fed to those not yet done.

    GPTQ's W_:,>q −= e [H⁻¹]_q,>q, e = (w_q − Q(w_q))/[H⁻¹]_qq, H = G + λI over what is not yet done, said without an
    inverse: with H = R Rᵀ, R upper triangular, the error is Σ_j (d_j R_jj + Σ_{i<j} d_i R_ij)², d = w − Q; so column j
    is rounded at w_j + Σ_{i<j} d_i R_ij / R_jj, where its term would vanish (Babai's nearest plane: Chen et al. 2025,
    arXiv:2507.18553). Columns go in blocks within blocks; what lies beyond a block is updated by one product.
    """
    inputs = weight.shape[1]
    order = np.argsort(-np.diagonal(gram), kind="stable") if act_order else np.arange(inputs)
    upper = _reverse_factor(gram, order, damping)
    pull = upper / np.diagonal(upper)
    exact = pull.dtype
    first = np.ascontiguousarray(np.asarray(weight, np.float64).T[order])
    left, done = first.copy(), np.empty_like(first)
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        for near in range(start, end, NEAR):
            last = min(near + NEAR, end)
            for at in range(near, last):
                if at > near:
                    left[at] += pull[near:at, at] @ (first[near:at] - done[near:at]).astype(exact)
                done[at] = rounded(left[at], int(order[at]))
            left[last:end] += pull[near:last, last:end].T @ (first[near:last] - done[near:last]).astype(exact)
        left[end:] += pull[start:end, end:].T @ (first[start:end] - done[start:end]).astype(exact)
    result = np.empty_like(done)
    result[order] = done
    return np.ascontiguousarray(result.T)


def _reverse_factor(gram: Array, order: Array, damping: float) -> Array:
    """R, upper triangular, with R Rᵀ = G + λI of the inputs in `order`; what lies below its diagonal is not to be read.

    In float32 beyond WIDE inputs: twice as fast, and feedback off by 1e-5 is feedback. In float64 where that is too little.
    """
    back = order[::-1]
    if len(order) > WIDE:
        narrow = np.take(np.take(np.asarray(gram, np.float32), back, 0), back, 1)
        level = float(np.trace(narrow, dtype=np.float64)) / len(order)
        narrow[np.diag_indices(len(order))] += damping * level
        # > transposed: the matrix is symmetric, and LAPACK works in place on columns
        lower, failed = scipy.linalg.lapack.spotrf(narrow.T, lower=1, clean=0, overwrite_a=1)
        if not failed and np.diagonal(lower).min() ** 2 > 1e-6 * level:
            return np.asarray(lower[::-1, ::-1])
    (lower, _), _ = cholesky(np.asarray(gram)[np.ix_(back, back)], damping)
    return np.asarray(lower[::-1, ::-1])


def inverse_factor(gram: Array, damping: float) -> Array:
    """U, upper triangular, with Uᵀ U = (G + λI)⁻¹: the inverse of R, upper triangular, with R Rᵀ = G + λI."""
    (lower, _), _ = cholesky(gram[::-1, ::-1], damping)
    upper, _ = scipy.linalg.lapack.dtrtri(np.tril(lower)[::-1, ::-1], lower=0)
    return np.asarray(upper)
