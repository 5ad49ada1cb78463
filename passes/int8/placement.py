"""Which nodes run in integers and which tensors between them carry 8 bits, as onnxruntime's CPU kernels want it.

A *layer* (Conv, Gemm, MatMul by a weight) is why one quantizes. A *follower* (Add, Concat, pooling, Reshape, Sigmoid...)
runs in integers where its inputs come from integer nodes and somebody after it goes on in integers: then no tensor is
converted on its way. An activation that only clips (Relu, Clip) vanishes into the range of the tensor it clips.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.passes.int8.kinds import (
    FLOAT_ONLY,
    LAYERS,
    SHARED,
    can_follow,
    clip_bounds,
    clips,
    data_inputs,
    factor_of,
    unfit,
    weight_of,
)
from onnx_compress.passes.int8.spans import ANYTHING, NOTHING, overlap, tensor_spans, union
from onnx_compress.passes.int8.targets import TARGETS, Rules

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from onnx_compress.passes.int8.spans import Span

    Array = NDArray[Any]


ORT = TARGETS["ort-cpu"]


@dataclass
class Placement:
    """What runs in integers. Nodes and tensors are named; names are unique in the main graph.

    layers: in graph order; followers: the other integer nodes; folded: clipping node to the integer node before it;
    group: quantized tensor to the tensor that stands for all tensors of its scale;
    scaled: multiplication by a constant to that constant, which only changes what the same codes mean;
    left: layer to why it stays in float; rules: of the runtime it is for.
    """

    layers: list[str] = field(default_factory=list)
    followers: set[str] = field(default_factory=set)
    folded: dict[str, str] = field(default_factory=dict)
    group: dict[str, str] = field(default_factory=dict)
    scaled: dict[str, float] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    rules: Rules = ORT

    def members(self) -> dict[str, list[str]]:
        """Each group's tensors."""
        found: dict[str, list[str]] = {}
        for tensor, group in self.group.items():
            found.setdefault(group, []).append(tensor)
        return found


def place(
    graph: gs.Graph, keep: Mapping[str, str], *, followers: bool = True, rules: Rules = ORT
) -> Placement:
    """The placement for `graph`; `keep` names nodes that stay in float and says why.

    followers=False: only layers run in integers, which is best where float operators stand between all of them.
    """
    placement = Placement(rules=rules)
    for node in graph.nodes:
        if node.op in FLOAT_ONLY and node.op not in rules.layers and weight_of(node) is not None:
            placement.left[node.name] = FLOAT_ONLY[node.op]
        elif node.op in rules.layers and (node.op != "MatMul" or weight_of(node) is not None):
            why = keep.get(node.name, unfit(node))
            if why is not None:
                placement.left[node.name] = why
            else:
                placement.layers.append(node.name)
    chosen = set(placement.layers)
    integer = {id(node) for node in graph.nodes if node.name in chosen}
    layers = set(integer)
    if followers:
        able = (node for node in graph.nodes if node.name not in keep and can_follow(node))
        integer |= {id(node) for node in able if rules.followers is None or node.op in rules.followers}
    _settle(graph, integer, layers, placement)
    placement.followers = {node.name for node in graph.nodes if id(node) in integer - layers}
    _group(graph, integer, placement)
    return placement


def _settle(graph: gs.Graph, integer: set[int], layers: set[int], placement: Placement) -> None:
    """Takes followers out until every one of them has integer inputs and somebody to feed in integers."""
    outputs = {id(tensor) for tensor in graph.outputs}
    while True:
        placement.folded = dict(_foldable(graph, integer, outputs)) if placement.rules.folds else {}
        by_name = {node.name: node for node in graph.nodes}
        made = {id(t) for node in graph.nodes if id(node) in integer for t in node.outputs}
        for name, before in placement.folded.items():
            made -= {id(t) for t in by_name[before].outputs}
            made |= {id(t) for t in by_name[name].outputs}
        # what a layer reads is in 8 bits anyway
        made |= {id(node.inputs[0]) for node in graph.nodes if id(node) in layers}
        inputs = {id(tensor) for tensor in graph.inputs if tensor.dtype == np.float32}
        gone = set()
        for node in graph.nodes:
            if id(node) not in integer or id(node) in layers:
                continue
            known = made | inputs if node.op in SHARED - {"Concat"} else made
            feeds = [node.inputs[at] for at in data_inputs(node)]
            if not all(isinstance(t, gs.Constant) or id(t) in known for t in feeds) or not any(
                _goes_on(node, t, integer, placement.folded) or (placement.rules.edges and id(t) in outputs)
                for t in node.outputs
            ):
                gone.add(id(node))
        if not gone:
            return
        integer -= gone


def _foldable(graph: gs.Graph, integer: set[int], outputs: set[int]) -> Iterator[tuple[str, str]]:
    """Clipping nodes that vanish into the range of the one integer node before them."""
    for node in graph.nodes:
        if not clips(node):
            continue
        tensor = node.inputs[0]
        if len(tensor.inputs) != 1 or len(tensor.outputs) != 1 or id(tensor) in outputs:
            continue
        before = tensor.inputs[0]
        if id(before) in integer and before.op in (*LAYERS, "Add", "Mul", "AveragePool", "GlobalAveragePool"):
            yield node.name, before.name


