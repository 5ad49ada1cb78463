"""Writes a placement into the graph: QuantizeLinear and DequantizeLinear around what runs in integers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.int8.kinds import LAYERS, data_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.passes.int8.placement import Placement
    from onnx_compress.passes.int8.ranges import Affine
    from onnx_compress.passes.int8.weights import LayerWeight

    Array = NDArray[Any]

ON_CODES = {"Pad"}  # onnxruntime does not fuse their conversions away, but runs them on 8-bit values
BIAS_LIMIT = 2**31 - 2**16  # of an int32 bias, less room for the products it is added to


@dataclass
class _Writer:
    """Nodes waiting for their place, and constants that are shared."""

    surgery: Surgery
    scaled: Mapping[str, float]
    on_codes: set[str]
    residual: bool
    before: dict[int, list[gs.Node]] = field(default_factory=dict)
    after: dict[int, list[gs.Node]] = field(default_factory=dict)
    first: list[gs.Node] = field(default_factory=list)
    constants: dict[tuple[str, bytes], gs.Constant] = field(default_factory=dict)
    weights: dict[tuple[int, bytes], gs.Variable] = field(default_factory=dict)
    count: int = 0

    def constant(self, hint: str, value: Array) -> gs.Constant:
        """The constant of this value: scales and zero points repeat."""
        key = (f"{value.dtype}{value.shape}", value.tobytes())
        if key not in self.constants:
            self.constants[key] = self.surgery.constant(hint, value)
        return self.constants[key]

    def number(self) -> int:
        self.count += 1
        return self.count


def emit(
    model: Model, placement: Placement, ranges: Mapping[str, Affine], weights: Mapping[str, LayerWeight]
) -> Model:
    """`model` with the placement's nodes in integers.

    ranges: of each group of tensors; weights: of each layer, already rounded.
    """
    surgery = Surgery(model)
    writer = _Writer(
        surgery, placement.scaled, ON_CODES if placement.rules.recoded else set(), placement.rules.residual
    )
    graph = surgery.graph
    by_name = {node.name: node for node in graph.nodes}
    scales = {name: ranges[group] for name, group in placement.group.items()}
    for name, before in placement.folded.items():
        _fold(by_name[name], by_name[before])
    dead = {id(by_name[name]) for name in placement.folded}
    graph.nodes[:] = [node for node in graph.nodes if id(node) not in dead]
    integer = {id(by_name[name]) for name in [*placement.layers, *placement.followers]}
    for name in placement.layers:
        node = by_name[name]
        _weigh(
            writer, node, weights[name], scales[node.inputs[0].name] if placement.rules.int32_bias else None
        )
        _shift(writer, node, weights[name].shift)
    for node in graph.nodes:
        if id(node) in integer and node.name in placement.followers and node.name not in placement.scaled:
            if (
                node.op == "Relu" and placement.rules.recoded
            ):  # onnxruntime has no integer Relu, but a table for any slope
                node.op, node.attrs = "LeakyRelu", {"alpha": 0.0}
            _quantize_constants(writer, node, scales)
    for tensor in _tensors(graph):
        if tensor.name in scales:
            _convert(writer, graph, tensor, scales[tensor.name], integer)
    graph.nodes[:] = _in_order(graph, writer)
    return surgery.commit()


def _fold(activation: gs.Node, before: gs.Node) -> None:
    """The node before returns what the activation did: the range of its result clips for it."""
    outputs = list(activation.outputs)
    activation.inputs.clear()
    activation.outputs.clear()
    before.outputs.clear()
    before.outputs.extend(outputs)


def _weigh(writer: _Writer, node: gs.Node, weight: LayerWeight, source: Affine | None) -> None:
    """The layer reads its weight in int8, and its bias in int32 steps of `source` (None: in float32)."""
    node.attrs = {key: value for key, value in node.attrs.items() if key not in ("alpha", "beta")}
    scale = weight.scale
    key = (id(node.inputs[1]), weight.values.tobytes() + scale.tobytes())
    if key not in writer.weights:
        name = node.inputs[1].name
        values = writer.surgery.constant(f"{name}_q", weight.values)
        zeros = writer.constant("zw", np.zeros(scale.shape, weight.values.dtype))
        writer.weights[key] = _dequantize(
            writer, node, [values, writer.constant("sw", scale), zeros], weight.axis if scale.ndim else None
        )
    node.inputs[1] = writer.weights[key]
    if weight.bias is None:
        return
    if source is None:
        out = writer.surgery.constant("b", weight.bias.astype(np.float32))
    else:
        steps = np.float32(source.scale) * scale
        # > clip: scales leave room for the bias, but a correction may have moved it
        values = np.rint(weight.bias / steps.astype(np.float64)).clip(-BIAS_LIMIT, BIAS_LIMIT)
        parts = [
            writer.surgery.constant("b_q", values.astype(np.int32)),
            writer.surgery.constant("sb", steps),
        ]
        out = _dequantize(writer, node, parts, 0 if steps.ndim else None)
    if len(node.inputs) > 2:
        node.inputs[2] = out
    else:
        node.inputs.append(out)


def _shift(writer: _Writer, node: gs.Node, shift: Array | None) -> None:
    """A MatMul's correction goes into the constant that is added to its output, where there is one."""
    users = node.outputs[0].outputs
    if shift is None or len(users) != 1 or users[0].op != "Add":
        return
    add = users[0]
    for at, tensor in enumerate(add.inputs):
        if isinstance(tensor, gs.Constant) and tensor.shape and tensor.shape[-1] == len(shift):
            add.inputs[at] = writer.surgery.constant(
                f"{tensor.name}_c", (np.asarray(tensor.values) + shift).astype(np.float32)
            )


