"""int8 weights under float activations: what a runtime reads from memory is a quarter.

    x @ W            ->  x @ DequantizeLinear(W_q, s)      onnxruntime's MatMulNBits, which reads the codes
    Gather(E, ids)   ->  Cast(Gather(E_q, ids)) · Gather(s, ids)
All other weights are stored in int8 and computed at load (`storage`): those too that several products read, which onnxruntime
would dequantize anew at each run. MatMulNBits rounds each 32 activations to 8 bits as they come; other runtimes multiply
in float.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnx_compress.model.domains import is_standard
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.int8.storage import LEAST, Stored

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model

    Array = NDArray[Any]


def weight_only(
    model: Model, keep: Collection[str], rounded: Mapping[str, Array], limit: int = 127
) -> tuple[Model, list[Stored]]:
    """`model` with the weights of products and the tables of Gather in int8, in every graph.

    keep: nodes left alone; rounded: codes of some products, as (N, K) and by `row_scale`; limit: the largest code.
    """
    surgery = Surgery(model)
    done: list[Stored] = []
    tables: dict[int, tuple[gs.Constant, gs.Constant]] = {}
    readers = Counter(id(weight_of_product(node)) for node in surgery.nodes() if node.name not in keep)
    for graph in surgery.graphs():
        for node in list(graph.nodes):
            weight = weight_of_product(node)
            if node.name in keep:
                continue
            if weight is not None and readers[id(weight)] == 1:
                done.append(Stored(node.name, node.op, tuple(int(size) for size in weight.shape)))
                node.inputs[1] = _dequantized(surgery, node, weight, rounded.get(node.name), limit)
                if node.op == "Gemm":
                    _as_matmul(surgery, graph, node)
            elif _is_lookup(node):
                done.append(Stored(node.name, node.op, tuple(int(size) for size in node.inputs[0].shape)))
                _lookup(surgery, graph, node, tables, limit)
    return (surgery.commit(), done) if done else (model, [])


def weight_of_product(node: gs.Node) -> gs.Constant | None:
    """The matrix of a MatMul or Gemm that this module quantizes."""
    if not is_standard(node) or node.op not in ("MatMul", "Gemm"):
        return None
    weight = node.inputs[1]
    plain = all(float(node.attrs.get(key, 1.0)) == 1 for key in ("alpha", "beta"))
    if node.op == "Gemm" and (node.attrs.get("transA", 0) or not plain):
        return None
    return weight if _fits(weight) and isinstance(node.inputs[0], gs.Variable) else None


def row_scale(rows: Array, limit: int) -> Array:
    """The step of each row of a weight (N, K)."""
    top = np.abs(rows).max(axis=1)
    return np.where(top > 0, top / np.float32(limit), np.float32(1)).astype(np.float32)


def _fits(weight: gs.Tensor) -> bool:
    if not isinstance(weight, gs.Constant) or len(weight.shape) != 2:
        return False
    if np.dtype(weight.dtype) != np.float32 or int(np.prod(weight.shape)) < LEAST:
        return False
    return bool(np.all(np.isfinite(weight.values)))


def _dequantized(
    surgery: Surgery, node: gs.Node, weight: gs.Constant, codes: Array | None, limit: int
) -> gs.Variable:
    """The weight (K, N) as DequantizeLinear gives it."""
    rows = np.asarray(weight.values)
    rows = rows if node.op == "Gemm" and node.attrs.get("transB", 0) else rows.T
    scale = row_scale(rows, limit)
    if codes is None:
        codes = np.rint(rows / scale[:, np.newaxis]).astype(np.int8)
    parts = [
        surgery.constant(f"{weight.name}_q", np.ascontiguousarray(codes.T)),
        surgery.constant(f"{weight.name}_scale", scale),
    ]
    new = surgery.node("DequantizeLinear", "real", parts, axis=1)
    graph = surgery.owner(weight)
    graph.nodes[:0] = [new]
    out: gs.Variable = new.outputs[0]
    return out


def _as_matmul(surgery: Surgery, graph: gs.Graph, node: gs.Node) -> None:
    """Gemm of a (K, N) weight as MatMul and Add: onnxruntime reads codes in a MatMul only."""
    product = surgery.node("MatMul", node.name, list(node.inputs[:2]))
    new = [product]
    if len(node.inputs) > 2 and node.inputs[2].name:
        new.append(surgery.node("Add", "biased", [product.outputs[0], node.inputs[2]]))
    product.name = node.name
    surgery.replace(graph, node, new)


def _is_lookup(node: gs.Node) -> bool:
    plain = node.op == "Gather" and is_standard(node)
    return plain and not int(node.attrs.get("axis", 0)) and _fits(node.inputs[0])


def _lookup(
    surgery: Surgery,
    graph: gs.Graph,
    node: gs.Node,
    tables: dict[int, tuple[gs.Constant, gs.Constant]],
    limit: int,
) -> None:
    """Rows of a table, looked up as codes and multiplied by their scales."""
    table, places = node.inputs
    if id(table) not in tables:
        rows = np.asarray(table.values)
        scale = row_scale(rows, limit)[:, np.newaxis]
        tables[id(table)] = (
            surgery.constant(f"{table.name}_q", np.rint(rows / scale).astype(np.int8)),
            surgery.constant(f"{table.name}_scale", scale),
        )
    codes, scales = tables[id(table)]
    rows_of = surgery.node("Gather", node.name, [codes, places], axis=0)
    rows_of.name = node.name
    cast = surgery.node("Cast", "cast", [rows_of.outputs[0]], to=TensorProto.FLOAT)
    scale_of = surgery.node("Gather", "scales", [scales, places], axis=0)
    real = surgery.node("Mul", "real", [cast.outputs[0], scale_of.outputs[0]])
    surgery.replace(graph, node, [rows_of, cast, scale_of, real])
