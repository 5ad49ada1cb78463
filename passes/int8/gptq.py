"""Rounding that lets later columns make up for the error of earlier ones (GPTQ)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

BLOCK = 128  # columns whose updates of the rest are done at once


def gptq(weight: Array, gram: Array, scale: Array, limit: int, damp: float = 0.01) -> Array:
    """Codes q with `scale · q` near `weight` in the norm of the layer's output, E‖(W − Q) x‖².

    weight (N, K), gram (K, K) = E[x xᵀ], scale (N,); codes reach from −limit to limit. Each column is rounded, and
    its error e = (w − Q(w)) / [H⁻¹]_qq spread over the columns after it by e · [H⁻¹]_q,>q, H = G + λI, the largest
    diagonal first. A row for which that did worse than rounding to the nearest keeps the nearest.
    Frantar et al. 2023, arXiv:2210.17323.
    """
    nearest = np.clip(np.rint(weight / scale[:, np.newaxis]), -limit, limit)
    mean = float(np.trace(gram)) / len(gram)
    if not mean > 0:
        return nearest.astype(np.int8)
    hessian = gram + damp * mean * np.eye(len(gram))
    order = np.argsort(-np.diag(gram), kind="stable")
    inverse = np.linalg.inv(hessian[np.ix_(order, order)])
    upper = np.linalg.cholesky((inverse + inverse.T) / 2).T
    left = np.asarray(weight, np.float64)[:, order].copy()
    codes = np.empty_like(left)
    for start in range(0, left.shape[1], BLOCK):
        end = min(start + BLOCK, left.shape[1])
        errors = np.empty((len(left), end - start))
        for at in range(start, end):
            codes[:, at] = np.clip(np.rint(left[:, at] / scale), -limit, limit)
            errors[:, at - start] = (left[:, at] - codes[:, at] * scale) / upper[at, at]
            left[:, at + 1 : end] -= np.outer(errors[:, at - start], upper[at, at + 1 : end])
        left[:, end:] -= errors @ upper[start:end, end:]
    found = np.empty_like(codes)
    found[:, order] = codes
    better = _loss(weight, found, scale, gram) < _loss(weight, nearest, scale, gram)
    return np.where(better[:, np.newaxis], found, nearest).astype(np.int8)


def _loss(weight: Array, codes: Array, scale: Array, gram: Array) -> Array:
    """E|(w − Q)ᵀ x|² of each row."""
    error = weight - codes * scale[:, np.newaxis]
    loss: Array = np.einsum("nk,nk->n", error @ gram, error)
    return loss
