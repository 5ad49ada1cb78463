"""Weights in Constant nodes become initializers of the graph that holds the node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from onnx_compress.model.domains import is_standard
from onnx_compress.model.prepare.edits import Edit
from onnx_compress.model.walk import graphs

if TYPE_CHECKING:
    import onnx

    from onnx_compress.model.document import Model


def lift_constants(model: Model) -> list[Edit]:
    """Every Constant node of `model` becomes an initializer of the same name, bit for bit.

    One that a graph returns stays (a body cannot return an initializer), and so does a sparse one.
    """
    edits = []
    for graph in graphs(model.proto.graph):
        returned = {value.name for value in graph.output}
        lifted: dict[int, TensorProto] = {}
        for index, node in enumerate(graph.node):
            if node.op_type != "Constant" or not is_standard(node):
                continue
            tensor = None if node.output[0] in returned else _value(model, node)
            if tensor is not None:
                lifted[index] = tensor
                edits.append(Edit(node.name, "lift", "Constant node", f"initializer {tensor.name}"))
        graph.initializer.extend(lifted.values())
        for index in sorted(lifted, reverse=True):
            del graph.node[index]
    return edits


def _value(model: Model, node: onnx.NodeProto) -> TensorProto | None:
    """The tensor that a Constant node stands for, named as its output; None for a sparse one."""
    if not node.attribute:
        return None
    attribute, name = node.attribute[0], node.output[0]
    if attribute.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(attribute.t)
        tensor.name = name
        return tensor
    if attribute.name in ("value_float", "value_floats"):
        value = attribute.f if attribute.name == "value_float" else list(attribute.floats)
        return model.tensor(np.array(value, np.float32), name)
    if attribute.name in ("value_int", "value_ints"):
        value = attribute.i if attribute.name == "value_int" else list(attribute.ints)
        return model.tensor(np.array(value, np.int64), name)
    if attribute.name == "value_string":
        return TensorProto(name=name, data_type=TensorProto.STRING, string_data=[attribute.s])
    if attribute.name == "value_strings":
        texts = list(attribute.strings)
        return TensorProto(name=name, data_type=TensorProto.STRING, dims=[len(texts)], string_data=texts)
    return None
