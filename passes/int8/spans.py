"""Between what a tensor's values are, as far as the operators that made them tell without running."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from onnx_compress.model.domains import is_standard
from onnx_compress.passes.int8.kinds import FIXED, SHARED, clip_bounds, clips, data_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping

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
        for tensor in node.inputs:
            found.setdefault(tensor.name, ANYTHING)
        found |= dict.fromkeys((tensor.name for tensor in node.outputs), _span(node, found))
    return found


def _span(node: gs.Node, found: Mapping[str, Span]) -> Span:
    """Of what `node` makes."""
    if clips(node):
        return clip_bounds(node)
    if not is_standard(node):
        return ANYTHING
    if node.op not in KEPT:
        return FIXED.get(node.op, ANYTHING)
    return functools.reduce(union, (found[node.inputs[at].name] for at in data_inputs(node)), NOTHING)
