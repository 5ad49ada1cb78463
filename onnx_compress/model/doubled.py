"""A model in float64: what differs there by more than its rounding differs in truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto

from onnx_compress.model.document import tensors
from onnx_compress.model.walk import graphs

if TYPE_CHECKING:
    from onnx_compress.model.document import Model

_FLOAT_ONLY = {"Resize": (2,), "Upsample": (1,)}  # inputs that ONNX wants in float32 whatever the rest is


def doubled(model: Model) -> Model:
    """`model` with every float32 tensor in float64, inputs and outputs too; onnxruntime may lack kernels for it."""
    copy = model.copy()
    whole = copy.proto.graph
    kept = {
        node.input[at]
        for graph in graphs(whole)
        for node in graph.node
        for at in _FLOAT_ONLY.get(node.op_type, ())
        if len(node.input) > at
    }
    makers = {name: node for graph in graphs(whole) for node in graph.node for name in node.output}
    spared = {id(attribute.t) for name in kept & makers.keys() for attribute in makers[name].attribute}
    for tensor in tensors(copy.proto):
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in kept and id(tensor) not in spared:
            copy.set_array(tensor, np.asarray(copy.array(tensor), np.float64))
    for graph in graphs(whole):
        del graph.value_info[:]
        for value in [*graph.input, *graph.output]:
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                value.type.tensor_type.elem_type = TensorProto.DOUBLE
        for node in graph.node:
            if not kept.intersection(node.output):
                _double_attributes(node)
    return copy


def _double_attributes(node: onnx.NodeProto) -> None:
    """What a node makes of type float32 by an attribute, it makes of float64."""
    for attribute in node.attribute:
        makes = attribute.name in {"to", "dtype"} and attribute.type == AttributeProto.INT
        if makes and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.DOUBLE
    if node.op_type == "GroupNormalization" and not any(a.name == "stash_type" for a in node.attribute):
        node.attribute.append(onnx.helper.make_attribute("stash_type", TensorProto.DOUBLE))
    if node.op_type != "Constant":
        return
    given = next((a for a in node.attribute if a.name in {"value_float", "value_floats"}), None)
    if given is not None:
        value = given.f if given.name == "value_float" else list(given.floats)
        tensor = onnx.numpy_helper.from_array(np.asarray(value, np.float64))
        node.attribute.remove(given)
        node.attribute.append(onnx.helper.make_attribute("value", tensor))
