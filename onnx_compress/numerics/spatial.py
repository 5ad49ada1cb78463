"""A k x k filter as k x 1 then 1 x k: the factors that lose least of a layer's output, by alternating least squares.

    W[n, c, i, j] ≈ Σ_r second[n, r, j] · first[r, c, i]

With the Gram matrix G of the unfolded input the loss is tr[(W − W̃) G (W − W̃)ᵀ], the energy that is missing from the
layer's output. Either factor alone is a linear least-squares problem, so refitting them in turn never makes it worse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.numerics.lowrank import root_and_inverse

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[Any]

RIDGE = 1e-9  # of the mean diagonal: only what keeps a solve from dividing by zero


def spatial_factors(
    weight: Array, gram: Array | None, rank: int, *, sweeps: int = 2, start: Array | None = None
) -> tuple[Array, Array]:
    """The factors of a (N, C, kh, kw) filter at `rank`: first (rank, C, kh) and second (N, rank, kw).

    gram: (C·kh·kw, C·kh·kw) float64, of the unfolded input, or None for the Frobenius norm; sweeps: of refitting both in
    turn; start: a first factor of at least this rank to start from, in falling order of importance.
    Raises ValueError unless 1 <= rank <= min(C·kh, N·kw).
    """
    n, c, kh, kw = weight.shape
    if not 1 <= rank <= min(c * kh, n * kw):
        raise ValueError(f"rank {rank} is not within 1..{min(c * kh, n * kw)}")
    first = spectrum(weight, gram)[1][:rank] if start is None else start[:rank].reshape(rank, -1)
    problem = Alternation(weight, gram)
    second = problem.second(first)
    for _ in range(sweeps if gram is not None else 0):
        first = problem.first(first, second)
        second = problem.second(first)
    return first.reshape(rank, c, kh), second


def spatial_product(first: Array, second: Array) -> Array:
    """The (N, C, kh, kw) filter that the factors stand for."""
    product: Array = np.einsum("nrj,rci->ncij", second, first, optimize=True)
    return product


def spectrum(weight: Array, gram: Array | None) -> tuple[Array, Array]:
    """Squared singular values of the filter as a (C·kh, N·kw) matrix, falling, and its directions: (rank, C·kh) rows.

    Whitened by the mean of `gram` over the columns of the kernel: exact where those do not correlate, else a good start.
    """
    n, c, kh, kw = weight.shape
    flat = weight.transpose(1, 2, 0, 3).reshape(c * kh, n * kw)
    if gram is None:
        u, s, _ = np.linalg.svd(flat, full_matrices=False)
        return s * s, u.T
    mean = np.einsum("ajbj->ab", gram.reshape(c * kh, kw, c * kh, kw)) / kw
    root, inverse = root_and_inverse(mean)
    u, s, _ = np.linalg.svd(root @ flat, full_matrices=False)
    return s * s, (inverse @ u).T


class Alternation:
    """The two normal equations of one layer. A filter is a (N, a, kw) array here, `a` running over C·kh."""

    def __init__(self, weight: Array, gram: Array | None) -> None:
        n, c, kh, kw = weight.shape
        self.n, self.a, self.kw = n, c * kh, kw
        k = self.a * kw
        gram = np.eye(k) if gram is None else gram
        # (a, j, k, b): the block of each pair of kernel columns is one matrix product away
        self.blocks = np.ascontiguousarray(gram.reshape(self.a, kw, self.a, kw).transpose(0, 1, 3, 2))
        self.mean = np.einsum("ajjb->ab", self.blocks) / kw
        self.flat = weight.reshape(n, k)
        self.target = (self.flat @ gram).reshape(n, self.a, kw)

    def second(self, first: Array) -> Array:
        """The best second factor (N, r, kw) for a given first (r, a)."""
        right = np.einsum("naj,ra->nrj", self.target, first, optimize=True).reshape(self.n, -1)
        return _solver(self.middle(first))(right.T).T.reshape(self.n, len(first), self.kw)

    def middle(self, first: Array) -> Array:
        """The Gram matrix (r·kw, r·kw) of what `first` (r, a) makes of the input."""
        rank = len(first)
        spread = (self.blocks.reshape(-1, self.a) @ first.T).reshape(self.a, self.kw, self.kw, rank)
        normal = (first @ spread.reshape(self.a, -1)).reshape(rank, self.kw, self.kw, rank)
        return normal.transpose(0, 1, 3, 2).reshape(rank * self.kw, rank * self.kw)

    def first(self, first: Array, second: Array, steps: int = 4) -> Array:
        """A better first factor (r, a) for a given second: conjugate gradients from the present one."""
        rank = len(first)
        columns = second.reshape(self.n, -1)
        pairs = (columns.T @ columns).reshape(rank, self.kw, rank, self.kw)
        gathered = np.ascontiguousarray(pairs.transpose(2, 0, 1, 3)).reshape(rank, -1)
        wide = self.blocks.reshape(self.a, -1)

        def apply(x: Array) -> Array:
            spread = (x @ wide).reshape(rank * self.kw * self.kw, self.a)
            product: Array = gathered @ spread
            return product

        right = np.einsum("nrj,naj->ra", second, self.target, optimize=True)
        inner, outer = np.einsum("rjsj->rs", pairs), self.mean

        left, above = _solver(inner), _solver(outer)

        def precondition(x: Array) -> Array:
            return above(left(x).T).T

        return _conjugate_gradients(apply, precondition, right, first, steps)


def _conjugate_gradients(
    apply: Callable[[Array], Array],
    precondition: Callable[[Array], Array],
    right: Array,
    start: Array,
    steps: int,
) -> Array:
    """`steps` steps towards apply(x) = right; each lowers the quadratic that this minimises."""
    x = start.copy()
    residual = right - apply(x)
    direction = precondition(residual)
    slope = float(np.vdot(residual, direction))
    stop = 1e-18 * float(np.vdot(right, right))
    for _ in range(steps):
        if slope <= 0 or float(np.vdot(residual, residual)) <= stop:
            break
        image = apply(direction)
        curvature = float(np.vdot(direction, image))
        if not curvature > 1e-200:
            break
        length = slope / curvature
        x = x + length * direction
        residual = residual - length * image
        fresh = precondition(residual)
        slope, before = float(np.vdot(residual, fresh)), slope
        direction = fresh + (slope / before) * direction
    return x


def _solver(matrix: Array) -> Callable[[Array], Array]:
    """The function x -> matrix⁻¹ · x of a positive semi-definite matrix."""
    from scipy.linalg import cho_factor, cho_solve

    ridge = RIDGE * max(float(np.trace(matrix)) / len(matrix), np.finfo(float).tiny)
    damped = matrix + ridge * np.eye(len(matrix))
    try:
        factor = cho_factor(damped, check_finite=False)
    except np.linalg.LinAlgError:
        inverse = np.linalg.pinv(damped, hermitian=True)
        return lambda right: inverse @ right
    return lambda right: cho_solve(factor, right, check_finite=False)
