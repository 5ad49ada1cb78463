"""Least squares through a clamp: what a layer should give when a ReLU or ReLU6 comes next.

Where the original lies inside the clamp its value is the aim. Where it lies outside, any value on that side is as good, and
only what reaches in costs: a convex loss, nowhere below ‖clamp(aim) − clamp(value)‖². It is minimised in rounds of plain
least squares in which an aim outside is the layer's own present value, brought to that side; none raises the loss
(majorize-minimize). Zhang et al. 2015, arXiv:1505.06798, section 3.2, solve for the same with a penalty.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

from onnx_compress.numerics.leastsquares import centred, cholesky

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Array = NDArray[Any]

Clamp = tuple[float, float]
FLOOR = 0.05  # of the mean variance of all outputs: what counts as small
OPEN: Clamp = (-math.inf, math.inf)


@dataclass(frozen=True)
class Piece:
    """Some columns of a layer: inputs x (groups, n, K), aims y (groups, n, N), all float32.

    added: what is added to the layer's output before the clamp, as y, or None.
    """

    x: Array
    y: Array
    added: Array | None = None


class Fit:
    """The layer W (groups, N, K), b (groups, N) whose outputs W x + b + added come closest to the aims, with λ‖W − W0‖².

    After no round it is the plain least-squares fit. bias: whether b may be other than `shift`.
    λ = (damping + scarcity · K/n) · tr(G)/K for n columns: few of them hold the weight closer to W0 = `prior`.
    grams, one (K, K) a group, centred where there is a bias, and mean (groups, K) are those of x, from `plain` on.
    """

    def __init__(
        self, prior: Array, shift: Array, *, bias: bool, damping: float = 1e-3, scarcity: float = 1.0
    ) -> None:
        self.prior, self.weight, self.shift = prior, prior, shift
        self._bias, self._damping, self._scarcity = bias, damping, scarcity

    def plain(self, pieces: Iterable[Piece]) -> None:
        """The least-squares fit."""
        groups, outputs, inputs = self.prior.shape
        gram, first = np.zeros((groups, inputs, inputs)), np.zeros((groups, inputs))
        cross, first_y = np.zeros((groups, inputs, outputs)), np.zeros((groups, outputs))
        count = 0
        for piece in pieces:
            aim = piece.y if piece.added is None else piece.y - piece.added
            count += aim.shape[1]
            gram += np.matmul(piece.x.swapaxes(1, 2), piece.x)
            cross += np.matmul(piece.x.swapaxes(1, 2), aim)
            first += piece.x.sum(1, dtype=np.float64)
            first_y += aim.sum(1, dtype=np.float64)
        self._count, self.mean = max(count, 1), first / max(count, 1)
        level = self._damping + self._scarcity * inputs / self._count
        self.grams = [
            self._centred(part / self._count, mean) for part, mean in zip(gram, self.mean, strict=True)
        ]
        self._factors = [cholesky(part, level)[0] for part in self.grams]
        self._solve(cross, first_y)

    def spread(self, pieces: Iterable[Piece], clamp: Clamp) -> None:
        """Scales each output to vary as its aim does once both are clamped, since a least-squares fit varies less: W σ/σ̂.

        σ/σ̂ is drawn to 1 where both are small. A sum of this layer and others that is clamped is left.
        Variance repair: Jordan et al. 2023 (REPAIR), arXiv:2211.08403.
        """
        sums = np.zeros((4, *self.shift.shape))
        count = 0
        for piece in pieces:
            if piece.added is not None and clamp != OPEN:
                return
            aim = piece.y if piece.added is None else piece.y - piece.added
            value = np.matmul(piece.x, self.weight.astype(np.float32).swapaxes(1, 2))
            value += self.shift.astype(np.float32)[:, np.newaxis]
            seen = [np.clip(part, *clamp).astype(np.float64) for part in (value, aim)]
            sums += [part.sum(1) for power in (1, 2) for part in (values**power for values in seen)]
            count += aim.shape[1]
        mean, mean_y, second, second_y = sums / max(count, 1)
        made, wanted = np.maximum(second - mean**2, 0), np.maximum(second_y - mean_y**2, 0)
        floor = FLOOR * wanted.mean() + 1e-30
        factor = np.sqrt((wanted + floor) / (made + floor))
        self.weight = self.weight * factor[..., np.newaxis]
        if self._bias:
            self.shift = factor * self.shift + (mean_y - factor * mean if clamp == OPEN else 0)

    def round(self, pieces: Iterable[Piece], clamp: Clamp) -> None:
        """One step towards the fit through the clamp, from the present one."""
        groups, outputs, inputs = self.prior.shape
        cross, first_y = np.zeros((groups, inputs, outputs)), np.zeros((groups, outputs))
        weight = self.weight.astype(np.float32).swapaxes(1, 2)
        shift = self.shift.astype(np.float32)[:, np.newaxis]
        for piece in pieces:
            value = np.matmul(piece.x, weight)
            value += shift
            if piece.added is not None:
                value += piece.added
            aim = moved(piece.y, value, clamp)
            if piece.added is not None:
                aim -= piece.added
            cross += np.matmul(piece.x.swapaxes(1, 2), aim)
            first_y += aim.sum(1, dtype=np.float64)
        self._solve(cross, first_y)

    def _centred(self, gram: Array, mean: Array) -> Array:
        return centred(gram, mean) if self._bias else gram

    def _solve(self, cross: Array, first_y: Array) -> None:
        """W = W0 + (Cᵀ − W0 G)(G + λI)⁻¹, on centred inputs where there is a bias: b = ȳ − W x̄."""
        weight, shift = np.empty(self.prior.shape), np.array(self.shift, np.float64)
        for group, (gram, factor) in enumerate(zip(self.grams, self._factors, strict=True)):
            mean, mean_y = self.mean[group], first_y[group] / self._count
            products = cross[group] / self._count - np.outer(mean, mean_y if self._bias else shift[group])
            prior = self.prior[group]
            weight[group] = prior + scipy.linalg.cho_solve(factor, products - gram @ prior.T).T
            if self._bias:
                shift[group] = mean_y - weight[group] @ mean
        self.weight, self.shift = weight, shift


def moved(aim: Array, value: Array, clamp: Clamp) -> Array:
    """`aim` where it lies inside the clamp; elsewhere `value`, brought to the aim's side. Both are overwritten as needed.

    >>> moved(np.array([2.0, -1.0, -1.0]), np.array([1.0, 3.0, -5.0]), (0.0, np.inf))
    array([ 2.,  0., -5.])
    """
    low, high = clamp
    out = np.array(aim)
    if low > -math.inf:
        np.copyto(out, np.minimum(value, low), where=aim <= low)
    if high < math.inf:
        np.copyto(out, np.maximum(value, high), where=aim >= high)
    return out
