"""What prepare leaves as it is, and passes cannot see through."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_compress.model.prepare.edits import Left
from onnx_compress.model.walk import graphs

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

    from onnx_compress.model.document import Model

_KNOWN = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}  # what onnxruntime itself implements


def barriers(model: Model) -> list[Left]:
    """The nodes of `model` that are no computation on dense tensors at inference, each with the reason it is kept."""
    functions = {(function.domain, function.name) for function in model.proto.functions}
    found = (
        [Left("", "training_info is kept; it may not fit the compressed model")]
        if model.proto.training_info
        else []
    )
    for graph in graphs(model.proto.graph):
        for value in graph.input:
            kind = value.type.WhichOneof("value") or "tensor_type"
            if kind != "tensor_type":
                found.append(Left(value.name, f"input is a {kind.removesuffix('_type')}, not a tensor"))
        found += [Left(s.values.name, "sparse initializer, kept") for s in graph.sparse_initializer]
        for node in graph.node:
            found += [Left(node.name, why) for why in _reasons(node, functions)]
    return found


def _reasons(node: onnx.NodeProto, functions: set[tuple[str, str]]) -> Iterator[str]:
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if (node.domain, node.op_type) in functions:
        yield f"calls the function {node.op_type}, which is not inlined"
    elif node.domain not in _KNOWN:
        yield f"custom operator {node.domain}.{node.op_type}"
    elif node.op_type == "BatchNormalization":
        said = "training_mode" in attributes and attributes["training_mode"].i
        if said or any(node.output[1:]):
            yield "BatchNormalization in training mode"
    elif "Sequence" in node.op_type or node.op_type.startswith("Optional") or node.op_type == "ZipMap":
        yield f"{node.op_type} works on a sequence, optional or map"
    elif node.op_type == "Constant" and "sparse_value" in attributes:
        yield "sparse constant, kept"
