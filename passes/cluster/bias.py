"""The bias that takes back what a changed weight adds to the mean of a layer's output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.runtime.layers import weight_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.model.surgery import Surgery

    Array = NDArray[Any]


def mean_shift(node: gs.Node, change: Array, mean: Array) -> Array:
    """W̃ E[x] − W E[x] of each output channel, for change = W̃ − W as stored and `mean` of each input channel.

    (Mean of the channel for every tap: at the borders of padded pictures the true one is smaller.)
    """
    rows = weight_rows(node, change.astype(np.float64))
    by_group = mean.reshape(len(rows), -1)
    by_input = np.repeat(by_group, rows.shape[2] // by_group.shape[1], axis=1)
    shift: Array = np.einsum("gnk,gk->gn", rows, by_input).reshape(-1)
    return shift


def correct_bias(surgery: Surgery, node: gs.Node, change: Array, mean: Array) -> bool:
    """Takes the mean shift off the bias of a Conv or Gemm, which becomes its own; False where it has none to change.

    b −= (W̃ − W) E[x] (Nagel 2019, arXiv:1906.04721). A Conv without bias gets one.
    """
    if node.op not in ("Conv", "Gemm"):
        return False
    shift = mean_shift(node, change, mean)
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if bias is None:
        if node.op == "Gemm":
            return False
        node.inputs = [*node.inputs[:2], surgery.constant(f"{node.name}_bias", -shift.astype(change.dtype))]
        return True
    if (
        not isinstance(bias, gs.Constant)
        or int(np.prod(bias.shape)) != len(shift)
        or max(bias.shape) != len(shift)
    ):
        return False
    if node.op == "Gemm":
        shift *= float(node.attrs.get("alpha", 1.0)) / float(node.attrs.get("beta", 1.0))
    values: Array = bias.values
    # > a new one: several layers may share the old one
    node.inputs[2] = surgery.constant(bias.name, (values - shift.reshape(values.shape)).astype(values.dtype))
    return True
