"""Least squares on Gram matrices: what the kept inputs of a layer can do for those that are gone.

A layer is y = W x + b, W (N, K). G = E[x xᵀ] (K, K), C = E[x yᵀ] (K, N). Everywhere `damping` is relative:
λ = damping · tr(G)/K, raised tenfold until G + λI is positive definite.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy  # > not scipy.linalg, which takes a quarter of a second: it loads when it is first used
from numpy.typing import NDArray

Array = NDArray[Any]
Factor = tuple[Array, bool]

BLOCK = 256  # rows mirrored at a time, without a second matrix


def centred(gram: Array, mean: Array) -> Array:
    """The covariance G − m mᵀ of inputs with Gram matrix `gram` and mean `mean`."""
    covariance: Array = np.asarray(gram, np.float64) - np.outer(mean, mean)
    return covariance


def cholesky(gram: Array, damping: float) -> tuple[Factor, float]:
    """The Cholesky factor of G + λI for scipy's cho_solve, and λ.

    Inputs that never fire have a zero row in G: λ makes them definite; where G is all zero, λ = 1.
    """
    gram = np.asarray(gram, np.float64)
    size = len(gram)
    level = float(np.trace(gram)) / max(size, 1)
    if not level > 0:
        return scipy.linalg.cho_factor(np.eye(size), lower=True), 1.0
    relative = damping
    while True:
        damped = gram.copy()
        damped[np.diag_indices(size)] += relative * level
        try:
            factor: Factor = scipy.linalg.cho_factor(damped, lower=True, overwrite_a=True)
        except scipy.linalg.LinAlgError:
            relative = max(10 * relative, 1e-12)
            continue
        # > a pivot at rounding level passes as positive, and then amplifies noise
        if np.diagonal(factor[0]).min(initial=np.inf) ** 2 > 1e-14 * level:
            return factor, relative * level
        relative = max(10 * relative, 1e-12)


def inverse(factor: Factor) -> Array:
    """(G + λI)⁻¹ (K, K) in full, written over its lower Cholesky factor: a third of the work of solving for the identity.

    >>> inverse(cholesky(np.diag([1.0, 4.0]), 0.0)[0])
    array([[1.  , 0.  ],
           [0.  , 0.25]])
    """
    found, _ = scipy.linalg.lapack.dpotri(factor[0], lower=1, overwrite_c=1)
    for start in range(0, len(found), BLOCK):
        rows = slice(start, start + BLOCK)
        found[rows, start + BLOCK :] = found[start + BLOCK :, rows].T
        found[rows, rows] = np.tril(found[rows, rows]) + np.tril(found[rows, rows], -1).T
    return np.ascontiguousarray(found.T)  # symmetric: no copy where LAPACK left it in Fortran's order


def solve(
    gram: Array, cross: Array, prior: Array, damping: float = 1e-3, factor: Factor | None = None
) -> Array:
    """The weight W (N, K) that minimises E‖y − W x‖² + λ‖W − W0‖², W0 = `prior` (N, K).

    W = W0 + (Cᵀ − W0 G)(G + λI)⁻¹. gram (K, K), cross (K, N): of today's inputs x̂ with the original's outputs y, so the
    errors of earlier layers are corrected too. factor: `cholesky(gram, damping)[0]`, where it is known. He, Zhang & Sun 2017,
    arXiv:1707.06168.

    >>> solve(np.eye(2), np.array([[1.0], [3.0]]), np.zeros((1, 2)), 0.0)
    array([[1., 3.]])
    """
    prior = np.asarray(prior, np.float64)
    if factor is None:
        factor, _ = cholesky(gram, damping)
    return prior + step(cross, prior @ gram, factor)


def step(cross: Array, product: Array, factor: Factor) -> Array:
    """W − W0 of `solve`: (Cᵀ − W0 G)(G + λI)⁻¹, W0 G = `product` (N, K)."""
    found: Array = scipy.linalg.cho_solve(factor, (cross.T - product).T).T
    return found


def solve_with_bias(
    gram: Array, mean: Array, cross: Array, mean_y: Array, prior: Array, *, damping: float = 1e-3
) -> tuple[Array, Array]:
    """The weight (N, K) and bias (N,) that minimise E‖y − W x − b‖² + λ‖W − W0‖²: `solve` on centred x and y.

    b = ȳ − W x̄. mean (K,), mean_y (N,).
    """
    weight = solve(centred(gram, mean), cross - np.outer(mean, mean_y), prior, damping)
    return weight, mean_y - weight @ mean


def refit(weight: Array, gram: Array, keep: Array, damping: float = 1e-3) -> Array:
    """The weight (N, |S|) on the inputs S = `keep` alone that best does the work of `weight` (N, K) on all.

    W_S = W0_S + (W G_:S − W0_S G_SS)(G_SS + λI)⁻¹ = W0_S + W_P G_PS (G_SS + λI)⁻¹, P the inputs dropped: a ridge toward
    the sliced weight. λ is relative to the kept inputs. He, Zhang & Sun 2017; ThiNet 2017, arXiv:1707.06342.

    >>> refit(np.array([[1.0, 1.0]]), np.ones((2, 2)), np.array([0]), 0.0)  # equal inputs: one does for both
    array([[2.]])
    """
    weight, gram = np.asarray(weight, np.float64), np.asarray(gram, np.float64)
    keep, drop = _split(keep, weight.shape[1])
    sliced = weight[:, keep]
    if len(keep) == 0 or len(drop) == 0:
        return sliced
    factor, _ = cholesky(gram[np.ix_(keep, keep)], damping)
    step: Array = scipy.linalg.cho_solve(factor, gram[np.ix_(keep, drop)] @ weight[:, drop].T).T
    return sliced + step


def refit_with_bias(
    weight: Array, gram: Array, mean: Array, keep: Array, damping: float = 1e-3
) -> tuple[Array, Array]:
    """`refit` on centred inputs, and what to add to the bias: W m − W_S m_S.

    With no damping its error is never above that of `refit`, which is never above that of the sliced weight.
    """
    weight = np.asarray(weight, np.float64)
    keep, _ = _split(keep, weight.shape[1])
    sliced = refit(weight, centred(gram, mean), keep, damping)
    return sliced, weight @ mean - sliced @ mean[keep]


def drop_loss(weight: Array, gram: Array, drop: Array, damping: float = 0.0) -> float:
    """What dropping the inputs P = `drop` costs at best: E‖W x − W_S x_S‖² after `refit`.

    tr[W_P (G_PP − G_PS G_SS⁻¹ G_SP) W_Pᵀ], with G + λI for G, λ relative to all inputs.
    """
    weight, gram = np.asarray(weight, np.float64), np.array(gram, np.float64)
    keep, drop = _split(np.setdiff1d(np.arange(len(gram)), drop), len(gram))
    gram[np.diag_indices(len(gram))] += damping * np.trace(gram) / len(gram)
    left = gram[np.ix_(drop, drop)]
    if len(keep):
        factor, _ = cholesky(gram[np.ix_(keep, keep)], 0.0)
        left = left - gram[np.ix_(drop, keep)] @ scipy.linalg.cho_solve(factor, gram[np.ix_(keep, drop)])
    return output_error(weight[:, drop], left)


def output_error(change: Array, gram: Array) -> float:
    """E‖ΔW x‖² = tr[ΔW G ΔWᵀ]: what a change (N, K) of the weight does to the output."""
    change = np.asarray(change, np.float64)
    return float(np.einsum("nk,nk->", change @ gram, change))


def _split(keep: Array, size: int) -> tuple[Array, Array]:
    """Indices kept, as given, and those that are not, ascending."""
    mask = np.zeros(size, bool)
    keep = np.arange(size)[keep]
    mask[keep] = True
    return keep, np.flatnonzero(~mask)
