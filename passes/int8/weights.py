"""Layers' weights in int8: symmetric, one scale an output channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    Array = NDArray[Any]


@dataclass
class LayerWeight:
    """A layer's weight as it is stored.

    values: int8, in the shape of the float weight; scale: float32, one for each index of `axis`, or a scalar;
    bias: float64 (channels,), or None; shift: what a MatMul, which has no bias, wants added to its output.
    """

    values: Array
    scale: Array
    axis: int
    bias: Array | None
    shift: Array | None = None

    def real(self) -> Array:
        """The weight that the integers stand for."""
        shape = [1] * self.values.ndim
        if self.scale.ndim:
            shape[self.axis] = -1
        product: Array = self.values.astype(np.float32) * self.scale.reshape(shape)
        return product


def channel_axis(node: gs.Node) -> int:
    """The axis of a layer's weight that counts its output channels."""
    if node.op in ("Conv", "ConvTranspose"):
        return 0 if node.op == "Conv" else 1
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    return len(node.inputs[1].shape) - 1


def float_weight(node: gs.Node) -> tuple[Array, Array | None]:
    """A layer's weight and bias in float, the factors of a Gemm multiplied in; the bias as (channels,) float64."""
    weight = np.asarray(node.inputs[1].values)
    bias = None
    if len(node.inputs) > 2 and node.inputs[2].name:
        bias = np.asarray(node.inputs[2].values, np.float64).reshape(-1)
        bias = np.broadcast_to(bias, (weight.shape[channel_axis(node)],)).copy()
    if node.op == "Gemm":
        weight = weight * np.float32(node.attrs.get("alpha", 1.0))
        bias = None if bias is None else bias * float(node.attrs.get("beta", 1.0))
    return weight, bias


def weight_scale(
    weight: Array, axis: int, *, limit: int, per_channel: bool, bias: Array | None, source: float
) -> Array:
    """The scale that reaches the largest weight (of each channel), and no finer than an int32 bias allows.

    limit: the largest code, 127, or 63 where products of 8 bits may saturate; source: the input's scale.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    top = np.abs(weight).max(axis=others, initial=0).astype(np.float64)
    scale = top / limit
    if bias is not None:
        scale = np.maximum(scale, np.abs(bias) / (source * (2**31 - 2**17)))
    if not per_channel:
        scale = scale.max(initial=0)
    scale = np.where(scale < np.finfo(np.float32).tiny, 1.0, scale)
    return np.asarray(scale, np.float32)


def nearest(weight: Array, scale: Array, axis: int, limit: int) -> Array:
    """The codes nearest to `weight`."""
    shape = [1] * weight.ndim
    if scale.ndim:
        shape[axis] = -1
    codes: Array = np.rint(weight / scale.reshape(shape)).clip(-limit, limit).astype(np.int8)
    return codes