def _goes_on(node: gs.Node, tensor: gs.Tensor, integer: set[int], folded: dict[str, str]) -> bool:
    """Whether an integer node reads `tensor` (or what a folded activation makes of it) as its data."""
    for user in tensor.outputs:
        if folded.get(user.name) == node.name:
            if any(_goes_on(node, out, integer, {}) for out in user.outputs):
                return True
        elif id(user) in integer and any(user.inputs[at] is tensor for at in data_inputs(user)):
            return True
    return False


def _group(graph: gs.Graph, integer: set[int], placement: Placement) -> None:
    """Finds the quantized tensors and joins those that must share a scale."""
    ends = {before: name for name, before in placement.folded.items()}
    by_name = {node.name: node for node in graph.nodes}
    joined = Joined()
    for node in graph.nodes:
        if id(node) not in integer:
            continue
        feeds = [node.inputs[at] for at in data_inputs(node) if isinstance(node.inputs[at], gs.Variable)]
        for tensor in feeds:
            joined.find(tensor.name)
        if node.op in placement.rules.floats and not _goes_on(
            node, node.outputs[0], integer, placement.folded
        ):
            placement.folded.pop(ends.get(node.name, ""), None)
            continue  # its result is wanted in float: no conversion at all
        last = by_name[ends[node.name]] if node.name in ends else node
        for tensor in last.outputs:
            joined.find(tensor.name)
        if node.op in SHARED and node.op != "Concat":
            for tensor in [*feeds, *node.outputs]:
                joined.join(tensor.name, node.outputs[0].name)
    _join_concats(graph, integer, placement, joined)
    placement.group = {name: joined.find(name) for name in list(joined.parent)}
    origins = sources(graph, placement)
    for node in graph.nodes:
        factor = factor_of(node) if id(node) in integer and node.name not in ends else None
        if factor is None or not placement.rules.recoded:
            continue
        before, after = (placement.group[t.name] for t in (*_variables(node), node.outputs[0]))
        # > one origin: a tensor joined with others has the scale of all of them
        if before != after and origins[after] == [node.outputs[0].name]:
            placement.scaled[node.name] = factor


def _join_concats(graph: gs.Graph, integer: set[int], placement: Placement, joined: Joined) -> None:
    """What a Concat joins shares a scale, but where an activation that vanished into a range would no longer clip at its end."""
    by_name = {node.name: node for node in graph.nodes}
    spans = tensor_spans(graph)
    whole: dict[str, Span] = {}  # of each set, all that its tensors can be
    least: dict[str, Span] = {}  # ... and what the narrowest of the activations folded into it leaves
    for tensor in joined.parent:
        whole[joined.find(tensor)] = union(whole.get(joined.find(tensor), NOTHING), spans[tensor])
    for name in placement.folded:
        out = joined.find(by_name[name].outputs[0].name)
        least[out] = overlap(least.get(out, ANYTHING), clip_bounds(by_name[name]))
    for node in graph.nodes:
        if id(node) not in integer or node.op != "Concat":
            continue
        sets = {joined.find(tensor.name): None for tensor in [*_variables(node), node.outputs[0]]}
        span, clipped = NOTHING, ANYTHING
        for one in sets:
            span, clipped = union(span, whole[one]), overlap(clipped, least.get(one, ANYTHING))
        if overlap(span, clipped) != span:
            continue
        for one in sets:
            joined.join(one, node.outputs[0].name)
        whole[joined.find(node.outputs[0].name)], least[joined.find(node.outputs[0].name)] = span, clipped


@dataclass
class Joined:
    """Names in disjoint sets."""

    parent: dict[str, str] = field(default_factory=dict)

    def find(self, name: str) -> str:
        """The name that stands for the set of `name`."""
        self.parent.setdefault(name, name)
        while self.parent[name] != name:
            self.parent[name] = self.parent[self.parent[name]]
            name = self.parent[name]
        return name

    def join(self, name: str, other: str) -> None:
        """One set of two; the name that stands for that of `other` stands for both."""
        self.parent[self.find(name)] = self.find(other)


def _variables(node: gs.Node) -> list[gs.Variable]:
    return [tensor for tensor in node.inputs if isinstance(tensor, gs.Variable)]


def sources(graph: gs.Graph, placement: Placement) -> dict[str, list[str]]:
    """Of each group, the tensors whose values decide its scale: those that are not just moved from another."""
    group = placement.group
    moved = {
        tensor.name
        for node in graph.nodes
        if node.name in placement.followers and node.op in SHARED
        for tensor in node.outputs
        # > a Concat may have a scale of its own
        if all(group[node.inputs[at].name] == group[tensor.name] for at in data_inputs(node))
    }
    return {
        group: [name for name in names if name not in moved] or names
        for group, names in placement.members().items()
    }


def scaled_groups(graph: gs.Graph, placement: Placement) -> dict[str, tuple[str, float]]:
    """Groups whose scale is that of another group times a constant, in graph order."""
    return {
        placement.group[node.outputs[0].name]: (
            placement.group[_variables(node)[0].name],
            placement.scaled[node.name],
        )
        for node in graph.nodes
        if node.name in placement.scaled
    }
