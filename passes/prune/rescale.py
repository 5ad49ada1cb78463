"""Variance repair: what cannot be refitted gets, channel by channel, the scale and shift that bring it nearest to the original.

A normalisation over channels takes its statistics over the channels that stay, and a ConvTranspose has no target before its
products are summed: neither can be solved for as a layer. Their outputs y can be regressed on the original's y₀, each on its own:
y₀ ≈ a y + c, a = cov(y, y₀) / var(y). (REPAIR, Jordan et al. 2023, arXiv:2211.08403, sets a = σ₀/σ, which loses more.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.passes.prune.consumers import bias_add

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit
    from onnx_compress.passes.prune.consumers import Consumer
    from onnx_compress.runtime.walk import Walk

    Array = NDArray[Any]

SHRINK = 1e-3  # of the variance: a channel that hardly moves keeps its scale

# where a normalisation has its scale and shift, and the channel axis of its output
NORMALISATIONS = {
    "LayerNormalization": (1, 2, -1),
    "RMSNormalization": (1, None, -1),
    "SkipLayerNormalization": (2, 3, -1),
    "SkipSimplifiedLayerNormalization": (2, None, -1),
    "InstanceNormalization": (1, 2, 1),
    "GroupNormalization": (1, 2, 1),
}


@dataclass(frozen=True)
class Scale:
    """A node whose output `target`, made at `place` among the nodes, has a factor for each index of `axis` in `weight`.

    kept: the original's channels that are left.
    """

    place: int
    target: str
    axis: int
    weight: gs.Constant
    weight_axis: int
    shift: gs.Constant | None
    kept: Array

    def moments(self, present: Walk, original: Walk) -> Array:
        """Sums over all positions, for each channel, of 1, y, y₀, y², y y₀: (5, channels)."""
        sums = np.zeros((5, len(self.kept)))
        for own, other in zip(present.batches, original.batches, strict=True):
            y = np.moveaxis(np.asarray(own[self.target], np.float64), self.axis, -1).reshape(
                -1, len(self.kept)
            )
            wanted = np.moveaxis(np.asarray(other[self.target], np.float64), self.axis, -1)[..., self.kept]
            wanted = wanted.reshape(y.shape)
            good = np.isfinite(y).all(1) & np.isfinite(wanted).all(1)
            y, wanted = y[good], wanted[good]
            sums += [
                np.full(len(self.kept), len(y)),
                y.sum(0),
                wanted.sum(0),
                (y**2).sum(0),
                (y * wanted).sum(0),
            ]
        return sums

    def apply(self, present: Walk, original: Walk) -> None:
        """Scales and shifts the node's parameters, and what the walk holds of its output."""
        factor, shift = regression(self.moments(present, original), centred=self.shift is not None)
        values = np.asarray(self.weight.values)
        along = [1] * values.ndim
        along[self.weight_axis] = -1
        self.weight.values = np.ascontiguousarray(values * factor.reshape(along), values.dtype)
        if self.shift is not None:
            self.shift.values = np.asarray(self.shift.values * factor + shift, values.dtype)
        for held in present.batches:
            value = held[self.target]
            shape = [1] * value.ndim
            shape[self.axis] = -1
            held[self.target] = np.asarray(value * factor.reshape(shape) + shift.reshape(shape), value.dtype)


def regression(sums: Array, *, centred: bool) -> tuple[Array, Array]:
    """Factor and shift of each channel that minimise E(a y + c − y₀)², drawn to a = 1 where y hardly varies.

    sums: as of `Scale.moments`; without `centred` c = 0.

    >>> y = np.array([0.0, 1.0, 2.0]); wanted = 3 * y + 1
    >>> sums = np.array([[3.0], [y.sum()], [wanted.sum()], [y @ y], [y @ wanted]])
    >>> [np.round(part, 2).tolist() for part in regression(sums, centred=True)]
    [[3.0], [1.0]]
    """
    count, first, first_wanted, second, product = sums
    count = np.maximum(count, 1)
    mean, mean_wanted = first / count, first_wanted / count
    variance, covariance = second / count, product / count
    if centred:
        variance, covariance = variance - mean**2, covariance - mean * mean_wanted
    ridge = SHRINK * max(float(variance.mean()), 1e-30)
    factor = (covariance + ridge) / (np.maximum(variance, 0) + ridge)
    return factor, mean_wanted - factor * mean if centred else np.zeros_like(factor)


def scale_of(
    node: gs.Node,
    reader: Consumer | None,
    places: Mapping[int, int],
    units: Sequence[Unit],
    sizes: Mapping[str, Sequence[int]],
) -> Scale | None:
    """How the output of a node can be scaled channel by channel; None where it cannot.

    reader: the node as a layer, if it is one; places: of nodes by id; sizes: of the original's weights.
    """
    if reader is not None:
        if node.op == "ConvTranspose" and reader.group > 1:
            return None  # its outputs are not an axis of its weight
        last = bias_add(node) or node
        added = last.inputs[2:] if last is node else last.inputs
        shift = next((tensor for tensor in added if isinstance(tensor, gs.Constant)), None)
        weight, weight_axis, axis = reader.weight, reader.outer, reader.layer.output_axis
    elif node.op in NORMALISATIONS:
        at, shift_at, axis = NORMALISATIONS[node.op]
        last, weight, weight_axis = node, node.inputs[at], 0
        given = shift_at is not None and len(node.inputs) > shift_at and not node.inputs[shift_at].is_empty()
        shift = node.inputs[shift_at] if given else None
        if int(node.attrs.get("axis", -1)) != -1:
            return None
    else:
        return None
    own = [tensor for tensor in (weight, shift) if tensor is not None]
    fits = all(
        isinstance(tensor, gs.Constant) and tensor.dtype == np.float32 and len(tensor.outputs) == 1
        for tensor in own
    )
    if not fits or weight.name not in sizes or (shift is not None and len(shift.shape) != 1):
        return None
    mask = np.ones(sizes[weight.name][weight_axis], bool)
    for unit in units:
        mask[unit.places.get((weight.name, weight_axis), np.empty(0, np.intp))] = False
    if int(mask.sum()) != weight.shape[weight_axis]:
        return None
    return Scale(
        places[id(last)], last.outputs[0].name, axis, weight, weight_axis, shift, np.flatnonzero(mask)
    )
