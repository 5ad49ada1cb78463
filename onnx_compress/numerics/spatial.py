"""A k x k filter as k x 1 then 1 x k: the factors that lose least of a layer's output, by alternating least squares.

    W[n, c, i, j] ≈ Σ_r second[n, r, j] · first[r, c, i]

With the Gram matrix G of the unfolded input the loss is tr[(W − W̃) G (W − W̃)ᵀ], the energy that is missing from the
layer's output. Either factor alone is a linear least-squares problem, so refitting them in turn never makes it worse.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.numerics.lowrank import falling_eigh, root_and_inverse

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[Any]

RIDGE = (
    1e-9,
    1e-6,
)  # of the mean diagonal, in float64 and float32: only what keeps a solve from dividing by zero
WIDE = 1000  # inputs from which the large products are float32: half the time, and far more exact than a few steps are


def spatial_factors(
    weight: Array,
    gram: Array | None,
    rank: int,
    *,
    sweeps: int = 2,
    start: Array | None = None,
    problem: Alternation | None = None,
) -> tuple[Array, Array]:
    """The factors of a (N, C, kh, kw) filter at `rank`: first (rank, C, kh) and second (N, rank, kw).

    gram: (C·kh·kw, C·kh·kw) float64, of the unfolded input, or None for the Frobenius norm; sweeps: of refitting both in
    turn; start: a first factor of at least this rank to start from, in falling order of importance; problem: that of this
    weight and Gram matrix, where it is there already.
    Raises ValueError unless 1 <= rank <= min(C·kh, N·kw).
    """
    n, c, kh, kw = weight.shape
    if not 1 <= rank <= min(c * kh, n * kw):
        raise ValueError(f"rank {rank} is not within 1..{min(c * kh, n * kw)}")
    if gram is None and start is None:
        first = spectrum(weight, None)[1][:rank]
        return first.reshape(rank, c, kh), np.einsum(
            "naj,ra->nrj", weight.reshape(n, -1, kw), first, optimize=True
        )
    problem = problem or Alternation(weight, gram)
    first = problem.spectrum[1][:rank] if start is None else start[:rank].reshape(rank, -1)
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
    if gram is not None:
        return Alternation(weight, gram).spectrum
    n, c, kh, kw = weight.shape
    u, s, _ = np.linalg.svd(weight.transpose(1, 2, 0, 3).reshape(c * kh, n * kw), full_matrices=False)
    return s * s, u.T


class Alternation:
    """The two normal equations of one layer. A filter is a (N, a, kw) array here, `a` running over C·kh."""

    def __init__(self, weight: Array, gram: Array | None, product: Array | None = None) -> None:
        """product: weight (N, K) times gram, where it is known."""
        n, c, kh, kw = weight.shape
        self.n, self.a, self.kw = n, c * kh, kw
        k = self.a * kw
        gram = np.eye(k) if gram is None else gram
        self.kind: Any = np.float32 if k > WIDE else np.float64
        self.ridge = RIDGE[k > WIDE]
        # (a, j, k, b): the block of each pair of kernel columns is one matrix product away
        parted = gram.reshape(self.a, kw, self.a, kw)
        self.blocks = np.ascontiguousarray(parted.transpose(0, 1, 3, 2), self.kind)
        self.mean = np.einsum("ajbj->ab", parted) / kw
        self.flat = weight.reshape(n, k)
        self.target = (self.flat @ gram if product is None else product).reshape(n, self.a, kw)
        self.energy = float(np.vdot(self.target, self.flat))

    @cached_property
    def spectrum(self) -> tuple[Array, Array]:
        """What the function of this name returns."""
        flat = self.flat.reshape(self.n, self.a, self.kw).transpose(1, 0, 2).reshape(self.a, -1)
        white, unwhitened = _whitened(self.mean, flat)
        if self.a <= flat.shape[1]:
            energies, u = falling_eigh(white @ white.T)
            return energies, unwhitened(u).T
        u, s, _ = np.linalg.svd(white, full_matrices=False)
        return s * s, unwhitened(u).T

    def second(self, first: Array) -> Array:
        """The best second factor (N, r, kw) for a given first (r, a)."""
        return self.second_and_product(first)[0].reshape(self.n, len(first), self.kw)

    def second_and_product(self, first: Array) -> tuple[Array, Array]:
        """The best second factor (N, r·kw) for a given first (r, a), and it times the Gram matrix of what `first` makes of the input."""
        right = np.einsum("naj,ra->nrj", self.target, first, optimize=True).reshape(self.n, -1)
        middle = self.middle(first)
        second = _solver(middle, self.ridge)(right.T).T
        return second, right - _ridge(middle, self.ridge) * second

    def lost(self, first: Array, second: Array) -> float:
        """The squared error with `second` (N, r, kw) the best for `first` (r, a), or that projected in its norm.

        Such a filter is at right angles to what it misses, so no product with the Gram matrix is needed.
        """
        kept = np.vdot(second, np.einsum("naj,ra->nrj", self.target, first, optimize=True))
        return max(self.energy - float(kept), 0.0)

    def middle(self, first: Array) -> Array:
        """The Gram matrix (r·kw, r·kw) of what `first` (r, a) makes of the input."""
        rank = len(first)
        first = first.astype(self.kind)
        spread = (self.blocks.reshape(-1, self.a) @ first.T).reshape(self.a, self.kw, self.kw, rank)
        normal = (first @ spread.reshape(self.a, -1)).reshape(rank, self.kw, self.kw, rank)
        normal = normal.transpose(0, 1, 3, 2).reshape(rank * self.kw, rank * self.kw).astype(np.float64)
        return (normal + normal.T) / 2

    def first(self, first: Array, second: Array, steps: int = 4) -> Array:
        """A better first factor (r, a) for a given second: conjugate gradients from the present one."""
        rank = len(first)
        columns = second.reshape(self.n, -1)
        pairs = (columns.T @ columns).reshape(rank, self.kw, rank, self.kw)
        gathered = np.ascontiguousarray(pairs.transpose(2, 0, 1, 3), self.kind).reshape(rank, -1)
        wide = self.blocks.reshape(self.a, -1)

        def apply(x: Array) -> Array:
            spread = (x.astype(self.kind) @ wide).reshape(rank * self.kw * self.kw, self.a)
            product: Array = gathered @ spread
            return product.astype(np.float64)

        right = np.einsum("nrj,naj->ra", second, self.target, optimize=True)
        inner = np.einsum("rjsj->rs", pairs)

        left, above = _solver(inner, self.ridge), self._above

        def precondition(x: Array) -> Array:
            return above(left(x).T).T

        return _conjugate_gradients(apply, precondition, right, first, steps)

    @cached_property
    def _above(self) -> Callable[[Array], Array]:
        return _solver(self.mean, self.ridge)


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


def _whitened(gram: Array, rows: Array) -> tuple[Array, Callable[[Array], Array]]:
    """Lᵀ · `rows` (K, n) and the function x -> L⁻ᵀ · x, L Lᵀ = `gram` (K, K): by Cholesky where that is possible."""
    from scipy.linalg import solve_triangular

    try:
        left = np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        root, inverse = root_and_inverse(gram)
        return root @ rows, lambda x: inverse @ x
    return left.T @ rows, lambda x: solve_triangular(left, x, trans=1, lower=True, check_finite=False)


def _ridge(matrix: Array, share: float) -> float:
    return share * max(float(np.trace(matrix)) / len(matrix), np.finfo(float).tiny)


def _solver(matrix: Array, share: float) -> Callable[[Array], Array]:
    """The function x -> matrix⁻¹ · x of a positive semi-definite matrix."""
    from scipy.linalg import cho_factor, cho_solve

    damped = matrix.copy()
    damped[np.diag_indices(len(matrix))] += _ridge(matrix, share)
    try:
        factor = cho_factor(damped, check_finite=False)
    except np.linalg.LinAlgError:
        inverse = np.linalg.pinv(damped, hermitian=True)
        return lambda right: inverse @ right
    return lambda right: cho_solve(factor, right, check_finite=False)
