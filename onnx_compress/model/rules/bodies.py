"""If, Loop and Scan: what enters a body carries its labels in, what leaves it carries them out; inside, the same table."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_compress.model.rules.barriers import barrier
from onnx_compress.model.walk import graphs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.model.channels import Axes, Channels

    Labels = NDArray[np.int64]

REUSED = "its bodies use names that others use too"
CARRIED = "it changes its size from step to step"


def branch(graph: Channels, node: gs.Node) -> None:
    """If: both branches end in the same channels. What a branch captures keeps its labels."""
    bodies = [node.attrs["then_branch"], node.attrs["else_branch"]]
    if not _enter(graph, node, bodies):
        return
    for index, output in enumerate(node.outputs):
        first, second = (graph.axes(body.outputs[index]) for body in bodies)
        if len(first) != len(second):
            for tensor in (bodies[0].outputs[index], bodies[1].outputs[index]):
                graph.pin_all(tensor, "the branches differ in rank")
            graph.fresh_axes(output, "the branches differ in rank")
            continue
        for a, b in zip(first, second, strict=True):
            graph.tie(a, b, "the branches differ in size")
        if not output.is_empty():
            sizes = zip(*(graph.shape(body.outputs[index]) for body in bodies), strict=True)
            graph.shapes.setdefault(output.name, tuple(a if a == b else None for a, b in sizes))
            graph.set(output, first)


def loop(graph: Channels, node: gs.Node) -> None:
    """Loop: what is carried from step to step has the same channels before, inside and after; steps are stacked in front."""
    body = node.attrs["body"]
    carried = len(node.inputs) - 2
    for inner, outer in zip(body.inputs[2:], node.inputs[2:], strict=True):
        _bring(graph, inner, outer)
    for inner in body.inputs[:2]:
        graph.shapes.setdefault(inner.name, ())
    if not _enter(graph, node, [body]):
        return
    graph.pin_all(body.outputs[0], "a condition")
    _carry(graph, node, body.inputs[2:], body.outputs[1 : 1 + carried])
    for output, made in zip(node.outputs[carried:], body.outputs[1 + carried :], strict=True):
        _stack(graph, output, made, 0)


def scan(graph: Channels, node: gs.Node) -> None:
    """Scan: as Loop, and some inputs are read step by step along an axis."""
    body = node.attrs["body"]
    read = int(node.attrs["num_scan_inputs"])
    carried = len(node.inputs) - read
    if (graph.surgery.graph.opset or 9) < 9:
        barrier(graph, node)
        return
    places = node.attrs.get("scan_input_axes") or [0] * read
    for inner, outer in zip(body.inputs[:carried], node.inputs[:carried], strict=True):
        _bring(graph, inner, outer)
    for inner, outer, place in zip(body.inputs[carried:], node.inputs[carried:], places, strict=True):
        axes, shape = list(graph.axes(outer)), list(graph.shape(outer))
        graph.pin(axes.pop(place), "the steps of a Scan")
        shape.pop(place)
        graph.shapes[inner.name] = tuple(shape)
        graph.set(inner, axes)
    if not _enter(graph, node, [body]):
        return
    _carry(graph, node, body.inputs[:carried], body.outputs[:carried])
    stacked = list(zip(node.outputs[carried:], body.outputs[carried:], strict=True))
    ends = node.attrs.get("scan_output_axes") or [0] * len(stacked)
    for (output, made), place in zip(stacked, ends, strict=True):
        _stack(graph, output, made, place)


def _enter(graph: Channels, node: gs.Node, bodies: list[gs.Graph]) -> bool:
    """Follows the nodes of the bodies; stops at names that are not their own, by which labels would be confused."""
    if any(name in _reused(graph) for body in bodies for name in _names(body)):
        barrier(graph, node, REUSED)
        return False
    for body in bodies:
        if any(inner.name not in graph.shapes for inner in body.inputs):
            barrier(graph, node)
            return False
        _infer_inside(graph, body)
        graph.follow(body.nodes)
    return True


def _infer_inside(graph: Channels, body: gs.Graph) -> None:
    """Shapes of what a body makes: onnx knows none, since what a Loop carries might change its size."""
    proto = onnx.GraphProto()
    proto.CopyFrom(graph.surgery.proto_of(body))
    kinds = {value.name: value.type.tensor_type.elem_type for value in proto.input}
    inside = _names(body) - kinds.keys() | {tensor.name for tensor in proto.initializer}
    read = {tensor.name: tensor for node in body.nodes for tensor in node.inputs if not tensor.is_empty()}
    del proto.input[:]
    del proto.value_info[:]
    for output in proto.output:
        output.type.tensor_type.ClearField("shape")
    for name in sorted(kinds.keys() | read.keys() - inside):
        shape = tuple(read[name].shape) if isinstance(read.get(name), gs.Constant) else graph.shapes.get(name)
        dtype = getattr(read.get(name), "dtype", None)
        kind = kinds.get(name) or (onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) if dtype else 1)
        proto.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    opset = onnx.helper.make_opsetid("", graph.surgery.graph.opset or 18)
    found = onnx.shape_inference.infer_shapes(onnx.helper.make_model(proto, opset_imports=[opset])).graph
    for value in [*found.value_info, *found.output]:
        if value.type.tensor_type.HasField("shape"):
            sizes = [(dim.dim_value or dim.dim_param or None) for dim in value.type.tensor_type.shape.dim]
            graph.shapes.setdefault(value.name, tuple(sizes))


def _bring(graph: Channels, inner: gs.Tensor, outer: gs.Tensor) -> None:
    graph.shapes[inner.name] = graph.shape(outer)
    graph.set(inner, graph.axes(outer))


def _carry(graph: Channels, node: gs.Node, before: list[gs.Tensor], after: list[gs.Tensor]) -> None:
    """The state after a step is the state before the next."""
    for output, first, last in zip(node.outputs, before, after, strict=False):
        start, end = graph.axes(first), graph.axes(last)
        if len(start) != len(end):
            for tensor in (first, last):
                graph.pin_all(tensor, CARRIED)
        for a, b in zip(start, end, strict=False):
            graph.tie(a, b, CARRIED)
        if not output.is_empty():
            graph.shapes.setdefault(output.name, graph.shape(first))
            graph.set(output, start)


def _stack(graph: Channels, output: gs.Tensor, made: gs.Tensor, place: int) -> None:
    """What a body makes at each step, along a new axis."""
    if output.is_empty():
        return
    axes: Axes = list(graph.axes(made))
    at = place % (len(axes) + 1)
    shape = list(graph.shape(made))
    graph.shapes.setdefault(output.name, (*shape[:at], None, *shape[at:]))
    size = graph.shape(output)[at]
    steps: Labels | None = graph.fresh(size, "steps") if isinstance(size, int) else None
    graph.set(output, [*axes[:at], steps, *axes[at:]])


def _names(body: gs.Graph) -> set[str]:
    """The names that a body defines, those of bodies inside it included."""
    names = {tensor.name for tensor in body.inputs}
    for node in body.nodes:
        names |= {tensor.name for tensor in node.outputs if not tensor.is_empty()}
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                names |= _names(value)
    return names


def _reused(graph: Channels) -> set[str]:
    """Names that two graphs define: the label of one would be that of the other."""
    if graph.reused is None:
        counts: Counter[str] = Counter()
        for part in graphs(graph.surgery.model.proto.graph):
            defined = {value.name for value in part.input} | {tensor.name for tensor in part.initializer}
            defined |= {name for node in part.node for name in node.output if name}
            counts.update(defined)
        graph.reused = {name for name, count in counts.items() if count > 1}
    return graph.reused
