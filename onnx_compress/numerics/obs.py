"""Structured optimal brain surgeon: which inputs of a layer, unit by unit, cost least once the others make up for them.

Frantar & Alistarh 2022 (Optimal Brain Compression), arXiv:2208.11580; Kurtic et al. 2023 (ZipLM), arXiv:2302.04089.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.linalg import cho_solve

from onnx_compress.numerics.leastsquares import cholesky

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]


class Order(NamedTuple):
    """units: in the order of removal; losses: after each, of all removed so far."""

    units: list[int]
    losses: Array


class Elimination:
    """One layer from which units of inputs are removed; what is left of the weight makes up for them.

    weight (N, K); gram (K, K); groups: for each unit the inputs it feeds (none: it does not touch this layer; overlaps: a
    removal takes what is still there). λ = damping · tr(G)/K.
    loss: tr[W_P (H_PP − H_PS H_SS⁻¹ H_SP) W_Pᵀ] of the inputs P removed so far, H = G + λI.
    """

    def __init__(self, weight: Array, gram: Array, groups: Sequence[Array], damping: float = 1e-3) -> None:
        self._inputs = weight.shape[1]
        factor, _ = cholesky(gram, damping)
        self.loss = 0.0
        self._weight = np.array(weight, np.float64)
        self._inverse: Array = cho_solve(factor, np.eye(self._inputs))
        self._held = np.arange(self._inputs)  # which input each column now held is
        self._place = np.arange(self._inputs)  # where an input is held; -1: removed
        self._groups = [np.unique(np.asarray(group, np.intp)) for group in groups]
        self._alive = np.ones(len(groups), bool)
        members = np.concatenate([np.zeros(0, np.intp), *self._groups])
        self._overlap = len(np.unique(members)) < len(members)
        self._tables = self._by_size()

    @property
    def weight(self) -> Array:
        """The weight (N, K) as it now is: zero at what was removed."""
        whole = np.zeros((len(self._weight), self._inputs))
        whole[:, self._held] = self._weight
        return whole

    def scores(self) -> Array:
        """The loss each unit would add, were it the next: tr[W_c ((H⁻¹)_cc)⁻¹ W_cᵀ]; infinite where it is gone."""
        scores = np.where(self._alive, 0.0, np.inf)
        for units, index in self._tables:
            alive = self._alive[units]
            at = index[alive]
            blocks = self._inverse[at[:, :, np.newaxis], at[:, np.newaxis, :]]
            if index.shape[1] == 1:
                squares = np.einsum("nk,nk->k", self._weight, self._weight)
                scores[units[alive]] = squares[at[:, 0]] / blocks[:, 0, 0]
                continue
            columns = self._weight.T[at]  # (units, size, N)
            products = np.matmul(columns, columns.swapaxes(1, 2))
            scores[units[alive]] = np.einsum("uij,uij->u", np.linalg.inv(blocks), products)
        return scores

    def remove(self, unit: int) -> float:
        """Takes a unit out and returns the loss that this adds.

        W −= W_c ((H⁻¹)_cc)⁻¹ (H⁻¹)_c: and H⁻¹ −= (H⁻¹)_:c ((H⁻¹)_cc)⁻¹ (H⁻¹)_c:.
        """
        self._alive[unit] = False
        at = self._place[self._groups[unit]]
        at = at[at >= 0]
        if len(at) == 0:
            return 0.0
        rows, columns = self._inverse[at], self._weight[:, at]
        solved = np.linalg.solve(rows[:, at], np.hstack([rows, columns.T]))
        added = float(np.einsum("ns,sn->", columns, solved[:, rows.shape[1] :]))
        solved = solved[:, : rows.shape[1]]
        self._weight -= columns @ solved
        self._inverse -= rows.T @ solved
        # > exactly zero, so that rounding does not bring what was removed back
        self._weight[:, at] = 0.0
        self._inverse[at] = 0.0
        self._inverse[:, at] = 0.0
        self._place[self._groups[unit]] = -1
        self._tidy()
        self.loss += added
        return added

    def _tidy(self) -> None:
        """Lets go of removed columns once they are half of those held: the work falls with what is left."""
        left = self._place[self._held] >= 0
        if np.count_nonzero(left) * 2 <= len(left):
            self._weight = np.ascontiguousarray(self._weight[:, left])
            self._inverse = np.ascontiguousarray(self._inverse[np.ix_(left, left)])
            self._held = self._held[left]
            self._place[self._held] = np.arange(len(self._held))
        elif not self._overlap:
            return
        self._tables = self._by_size()

    def _by_size(self) -> list[tuple[Array, Array]]:
        """The units that are left by how many inputs each still feeds: (units, their columns (units, size))."""
        tables: dict[int, list[tuple[int, Array]]] = {}
        for unit in np.flatnonzero(self._alive):
            at = self._place[self._groups[unit]]
            at = at[at >= 0]
            if len(at):
                tables.setdefault(len(at), []).append((int(unit), at))
        return [
            (np.array([unit for unit, _ in rows]), np.stack([at for _, at in rows]))
            for rows in tables.values()
        ]


def order(
    weight: Array, gram: Array, groups: Sequence[Array], damping: float = 1e-3, count: int | None = None
) -> Order:
    """The units of one layer in the order of removal, cheapest first, each chosen after the others made up for the last.

    weight (N, K); gram (K, K); groups: the inputs of each unit; count: removals, all units where None.

    >>> order(np.array([[3.0, 1.0, 2.0]]), np.eye(3), [[0], [1], [2]], 0.0)
    Order(units=[1, 2, 0], losses=array([ 1.,  5., 14.]))
    """
    return joint_order([Elimination(weight, gram, groups, damping)], count)


def joint_order(
    layers: Sequence[Elimination], count: int | None = None, scale: Sequence[float] | None = None
) -> Order:
    """The order of removal for units that feed several layers at once: their scores are summed.

    layers: with as many units each, not yet removed from; their weights are refitted on the way. scale: of each
    layer's loss (1: an error in one layer's output counts as much as in another's).
    """
    factors = [1.0] * len(layers) if scale is None else scale
    units: list[int] = []
    losses: list[float] = []
    total = 0.0
    for _ in range(len(layers[0].scores()) if count is None else count):
        scores = sum(factor * layer.scores() for factor, layer in zip(factors, layers, strict=True))
        unit = int(np.argmin(scores))
        if not np.isfinite(np.asarray(scores)[unit]):
            break
        total += sum(factor * layer.remove(unit) for factor, layer in zip(factors, layers, strict=True))
        units.append(unit)
        losses.append(total)
    return Order(units, np.array(losses))
