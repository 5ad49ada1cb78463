"""Nodes that compute from constants alone give way to what they compute, as far as the file does not grow."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto

from onnx_compress.model.domains import is_standard
from onnx_compress.model.prepare.edits import Edit
from onnx_compress.model.prepare.evaluate import PLAIN, evaluate, size
from onnx_compress.model.prepare.uses import uses
from onnx_compress.model.walk import bodies, graphs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx_compress.model.document import Model

CAP = 64 * 1024  # bytes that folded values may be larger than the constants that they replace

_KEPT = {
    # what they stand for is a weight in its stored form, which onnxruntime folds at load
    *("DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear"),
    # a random value is drawn anew in every run
    *(
        "RandomNormal",
        "RandomUniform",
        "RandomNormalLike",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
    ),
    # another name for a weight, which stays one weight
    "Identity",
}
_SMALL = {
    getattr(TensorProto, name)
    for name in ("UINT2", "INT2", "UINT4", "INT4", "UINT8", "INT8", "UINT16", "INT16")
    if hasattr(TensorProto, name)
}


def fold_constants(model: Model) -> list[Edit]:
    """Replaces nodes of `model` whose inputs are all constant by initializers, which onnxruntime itself computes.

    Kept are random nodes, quantized and clustered weights, and what would make the file more than `CAP` larger: nodes
    that hang together fold together, or each for itself where it can. Nodes that compute the same, in two branches
    perhaps, become one constant. Names are unique (name_tensors).
    """
    plan = _Plan(model, uses(model.proto.graph))
    plan.scan(model.proto.graph, 0)
    remaining: Counter[str] = Counter()
    for name, number in plan.count.items():
        remaining[plan.same.get(name, name)] += number
    chosen = {id(step) for part in _parts(plan) for step in _choose(plan, part, remaining)}
    return _apply(plan, [step for step in plan.steps if id(step) in chosen], remaining) if chosen else []


@dataclass(eq=False)
class _Step:
    """Nodes that compute the same from constants: where each is (graph, index), and the names each reads."""

    places: list[tuple[int, int]]
    reads: list[list[str]]
    gives: list[str]
    home: int  # the graph that is to hold what they compute


@dataclass
class _Plan:
    """What can be folded.

    constants: initializers and computed ones, with the graph that holds them; same: names that stand for a constant
    that was computed before; maker: the step that computes a constant.
    """

    model: Model
    count: Counter[str]
    graphs: list[onnx.GraphProto] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    constants: dict[str, tuple[TensorProto, int]] = field(default_factory=dict)
    steps: list[_Step] = field(default_factory=list)
    maker: dict[str, _Step] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    done: dict[bytes, _Step] = field(default_factory=dict)

    def scan(self, graph: onnx.GraphProto, depth: int) -> None:
        """Plans the nodes of `graph` and its bodies."""
        here = len(self.graphs)
        self.graphs.append(graph)
        self.depths.append(depth)
        inputs = {value.name for value in graph.input}
        for tensor in graph.initializer:
            if tensor.name not in inputs and tensor.data_type in PLAIN | _SMALL:
                self.constants[tensor.name] = tensor, here
        returned = {value.name for value in graph.output}
        for index, node in enumerate(graph.node):
            if not returned & set(node.output) and self._plan(node, (here, index)):
                continue
            for body in bodies(node):
                self.scan(body, depth + 1)

    def _plan(self, node: onnx.NodeProto, place: tuple[int, int]) -> bool:
        """Whether the node at `place` can be folded; then it is part of a step."""
        names = [self.same.get(name, name) for name in node.input]
        given = {name: self.constants[name][0] for name in names if name in self.constants}
        if not given or not all(name in given for name in names if name) or not _foldable(node, given):
            return False
        key = _key(node, [given.get(name) for name in names])
        step = self.done.get(key)
        if step is None:
            plain = onnx.NodeProto()
            plain.CopyFrom(node)
            plain.input[:] = names
            values = evaluate(self.model, plain, given)
            if values is None:
                return False
            homes = [self.constants[name][1] for name, tensor in given.items() if size(tensor) >= _COMPARED]
            home = max(homes, key=lambda graph: self.depths[graph], default=0)
            step = self.done[key] = _Step([], [], [name for name in node.output if name], home)
            self.steps.append(step)
            for name in step.gives:
                self.constants[name] = self.model.tensor(values[name], name), home
                self.maker[name] = step
        else:
            self.same.update(zip([name for name in node.output if name], step.gives, strict=True))
        step.places.append(place)
        step.reads.append([name for name in names if name])
        return True


_COMPARED = 1024  # bytes below which constants are the same if their bytes are


def _foldable(node: onnx.NodeProto, given: dict[str, TensorProto]) -> bool:
    if not is_standard(node) or node.op_type in _KEPT or any(True for _ in bodies(node)):
        return False
    if node.op_type == "Cast":
        # the indices or the integers of a weight stored small
        (tensor,) = given.values()
        return tensor.data_type not in _SMALL or math.prod(tensor.dims) == 1
    return True


def _key(node: onnx.NodeProto, given: list[TensorProto | None]) -> bytes:
    """The same for nodes that compute the same: by operator, attributes, and inputs (small ones by value)."""
    bare = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
    bare.attribute.extend(sorted(node.attribute, key=lambda attribute: str(attribute.name)))
    bare.output.extend("x" if name else "" for name in node.output)
    for tensor in given:
        part = onnx.TensorProto()
        if tensor is not None:
            part.CopyFrom(tensor)
            if size(tensor) < _COMPARED:
                part.ClearField("name")
            else:
                part = onnx.TensorProto(name=tensor.name)
        bare.attribute.add(t=part)
    return bytes(bare.SerializeToString(deterministic=True))


def _parts(plan: _Plan) -> Iterator[list[_Step]]:
    """The steps that hang together by a large constant or a step's result, in order."""
    parent = {id(step): id(step) for step in plan.steps}

    def root(key: int) -> int:
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    first: dict[str, int] = {}
    for step in plan.steps:
        for name in {name for names in step.reads for name in names}:
            if name in plan.maker:
                parent[root(id(step))] = root(id(plan.maker[name]))
            elif size(plan.constants[name][0]) >= _COMPARED:
                parent[root(id(step))] = root(first.setdefault(name, id(step)))
    parts = defaultdict(list)
    for step in plan.steps:
        parts[root(id(step))].append(step)
    yield from parts.values()


