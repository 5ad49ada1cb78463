"""What a layer is fed today and what it should give, column by column, and the least-squares problem they pose.

Before a clamp (ReLU, ReLU6) only what passes it matters: where the original's output lies outside, any prediction on that
side is as good. So the target of such an element is the prediction itself, clipped to that side, and the fit is repeated
(majorize-minimize: each round lowers the loss after the activation's kink).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.numerics import leastsquares
from onnx_compress.passes.svd.aim import RIDGE, Problem, scarcity
from onnx_compress.runtime import unfold

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.numerics.through import Clamp
    from onnx_compress.passes.svd.factors import Factors
    from onnx_compress.passes.svd.layers import Layer
    from onnx_compress.runtime.columns import Target
    from onnx_compress.runtime.layers import LayerInput
    from onnx_compress.runtime.walk import Walk

    Array = NDArray[Any]


@dataclass
class Columns:
    """x: (groups, M, K) float32, the unfolded input; y: (groups, M, N / groups), the original's output before its
    activation; minus: what today's model adds to the layer's output before that, of the same shape, or None.
    """

    x: Array
    y: Array
    minus: Array | None

    def __post_init__(self) -> None:
        count = self.x.shape[1]
        self.factors: dict[int, leastsquares.Factor] = {}
        self.mean_x = self.x.mean(1, dtype=np.float64)
        self.gram = np.stack([(part.T @ part).astype(np.float64) / count for part in self.x])

    def targets(self, prediction: Array | None, clamp: Clamp) -> Array:
        """What the layer alone should give, given what it and the rest of the sum give now."""
        wanted = self.y
        if prediction is not None:
            low, high = clamp
            wanted = np.where(wanted <= low, np.minimum(prediction, low), wanted)
            wanted = np.where(self.y >= high, np.maximum(prediction, high), wanted)
        return wanted if self.minus is None else wanted - self.minus

    def predict(self, factors: Factors, bias: Array) -> Array:
        """What `factors` and what is added to them give."""
        weight = factors.product().astype(np.float32)
        shift = bias if factors.shift is None else bias + factors.shift
        out: Array = np.matmul(self.x, weight.swapaxes(1, 2))
        out += shift.reshape(len(weight), 1, -1).astype(np.float32)
        return out if self.minus is None else out + self.minus


def aimed_problem(layer: Layer, columns: Columns, wanted: Array) -> Problem:
    """To give `wanted` (groups, M, N / groups), starting from the layer's present weight."""
    count = columns.x.shape[1]
    cross = np.matmul(columns.x.swapaxes(1, 2), wanted).astype(np.float64) / count
    mean_y = wanted.mean(1, dtype=np.float64)
    gram, means = columns.gram, (None, None)
    if layer.shifts:
        gram = gram - columns.mean_x[:, :, None] * columns.mean_x[:, None, :]
        cross -= columns.mean_x[:, :, None] * mean_y[:, None, :]
        means = (columns.mean_x, mean_y - layer.bias.reshape(mean_y.shape))
    # few columns hold the weight closer to what it was
    ridge = RIDGE * max(1.0, 10 * scarcity(layer.weight, count))
    weights = []
    for group, prior in enumerate(layer.weight):
        if group not in columns.factors:  # what is solved for changes from round to round, the columns do not
            columns.factors[group] = leastsquares.cholesky(gram[group], ridge)[0]
        factor = columns.factors[group]
        weights.append(leastsquares.solve(gram[group], cross[group], prior, ridge, factor))
    return Problem(np.stack(weights), gram, *means, count=count)


def gather_columns(layer: LayerInput, target: Target, present: Walk, original: Walk, nbytes: int) -> Columns:
    """The columns of all samples, at positions spread evenly, as many as `nbytes` of input allow."""
    xs, ys, others = [], [], []
    samples, first = sum(present.sizes), 0
    for own, other, count in zip(present.batches, original.batches, present.sizes, strict=True):
        view = unfold.windows(_float32(own[layer.tensor]), layer, count)
        total = math.prod(unfold.positions(view))
        inputs = layer.taps * view.shape[-1]
        limit = max(nbytes // (4 * inputs), 1)
        wanted = min(total, max(limit // samples, 1))
        position = unfold.choose(total, wanted, first, len(view)).ravel()
        sample = np.repeat(np.arange(len(view)), wanted)
        xs.append(unfold.by_group(unfold.gather(view, sample, position), layer.group))
        ys.append(_outputs(other[target.tensor], layer, count, sample, position))
        if target.added is not None:
            others.append(_outputs(own[target.added], layer, count, sample, position))
        first += count
    minus = np.concatenate(others, 1) if others else None
    return Columns(np.concatenate(xs, 1), np.concatenate(ys, 1), minus)


def _outputs(y: Array, layer: LayerInput, samples: int, sample: Array, position: Array) -> Array:
    picked = unfold.lines(_float32(y), layer.output_axis, layer.sample_axis, samples)[sample, position]
    return picked.reshape(len(picked), layer.group, -1).swapaxes(0, 1)


def _float32(x: Array) -> Array:
    return np.asarray(x, np.float32)
