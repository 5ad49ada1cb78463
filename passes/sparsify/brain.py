"""Optimal brain surgeon on the entries of a weight: which go, and what the others do about it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.numerics.rounding import inverse_factor

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[Any]

DAMPING = 1e-3
WORK = 2e11  # multiply-adds of a layer's refit row by row, beyond which the sweep's own update is the repair


@dataclass(frozen=True)
class Inputs:
    """What is known of a layer's unfolded inputs. gram: (groups, K, K), centred where the bias takes the mean, or None.

    energy: (groups, K), its diagonal; mean: (groups, K), zero where the bias cannot take it; matters: (groups, N/groups), what
    an error of each output counts.
    """

    gram: Array | None
    energy: Array
    mean: Array
    matters: Array

    @cached_property
    def upper(self) -> Array:
        """U (groups, K, K), upper triangular, with Uᵀ U = (G + λI)⁻¹."""
        assert self.gram is not None
        return np.stack([inverse_factor(gram, DAMPING) for gram in self.gram])

    @cached_property
    def inverse_diagonal(self) -> Array:
        """[(G + λI)⁻¹]_qq: (groups, K)."""
        if self.gram is None:
            damped = self.energy + DAMPING * self.energy.mean(axis=1, keepdims=True) + 1e-30
            inverse: Array = 1 / damped
            return inverse
        return np.asarray(np.square(self.upper).sum(axis=1))

    def error(self, change: Array) -> float:
        """Σ_n m_n E(ΔW x)_n² (less the mean, where the bias takes it) of a change (groups, N, K), m what output n counts."""
        if self.gram is None:
            return float(np.einsum("gnk,gk,gn->", change * change, self.energy, self.matters))
        return float(np.einsum("gnk,gnk,gn->", change @ self.gram, change, self.matters))


def scores(rows: Array, inputs: Inputs, criterion: str) -> Array:
    """What each entry of `rows` (groups, N, K) is worth; −1 where it is zero already, so that it goes first.

    magnitude: |w|. wanda: |w|·‖x‖ (Sun et al. 2023, arXiv:2306.11695). obs: m w²/[H⁻¹]_qq, the least error that removing the
    entry can leave (Hassibi & Stork 1993), times what its output counts.
    """
    if criterion == "magnitude":
        found = np.abs(rows)
    elif criterion == "wanda":
        found = np.abs(rows) * np.sqrt(inputs.energy)[:, np.newaxis]
    else:
        found = rows * rows / inputs.inverse_diagonal[:, np.newaxis] * inputs.matters[..., np.newaxis]
    return np.where(rows == 0, -1.0, found)


def sweep(
    rows: Array, upper: Array, choose: Callable[[Array, int, int], Array], block: int = 64
) -> tuple[Array, Array]:
    """The weight with entries set to zero column by column, each error made up for by the columns after it; and the mask.

    rows (groups, N, K); upper: of `Inputs`; choose(scores, start, end): the mask of what stays of these columns, asked when
    the sweep gets there, of w²/U_qq² as the weight then is. Frantar & Alistarh 2023 (SparseGPT), arXiv:2301.00774.
    """
    left = rows.copy()
    keep = np.zeros(rows.shape, bool)
    inputs = rows.shape[2]
    diagonal = np.diagonal(upper, axis1=1, axis2=2)
    for start in range(0, inputs, block):
        end = min(start + block, inputs)
        worth = np.square(left[..., start:end] / diagonal[:, np.newaxis, start:end])
        keep[..., start:end] = choose(np.where(rows[..., start:end] == 0, -1.0, worth), start, end)
        keep[..., start:end] &= rows[..., start:end] != 0
        errors = np.empty(left[..., start:end].shape)
        for at in range(start, end):
            error = np.where(keep[..., at], 0.0, left[..., at]) / diagonal[:, np.newaxis, at]
            left[..., at + 1 : end] -= error[..., np.newaxis] * upper[:, np.newaxis, at, at + 1 : end]
            errors[..., at - start] = error
        left[..., end:] -= errors @ upper[:, start:end, end:]
    return np.where(keep, left, 0.0), keep
