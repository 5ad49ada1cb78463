"""What a layer is fed today and what it should give, column by column, and the least-squares problem they pose.

Before a clamp (ReLU, ReLU6) only what passes it matters: where the original's output lies outside, any prediction on that
side is as good. So the target of such an element is the prediction itself, clipped to that side, and the fit is repeated
(majorize-minimize: each round lowers the loss after the activation's kink).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.numerics import leastsquares
from onnx_compress.passes.svd.aim import RIDGE, Problem, scarcity
from onnx_compress.runtime.columns import Columns, enough

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
class Gathered:
    """The columns of one layer in one piece.

    x: (groups, M, K) float32, the unfolded input; y: (groups, M, N / groups), the original's output before its
    activation; minus: what today's model adds to the layer's output before that, of the same shape, or None.
    """

    x: Array
    y: Array
    minus: Array | None

    def __post_init__(self) -> None:
        count = max(self.x.shape[1], 1)
        self.factors: dict[int, tuple[leastsquares.Factor, float]] = {}
        self.products: dict[int, Array] = {}
        self.mean_x = self.x.sum(1, dtype=np.float64) / count
        self.gram = np.stack([(part.T @ part).astype(np.float64) / count for part in self.x])

    @cached_property
    def covariance(self) -> Array:
        """The Gram matrix of the columns less their mean."""
        return self.gram - self.mean_x[:, :, None] * self.mean_x[:, None, :]

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


def aimed_problem(layer: Layer, columns: Gathered, wanted: Array) -> Problem:
    """To give `wanted` (groups, M, N / groups), starting from the layer's present weight."""
    count = columns.x.shape[1]
    cross = np.matmul(columns.x.swapaxes(1, 2), wanted).astype(np.float64) / count
    mean_y = wanted.mean(1, dtype=np.float64)
    gram, means = columns.gram, (None, None)
    if layer.shifts:
        gram = columns.covariance
        cross -= columns.mean_x[:, :, None] * mean_y[:, None, :]
        means = (columns.mean_x, mean_y - layer.bias.reshape(mean_y.shape))
    # few columns hold the weight closer to what it was
    ridge = RIDGE * max(1.0, 10 * scarcity(layer.weight, count))
    weights, products = [], {}
    for group, prior in enumerate(layer.weight):
        if group not in columns.factors:  # what is solved for changes from round to round, the columns do not
            columns.factors[group] = leastsquares.cholesky(gram[group], ridge)
            columns.products[group] = prior @ gram[group]
        factor, level = columns.factors[group]
        step = leastsquares.step(cross[group], columns.products[group], factor)
        weights.append(prior + step)
        products[group] = cross[group].T - level * step  # as step (G + λI) = Cᵀ − W0 G
    return Problem(np.stack(weights), gram, *means, count, products)


def gather(
    layer: Layer, unfolded: LayerInput, target: Target, walks: tuple[Walk, Walk], nbytes: int
) -> Gathered:
    """The columns of all samples of the two walks, today's model and the original, as many as `nbytes` of input allow."""
    inputs = layer.weight.shape[2]
    most = max(nbytes // (4 * inputs * layer.groups), 1)
    share = most / enough(layer.groups, inputs)
    pieces = list(Columns(unfolded, target.tensor, target.added, None, *walks, share))
    minus = [piece.added for piece in pieces if piece.added is not None]
    return Gathered(
        np.concatenate([piece.x for piece in pieces], 1),
        np.concatenate([piece.y for piece in pieces], 1),
        np.concatenate(minus, 1) if minus else None,
    )