def _dequantize(writer: _Writer, node: gs.Node, parts: list[gs.Constant], axis: int | None) -> gs.Variable:
    """What `node` reads of constant codes: parts are the codes, their scale and, but where it is 0, their zero point."""
    attrs = {} if axis is None else {"axis": axis}
    number = writer.number()
    out = writer.surgery.variable(f"y{number}")
    made = writer.surgery.node("DequantizeLinear", f"d{number}", parts, [out], **attrs)
    writer.before.setdefault(id(node), []).append(made)
    return out


def _quantize_constants(writer: _Writer, node: gs.Node, scales: Mapping[str, Affine]) -> None:
    """Constant operands of Add and Mul, per tensor, in the type of the other operand."""
    from onnx_compress.passes.int8.ranges import affine

    other = next(scales[t.name] for t in node.inputs if isinstance(t, gs.Variable) and t.name in scales)
    for at in data_inputs(node):
        tensor = node.inputs[at]
        if isinstance(tensor, gs.Constant):
            value = np.asarray(tensor.values)
            scale = affine(float(value.min(initial=0)), float(value.max(initial=0)), other.codes)
            values = writer.surgery.constant(f"{tensor.name}_q", scale.quantize(value))
            parts = [writer.constant("s", scale.scale_array), writer.constant("z", scale.zero_array)]
            node.inputs[at] = _dequantize(writer, node, [values, *parts], None)


def _tensors(graph: gs.Graph) -> list[gs.Variable]:
    seen = [*graph.inputs, *(tensor for node in graph.nodes for tensor in node.outputs)]
    return [tensor for tensor in seen if isinstance(tensor, gs.Variable)]


def _convert(
    writer: _Writer, graph: gs.Graph, tensor: gs.Variable, affine: Affine, integer: set[int]
) -> None:
    """`tensor` goes through 8 bits on its way to its users.

    What an integer node made is read by everybody from the integers; of what a float node made, float users keep the
    original.
    """
    number = writer.number()
    scale, zero = writer.constant("s", affine.scale_array), writer.constant("z", affine.zero_array)
    eight, back = writer.surgery.variable(f"x{number}"), writer.surgery.variable(f"y{number}")
    source = tensor
    users = list({id(user): user for user in tensor.outputs}.values())
    maker: Any = tensor.inputs[0] if tensor.inputs else None
    whole = id(maker) in integer
    already = whole and (maker.op in writer.on_codes or maker.name in writer.scaled)
    if whole and any(output is tensor for output in graph.outputs):
        back = tensor  # the graph's output keeps its name
        if not already:
            source = writer.surgery.variable(f"f{number}")
            maker.outputs[next(i for i, out in enumerate(maker.outputs) if out is tensor)] = source
    if whole and maker.name in writer.scaled:
        eight = next(t for t in maker.inputs if isinstance(t, gs.Variable))
    elif already:
        _on_codes(maker, eight, zero)
    for user in users:
        for at, read in enumerate(user.inputs):
            data = id(user) in integer and at in data_inputs(user)
            data = data or (writer.residual and _beside_a_layer(user, tensor, integer))
            if read is tensor and (whole or data):
                codes = data and (user.op in writer.on_codes or user.name in writer.scaled)
                user.inputs[at] = eight if codes else back
    nodes = []
    if not already:
        nodes += [writer.surgery.node("QuantizeLinear", f"q{number}", [source, scale, zero], [eight])]
    if back.outputs or back is tensor:
        nodes += [writer.surgery.node("DequantizeLinear", f"d{number}", [eight, scale, zero], [back])]
    if maker is None:
        writer.first += nodes
    else:
        writer.after.setdefault(id(maker), []).extend(nodes)


def _beside_a_layer(node: gs.Node, tensor: gs.Variable, integer: set[int]) -> bool:
    """Whether `node` adds `tensor` to what an integer layer made for it alone."""
    if node.op != "Add":
        return False
    others = [
        t for t in node.inputs if t is not tensor and isinstance(t, gs.Variable) and len(t.outputs) == 1
    ]
    return any(maker.op in LAYERS and id(maker) in integer for t in others for maker in t.inputs)


def _on_codes(node: gs.Node, eight: gs.Variable, zero: gs.Constant) -> None:
    """A Pad that returns codes, and fills up with that of zero."""
    node.outputs[0] = eight
    if node.attrs.get("mode", "constant") != "constant":
        return
    if len(node.inputs) > 2:
        node.inputs[2] = zero
    else:
        node.inputs.append(zero)


def _in_order(graph: gs.Graph, writer: _Writer) -> list[gs.Node]:
    """All nodes, with those in the place of a scaled multiplication; what nobody reads any more is gone."""
    nodes = list(writer.first)
    for node in graph.nodes:
        here = [] if node.name in writer.scaled else [node]
        nodes += [*writer.before.get(id(node), []), *here, *writer.after.get(id(node), [])]
        if not here:
            node.inputs.clear()
            node.outputs.clear()
    return nodes
