"""Names: every node has one of its own, and no two bodies use one name for two tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_compress.model.prepare.edits import Edit
from onnx_compress.model.walk import bodies, graphs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx

    from onnx_compress.model.document import Model


def name_nodes(model: Model) -> list[Edit]:
    """Gives every node of `model` without a name, or with one that is in use already, a fresh one."""
    nodes = [node for graph in graphs(model.proto.graph) for node in graph.node]
    taken = {node.name for node in nodes}
    seen: set[str] = set()
    numbers: dict[str, int] = {}
    named = 0
    for node in nodes:
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        hint = node.name or node.op_type
        while (fresh := f"{hint}_{numbers.setdefault(hint, 0)}") in taken:
            numbers[hint] += 1
        node.name = fresh
        taken.add(fresh)
        seen.add(fresh)
        named += 1
    if not named:
        return []
    return [
        Edit("", "name nodes", f"{named} nodes without a name of their own", "named by operator and number")
    ]


def name_tensors(model: Model) -> list[Edit]:
    """Renames tensors of If, Loop and Scan bodies whose name another graph of `model` uses too."""
    main = model.proto.graph
    if not any(True for node in main.node for _ in bodies(node)):
        return []
    fresh = _Fresh({name for graph in graphs(main) for name in _defined(graph)})
    fresh.seen.update(_defined(main))
    for node in main.node:
        for body in bodies(node):
            _rename(body, {}, fresh)
    if not fresh.renamed:
        return []
    return [Edit("", "rename tensors", f"{fresh.renamed} names used in several bodies", "one name a tensor")]


class _Fresh:
    """Hands out each name once."""

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken
        self.seen: set[str] = set()
        self.renamed = 0

    def __call__(self, name: str) -> str:
        fresh, number = name, 0
        while fresh in self.seen or (number and fresh in self.taken):
            number += 1
            fresh = f"{name}_{number}"
        self.seen.add(fresh)
        self.renamed += fresh != name
        return fresh


def _rename(graph: onnx.GraphProto, outer: Mapping[str, str], fresh: _Fresh) -> None:
    """Gives the tensors of one body unique names; `outer`: new names of the tensors around it."""
    names = dict(outer)
    names.update({name: fresh(name) for name in dict.fromkeys(_defined(graph))})
    for value in [*graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        value.name = names.get(value.name, value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = names.get(sparse.values.name, sparse.values.name)
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = names.get(annotation.tensor_name, annotation.tensor_name)
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = names.get(entry.value, entry.value)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for body in bodies(node):
            _rename(body, names, fresh)


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    """The names of the tensors that `graph` itself brings into being."""
    yield from (value.name for value in graph.input if value.name)
    yield from (tensor.name for tensor in graph.initializer)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    yield from (name for node in graph.node for name in node.output if name)
