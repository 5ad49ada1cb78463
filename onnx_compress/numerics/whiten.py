"""Low-rank factors that are best in the norm of the output, not of the weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import eigh

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def factor(weight: Array, gram: Array, rank: int, damping: float = 0.0) -> tuple[Array, Array]:
    """Factors a (N, rank), b (rank, K) with the least E‖W x − a b x‖² of all of that rank.

    weight (N, K); gram (K, K) = E[x xᵀ], G + λI with λ = damping · tr(G)/K. With G = L Lᵀ and W L = U Σ Vᵀ the best is
    (U_r Σ_r)(V_rᵀ L⁻¹) = U_r (U_rᵀ W), and U are the eigenvectors of W G Wᵀ: so no root of G is taken and none is
    inverted, and a G of any rank will do. The scale is shared: row i of b and column i of a have the same norm.
    Raises ValueError unless 1 <= rank <= min(N, K).
    SVD-LLM 2024, arXiv:2403.07378.

    >>> a, b = factor(np.diag([1.0, 2.0]), np.diag([9.0, 1.0]), 1)
    >>> np.round(a @ b, 6)
    array([[1., 0.],
           [0., 0.]])
    """
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"rank {rank} of a {weight.shape} weight")
    _, basis = decompose(weight, gram, damping)
    a = basis[:, :rank]
    b = a.T @ np.asarray(weight, np.float64)
    scale = np.sqrt(np.linalg.norm(b, axis=1))
    scale[scale == 0] = 1.0
    return a * scale, b / scale[:, np.newaxis]


def spectrum(weight: Array, gram: Array, damping: float = 0.0) -> Array:
    """σ² (min(N, K),), descending: `factor` of rank r has the squared output error Σ_{i>r} σ_i², exactly.

    Ranks can so be shared out over layers by σ² per multiply-add or byte saved. Below 1e-15 of the first they are noise.
    """
    return decompose(weight, gram, damping)[0]


def decompose(weight: Array, gram: Array, damping: float = 0.0) -> tuple[Array, Array]:
    """σ² (min(N, K),) and U (N, min(N, K)) of W G^½ = U Σ Vᵀ, largest first."""
    weight, gram = np.asarray(weight, np.float64), np.array(gram, np.float64)
    gram[np.diag_indices(len(gram))] += damping * np.trace(gram) / len(gram)
    outputs, inputs = weight.shape
    if outputs > inputs:
        # W = Q T: the eigenvectors of the smaller T G Tᵀ, turned by Q
        basis, weight = np.linalg.qr(weight)
    products = weight @ gram @ weight.T
    values, vectors = eigh((products + products.T) / 2)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    # the sign of an eigenvector is the library's choice: made ours, so the same input gives the same bytes
    peak = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.where(vectors[peak, np.arange(len(peak))] < 0, -1.0, 1.0)
    if outputs > inputs:
        return values, basis @ vectors
    return values[: min(outputs, inputs)], vectors[:, : min(outputs, inputs)]
