"""How a weight in blocks is stored, so that the file is small and onnxruntime's CPU runs it fast.

    MatMul(x, DequantizeLinear(codes, scales))    4 or 8 bits, opset 21: onnxruntime makes MatMulNBits of it at load
    MatMulNBits(x, codes, scales)                 the same for a Gemm, before opset 21, or where several nodes share the weight
    GatherBlockQuantized(codes, rows, scales)     tables; DequantizeLinear before Gather would unpack all of it at each run
    Mul(Cast(codes), scales)                      everything else: computed once at load, so the file is small, memory is not

MatMulNBits and GatherBlockQuantized are onnxruntime's own (domain com.microsoft) and keep the codes packed in memory.
DequantizeLinear before Conv, or with a weight that two nodes read, is computed anew at each run *(measured with
onnxruntime 1.31: a Conv 1.8 times slower)*, hence the last form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto

if TYPE_CHECKING:
    from collections.abc import Collection

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from onnx_compress.model.surgery import Surgery
    from onnx_compress.numerics.blocks import Blocks
    from onnx_compress.passes.int4.weights import Weight

    Array = NDArray[Any]

Form = Literal["standard", "contrib", "table", "unfolded"]
TYPED = 21  # opset of DequantizeLinear with blocks, and of Cast from 4 bits
IR = 10  # version of the file format that has 4-bit types
DOMAIN = "com.microsoft"
INT8 = 4  # accuracy level of MatMulNBits: inputs in 8 bits, as onnxruntime has it for DequantizeLinear too


def form_of(weight: Weight, opset: int, slow: Collection[Form]) -> Form:
    """The form `store` gives the weight: the first that fits and is not among those found `slow`."""
    forms: list[Form] = []
    if weight.kind == "product":
        # > onnxruntime fuses a Gemm with the activation behind it, and then unpacks the weight at each run
        if opset >= TYPED and [node.op for node, _ in weight.users] == ["MatMul"]:
            forms.append("standard")
        forms.append("contrib")
    elif weight.kind == "table":
        forms.append("table")
    return next((form for form in forms if form not in slow), "unfolded")


def store(surgery: Surgery, weight: Weight, blocks: Blocks, form: Form) -> None:
    """Puts `blocks`, rows of the weight's groups one after the other, in the weight's place."""
    match form:
        case "standard":
            _dequantize(surgery, weight, blocks)
        case "contrib":
            _multiply(surgery, weight, blocks)
        case "table":
            _look_up(surgery, weight, blocks)
        case "unfolded":
            _unfold(surgery, weight, blocks)


def declare(model: onnx.ModelProto, forms: Collection[Form]) -> None:
    """Makes the model say what its weights need: onnxruntime's own domain, and the version that has 4-bit types."""
    if forms and next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")) >= TYPED:
        model.ir_version = max(model.ir_version, IR)
    if {"contrib", "table"} & set(forms) and all(entry.domain != DOMAIN for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))


def _typed(blocks: Blocks) -> tuple[Array, Array | None]:
    """Codes and zeros as (U)INT4 or (U)INT8: signed where there are no zeros."""
    if blocks.zeros is None:
        signed = blocks.codes.astype(np.int16) - blocks.middle
        return signed.astype(ml_dtypes.int4 if blocks.bits == 4 else np.int8), None
    kind = ml_dtypes.uint4 if blocks.bits == 4 else np.uint8
    return blocks.codes.astype(kind), blocks.zeros.astype(kind)


def _dequantize(surgery: Surgery, weight: Weight, blocks: Blocks) -> None:
    node, index = weight.users[0]
    codes, zeros = _typed(blocks)
    name = weight.tensor.name
    inputs = [
        surgery.constant(f"{name}_codes", np.ascontiguousarray(codes.T)),
        surgery.constant(f"{name}_scales", np.ascontiguousarray(blocks.scales.T)),
    ]
    if zeros is not None:
        inputs.append(surgery.constant(f"{name}_zeros", np.ascontiguousarray(zeros.T)))
    made = surgery.node("DequantizeLinear", f"{name}_dequantize", inputs, axis=0, block_size=blocks.block)
    node.inputs[index] = made.outputs[0]
    at = next(i for i, other in enumerate(surgery.graph.nodes) if other is node)
    surgery.graph.nodes.insert(at, made)


def _multiply(surgery: Surgery, weight: Weight, blocks: Blocks) -> None:
    rows, inputs = blocks.codes.shape
    count = blocks.scales.shape[1]
    padded = np.full((rows, count * blocks.block), blocks.middle, np.uint8)
    padded[:, :inputs] = blocks.codes
    name = weight.tensor.name
    codes = surgery.constant(f"{name}_codes", _pairs(padded, blocks.bits).reshape(rows, count, -1))
    scales = surgery.constant(f"{name}_scales", blocks.scales.reshape(-1))
    zeros = None
    if blocks.zeros is not None:
        zeros = surgery.constant(f"{name}_zeros", _pairs(blocks.zeros, blocks.bits).reshape(-1))
    for node, _ in weight.users:
        bias = node.inputs[2] if node.op == "Gemm" and len(node.inputs) > 2 and node.inputs[2].name else None
        found = [node.inputs[0], codes, scales]
        if zeros is not None or bias is not None:
            found.append(zeros if zeros is not None else _nothing())
        if bias is not None:
            found += [_nothing(), bias]
        made = surgery.node(
            "MatMulNBits", node.name, found, domain=DOMAIN, K=inputs, N=rows, bits=blocks.bits,
            block_size=blocks.block, accuracy_level=INT8,
        )  # fmt: skip
        _take_place(surgery, surgery.graph, node, made)


