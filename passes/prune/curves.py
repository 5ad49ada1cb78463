"""For each kind of unit: in which order they go, and what the loss is after each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.numerics.leastsquares import centred, output_error
from onnx_compress.numerics.obs import Elimination, joint_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit
    from onnx_compress.passes.prune.consumers import Consumer
    from onnx_compress.runtime.requests import GramStat

    Array = NDArray[Any]


@dataclass(frozen=True)
class Curve:
    """The units of one kind in the order in which they go; loss[m]: relative error once the first m are gone."""

    units: tuple[Unit, ...]
    loss: Array

    @property
    def size(self) -> int:
        """How many units the kind has."""
        return len(self.units)


def by_obs(
    units: Sequence[Unit], readers: Sequence[Consumer], grams: dict[Consumer, GramStat], damping: float
) -> Curve:
    """Structured OBS, the relative losses summed over every consumer of the units."""
    layers: list[Elimination] = []
    scale: list[float] = []
    for reader in readers:
        stat = grams[reader]
        columns = [reader.columns(unit) for unit in units]
        for rows, gram, mean in zip(reader.rows(), dense(stat), stat.mean, strict=True):
            covariance = centred(gram, mean)  # the bias takes up the means
            layers.append(Elimination(rows, covariance, columns, damping))
            scale.append(1 / max(output_error(rows, covariance), 1e-30))
    order, losses = joint_order(layers, scale=scale)
    rest = sorted(set(range(len(units))) - set(order))  # units that no consumer reads cost nothing
    loss = np.concatenate([np.zeros(1 + len(rest)), losses])
    return Curve(tuple(units[u] for u in [*rest, *order]), loss)


def dense(stat: GramStat) -> Array:
    """The Gram matrices (groups, K, K), zero where they were not gathered."""
    if stat.kind == "full":
        return stat.gram
    groups, width = stat.mean.shape
    full = np.zeros((groups, width, width))
    for place, block in stat.blocks():
        full[:, place, place] = block
    return full


def by_score(units: Sequence[Unit], scores: Array) -> Curve:
    """The units with the least score first; the loss is the share of all scores that is gone."""
    order = np.argsort(scores, kind="stable")
    total = max(float(np.sum(scores)), 1e-30)
    loss = np.concatenate([[0.0], np.cumsum(scores[order]) / total])
    return Curve(tuple(units[u] for u in order), loss)
