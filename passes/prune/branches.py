"""Residual branches: what stands between a tensor x and Add(x, f(x)), found by the graph alone, and taken out whole.

A branch of zero leaves x, so the Add may go with it. (Layers are dropped so in LayerDrop, Fan et al. 2020, arXiv:1909.11556, and ShortGPT,
Men et al. 2024, arXiv:2403.03853; here the layers before and behind are then refitted to the original's sums.)
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from onnx_compress.model.domains import is_standard
from onnx_compress.model.surgery import Surgery

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape

    Readers = Mapping[str, set[int]]  # of each tensor: the nodes by id, of bodies too

# one input, one output, each element for itself: what stands before a branch and before its Add is the same tensor
_UNARY = {"Relu", "LeakyRelu", "Clip", "Elu", "Selu", "Celu", "Gelu", "Sigmoid", "Tanh", "Identity", "Cast"}
_OUTSIDE = 0  # the reader of a graph's output


@dataclass(frozen=True)
class Branch:
    """The nodes that make f(x), and the Add, all by name, whose output is x without them."""

    add: str
    source: str
    nodes: frozenset[str]


def branches(model: Model, shapes: Mapping[str, Shape]) -> list[Branch]:
    """The residual branches of the main graph, in its order: each has weights, and nothing else reads what it makes.

    An Add of two branches, neither of which is the other's source, has none.
    """
    surgery = Surgery(model)
    readers = _readers(surgery)
    found = []
    for node in surgery.graph.nodes:
        if node.op not in ("Add", "Sum") or len(node.inputs) != 2 or not is_standard(node):
            continue
        sizes = {shapes.get(tensor.name) for tensor in [*node.inputs, *node.outputs]}
        if len(sizes) != 1 or None in sizes:
            continue
        for source, made in (tuple(node.inputs), tuple(reversed(node.inputs))):
            nodes = _between(source, made, node, readers)
            if nodes and _removable(source, node, nodes, readers):
                found.append(Branch(node.name, source.name, frozenset(n.name for n in nodes)))
                break
    return found


def without(model: Model, branch: Branch) -> Model:
    """`model` in which the branch is gone: what read the sum reads its source.

    Where nothing else reads the source, it takes the sum's name, so that what makes it is refitted to the original's sum. A
    Relu before the branch is dropped where one follows the sum.
    """
    surgery = Surgery(model)
    graph, readers = surgery.graph, _readers(surgery)
    gone = [node for node in graph.nodes if node.name in branch.nodes or node.name == branch.add]
    add = next(node for node in gone if node.name == branch.add)
    source = next(tensor for tensor in add.inputs if tensor.name == branch.source)
    total = add.outputs[0]
    names = {id(node) for node in gone}
    relu = source.inputs[0] if source.inputs else None
    if readers[source.name] <= names and relu is not None:
        twice = relu.op == "Relu" and all(user.op == "Relu" for user in total.outputs) and total.outputs
        before = relu.inputs[0] if twice else None
        if before is not None and before.inputs and readers[before.name] <= names | {id(relu)}:
            source = before
            gone.append(relu)
    alone = bool(source.inputs) and readers[source.name] <= {id(node) for node in gone}
    maker = source.inputs[0] if source.inputs else None
    place = 0 if maker is None else next(i for i, t in enumerate(maker.outputs) if t is source)
    users = list(total.outputs)
    gone_ids = {id(node) for node in gone}
    for node in gone:
        node.inputs.clear()
        node.outputs.clear()
    graph.nodes[:] = [node for node in graph.nodes if id(node) not in gone_ids]
    if alone and maker is not None:
        maker.outputs[place] = total
    else:
        for user in users:
            for index, tensor in enumerate(user.inputs):
                if tensor is total:
                    user.inputs[index] = source
    return surgery.commit()


def _readers(surgery: Surgery) -> Readers:
    """Of each tensor by name the nodes that read it, wherever they stand, and _OUTSIDE where a graph gives it."""
    found: dict[str, set[int]] = defaultdict(set)
    for graph in surgery.graphs():
        for node in graph.nodes:
            for tensor in node.inputs:
                found[tensor.name].add(id(node))
        for tensor in graph.outputs:
            found[tensor.name].add(_OUTSIDE)
    return found


def _between(source: gs.Tensor, made: gs.Tensor, add: gs.Node, readers: Readers) -> list[gs.Node]:
    """The nodes that make `made` from `source` and constants alone; empty where it needs more, or is read elsewhere too."""
    starts = {source.name}
    while source.inputs and source.inputs[0].op in _UNARY:
        source = source.inputs[0].inputs[0]
        starts.add(source.name)
    nodes: dict[int, gs.Node] = {}
    waiting = [made]
    while waiting:
        tensor = waiting.pop()
        if tensor.name in starts or isinstance(tensor, gs.Constant) or tensor.is_empty():
            continue
        if not tensor.inputs:
            return []  # an input of the graph
        node = tensor.inputs[0]
        if id(node) not in nodes:
            nodes[id(node)] = node
            waiting += node.inputs
    inside = {*nodes, id(add)}
    made_here = [tensor for node in nodes.values() for tensor in node.outputs]
    if any(not readers[tensor.name] <= inside for tensor in made_here):
        return []
    plain = all(not any(isinstance(v, gs.Graph) for v in node.attrs.values()) for node in nodes.values())
    reaches = any(tensor.name in starts for node in nodes.values() for tensor in node.inputs)
    weighty = any(isinstance(t, gs.Constant) and len(t.shape) > 1 for n in nodes.values() for t in n.inputs)
    return list(nodes.values()) if plain and reaches and weighty else []


def _removable(source: gs.Tensor, add: gs.Node, nodes: list[gs.Node], readers: Readers) -> bool:
    """Whether the sum can be its source: by its name, or, read elsewhere or the graph's own, by what reads the sum."""
    total = add.outputs[0].name
    inside = {id(add), *(id(node) for node in nodes)}
    if source.inputs and readers[source.name] <= inside:
        return True
    seen = {id(node) for node in add.outputs[0].outputs}
    return readers[total] <= seen
