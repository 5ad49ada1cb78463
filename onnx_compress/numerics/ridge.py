"""How far a refit may trust few columns: a ridge as strong as what they cannot tell.

The refit W_S = W0_S + W_P G_PS (G_SS + λI)⁻¹ explains what the dropped inputs did, y = W_P x_P, by those kept. Of what it
finds in n columns, noise is what would not be found in others. Bayes' λ for a step drawn from N(0, τ²) and noise of variance
σ² is σ²/(n τ²); what x_S explains, τ² tr G_SS, is what of E‖y‖² is not noise: λ = tr G_SS / n · σ² / (E‖y‖² − σ²). And
σ² is what the fit leaves, residual · n / (n − df), df = tr[G_SS (G_SS + λI)⁻¹]. (MacKay 1992, doi:10.1162/neco.1992.4.3.415.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

from onnx_compress.numerics.leastsquares import cholesky

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

ROUNDS = 8  # of the two equations, from noise as large as what is explained
MANY = 0.01  # inputs to a column: fewer, and the ridge is below what rounding asks for


def evidence(weight: Array, gram: Array, keep: Array, count: int, damping: float) -> float:
    """The damping with which `leastsquares.refit` to the inputs `keep`, seen in `count` columns, is most probable.

    weight (N, K), gram (K, K); never less than `damping`, never more than `damping` + |S|/n, of noise as large as the signal.

    >>> rng = np.random.default_rng(0); x = rng.standard_normal((8, 20)); twins = np.concatenate([x, x])
    >>> [round(evidence(np.ones((1, 16)), g @ g.T / 20, np.arange(8), 20, 1e-3), 3) for g in (twins, rng.standard_normal((16, 20)))]
    [0.001, 0.401]
    """
    size = len(keep)
    scarce = size / max(count, 1)
    mask = np.ones(len(gram), bool)
    mask[keep] = False
    if not count or scarce < MANY or not mask.any():
        return damping + scarce
    lost = np.asarray(weight, np.float64)[:, mask]
    own = gram[np.ix_(keep, keep)]
    cross = gram[np.ix_(keep, mask)] @ lost.T  # (S, N)
    total = float(np.einsum("np,np->", lost @ gram[np.ix_(mask, mask)], lost))
    ratio = 1.0
    for _ in range(ROUNDS):
        factor, level = cholesky(own, damping + scarce * ratio)
        step = scipy.linalg.cho_solve(factor, cross)
        # with (G_SS + λI) s = c, the loss is what it was less s · (c + λ s), and tr (G_SS + λI)⁻¹ = ‖L⁻¹‖²
        residual = max(total - float(np.vdot(step, cross) + level * np.vdot(step, step)), 0.0)
        root, _ = scipy.linalg.lapack.dtrtri(np.tril(factor[0]), lower=1, overwrite_c=1)
        freedom = size - level * float(np.vdot(root, root))
        noise = residual * count / max(count - freedom, 1e-3 * count)
        before, ratio = ratio, min(noise / max(total - noise, 1e-30), 1.0) if noise < total else 1.0
        # > half: closer than that makes no difference to a ridge
        if ratio > before / 2:
            break
    return damping + scarce * ratio