def _choose(plan: _Plan, part: list[_Step], remaining: Counter[str]) -> list[_Step]:
    """The steps of `part` to be folded; their reads are taken from `remaining`."""
    for step in part:
        remaining.subtract(_reads(step))
    if _growth(plan, part, remaining) <= CAP:
        return part
    for step in part:
        remaining.update(_reads(step))
    folded: dict[int, _Step] = {}
    for step in part:
        makers = {id(plan.maker[name]) for name in _reads(step) if name in plan.maker}
        if not makers <= folded.keys():
            continue
        remaining.subtract(_reads(step))
        if _growth(plan, [step], remaining) <= CAP:
            folded[id(step)] = step
        else:
            remaining.update(_reads(step))
    return list(folded.values())


def _growth(plan: _Plan, steps: list[_Step], remaining: Counter[str]) -> int:
    """Bytes of what is read of the results of `steps`, less those of the constants that nobody reads any more."""
    inside = {name for step in steps for name in step.gives}
    added = sum(size(plan.constants[name][0]) for name in inside if remaining[name] > 0)
    read = {name for step in steps for name in _reads(step)} - inside
    return added - sum(size(plan.constants[name][0]) for name in read if remaining[name] <= 0)


def _reads(step: _Step) -> list[str]:
    return [name for names in step.reads for name in names]


def _apply(plan: _Plan, folded: list[_Step], remaining: Counter[str]) -> list[Edit]:
    """Puts the results that are read where they belong, and takes the nodes away."""
    edits, gone = [], []
    kept = {name for step in folded for name in step.gives}
    for step in folded:
        wanted = [name for name in step.gives if remaining[name] > 0]
        for name in wanted:
            plan.graphs[step.home].initializer.add().CopyFrom(plan.constants[name][0])
        shapes = ["x".join(map(str, plan.constants[name][0].dims)) or "a scalar" for name in step.gives]
        for graph, index in step.places:
            node = plan.graphs[graph].node[index]
            edits.append(
                Edit(node.name, "fold", f"{node.op_type} of constants", f"constant {', '.join(shapes)}")
            )
        gone += step.places
    for graph, index in sorted(gone, reverse=True):
        del plan.graphs[graph].node[index]
    same = {name: other for name, other in plan.same.items() if other in kept}
    for inside in graphs(plan.model.proto.graph) if same else ():
        for node in inside.node:
            node.input[:] = [same.get(name, name) for name in node.input]
    return edits
