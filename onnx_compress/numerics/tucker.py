"""A convolution as 1 x 1, core, 1 x 1 (Tucker-2): the factors that lose least of the layer's output.

    W[n, c, t] ≈ Σ_{o, i} last[n, o] · core[o, i, t] · first[i, c]      t running over the kernel

In the Frobenius norm by higher-order orthogonal iteration (HOOI; De Lathauwer 2000, Kim et al. 2016), in the norm of the
unfolded input's Gram matrix by alternating least squares. For a given `first` the best core and last together are a
least-squares filter on the narrow input, cut to its rank in that input's norm: one solve and one eigendecomposition. For given
core and last, `first` is a linear least-squares problem. So neither half step makes the loss larger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.numerics.lowrank import decompose, falling_eigh
from onnx_compress.numerics.spatial import Alternation, spectrum

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

ITERATIONS = 4  # of HOOI: it converges in a few
STEPS = 4  # of conjugate gradients towards the best first factor


def tucker_factors(
    weight: Array,
    gram: Array | None,
    inner: int,
    outer: int,
    *,
    sweeps: int = 2,
    start: Array | None = None,
    problem: Alternation | None = None,
) -> tuple[Array, Array, Array]:
    """First (inner, C), core (outer, inner, T) and last (N, outer) of a (N, C, T) filter.

    gram: (C·T, C·T) float64, of the unfolded input, or None for the Frobenius norm; sweeps: of refitting all three in turn;
    start: a first factor to start from; problem: that of this weight as (N, C, 1, T) and Gram matrix, where it is there.
    Raises ValueError unless 1 <= inner <= min(C, N·T) and 1 <= outer <= min(N, C·T).

    >>> rng = np.random.default_rng(0)
    >>> weight = np.einsum("no,oit,ic->nct", *(rng.normal(size=s) for s in ((6, 2), (2, 3, 9), (3, 5))))
    >>> bool(np.allclose(tucker_product(*tucker_factors(weight, None, 3, 2)), weight))
    True
    """
    n, c, taps = weight.shape
    if not (1 <= inner <= min(c, n * taps) and 1 <= outer <= min(n, c * taps)):
        raise ValueError(f"ranks {inner} and {outer} are not within those of a {weight.shape} filter")
    if gram is None:
        return _hooi(weight, inner, outer)
    problem = problem or Alternation(weight[:, :, None, :], gram)
    first = problem.spectrum[1][:inner] if start is None else start[:inner]
    core, last = _cut(problem, first, outer)
    for _ in range(sweeps):
        first = problem.first(first, np.einsum("no,oit->nit", last, core, optimize=True), STEPS)
        core, last = _cut(problem, first, outer)
    return first, core, last


def tucker_product(first: Array, core: Array, last: Array) -> Array:
    """The (N, C, T) filter that the factors stand for."""
    product: Array = np.einsum("no,oit,ic->nct", last, core, first, optimize=True)
    return product


def tucker_spectra(
    weight: Array, gram: Array | None, problem: Alternation | None = None
) -> tuple[Array, Array]:
    """Energies, falling, of the input side (min(C, N·T),) and of the output side (min(N, C·T),) of a (N, C, T) filter.

    What is left out of either is a bound of the error from below (exact for the output side, whitened by the mean of `gram`
    over the kernel for the input side), and their sum is close to the error of both together.
    """
    n, _, _ = weight.shape
    inner, _ = spectrum(weight[:, :, None, :], gram) if problem is None else problem.spectrum
    return inner, decompose(weight.reshape(n, -1), gram).energies


def _cut(problem: Alternation, first: Array, outer: int) -> tuple[Array, Array]:
    """The best core (outer, inner, T) and last (N, outer) for a given first (inner, C)."""
    best, product = problem.second_and_product(first)
    n, inner, taps = len(best), len(first), problem.kw
    parts = decompose(best, product=product)
    rank = min(outer, len(parts.energies))
    rows, columns = parts.at(rank)
    core, last = np.zeros((outer, inner, taps)), np.zeros((n, outer))
    core[:rank], last[:, :rank] = rows.reshape(rank, inner, taps), columns
    return core, last


def _hooi(weight: Array, inner: int, outer: int) -> tuple[Array, Array, Array]:
    """Orthonormal first and last, each in turn the leading directions of what the other leaves."""
    n, c, _ = weight.shape
    side = weight.transpose(1, 0, 2).reshape(c, -1)
    first = falling_eigh(side @ side.T)[1][:, :inner].T
    last = np.eye(n)[:, :outer]
    for _ in range(ITERATIONS):
        rows = np.einsum("nct,ic->nit", weight, first, optimize=True).reshape(n, -1)
        last = falling_eigh(rows @ rows.T)[1][:, :outer]
        side = np.einsum("nct,no->cot", weight, last, optimize=True).reshape(c, -1)
        first = falling_eigh(side @ side.T)[1][:, :inner].T
    return first, np.einsum("nct,no,ic->oit", weight, last, first, optimize=True), last