def _look_up(surgery: Surgery, weight: Weight, blocks: Blocks) -> None:
    name = weight.tensor.name
    found = [
        surgery.constant(f"{name}_codes", _pairs(blocks.codes, blocks.bits)),
        surgery.constant(f"{name}_scales", blocks.scales),
    ]
    zeros = []
    if blocks.zeros is not None:
        zeros = [surgery.constant(f"{name}_zeros", _pairs(blocks.zeros, blocks.bits))]
    for node, _ in weight.users:
        graph = next(graph for graph in surgery.graphs() if any(other is node for other in graph.nodes))
        made = surgery.node(
            "GatherBlockQuantized", node.name, [found[0], node.inputs[1], found[1], *zeros], domain=DOMAIN,
            gather_axis=0, quantize_axis=1, block_size=blocks.block, bits=blocks.bits,
        )  # fmt: skip
        _take_place(surgery, graph, node, made)


def _unfold(surgery: Surgery, weight: Weight, blocks: Blocks) -> None:
    """Nodes that compute the float weight from constants alone, in the graph that owns it. All blocks are whole."""
    name = weight.tensor.name
    opset = next(o.version for o in surgery.model.proto.opset_import if o.domain in ("", "ai.onnx"))
    nodes: list[gs.Node] = []

    def then(op: str, *found: Any, **attributes: Any) -> Any:
        nodes.append(surgery.node(op, f"{name}_{op.lower()}", list(found), **attributes))
        return nodes[-1].outputs[0]

    codes, zeros = _typed(blocks)
    if blocks.bits == 8 or opset >= TYPED:
        lines = surgery.constant(f"{name}_codes", codes.reshape(-1, blocks.block))
        value = then("Cast", lines, to=TensorProto.FLOAT)
    else:
        value = _from_pairs(surgery, name, blocks, then)
    if zeros is not None:
        apart = np.uint8(0) if blocks.bits == 8 or opset >= TYPED else np.uint8(blocks.middle)
        shift = (zeros.astype(np.int16) - apart).astype(np.int8 if apart else np.uint8).reshape(-1, 1)
        value = then(
            "Sub", value, then("Cast", surgery.constant(f"{name}_zeros", shift), to=TensorProto.FLOAT)
        )
    value = then("Mul", value, surgery.constant(f"{name}_scales", blocks.scales.reshape(-1, 1)))
    groups, height, width = weight.grid
    if weight.swapped:
        value = then("Reshape", value, surgery.constant(f"{name}_rows", np.array([groups, width, height])))
        value = then("Transpose", value, perm=[0, 2, 1])
    value = then("Reshape", value, surgery.constant(f"{name}_shape", np.array(weight.shape, np.int64)))
    for node, index in weight.users:
        node.inputs[index] = value
    weight.graph.nodes[0:0] = nodes


def _from_pairs(surgery: Surgery, name: str, blocks: Blocks, then: Any) -> Any:
    """Codes less the middle as floats, a block a line: each byte is looked up in the table of all pairs of 4 bits."""
    packed = _pairs(blocks.codes.reshape(1, -1), 4)[0]
    every = np.arange(256)
    table = np.stack([every & 15, every >> 4], axis=1).astype(np.float32) - blocks.middle
    places = then("Cast", surgery.constant(f"{name}_codes", packed), to=TensorProto.INT32)
    value = then("Gather", surgery.constant("int4_pairs", table), places, axis=0)
    if blocks.codes.size % 2:
        value = then("Reshape", value, surgery.constant(f"{name}_flat", np.array([-1])))
        ends = [surgery.constant(f"{name}_end", np.array([at])) for at in (0, blocks.codes.size)]
        value = then("Slice", value, *ends)
    return then("Reshape", value, surgery.constant(f"{name}_lines", np.array([-1, blocks.block])))


def _pairs(codes: Array, bits: int) -> Array:
    """Codes of 4 bits two to a byte along the last axis, the first the lower half; of 8 bits as they are."""
    if bits == 8:
        return np.ascontiguousarray(codes)
    if codes.shape[-1] % 2:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
    packed: Array = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return packed


def _take_place(surgery: Surgery, graph: gs.Graph, node: gs.Node, made: gs.Node) -> None:
    made.name = node.name  # > reports of later passes speak of the same layer
    surgery.replace(graph, node, [made])


def _nothing() -> Any:
    import onnx_graphsurgeon as gs

    return gs.Variable.empty()
