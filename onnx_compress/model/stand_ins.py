"""Ops of known output shape in the place of those whose shape onnx cannot infer: onnxruntime's own, and two of ONNX's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx import helper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx


def put_stand_ins(graph: onnx.GraphProto) -> None:
    """Replaces these ops of `graph` by nodes that make outputs of the same shapes; it computes nonsense now."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        make = _STAND_INS.get(node.op_type) if node.domain == "com.microsoft" else None
        if not node.domain and node.op_type in {"GroupNormalization", "MeanVarianceNormalization"}:
            make = _same
        new = make(node, graph, weights) if make is not None else None
        nodes += [node] if new is None else new
    if len(nodes) != len(graph.node) or any(a is not b for a, b in zip(nodes, graph.node, strict=True)):
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def _attributes(node: onnx.NodeProto, names: Sequence[str]) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in names}


def _same(node: onnx.NodeProto, *_: object) -> list[onnx.NodeProto]:
    outputs = [node.output[i] for i in (0, 3) if len(node.output) > i and node.output[i]]
    return [helper.make_node("Identity", [node.input[0]], [name]) for name in outputs]


def _renamed(op: str, *names: str) -> Callable[..., list[onnx.NodeProto]]:
    def make(node: onnx.NodeProto, *_: object) -> list[onnx.NodeProto]:
        return [helper.make_node(op, node.input[:3], node.output[:1], **_attributes(node, names))]

    return make


def _matmul(node: onnx.NodeProto, *_: object) -> list[onnx.NodeProto]:
    given = _attributes(node, ("transA", "transB"))
    a, b = ("ji" if given.get("transA") else "ij"), ("kj" if given.get("transB") else "jk")
    return [helper.make_node("Einsum", node.input, node.output, equation=f"...{a},...{b}->...ik")]


def _multi_head(node: onnx.NodeProto, *_: object) -> list[onnx.NodeProto] | None:
    if len(node.input) < 3 or not all(node.input[:3]):
        return None
    operands = [node.input[0], node.input[2]]
    return [helper.make_node("Einsum", operands, node.output[:1], equation="bsh,btv->bsv")]


def _packed(
    node: onnx.NodeProto, graph: onnx.GraphProto, weights: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto] | None:
    weight = weights.get(node.input[1])
    if weight is None:
        return None
    sizes = _attributes(node, ("qkv_hidden_sizes",)).get("qkv_hidden_sizes")
    width = sizes[2] if isinstance(sizes, list) and sizes else weight.dims[1] // 3
    name = f"{node.output[0]}_stand_in"
    graph.initializer.add(name=name, data_type=weight.data_type, dims=[weight.dims[0], width])
    return [helper.make_node("MatMul", [node.input[0], name], node.output[:1])]


def _embed(node: onnx.NodeProto, *_: object) -> list[onnx.NodeProto]:
    outputs = [node.output[i] for i in (0, 2) if len(node.output) > i and node.output[i]]
    nodes = [helper.make_node("Gather", [node.input[2], node.input[0]], [name]) for name in outputs]
    if len(node.output) > 1 and node.output[1]:
        nodes.append(helper.make_node("ReduceMax", [node.input[0]], [node.output[1]], keepdims=0))
    return nodes


_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_STAND_INS: dict[str, Callable[..., list[onnx.NodeProto] | None]] = {
    **dict.fromkeys(("Gelu", "FastGelu", "BiasGelu", "QuickGelu", "RotaryEmbedding"), _same),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _same),
    "FusedConv": _renamed("Conv", *_CONV),
    "FusedGemm": _renamed("Gemm", "transA", "transB"),
    "FusedMatMul": _matmul,
    "MultiHeadAttention": _multi_head,
    "Attention": _packed,
    "EmbedLayerNormalization": _embed,
}
