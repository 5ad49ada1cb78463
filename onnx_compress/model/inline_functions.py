"""Replaces calls of the model's own functions by what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx.inliner

from onnx_compress.errors import InputError, LimitError
from onnx_compress.model.walk import graphs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from onnx_compress.model.document import Model

LIMIT = 1_000_000  # nodes: an expansion beyond is refused
BUDGET = 100_000  # nodes: an expansion beyond is left to onnxruntime

_Key = tuple[str, str, str]


def inline_functions(model: Model) -> Model:
    """`model` with the calls of its own functions replaced by what these do, or as it is beyond `BUDGET` nodes.

    Raises InputError for a recursive function, LimitError where more than `LIMIT` nodes would come out.
    """
    if not model.proto.functions or refuse_endless(model.proto) > BUDGET:
        return model
    result = model.copy()
    result.proto.CopyFrom(onnx.inliner.inline_local_functions(result.proto))
    return result


def refuse_endless(proto: onnx.ModelProto) -> int:
    """How many nodes `proto` has once all its functions are inlined.

    Raises InputError for a recursive function, LimitError where it would be more than `LIMIT`: what loads it would not end.
    """
    if not proto.functions:
        return sum(len(graph.node) for graph in graphs(proto.graph))
    nodes = expanded_nodes(proto)
    if nodes > LIMIT:
        raise LimitError(f"inlining the model's functions gives {nodes} nodes; the limit is {LIMIT}")
    return nodes


def expanded_nodes(proto: onnx.ModelProto) -> int:
    """How many nodes `proto` has once all its functions are inlined.

    Raises InputError for a recursive function.
    """
    functions = {_key(f.domain, f.name, f.overload): f for f in proto.functions}
    sizes: dict[_Key, int] = {}
    for start in functions:
        _measure(start, functions, sizes)
    return sum(_size(graph.node, sizes) for graph in graphs(proto.graph))


def _measure(start: _Key, functions: Mapping[_Key, onnx.FunctionProto], sizes: dict[_Key, int]) -> None:
    """The sizes of `start` and all it calls; a stack of our own, since a chain of calls may be deep."""
    stack, active = [start], {start}
    while stack:
        key = stack[-1]
        lists = _node_lists(functions[key].node)
        called = {_called(node) for nodes in lists for node in nodes} & functions.keys()
        waiting = next((other for other in sorted(called) if other not in sizes), None)
        if waiting is None:
            sizes[key] = sum(_size(nodes, sizes) for nodes in lists)
            active.discard(stack.pop())
            continue
        if waiting in active:
            raise InputError(f"function {waiting[1]!r} calls itself: a recursive function is no ONNX model")
        stack.append(waiting)
        active.add(waiting)


def _node_lists(nodes: Iterable[onnx.NodeProto]) -> list[Iterable[onnx.NodeProto]]:
    """`nodes`, and those of every body inside them."""
    inside = onnx.GraphProto(node=nodes)
    return [graph.node for graph in graphs(inside)]


def _size(nodes: Iterable[onnx.NodeProto], sizes: Mapping[_Key, int]) -> int:
    return sum(sizes.get(_called(node), 1) for node in nodes)


def _called(node: onnx.NodeProto) -> _Key:
    return _key(node.domain, node.op_type, node.overload)


def _key(domain: str, name: str, overload: str) -> _Key:
    return ("" if domain == "ai.onnx" else domain, name, overload)
