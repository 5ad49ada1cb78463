"""What onnx's checker takes on trust: that a tensor has the values its shape asks for, and a value a type that there is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto

from onnx_compress.errors import InputError
from onnx_compress.model.walk import graphs

if TYPE_CHECKING:
    from collections.abc import Iterable

PACKED = {  # several values share a byte: onnx itself counts them
    getattr(TensorProto, name)
    for name in ("UINT4", "INT4", "FLOAT4E2M1", "UINT2", "INT2")
    if hasattr(TensorProto, name)
}
_KNOWN = set(TensorProto.DataType.values())
_COMPLEX = {TensorProto.COMPLEX64, TensorProto.COMPLEX128}


def refuse_unsound(model: onnx.ModelProto, tensors: Iterable[TensorProto]) -> None:
    """Raises InputError for one of `tensors` with too few or too many values, or a value of no known type.

    tensors: those of the model; the ones whose bytes lie elsewhere are not looked at.
    """
    for tensor in tensors:
        if tensor.data_location != TensorProto.EXTERNAL and tensor.data_type not in PACKED:
            _refuse_size(tensor)
    for value in model.graph.input:
        if value.type.HasField("tensor_type") and not value.type.tensor_type.elem_type:
            raise InputError(f"not a valid ONNX model: input {value.name!r} has no element type")
    for graph in graphs(model.graph):
        for value in (*graph.input, *graph.output, *graph.value_info):
            kind = value.type.tensor_type.elem_type
            if kind not in _KNOWN:
                raise InputError(
                    f"not a valid ONNX model: {value.name!r} has type {kind}, which ONNX does not know"
                )


def refuse_names_that_are_no_text(model: onnx.ModelProto) -> None:
    """Raises InputError for a name of a graph, node or tensor that is not UTF-8: protobuf reads it as bytes, and writes none."""
    for graph in graphs(model.graph):
        values = (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
        names = [graph.name, *(value.name for value in values)]
        names += [sparse.values.name for sparse in graph.sparse_initializer]
        for node in graph.node:
            names += [node.name, node.op_type, node.domain, *node.input, *node.output]
            names += [attribute.name for attribute in node.attribute]
        for name in names:
            if not isinstance(name, str):
                raise InputError(f"the name {name!r} is no text: names in ONNX are UTF-8")


def _refuse_size(tensor: TensorProto) -> None:
    kind = tensor.data_type
    if kind == TensorProto.UNDEFINED:
        return  # the checker has a word for it
    if kind not in _KNOWN:
        raise InputError(
            f"not a valid ONNX model: tensor {tensor.name!r} has type {kind}, which ONNX does not know"
        )
    needed = math.prod(tensor.dims)
    if tensor.raw_data:
        found, needed = len(tensor.raw_data), needed * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
        unit = "bytes"
    else:
        found, unit = len(getattr(tensor, onnx.helper.tensor_dtype_to_field(kind))), "values"
        needed *= 2 if kind in _COMPLEX else 1
    if found != needed:
        raise InputError(
            f"not a valid ONNX model: tensor {tensor.name!r} needs {needed} {unit} but has {found}"
        )
