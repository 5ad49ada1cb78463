"""Nodes that only hand on their input give way to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from onnx_compress.model.domains import is_standard
from onnx_compress.model.prepare.edits import Edit

if TYPE_CHECKING:
    from onnx_compress.model.surgery import Surgery


def drop_passthrough(surgery: Surgery) -> list[Edit]:
    """Removes Identity, Dropout at inference, and Transpose that moves no axis, where no graph output's name is lost."""
    returned = {id(tensor) for graph in surgery.graphs() for tensor in graph.outputs}
    edits = []
    for graph in list(surgery.graphs()):
        gone: set[int] = set()
        own = {id(node) for node in graph.nodes}
        for node in graph.nodes:
            if hands_on(node, graph.opset) and _bypass(node, own, returned):
                gone.add(id(node))
                edits.append(Edit(node.name, "drop", node.op, "its input"))
        if gone:
            remove(graph, gone)
    return edits


def remove(graph: gs.Graph, gone: set[int]) -> None:
    """Takes the nodes with these ids out of `graph`."""
    for node in graph.nodes:
        if id(node) in gone:
            node.inputs.clear()
            node.outputs.clear()
    graph.nodes[:] = [node for node in graph.nodes if id(node) not in gone]


def replace_reads(old: gs.Tensor, new: gs.Tensor) -> None:
    """Every node that reads `old` reads `new`."""
    for reader in list(old.outputs):
        for index, tensor in enumerate(reader.inputs):
            if tensor is old:
                reader.inputs[index] = new


def hands_on(node: gs.Node, opset: int) -> bool:
    """Whether the first output of `node` is its first input, whatever that is, and nobody reads another output."""
    if not is_standard(node) or any(tensor.outputs for tensor in node.outputs[1:]):
        return False
    if node.op == "Identity":
        return True
    if node.op == "Transpose":
        perm = node.attrs.get("perm")
        return perm is not None and list(perm) == list(range(len(perm)))
    if node.op == "Dropout" and opset >= 7:
        training = node.inputs[2] if len(node.inputs) > 2 else None
        off = isinstance(training, gs.Constant) and not training.values.any()
        return training is None or training.is_empty() or off
    return False


def _bypass(node: gs.Node, own: set[int], returned: set[int]) -> bool:
    """Links what is before `node` to what is behind it; False where a name of an output would be lost."""
    source, target = node.inputs[0], node.outputs[0]
    if any(id(tensor) in returned for tensor in node.outputs[1:]):
        return False
    if id(target) not in returned:
        replace_reads(target, source)
        return True
    if not isinstance(source, gs.Variable) or id(source) in returned or len(source.inputs) != 1:
        return False
    producer = source.inputs[0]
    if id(producer) not in own:
        return False  # a body must compute what it returns
    node.outputs.clear()
    index = next(i for i, tensor in enumerate(producer.outputs) if tensor is source)
    producer.outputs[index] = target
    replace_reads(source, target)
    return True
