"""Transposes that undo each other, as in graphs converted from channels-last frameworks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.model.domains import is_standard
from onnx_compress.model.prepare.edits import Edit
from onnx_compress.model.prepare.passthrough import remove, replace_reads

if TYPE_CHECKING:
    from onnx_compress.model.surgery import Surgery

_LAYERS = {
    *("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"),
    *(
        "BatchNormalization",
        "InstanceNormalization",
        "LRN",
        "Resize",
        "Upsample",
        "DepthToSpace",
        "SpaceToDepth",
    ),
}
# > no Cast: a Transpose of narrow numbers is cheaper than one of wide numbers
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
    *("ThresholdedRelu", "Swish"),
}
_BINARY = {"Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu"}


def cancel_transposes(surgery: Surgery) -> list[Edit]:
    """Moves the Transpose behind a convolution or pooling down over elementwise nodes and Concat, and joins two in a row.

    Two that undo each other so meet, and go; then bias and activation stand beside their convolution.
    """
    returned = {id(tensor) for graph in surgery.graphs() for tensor in graph.outputs}
    edits: list[Edit] = []
    for graph in surgery.graphs():
        own = {id(node) for node in graph.nodes}
        count = -1
        while graph.opset >= 7 and len(edits) > count:
            count = len(edits)
            edits += _join(graph, own, returned)
            for node in list(graph.nodes):
                above = _transposes_above(node, own, returned)
                if above:
                    _sink(surgery, graph, node, above)
                    edits.append(Edit(node.name, "move", f"{node.op} after Transpose", "before it"))
    return edits


def _join(graph: gs.Graph, own: set[int], returned: set[int]) -> list[Edit]:
    """Makes one Transpose of two in a row, or none where they undo each other."""
    edits = []
    gone: set[int] = set()
    for node in graph.nodes:
        first = _producer(node.inputs[0], own) if _is_transpose(node) else None
        if first is None or not _is_transpose(first) or id(node.outputs[0]) in returned:
            continue
        composed = [first.attrs["perm"][axis] for axis in node.attrs["perm"]]
        if composed == sorted(composed):
            replace_reads(node.outputs[0], first.inputs[0])
            gone.add(id(node))
        else:
            node.inputs[0] = first.inputs[0]
            node.attrs["perm"] = composed
        after = "nothing" if id(node) in gone else "one Transpose"
        edits.append(Edit(node.name, "join", f"Transpose after Transpose {first.name}", after))
        if not first.outputs[0].outputs and id(first.outputs[0]) not in returned:
            gone.add(id(first))
    if gone:
        remove(graph, gone)
    return edits


def _is_transpose(node: gs.Node) -> bool:
    return node.op == "Transpose" and is_standard(node) and "perm" in node.attrs


def _producer(tensor: gs.Tensor, own: set[int]) -> gs.Node | None:
    """The node of the same graph that computes `tensor`."""
    if len(tensor.inputs) != 1 or id(tensor.inputs[0]) not in own:
        return None
    return tensor.inputs[0]


def _transposes_above(node: gs.Node, own: set[int], returned: set[int]) -> list[gs.Node]:
    """The Transposes, all alike, that give every input of `node` that is no constant; none where it cannot move."""
    if not is_standard(node) or len(node.outputs) != 1:
        return []
    if node.op not in _UNARY | _BINARY | {"Concat"} or (node.op == "Concat" and "axis" not in node.attrs):
        return []
    moving = (
        node.inputs[:1] if node.op in _UNARY else [t for t in node.inputs if not isinstance(t, gs.Constant)]
    )
    above = [_producer(tensor, own) for tensor in moving]
    found = [producer for producer in above if producer is not None and _is_transpose(producer)]
    if not found or len(found) < len(above):
        return []
    perm = list(found[0].attrs["perm"])
    alone = all(
        list(t.attrs["perm"]) == perm
        and all(reader is node for reader in t.outputs[0].outputs)
        and id(t.outputs[0]) not in returned
        and _behind_layer(t.inputs[0], own)
        for t in found
    )
    constants = [tensor for tensor in node.inputs if isinstance(tensor, gs.Constant)]
    fits = node.op in _UNARY or all(_fits(tensor, node, len(perm)) for tensor in constants)
    return found if alone and fits else []


def _fits(tensor: gs.Constant, node: gs.Node, rank: int) -> bool:
    """Whether a constant input can be transposed, too, without growing."""
    return node.op in _BINARY and len(tensor.shape) <= rank


def _behind_layer(tensor: gs.Tensor, own: set[int]) -> bool:
    """Whether `tensor` comes from a convolution or pooling, perhaps over elementwise nodes."""
    for _ in range(100):
        producer = _producer(tensor, own)
        if producer is None:
            return False
        if producer.op in _LAYERS:
            return True
        if producer.op not in _UNARY | _BINARY | {"Concat"}:
            return False
        tensor = next((t for t in producer.inputs if not isinstance(t, gs.Constant)), producer.inputs[0])
    return False


def _sink(surgery: Surgery, graph: gs.Graph, node: gs.Node, above: list[gs.Node]) -> None:
    """Puts one of `above` behind `node`, and takes the others away."""
    perm = list(above[0].attrs["perm"])
    inverse = [int(axis) for axis in np.argsort(perm)]
    for index, tensor in enumerate(node.inputs):
        if isinstance(tensor, gs.Constant):
            if node.op in _BINARY and any(size > 1 for size in tensor.shape):
                value = tensor.values.reshape((1,) * (len(perm) - len(tensor.shape)) + tuple(tensor.shape))
                turned = np.ascontiguousarray(value.transpose(inverse))
                node.inputs[index] = surgery.constant(tensor.name, turned)
        elif any(tensor is t.outputs[0] for t in above):
            node.inputs[index] = tensor.inputs[0].inputs[0]
    if node.op == "Concat":
        node.attrs["axis"] = perm[node.attrs["axis"]]
    last, target = above[0], node.outputs[0]
    node.outputs[0] = surgery.variable(f"{target.name}_before")
    last.inputs = [node.outputs[0]]
    last.outputs = [target]
    # > behind, so that the order of nodes stays one in which they can run
    graph.nodes[:] = [other for other in graph.nodes if other is not last]
    remove(graph, {id(other) for other in above} - {id(last)})
    at = next(index for index, other in enumerate(graph.nodes) if other is node)
    graph.nodes.insert(at + 1, last)
