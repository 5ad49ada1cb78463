"""io=int8: the graph takes and gives codes; the conversions at its edges are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_compress.contract import Change, Skip
from onnx_compress.model.edges import Edge, record
from onnx_compress.model.surgery import Surgery

if TYPE_CHECKING:
    from onnx_compress.model.document import Model


def integer_edges(model: Model) -> tuple[Model, list[Change], list[Skip]]:
    """`model` with float inputs and outputs in codes where integers stand behind them, and why not elsewhere.

    What each code means is in the metadata (`onnx_compress.model.edges`).
    """
    surgery = Surgery(model)
    found: dict[str, Edge] = {}
    skips = []
    for tensor in surgery.graph.inputs:
        if tensor.dtype == np.float32:
            edge = _input(surgery, tensor)
            if isinstance(edge, str):
                skips.append(Skip(tensor.name, edge))
            else:
                found[tensor.name] = edge
    inputs = set(found)
    for tensor in surgery.graph.outputs:
        if tensor.dtype == np.float32:
            edge = _output(surgery, tensor)
            if isinstance(edge, str):
                skips.append(Skip(tensor.name, edge))
            else:
                found[tensor.name] = edge
    if not found:
        return model, [], skips
    surgery.forget_shapes(found)
    made = surgery.commit()
    for value in [*made.proto.graph.input, *made.proto.graph.output]:
        if value.name in found:
            kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(found[value.name].type))
            value.type.tensor_type.elem_type = kind
    record(made, found)
    return made, [_change(name, edge, name in inputs) for name, edge in found.items()], skips


def _change(name: str, edge: Edge, given: bool) -> Change:
    what = "input" if given else "output"
    after = f"{edge.type}, scale {edge.scale:.6g}, zero point {edge.zero_point}"
    return Change(name, what, "float32", after)


def _edge(node: gs.Node) -> Edge | None:
    """What the codes of a QuantizeLinear or DequantizeLinear mean, if all have one scale."""
    parts = node.inputs[1:3]
    if len(parts) != 2 or not all(isinstance(part, gs.Constant) for part in parts):
        return None
    scale, zero = (np.asarray(part.values) for part in parts)
    if scale.size != 1:
        return None
    return Edge(zero.dtype.name, float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]))


def _input(surgery: Surgery, tensor: gs.Variable) -> Edge | str:
    """Users of the input's codes read it as it comes; float users read what it stands for."""
    users = list({id(user): user for user in tensor.outputs}.values())
    main = {id(node) for node in surgery.graph.nodes}
    # > a body has scales of its own, which stand in the body: it reads what the codes stand for
    makers = [user for user in users if user.op == "QuantizeLinear" and id(user) in main]
    kinds = {_edge(maker) for maker in makers}
    edge = kinds.pop() if len(kinds) == 1 else None
    if edge is None:
        return (
            "it stays float32: nothing reads it in integers" if not makers else "it is read in several scales"
        )
    if any(output is tensor for output in surgery.graph.outputs):
        return "it stays float32: it is an output too"
    floats = [user for user in users if user.op != "QuantizeLinear" or id(user) not in main]
    if floats:
        real = surgery.node("DequantizeLinear", f"{tensor.name}_real", [tensor, *makers[0].inputs[1:]])
        for user in floats:
            user.inputs = [real.outputs[0] if t is tensor else t for t in user.inputs]
        surgery.graph.nodes.insert(0, real)
    for maker in makers:
        codes = maker.outputs[0]
        for user in list(codes.outputs):
            user.inputs = [tensor if t is codes else t for t in user.inputs]
        _remove(surgery, maker)
    return edge


def _output(surgery: Surgery, tensor: gs.Variable) -> Edge | str:
    """The output is what its DequantizeLinear read."""
    maker = tensor.inputs[0] if tensor.inputs else None
    edge = _edge(maker) if maker is not None and maker.op == "DequantizeLinear" else None
    if maker is None or edge is None:
        return "it stays float32: the operator that makes it runs in float"
    codes = maker.inputs[0]
    if not codes.inputs or any(output is codes for output in surgery.graph.outputs):
        return "it stays float32: an input or another output has the same values"
    users = list({id(user): user for user in tensor.outputs}.values())
    if users:
        real = surgery.variable(f"{tensor.name}_real")
        for user in users:
            user.inputs = [real if t is tensor else t for t in user.inputs]
        maker.outputs = [real]
    else:
        _remove(surgery, maker)
    source = codes.inputs[0]
    at = next(i for i, out in enumerate(source.outputs) if out is codes)
    for user in list(codes.outputs):
        user.inputs = [tensor if t is codes else t for t in user.inputs]
    source.outputs[at] = tensor
    return edge


def _remove(surgery: Surgery, node: gs.Node) -> None:
    node.inputs.clear()
    node.outputs.clear()
    surgery.graph.nodes[:] = [one for one in surgery.graph.nodes if one is not node]
