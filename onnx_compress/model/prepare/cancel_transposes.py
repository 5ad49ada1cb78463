"""Transposes that undo each other, as in graphs converted from channels-last frameworks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.model.prepare.edits import Edit
from onnx_compress.model.prepare.passthrough import remove, replace_reads

if TYPE_CHECKING:
    from onnx_compress.model.surgery import Surgery

_UNARY = {
    *(
        "Relu",
        "LeakyRelu",
        "Elu",
        "Selu",
        "Celu",
        "Sigmoid",
        "HardSigmoid",
        "HardSwish",
        "Tanh",
        "Softplus",
        "Softsign",
    ),
    *(
        "Clip",
        "Abs",
        "Neg",
        "Exp",
        "Log",
        "Sqrt",
        "Reciprocal",
        "Erf",
        "Floor",
        "Ceil",
        "Round",
        "Sign",
        "Gelu",
        "Mish",
    ),
    *("Cast", "ThresholdedRelu", "Swish"),
}
_BINARY = {"Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu"}


def cancel_transposes(surgery: Surgery) -> list[Edit]:
    """Removes a Transpose and its inverse with nothing but elementwise nodes between them; joins two in a row."""
    returned = {id(tensor) for graph in surgery.graphs() for tensor in graph.outputs}
    edits = []
    for graph in surgery.graphs():
        gone: set[int] = set()
        for node in graph.nodes:
            if graph.opset < 7 or not _is_transpose(node) or id(node.outputs[0]) in returned:
                continue
            chain = _chain(node, returned)
            if chain is None:
                continue
            first, between = chain
            composed = [first.attrs["perm"][axis] for axis in node.attrs["perm"]]
            if composed == sorted(composed):
                _undo(surgery, first, between, node)
                gone.add(id(node))
                edits.append(Edit(node.name, "cancel", f"Transpose after {first.name}", "nothing"))
            elif not between:
                node.inputs[0] = first.inputs[0]
                node.attrs["perm"] = composed
                edits.append(Edit(node.name, "join", f"Transpose after {first.name}", "one Transpose"))
        if gone:
            remove(graph, gone)
    return edits


def _is_transpose(node: gs.Node) -> bool:
    return node.op == "Transpose" and node.domain in (None, "", "ai.onnx") and "perm" in node.attrs


def _chain(node: gs.Node, returned: set[int]) -> tuple[gs.Node, list[gs.Node]] | None:
    """The Transpose before `node`, and the elementwise nodes between, last first, whose outputs nobody else reads."""
    between: list[gs.Node] = []
    tensor = node.inputs[0]
    while True:
        producer = tensor.inputs[0] if len(tensor.inputs) == 1 else None
        if producer is None or producer.domain not in (None, "", "ai.onnx"):
            return None
        if _is_transpose(producer):
            return producer, between
        if len(tensor.outputs) != 1 or id(tensor) in returned or not _elementwise(producer, node):
            return None
        between.append(producer)
        tensor = producer.inputs[_moving(producer)]


def _elementwise(node: gs.Node, transpose: gs.Node) -> bool:
    if node.op in _UNARY:
        return True
    if node.op not in _BINARY or len(node.inputs) != 2:
        return False
    constant = node.inputs[1 - _moving(node)]
    rank = len(transpose.attrs["perm"])
    return isinstance(constant, gs.Constant) and len(constant.shape) <= rank


def _moving(node: gs.Node) -> int:
    """The input that is no constant."""
    return 1 if node.op in _BINARY and isinstance(node.inputs[0], gs.Constant) else 0


def _undo(surgery: Surgery, first: gs.Node, between: list[gs.Node], last: gs.Node) -> None:
    """Takes `first` and `last` away from around the nodes between, whose constants are transposed instead."""
    source, perm = first.inputs[0], list(last.attrs["perm"])
    if not between:
        replace_reads(last.outputs[0], source)
        return
    between[-1].inputs[_moving(between[-1])] = source
    for node in between:
        if node.op not in _BINARY:
            continue
        index = 1 - _moving(node)
        constant = node.inputs[index]
        if sum(size > 1 for size in constant.shape) > 0:
            value = constant.values.reshape((1,) * (len(perm) - len(constant.shape)) + tuple(constant.shape))
            node.inputs[index] = surgery.constant(constant.name, np.ascontiguousarray(value.transpose(perm)))
    surgery.forget_shapes([node.outputs[0].name for node in between])
    replace_reads(last.outputs[0], between[0].outputs[0])
