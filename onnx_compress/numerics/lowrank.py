"""A matrix as two thin ones: the factors that lose least of a layer's output.

    W (N, K) ≈ second (N, r) · first (r, K)

With the Gram matrix G = L Lᵀ of the layer's input, W L = U Σ Vᵀ gives the best rank-r factors in the output's norm, and the
squared output error is exactly Σ_{i>r} σ_i² (Eckart & Young 1936; SVD-LLM 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


@dataclass(frozen=True)
class LowRank:
    """The decomposition of one weight: `energies` σ² falling, and full-rank factors whose leading parts are the best ones."""

    energies: Array  # (r,)
    first: Array  # (r, K), rows in falling importance
    second: Array  # (N, r)

    def at(self, rank: int) -> tuple[Array, Array]:
        """The best factors of `rank`: first (rank, K) and second (N, rank)."""
        if not 1 <= rank <= len(self.energies):
            raise ValueError(f"rank {rank} is not within 1..{len(self.energies)}")
        return self.first[:rank], self.second[:, :rank]

    def between(self, product: Array) -> Array:
        """The energy of each channel between the two factors, by a Gram matrix G: product (N, K) is weight times G.

        `first` is secondᵀ W, so first G firstᵀ takes no product with G.
        """
        kept: Array = np.einsum("rk,rk->r", self.second.T @ product, self.first)
        return np.maximum(kept, 0.0)

    def lost(self, product: Array) -> Array:
        """What each component adds to the output energy by a Gram matrix: Σ of those left out is the squared error, exactly.

        product (N, K): weight times that Gram matrix. The columns of `second` are orthogonal, so this holds in any norm, not in that
        of the decomposition alone.
        """
        return self.between(product) * np.einsum("nr,nr->r", self.second, self.second)


def decompose(weight: Array, gram: Array | None = None, product: Array | None = None) -> LowRank:
    """The low-rank decomposition of `weight` (N, K) in the norm of `gram` (K, K), or its diagonal (K,), or the Frobenius norm.

    U of W L diagonalises W G Wᵀ, and (W L)_r = U_r U_rᵀ W L: neither L nor its inverse is needed, and a G of any rank will do.
    product: weight times gram, where it is known. Where N is the larger, W = Q T, and it is T G Tᵀ whose eigenvectors are found, turned by Q.

    >>> parts = decompose(np.diag([3.0, 2.0, 1.0]))
    >>> parts.energies.round(6).tolist()
    [9.0, 4.0, 1.0]
    """
    basis, rows = None, weight
    if len(weight) > weight.shape[1]:
        basis, rows = np.linalg.qr(weight)
        product = None if product is None else basis.T @ product
    energies, u = falling_eigh((times(rows, gram) if product is None else product) @ rows.T)
    return LowRank(energies, u.T @ rows, u if basis is None else basis @ u)


def falling_eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues, not negative and falling, and eigenvectors (columns) of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1]


def root_and_inverse(gram: Array) -> tuple[Array, Array]:
    """L and L⁻¹ with L Lᵀ = G, symmetric, of a positive semi-definite G; directions without energy count as nearly none.

    Not Cholesky: a dead input or fewer samples than inputs make G singular.
    """
    values, vectors = np.linalg.eigh(gram)
    # a floor, not a cut: weights along a silent direction must survive where the rank allows
    floor = max(float(values[-1]), np.finfo(float).tiny) * 1e-9
    s = np.sqrt(np.maximum(values, floor))
    return (vectors * s) @ vectors.T, (vectors / s) @ vectors.T


def times(weight: Array, gram: Array | None) -> Array:
    """`weight` (N, K) times `gram`: a matrix (K, K), its diagonal (K,), or None for the identity."""
    if gram is None:
        return weight
    product: Array = weight * gram if gram.ndim == 1 else weight @ gram
    return product


def energy(weight: Array, gram: Array | None) -> float:
    """The energy tr[W G Wᵀ] of the output of `weight` (N, K): of the difference of two weights, the squared error."""
    if gram is None:
        return float(np.vdot(weight, weight))
    return max(float(np.vdot(times(weight, gram), weight)), 0.0)


def even_scale(first: Array, second: Array, gram: Array | None = None) -> Array:
    """What to multiply the rows of `first` (r, K) by, and to divide the columns of `second` (N, r) by.

    Row i of `first` gives the middle tensor's channel i; its RMS (by `gram`, else the row's norm) becomes the norm of
    column i of `second`, so that neither factor nor the tensor between needs a wide 8-bit range.
    """
    return even_scale_of(np.einsum("rk,rk->r", times(first, gram), first), second)


def even_scale_of(energies: Array, second: Array) -> Array:
    """`even_scale`, of channels between the factors whose energies (r,) are known."""
    left = np.sqrt(np.maximum(energies, 0.0))
    right = np.linalg.norm(second, axis=0)
    known = (left > 0) & (right > 0)
    scale: Array = np.sqrt(np.divide(right, left, out=np.ones_like(left), where=known))
    return scale
