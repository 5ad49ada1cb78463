"""The rank of a matrix seen through noise, by variational Bayes: no rank, energy or tolerance has to be given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

TAU = 2.5129  # of the threshold: τ ≈ 2.5129 √α, exact in the limit


def vbmf_rank(singular: Array, rows: int, columns: int) -> int:
    """How many of the singular values of a (rows, columns) matrix stand out of its noise.

    The global analytic solution of empirical variational Bayesian matrix factorization, for a noise variance s² found by
    minimising its free energy: of the L ≤ M sides, σ is kept while σ² > M s² (1 + τ)(1 + α/τ), α = L/M, τ = 2.5129 √α.
    Nakajima, Sugiyama, Babacan & Tomioka 2013, JMLR 14.

    >>> rng = np.random.default_rng(0)
    >>> matrix = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 90)) + 0.1 * rng.normal(size=(40, 90))
    >>> vbmf_rank(np.linalg.svd(matrix)[1], 40, 90)
    3
    """
    from scipy.optimize import minimize_scalar  # > slow to import

    short, long = min(rows, columns), max(rows, columns)
    squares = np.sort(np.asarray(singular, np.float64)[:short] ** 2)[::-1]
    squares = np.concatenate([squares, np.zeros(short - len(squares))])
    total = float(squares.sum())
    if not total > 0:
        return 0
    alpha = short / long
    tau = TAU * np.sqrt(alpha)
    edge = (1 + tau) * (1 + alpha / tau)
    # noise between what leaves every value a signal and what leaves none
    most = min(int(np.ceil(short / (1 + alpha))) - 1, short - 1)
    low = max(float(squares[most]) / (long * edge), float(squares[most:].mean()) / long)
    high = total / (short * long)
    low = min(max(low, 1e-12 * high), high)
    found = minimize_scalar(
        lambda log: _free_energy(float(np.exp(log)), squares, long, alpha, edge),
        bounds=(np.log(low), np.log(high)),
        method="bounded",
    )
    return int((squares > long * float(np.exp(found.x)) * edge).sum())


def _free_energy(noise: float, squares: Array, long: int, alpha: float, edge: float) -> float:
    """The free energy, up to constants, of a noise variance."""
    x = np.maximum(squares / (long * noise), np.finfo(float).tiny)
    signal = x[x > edge]
    tau = (signal - 1 - alpha + np.sqrt(np.maximum((signal - 1 - alpha) ** 2 - 4 * alpha, 0.0))) / 2
    kept = np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau
    return float((x - np.log(x)).sum() + kept.sum())
