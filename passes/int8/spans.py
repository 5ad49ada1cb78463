"""Between what a tensor's values are, as far as the operators that made them tell without running."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnx_compress.passes.int8.kinds import FIXED, SHARED, clip_bounds, clips, data_inputs

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    Span = tuple[float, float]  # the least and the largest value

ANYTHING = (-math.inf, math.inf)
NOTHING = (0.0, 0.0)  # > not empty: codes stand for zero whatever they are for
KEPT = SHARED | {"AveragePool", "GlobalAveragePool"}  # give nothing beyond what they read, or zero


def union(one: Span, other: Span) -> Span:
    """What reaches as far as both."""
    return min(one[0], other[0]), max(one[1], other[1])


def overlap(one: Span, other: Span) -> Span:
    """What both reach."""
    return max(one[0], other[0]), min(one[1], other[1])


def tensor_spans(graph: gs.Graph) -> dict[str, Span]:
    """Of every tensor that a node of the main graph makes or reads, by name."""
    found: dict[str, Span] = {}
    for node in graph.nodes:
        span = ANYTHING
        if clips(node):
            span = clip_bounds(node)
        elif node.op in FIXED:
            span = FIXED[node.op]
        elif node.op in KEPT and node.inputs:
            span = NOTHING
            for at in data_inputs(node):
                span = union(span, found.get(node.inputs[at].name, ANYTHING))
        for tensor in node.inputs:
            found.setdefault(tensor.name, ANYTHING)
        for tensor in node.outputs:
            found[tensor.name] = span
    return found
