"""Structured optimal brain surgeon: which inputs of a layer, unit by unit, cost least once the others make up for them.

Frantar & Alistarh 2022 (Optimal Brain Compression), arXiv:2208.11580; Kurtic et al. 2023 (ZipLM), arXiv:2302.04089.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onnx_compress.numerics.leastsquares import cholesky, inverse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

LATE = 96  # removed inputs after which their updates of the whole matrices are made up for,
LATE_SHARE = 16  # or this share of those held: in wide ones, the matrices' way through memory is what counts


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
        self._weight = np.array(weight, np.float64, order="C")
        self._inverse = inverse(factor)
        self._held = np.arange(self._inputs)  # which input each column now held is
        self._place = np.arange(self._inputs)  # where an input is held; -1: removed
        self._groups = [np.unique(np.asarray(group, np.intp)) for group in groups]
        self._alive = np.ones(len(groups), bool)
        members = np.concatenate([np.zeros(0, np.intp), *self._groups])
        self._overlap = len(np.unique(members)) < len(members)
        self._late = _Late(*self._weight.shape)
        self._tables = self._by_size()

    @property
    def weight(self) -> Array:
        """The weight (N, K) as it now is: zero at what was removed."""
        whole = np.zeros((len(self._weight), self._inputs))
        left = self._place[self._held] >= 0
        whole[:, self._held[left]] = self._columns(np.flatnonzero(left))
        return whole

    def scores(self) -> Array:
        """The loss each unit would add, were it the next: tr[W_c ((H⁻¹)_cc)⁻¹ W_cᵀ]; infinite where it is gone."""
        scores = np.where(self._alive, 0.0, np.inf)
        for table in self._tables:
            scores[table.units] = np.einsum("uij,uij->u", np.linalg.inv(table.inverses), table.products)
        scores[~self._alive] = np.inf
        return scores

    def remove(self, unit: int) -> float:
        """Takes a unit out and returns the loss that this adds.

        W −= W_c ((H⁻¹)_cc)⁻¹ (H⁻¹)_c: and H⁻¹ −= (H⁻¹)_:c ((H⁻¹)_cc)⁻¹ (H⁻¹)_c:. With (H⁻¹)_cc = L Lᵀ, Z = L⁻¹ (H⁻¹)_c: and
        B = W_c L⁻ᵀ that is W −= B Z and H⁻¹ −= Zᵀ Z, and the loss is ‖B‖².
        """
        self._alive[unit] = False
        at = self._place[self._groups[unit]]
        at = at[at >= 0]
        if len(at) == 0:
            return 0.0
        rows = self._rows(at)
        root = _root(rows[:, at])
        rows, columns = root @ rows, self._columns(at) @ root.T
        crossed = columns.T @ self._weight - (columns.T @ self._late.columns) @ self._late.rows
        square = columns.T @ columns
        for table in self._tables:
            table.update(rows, crossed, square)
        self._late.push(rows, columns)
        self._place[self._groups[unit]] = -1
        self._tidy(unit)
        added = float(np.trace(square))
        self.loss += added
        return added

    def _rows(self, at: Array) -> Array:
        """These rows of H⁻¹ as it now is; exactly zero at what was removed, so that rounding does not bring it back."""
        rows: Array = self._inverse[at] - self._late.rows[:, at].T @ self._late.rows
        rows[:, self._place[self._held] < 0] = 0.0
        return rows

    def _columns(self, at: Array) -> Array:
        """These columns of W as it now is."""
        columns: Array = self._weight[:, at] - self._late.columns @ self._late.rows[:, at]
        return columns

    def _catch_up(self) -> None:
        """Applies the updates put off: many thin products as one, which is bound by arithmetic and not by memory."""
        self._weight -= self._late.columns @ self._late.rows
        self._inverse -= self._late.rows.T @ self._late.rows  # numpy sees that it is symmetric: half the work
        gone = self._place[self._held] < 0
        self._weight[:, gone] = 0.0
        self._inverse[gone] = 0.0
        self._inverse[:, gone] = 0.0
        self._late = _Late(*self._weight.shape)

    def _tidy(self, unit: int) -> None:
        """Lets go of removed columns once they are half of those held: the work falls with what is left."""
        left = self._place[self._held] >= 0
        shrink = np.count_nonzero(left) * 2 <= len(left)
        if shrink or self._late.count >= max(LATE, len(left) // LATE_SHARE) or self._overlap:
            self._catch_up()
        if shrink:
            self._weight = np.ascontiguousarray(self._weight[:, left])
            self._inverse = np.ascontiguousarray(self._inverse[np.ix_(left, left)])
            self._held = self._held[left]
            self._place[self._held] = np.arange(len(self._held))
            self._late = _Late(*self._weight.shape)
        if shrink or self._overlap:
            self._tables = self._by_size()
        else:
            self._tables = [table.without(unit) for table in self._tables]

    def _by_size(self) -> list[_Table]:
        """The units that are left, by how many inputs each still feeds."""
        sizes: dict[int, list[tuple[int, Array]]] = {}
        for unit in np.flatnonzero(self._alive):
            at = self._place[self._groups[unit]]
            at = at[at >= 0]
            if len(at):
                sizes.setdefault(len(at), []).append((int(unit), at))
        tables = []
        for rows in sizes.values():
            at = np.stack([at for _, at in rows])
            columns = self._weight.T[at]  # (units, size, N)
            inverses = self._inverse[at[:, :, np.newaxis], at[:, np.newaxis, :]]
            products = np.matmul(columns, columns.swapaxes(1, 2))
            tables.append(_Table(np.array([unit for unit, _ in rows]), at, inverses, products))
        return tables


@dataclass(frozen=True)
class _Table:
    """Units of one size: the columns of each (units, size), and its (H⁻¹)_cc and W_cᵀ W_c (units, size, size)."""

    units: Array
    at: Array
    inverses: Array
    products: Array

    def update(self, rows: Array, crossed: Array, square: Array) -> None:
        """Follows W −= B Z and H⁻¹ −= Zᵀ Z. rows: Z; crossed: Bᵀ W before it; square: Bᵀ B."""
        theirs = rows[:, self.at].swapaxes(0, 1)  # (units, removed, size)
        back = theirs.swapaxes(1, 2)
        self.inverses[...] -= np.matmul(back, theirs)
        product = np.matmul(back, crossed[:, self.at].swapaxes(0, 1))
        self.products[...] += np.matmul(back, np.matmul(square, theirs)) - product - product.swapaxes(1, 2)

    def without(self, unit: int) -> _Table:
        """The others."""
        others = self.units != unit
        if others.all():
            return self
        return _Table(self.units[others], self.at[others], self.inverses[others], self.products[others])


def _root(block: Array) -> Array:
    """L⁻¹ of a small block (H⁻¹)_cc = L Lᵀ; by its eigenvalues where rounding has made it indefinite."""
    try:
        root: Array = np.linalg.inv(np.linalg.cholesky(block))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(block)
        floor = max(float(values[-1]), np.finfo(float).tiny) * 1e-12
        root = (vectors / np.sqrt(np.maximum(values, floor))).T
    return root


class _Late:
    """Updates of W and H⁻¹ not yet applied: W − B Z, H⁻¹ − Zᵀ Z. rows: Z; columns: B."""

    def __init__(self, outputs: int, inputs: int) -> None:
        self.count = 0
        self._rows = np.empty((0, inputs))
        self._columns = np.empty((outputs, 0), order="F")

    @property
    def rows(self) -> Array:
        return self._rows[: self.count]

    @property
    def columns(self) -> Array:
        return self._columns[:, : self.count]

    def push(self, rows: Array, columns: Array) -> None:
        """One more update."""
        end = self.count + len(rows)
        if end > len(self._rows):
            room = max(2 * end, LATE)
            self._rows = np.concatenate([self.rows, np.empty((room - self.count, rows.shape[1]))])
            wide = np.empty((len(columns), room), order="F")
            wide[:, : self.count] = self.columns
            self._columns = wide
        self._rows[self.count : end] = rows
        self._columns[:, self.count : end] = columns
        self.count = end


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
