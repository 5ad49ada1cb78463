"""Criteria that look at the activations of a unit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.passes.prune.curves import Curve, by_score
from onnx_compress.runtime.observe import observe
from onnx_compress.runtime.requests import Moments, ZeroFraction

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit
    from onnx_compress.passes.prune.consumers import Consumer
    from onnx_compress.passes.prune.criteria.context import Context

    Array = NDArray[Any]

BINS = 16  # of the histogram whose entropy is taken


def bn(context: Context, units: Sequence[Unit]) -> Curve:
    """|γ| of the BatchNormalization after the filter. Network Slimming, Liu et al. 2017.

    Folded or not, |γ| is the standard deviation of what the normalised filter puts out, so that is what is measured.
    """
    makers = context.making(units)
    requests = [Moments(r.output, r.layer.output_axis) for r in makers]
    found = observe(context.model, context.samples(), requests, threads=context.threads)
    scores = np.zeros(len(units))
    for maker, request in zip(makers, requests, strict=True):
        spread = np.sqrt(found[request].var)
        scores += [spread[u.places[maker.weight.name, maker.outer]].sum() for u in units]
    return by_score(units, scores)


def activation(context: Context, units: Sequence[Unit]) -> Curve:
    """The energy E[x²] of the unit where it is read. Molchanov et al. 2017, section 2.2."""

    def energy(reader: Consumer) -> Array:
        request = Moments(reader.layer.tensor, reader.layer.channel_axis)
        moments = observe(context.model, context.samples(), [request], threads=context.threads)[request]
        return np.asarray(moments.var + moments.mean**2)

    return by_score(units, _by_channel(context, units, energy))


def apoz(context: Context, units: Sequence[Unit]) -> Curve:
    """How seldom the unit is zero after its activation. Network Trimming, Hu et al. 2016."""

    def busy(reader: Consumer) -> Array:
        request = ZeroFraction(reader.layer.tensor, reader.layer.channel_axis)
        return 1 - observe(context.model, context.samples(), [request], threads=context.threads)[request]

    return by_score(units, _by_channel(context, units, busy))


def entropy(context: Context, units: Sequence[Unit]) -> Curve:
    """The entropy of the histogram of the unit's pooled activation over samples. Luo & Wu 2017."""

    def bits(reader: Consumer) -> Array:
        values = _pooled(context, reader)
        return np.array([_entropy(column) for column in values.T])

    return by_score(units, _by_channel(context, units, bits))


def correlation(context: Context, units: Sequence[Unit]) -> Curve:
    """Of the pair with the largest |ρ| the one goes that resembles the rest more, until one is left. Sun et al. 2016."""
    values = np.concatenate([_pooled(context, r)[:, _channels(r, units)] for r in context.reading(units)[:1]])
    spread = values - values.mean(axis=0)
    norm = np.linalg.norm(spread, axis=0)
    rho = np.abs((spread.T @ spread) / np.maximum(np.outer(norm, norm), 1e-30))
    rho[norm == 0] = rho[:, norm == 0] = 1.0  # a constant unit says nothing
    np.fill_diagonal(rho, 0)
    alive = np.ones(len(units), bool)
    order, loss = [], [0.0]
    while alive.sum() > 1:
        left = np.flatnonzero(alive)
        part = rho[np.ix_(left, left)]
        a, b = np.unravel_index(int(part.argmax()), part.shape)
        gone = left[a] if part[a].sum() >= part[b].sum() else left[b]
        loss.append(loss[-1] + 1 - float(part.max()))
        order.append(int(gone))
        alive[gone] = False
    order.append(int(np.flatnonzero(alive)[0]))
    loss.append(loss[-1] + 1)
    return Curve(tuple(units[u] for u in order), np.array(loss) / max(loss[-1], 1e-30))


def lda(context: Context, units: Sequence[Unit]) -> Curve:
    """Between-class over within-class variance of the pooled unit, classes the labels or the model's own answers.

    Tian et al. 2017, the diagonal of tr(S_w⁻¹ S_b).
    """
    classes = context.classes

    def ratio(reader: Consumer) -> Array:
        values = _pooled(context, reader)
        known, index = np.unique(classes[: len(values)], return_inverse=True)
        counts = np.bincount(index).astype(float)[:, None]
        sums = np.zeros((len(known), values.shape[1]))
        np.add.at(sums, index, values[: len(index)])
        means = sums / counts
        between = (counts * (means - values.mean(axis=0)) ** 2).sum(axis=0)
        within = ((values[: len(index)] - means[index]) ** 2).sum(axis=0)
        return np.asarray(between / np.maximum(within, 1e-12 + 1e-6 * within.max(initial=0)))

    return by_score(units, _by_channel(context, units, ratio))


def _by_channel(context: Context, units: Sequence[Unit], score: Callable[[Consumer], Array]) -> Array:
    """The sum of a per-channel score over the channels of each unit, in every layer that reads them."""
    total = np.zeros(len(units))
    for reader in context.reading(units):
        values = score(reader)
        for at, unit in enumerate(units):
            total[at] += values[reader.channels(unit)].sum()
    return total


def _pooled(context: Context, reader: Consumer) -> Array:
    return context.pooled[reader.layer.tensor, reader.layer.channel_axis]


def _channels(reader: Consumer, units: Sequence[Unit]) -> Array:
    """The first channel of each unit where the layer reads it."""
    return np.array([int(reader.channels(unit)[0]) for unit in units])


def _entropy(values: Array) -> float:
    counts, _ = np.histogram(values, BINS)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())
