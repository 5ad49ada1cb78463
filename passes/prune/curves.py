"""For each kind of unit: in which order they go, and what the loss is after each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit
    from onnx_compress.passes.prune.consumers import Consumer
    from onnx_compress.runtime.requests import GramStat

    Array = NDArray[Any]

STEPS = 64  # at most so many updates of the inverse: wide layers lose several units at a time


@dataclass(frozen=True)
class Curve:
    """The units of one kind in the order in which they go; loss[m]: relative error once the first m are gone."""

    units: tuple[Unit, ...]
    loss: Array

    @property
    def size(self) -> int:
        """How many units the kind has."""
        return len(self.units)


@dataclass
class _Quadratic:
    """The loss of one weight matrix under removal of columns: H^-1 and the weight, both updated as columns go."""

    weight: Array  # (N, K)
    inverse: Array  # (K, K)
    energy: float
    columns: list[Array]  # of each unit

    def scores(self, alive: Array) -> Array:
        """tr[W_c ((H^-1)_cc)^-1 W_c^T] / energy of every unit alive (structured OBS)."""
        out = np.zeros(len(self.columns))
        widths = {len(self.columns[u]) for u in np.flatnonzero(alive)} - {0}
        for width in widths:
            units = [u for u in np.flatnonzero(alive) if len(self.columns[u]) == width]
            index = np.stack([self.columns[u] for u in units])
            blocks = self.inverse[index[:, :, None], index[:, None, :]]
            rows = np.moveaxis(self.weight[:, index], 0, 1)  # (units, N, width)
            solved = np.linalg.solve(blocks, np.swapaxes(rows, 1, 2))
            out[units] = np.einsum("unw,uwn->u", rows, solved)
        return out / self.energy

    def remove(self, units: Sequence[int]) -> float:
        """Takes these units out; the loss that adds."""
        columns = np.concatenate([self.columns[u] for u in units])
        if not columns.size:
            return 0.0
        block = self.inverse[np.ix_(columns, columns)]
        rows = self.weight[:, columns]
        factor = scipy.linalg.cho_factor(block + 1e-12 * np.trace(block) / len(block) * np.eye(len(block)))
        solved = scipy.linalg.cho_solve(factor, rows.T)
        loss = float(np.sum(rows.T * solved)) / self.energy
        across = self.inverse[columns]
        self.weight -= solved.T @ across
        self.inverse -= across.T @ scipy.linalg.cho_solve(factor, across)
        self.weight[:, columns] = 0
        return loss


def by_obs(
    units: Sequence[Unit], readers: Sequence[Consumer], grams: dict[Consumer, GramStat], damping: float
) -> Curve:
    """Structured OBS, scores summed over every consumer of the units.

    Optimal Brain Compression, Frantar & Alistarh 2022; ZipLM, Kurtic et al. 2023.
    """
    parts: list[_Quadratic] = []
    for reader in readers:
        stat = grams[reader]
        columns = [reader.columns(unit) for unit in units]
        for rows, gram, mean in zip(reader.rows(), dense(stat), stat.mean, strict=True):
            parts.append(_quadratic(rows, gram, mean, columns, damping))
    alive = np.ones(len(units), bool)
    order: list[int] = []
    loss = [0.0]
    while alive.any():
        scores = sum((part.scores(alive) for part in parts), np.zeros(len(units)))
        left = np.flatnonzero(alive)
        several = max(1, len(units) // STEPS)
        chosen = left[np.argsort(scores[left], kind="stable")[:several]].tolist()
        added = sum(part.remove(chosen) for part in parts)
        loss += list(loss[-1] + added * np.arange(1, len(chosen) + 1) / len(chosen))
        order += chosen
        alive[chosen] = False
    return Curve(tuple(units[u] for u in order), np.array(loss))


def _quadratic(rows: Array, gram: Array, mean: Array, columns: list[Array], damping: float) -> _Quadratic:
    centred = gram - np.outer(mean, mean)  # the bias takes up the means
    energy = max(float(np.einsum("nk,kl,nl->", rows, centred, rows, optimize=True)), 1e-30)
    level = damping * max(np.trace(centred) / len(centred), 1e-30)
    inverse = scipy.linalg.inv(centred + level * np.eye(len(centred)), overwrite_a=True, check_finite=False)
    return _Quadratic(rows.copy(), inverse, energy, columns)


def dense(stat: GramStat) -> Array:
    """The Gram matrices (groups, K, K), zero where they were not gathered."""
    if stat.kind == "full":
        return stat.gram
    groups, width = stat.mean.shape
    full = np.zeros((groups, width, width))
    for place, block in stat.blocks():
        full[:, place, place] = block
    return full


def by_l1(units: Sequence[Unit], weights: dict[str, Array], readers: Sequence[Consumer]) -> Curve:
    """The mean |w| of the filters that make the unit, least first; the loss is the share of it that is gone.

    Pruning Filters for Efficient ConvNets, Li et al. 2017.
    """
    inner = {(reader.weight.name, reader.inner) for reader in readers}
    scores = np.zeros(len(units))
    for at, unit in enumerate(units):
        for (name, axis), indices in unit.places.items():
            value = weights[name]
            if (name, axis) not in inner and value.ndim > 1 and value.dtype.kind == "f":
                scores[at] += float(np.abs(np.take(value, indices, axis=axis)).sum())
    order = np.argsort(scores, kind="stable")
    total = max(float(scores.sum()), 1e-30)
    loss = np.concatenate([[0.0], np.cumsum(scores[order]) / total])
    return Curve(tuple(units[u] for u in order), loss)
