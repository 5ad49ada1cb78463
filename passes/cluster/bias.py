"""The bias of a layer: what is added to its output channels, wherever the graph keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.runtime.layers import weight_index, weight_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.model.surgery import Surgery

    Array = NDArray[Any]


def bias_of(node: gs.Node, outputs: int) -> Array | None:
    """What `node` (Conv, Gemm, MatMul) adds to its `outputs` channels, (outputs,) float64; None where it cannot be changed.

    That is the bias of a Conv or a Gemm (times beta), or the constant that the only reader of a MatMul adds.
    """
    if node.op == "Conv" and _missing(node):
        return np.zeros(outputs)
    place = _place(node)
    if place is None:
        return None
    tensor = place[0].inputs[place[1]]
    if not isinstance(tensor, gs.Constant):
        return None
    values: Array = tensor.values
    beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
    if values.size != outputs or values.shape[-1:] != (outputs,) or beta == 0:
        return None
    return values.reshape(-1).astype(np.float64) * beta


def set_bias(surgery: Surgery, node: gs.Node, bias: Array, dtype: Any) -> gs.Constant:
    """Makes `bias` (outputs,) what `node`, for which `bias_of` gives one, adds; as a constant of its own.

    dtype: of the weight, for a Conv that has no bias yet.
    """
    if node.op == "Conv" and _missing(node):
        made = surgery.constant(f"{node.name}_bias", bias.astype(dtype))
        node.inputs = [*node.inputs[:2], made]
        return made
    place = _place(node)
    assert place is not None
    reader, index = place
    # > a new one: several layers may share the old one
    made = surgery.constant(reader.inputs[index].name, bias_constant(node, bias)[1])
    reader.inputs[index] = made
    return made


def bias_constant(node: gs.Node, bias: Array) -> tuple[str, Array]:
    """The constant that holds the bias of `node`, which has one, by name, and its value where `bias` (outputs,) is added."""
    place = _place(node)
    assert place is not None
    old: gs.Constant = place[0].inputs[place[1]]
    beta = float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else 1.0
    values: Array = old.values
    return old.name, (bias / beta).reshape(values.shape).astype(values.dtype)


def adder(node: gs.Node) -> gs.Node | None:
    """The Add of a constant vector that is the only reader of a MatMul, if there is one."""
    if node.op != "MatMul" or len(node.outputs[0].outputs) != 1:
        return None
    add: gs.Node = node.outputs[0].outputs[0]
    if add.op != "Add" or not any(isinstance(t, gs.Constant) and len(t.shape) == 1 for t in add.inputs):
        return None
    return add


def correct_bias(surgery: Surgery, node: gs.Node, change: Array, mean: Array) -> bool:
    """Takes the mean shift of a changed weight off the bias of its layer; False where it has none to change.

    b −= (W̃ − W) E[x] (Nagel 2019, arXiv:1906.04721), for change = W̃ − W as stored and `mean` of each input channel. (Mean
    of the channel for every tap: at the borders of padded pictures the true one is smaller.)
    """
    if node.op not in ("Conv", "Gemm", "MatMul"):
        return False
    rows = weight_rows(node, change.astype(np.float64))
    by_group = mean.reshape(len(rows), -1)
    by_input = np.repeat(by_group, rows.shape[2] // by_group.shape[1], axis=1)
    shift = np.einsum("gnk,gk->gn", rows, by_input).reshape(-1)
    bias = bias_of(node, len(shift))
    if bias is None:
        return False
    if node.op == "Gemm":
        shift *= float(node.attrs.get("alpha", 1.0))
    set_bias(surgery, node, bias - shift, change.dtype)
    return True


def _missing(node: gs.Node) -> bool:
    return len(node.inputs) < 3 or not node.inputs[2].name


def _place(node: gs.Node) -> tuple[gs.Node, int] | None:
    """(the node that reads the bias, as which input)."""
    if node.op in ("Conv", "Gemm"):
        return None if _missing(node) or weight_index(node) != 1 else (node, 2)
    add = adder(node)
    if add is None or weight_index(node) != 1:
        return None
    return add, next(i for i, t in enumerate(add.inputs) if isinstance(t, gs.Constant))
