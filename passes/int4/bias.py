"""The bias of a layer, to which a vector can be added."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.model.surgery import Surgery

    Array = NDArray[Any]


def add_to_bias(surgery: Surgery, node: gs.Node, shift: Array) -> bool:
    """Adds `shift` (N,) to what the layer gives on every output channel; False where there is no bias to add it to.

    The bias of a Conv, ConvTranspose or Gemm, or the vector that an Add right behind a MatMul holds; a convolution without
    one gets one.
    """
    if node.op == "MatMul":
        return _add_behind(surgery, node, shift)
    if node.op not in ("Conv", "ConvTranspose", "Gemm"):
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if bias is None:
        if node.op == "Gemm":
            return False
        node.inputs = [
            *node.inputs[:2], surgery.constant(f"{node.name}_bias", shift.astype(np.float32))
        ]  # fmt: skip
        return True
    if node.op == "Gemm" and not float(node.attrs.get("beta", 1.0)):
        return False
    factor = 1.0
    if node.op == "Gemm":
        factor = float(node.attrs.get("alpha", 1.0)) / float(node.attrs.get("beta", 1.0))
    return _moved(surgery, node, 2, shift * factor)


def _add_behind(surgery: Surgery, node: gs.Node, shift: Array) -> bool:
    out = node.outputs[0]
    if len(out.outputs) != 1 or any(tensor is out for graph in surgery.graphs() for tensor in graph.outputs):
        return False
    add = out.outputs[0]
    if add.op != "Add" or len(add.inputs) != 2:
        return False
    return _moved(surgery, add, 1 if add.inputs[0] is out else 0, shift)


def _moved(surgery: Surgery, node: gs.Node, index: int, shift: Array) -> bool:
    bias = node.inputs[index]
    if not isinstance(bias, gs.Constant) or bias.values.size != len(shift):
        return False
    values: Array = bias.values
    if values.shape[-1:] != (len(shift),) or values.dtype != np.float32:
        return False
    # > a new one: several layers may share the old one
    moved = (values + shift.reshape(values.shape)).astype(values.dtype)
    node.inputs[index] = surgery.constant(bias.name, moved)
    return True
