"""Layers whose activations get their scale while they run, for which onnxruntime has kernels: LSTM, MatMul and Gemm.

LSTM(x, W, R, ...)  ->  com.microsoft.DynamicQuantizeLSTM
x @ W               ->  MatMulInteger(q, W_q, z) · (s · s_W)   with   q, s, z = DynamicQuantizeLinear(x)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnx_compress.model.domains import is_standard
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.int8.storage import LEAST, Stored

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model

    Array = NDArray[Any]
    Codes = dict[tuple[int, bool, float], tuple[gs.Constant, gs.Constant]]

DOMAIN = "com.microsoft"
LSTM_INPUTS = 8  # X W R B sequence_lens initial_h initial_c P


def candidates(model: Model, keep: Collection[str]) -> dict[str, int]:
    """Nodes of every graph that can run so and have weights enough, but for those of `keep`, each with how many."""
    found = {
        node.name: sum(int(np.prod(node.inputs[at].shape)) for at in _weights(node))
        for node in Surgery(model).nodes()
        if node.name not in keep
    }
    return {name: size for name, size in found.items() if size >= LEAST}


def dynamic(model: Model, names: Collection[str], bits: int = 8) -> tuple[Model, list[Stored]]:
    """`model` with the candidates `names` in integers, their weights of `bits` bits, and what became of each weight."""
    surgery = Surgery(model)
    done: list[Stored] = []
    limit = 2 ** (bits - 1) - 1
    coded: Codes = {}
    for graph in surgery.graphs():
        sources: dict[int, list[gs.Variable]] = {}
        for node in list(graph.nodes):
            places = _weights(node)
            if node.name not in names or not places:
                continue
            done += [
                Stored(node.name, node.op, tuple(int(n) for n in node.inputs[at].shape)) for at in places
            ]
            if node.op == "LSTM":
                _recurrent(surgery, graph, node, limit)
            else:
                _product(surgery, graph, node, _codes_of(surgery, node, limit, coded), sources)
    if not done:
        return model, []
    made = surgery.commit()
    if not any(entry.domain == DOMAIN for entry in made.proto.opset_import):
        made.proto.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return made, done


def _weights(node: gs.Node) -> list[int]:
    """Which inputs of a candidate are its weights; none of another node."""
    if not is_standard(node) or len(node.inputs) < 2:
        return []
    if node.op == "LSTM":
        plain = not node.attrs.get("layout", 0) and (
            len(node.inputs) < LSTM_INPUTS or not node.inputs[7].name
        )
        fits = plain and all(_is_weight(node.inputs[at], 3) for at in (1, 2))
        return [1, 2] if fits else []
    if node.op == "Gemm" and (node.attrs.get("transA", 0) or float(node.attrs.get("beta", 1.0)) != 1):
        return []
    if (
        node.op in ("MatMul", "Gemm")
        and _is_weight(node.inputs[1], 2)
        and isinstance(node.inputs[0], gs.Variable)
    ):
        return [1]
    return []


def _is_weight(tensor: gs.Tensor, rank: int) -> bool:
    if not isinstance(tensor, gs.Constant) or len(tensor.shape) != rank:
        return False
    return np.dtype(tensor.dtype) == np.float32 and bool(np.all(np.isfinite(tensor.values)))


def _coded(weight: Array, axis: int, limit: int) -> tuple[Array, Array]:
    """Codes, and the scale of each line along `axis`, which is gone from its shape."""
    top = np.abs(weight).max(axis=axis, keepdims=True)
    scale = np.where(top > 0, top / np.float32(limit), np.float32(1)).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale.squeeze(axis)


def _recurrent(surgery: Surgery, graph: gs.Graph, node: gs.Node, limit: int) -> None:
    inputs = list(node.inputs) + [gs.Variable.empty()] * (LSTM_INPUTS - len(node.inputs))
    tail = []
    for at in (1, 2):
        codes, scale = _coded(np.asarray(inputs[at].values), 2, limit)
        name = inputs[at].name
        inputs[at] = surgery.constant(f"{name}_q", np.ascontiguousarray(codes.transpose(0, 2, 1)))
        tail += [
            surgery.constant(f"{name}_scale", scale),
            surgery.constant(f"{name}_zero", np.zeros(scale.shape, np.int8)),
        ]
    attrs = {key: value for key, value in node.attrs.items() if key != "layout"}
    outputs = [gs.Variable.empty() if not out.name else out for out in node.outputs]
    new = surgery.node("DynamicQuantizeLSTM", node.name, [*inputs, *tail], [], domain=DOMAIN, **attrs)
    node.outputs.clear()
    new.outputs = outputs
    new.name = node.name
    graph.nodes[next(i for i, one in enumerate(graph.nodes) if one is node)] = new
    node.inputs.clear()


def _codes_of(surgery: Surgery, node: gs.Node, limit: int, coded: Codes) -> tuple[gs.Constant, gs.Constant]:
    """The codes (K, N) and scales of a product's weight; coded: those of tied weights, made once."""
    constant = node.inputs[1]
    turned = node.op == "Gemm" and bool(node.attrs.get("transB", 0))
    factor = float(node.attrs.get("alpha", 1.0)) if node.op == "Gemm" else 1.0
    key = id(constant), turned, factor
    if key not in coded:
        weight = np.asarray(constant.values) * np.float32(factor)
        codes, scale = _coded(np.ascontiguousarray(weight.T if turned else weight), 0, limit)
        name = constant.name
        coded[key] = surgery.constant(f"{name}_q", codes), surgery.constant(f"{name}_scale", scale)
    return coded[key]


def _product(
    surgery: Surgery,
    graph: gs.Graph,
    node: gs.Node,
    weight: tuple[gs.Constant, gs.Constant],
    sources: dict[int, list[gs.Variable]],
) -> None:
    """weight: its codes and scales; sources: what each tensor was quantized to already: q, k and v read the same."""
    source, (codes, scale) = node.inputs[0], weight
    new: list[gs.Node] = []
    if id(source) not in sources:
        sources[id(source)] = [surgery.variable(f"{source.name}_{part}") for part in ("q", "s", "z")]
        new.append(surgery.node("DynamicQuantizeLinear", "quantize", [source], sources[id(source)]))
    eight, step, zero = sources[id(source)]
    new.append(surgery.node("MatMulInteger", node.name, [eight, codes, zero]))
    new[-1].name = node.name
    new.append(surgery.node("Cast", "cast", [new[-1].outputs[0]], to=TensorProto.FLOAT))
    steps = surgery.node("Mul", "steps", [step, scale])
    new += [steps, surgery.node("Mul", "real", [new[-1].outputs[0], steps.outputs[0]])]
    if node.op == "Gemm" and len(node.inputs) > 2 and node.inputs[2].name:
        new.append(surgery.node("Add", "biased", [new[-1].outputs[0], node.inputs[2]]))
    surgery.replace(graph, node, new)
