"""Nodes in an order in which each comes after those it reads."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from onnx_compress.errors import InputError
from onnx_compress.model.walk import bodies, graphs

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

    from onnx_compress.model.document import Model


def sort_nodes(model: Model) -> tuple[Model, list[str]]:
    """`model` with its nodes sorted, and a note where they were not; where they were, it is `model` itself.

    Nodes that are in order keep it. Raises InputError where nodes form a cycle.
    """
    wrong = [graph for graph in graphs(model.proto.graph) if not _sorted(graph)]
    if not wrong:
        return model, []
    result = model.copy()
    for graph in graphs(result.proto.graph):
        if not _sorted(graph):
            nodes = [graph.node[at] for at in _order(graph)]
            copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
            del graph.node[:]
            graph.node.extend(copies)
    names = ", ".join(repr(graph.name) for graph in wrong[:3])
    return result, [f"the nodes of {names} were not in the order in which they are computed: they are now"]


def _sorted(graph: onnx.GraphProto) -> bool:
    made = {name for node in graph.node for name in node.output if name}
    seen: set[str] = set()
    for node in graph.node:
        if any(name in made and name not in seen for name in _reads(node)):
            return False
        seen.update(node.output)
    return True


def _order(graph: onnx.GraphProto) -> list[int]:
    """The positions of the nodes, sorted (Kahn 1962, doi:10.1145/368996.369025), first come first."""
    makers = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    needs = [{makers[name] for name in _reads(node) if name in makers} for node in graph.node]
    readers: dict[int, list[int]] = {}
    for at, wanted in enumerate(needs):
        for maker in wanted:
            readers.setdefault(maker, []).append(at)
    waiting = [len(wanted) for wanted in needs]
    ready = deque(at for at, count in enumerate(waiting) if not count)
    order: list[int] = []
    while ready:
        at = ready.popleft()
        order.append(at)
        for reader in readers.get(at, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    if len(order) < len(graph.node):
        stuck = next(at for at, count in enumerate(waiting) if count)
        node = graph.node[stuck]
        raise InputError(
            f"not a valid ONNX model: node {node.name or node.op_type!r}, which makes {node.output[0]!r}, is part of a "
            "cycle or reads from one"
        )
    return order


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that `node` reads, those that its bodies take from outside among them."""
    yield from (name for name in node.input if name)
    for body in bodies(node):
        own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        own |= {name for inner in body.node for name in inner.output}
        for inner in body.node:
            yield from (name for name in _reads(inner) if name not in own)
        yield from (value.name for value in body.output if value.name not in own)
