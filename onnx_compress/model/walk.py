"""The graphs inside a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """`graph`, then every body inside it, outer before inner."""
    waiting = [graph]
    while waiting:
        graph = waiting.pop(0)
        yield graph
        waiting += [body for node in graph.node for body in bodies(node)]


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that `node` (If, Loop, Scan...) holds."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
