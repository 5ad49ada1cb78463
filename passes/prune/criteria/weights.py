"""Criteria that look at weights alone, and OBS, which looks at them through the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.passes.prune.curves import Curve, by_obs, by_score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit
    from onnx_compress.passes.prune.criteria.context import Context

    Array = NDArray[Any]


def obs(context: Context, units: Sequence[Unit]) -> Curve:
    """What the outputs of the layers that read a unit lose when the others make up for it as well as they can.

    Optimal Brain Compression, Frantar & Alistarh 2022; ZipLM, Kurtic et al. 2023.
    """
    grams = {r: context.grams[r.layer] for r in context.reading(units) if r.layer in context.grams}
    if not grams:
        return l1(context, units)  # nothing that reads it has a weight: its own filters decide
    return by_obs(units, list(grams), grams, context.damping)


def l1(context: Context, units: Sequence[Unit]) -> Curve:
    """The sum of |w| of the filters that make the unit. Pruning Filters for Efficient ConvNets, Li et al. 2017."""
    return by_score(
        units, np.array([sum(float(np.abs(f).sum()) for f in _filters(context, u)) for u in units])
    )


def l2(context: Context, units: Sequence[Unit]) -> Curve:
    """The Euclidean norm of the filters that make the unit. Soft Filter Pruning, He et al. 2018."""
    return by_score(
        units, np.array([sum(float(np.square(f).sum()) for f in _filters(context, u)) ** 0.5 for u in units])
    )


def fpgm(context: Context, units: Sequence[Unit]) -> Curve:
    """The sum of distances to the kind's other filters: the one nearest the geometric median says least of its own.

    Filter Pruning via Geometric Median, He et al. 2019.
    """
    flat = [np.concatenate([f.ravel() for f in _filters(context, unit)] or [np.zeros(1)]) for unit in units]
    if len({len(f) for f in flat}) > 1:
        return l2(context, units)  # filters of several sizes have no median
    matrix = np.stack(flat).astype(np.float64)
    squares = (matrix**2).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * matrix @ matrix.T, 0))
    return by_score(units, distances.sum(axis=1))


def random(context: Context, units: Sequence[Unit]) -> Curve:
    """Chance: the control that every other criterion must beat. Mittal et al. 2018 found that many do not."""
    order = context.rng.permutation(len(units))
    return Curve(tuple(units[u] for u in order), np.linspace(0, 1, len(units) + 1))


def _filters(context: Context, unit: Unit) -> list[Array]:
    """The weights that make the channels of the unit: of every weight it sits in but on the axis that reads it."""
    inner = {(r.weight.name, r.inner) for r in context.readers}
    found = []
    for (name, axis), indices in sorted(unit.places.items()):
        value = context.weights[name]
        if (name, axis) not in inner and value.ndim > 1 and value.dtype.kind == "f":
            found.append(np.take(value, indices, axis=axis))
    return found
