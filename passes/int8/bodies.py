"""Branches of an If, bodies of Loop and Scan: each quantized as the model it is, on what reached it while the data ran.

A body reads tensors of the graphs around it: they become its inputs, and what they held is recorded. The pass runs on
the body (and so on those in it), and the result takes the body's place where the whole model keeps to the tolerance.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from onnx_compress.contract import Job, Skip
from onnx_compress.errors import InputError, LimitError
from onnx_compress.model.check import check
from onnx_compress.model.document import LIMIT, Model
from onnx_compress.model.shapes import infer
from onnx_compress.passes.int8.turns import turns
from onnx_compress.runtime.data import Data
from onnx_compress.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from onnx_compress.contract import Change
    from onnx_compress.model.shapes import Shape
    from onnx_compress.passes.int8.search import Found, Search

    Array = NDArray[Any]

RECORDED = 128  # samples whose way through the branches is recorded at most
KEPT = 256 * 2**20  # bytes of them
WORTH = {"Conv", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Gather"}
BODIES = {"If": ("then_branch", "else_branch"), "Loop": ("body",), "Scan": ("body",)}


class Recorded:
    """A reader of feeds that are each a batch of their own."""

    def __init__(self, feeds: list[dict[str, Array]]) -> None:
        self.feeds = feeds
        self.groups = np.arange(len(feeds))  # all different: no two share a batch

    def read(self, rows: Array) -> dict[str, Array]:
        """The feed of one row."""
        return self.feeds[int(rows[0])]

    def targets(self) -> dict[str, Array]:
        """None."""
        return {}


def in_branches(search: Search, found: Found) -> Found:
    """What was found, with the bodies in the main graph quantized where tolerance and clock allow."""
    nodes = [node for node in found.model.proto.graph.node if node.op_type in BODIES and _worth(node)]
    if not nodes or found.model.nbytes > LIMIT:
        return found
    model = search.raised(found.model)  # > the whole of it: a body has the opset of the model it stands in
    if isinstance(model, str):
        return _left(found, {one.name for node in nodes for one in _inside(node)}, model)
    done = replace(found, model=model)
    for node in nodes:
        for key in BODIES[node.op_type]:
            done = _branch(search, done, node.name, key)
    return done if done.changes != found.changes else replace(done, model=found.model)


def branched(model: Model) -> set[str]:
    """Names of all nodes in branches of Ifs: what is done there is done to each branch by itself."""
    return {one.name for node in model.proto.graph.node if node.op_type == "If" for one in _inside(node)}


def _branch(search: Search, found: Found, name: str, key: str) -> Found:
    proto = found.model.to_proto()
    node = next(one for one in proto.graph.node if one.name == name)
    body = next(attribute.g for attribute in node.attribute if attribute.name == key)
    inside = {one.name for one in _nodes(body)}
    if not any(one.op_type in WORTH for one in _nodes(body)):
        return found
    outer = {tensor.name for tensor in proto.graph.initializer}
    captured = sorted(_free(body) - outer)
    words = f"{key.replace('_', ' ')} of {name}"
    try:
        if node.op_type == "If":
            feeds = _record(search, found.model, node.input[0], captured, key == "then_branch")
        else:
            feeds = turns(search, found.model.to_proto(), name, captured)
    except (InputError, LimitError) as failure:
        return _left(found, inside, f"what reaches the {words} cannot be recorded: {failure}")
    if not feeds:
        return _left(found, inside, f"no calibration sample takes the {words}")
    if any(value.dtype.kind not in "fiub" for value in feeds[0].values()):
        return _left(found, inside, f"the {words} reads what is no tensor of numbers")
    alone = _alone(proto, body, captured, infer(found.model), feeds[0])
    job = search.job
    result = replace(search.options, io="float").apply(
        Job(alone, alone, Data(words, Recorded(feeds), np.arange(len(feeds))), job.seed, job.clock)
    )
    search.decisions += result.decisions
    if not any(change.what in ("quantize", "store") for change in result.changes):
        return _told(found, inside, (), result.skips)
    _splice(proto, body, result.model.to_proto(), f"{name}_{key}")
    spliced = Model.from_proto(proto)
    try:
        check(spliced)
        error = search.judge(spliced)
    except InputError as failure:
        return _left(found, inside, f"its branch does not load in int8: {failure}")
    if error > search.bound:
        return _left(found, inside, "in int8 its branch takes the output error over the tolerance")
    told = _told(found, inside, tuple(result.changes), result.skips)
    return replace(told, model=spliced)


def _left(found: Found, inside: set[str], why: str) -> Found:
    names = [skip.node for skip in found.skips if skip.node in inside]
    return _told(found, inside, (), [Skip(name, why) for name in names])


def _told(found: Found, inside: set[str], changes: tuple[Change, ...], skips: Any) -> Found:
    """What was found, with what is said of the nodes of a branch said anew."""
    others = (skip for skip in found.skips if skip.node not in inside)
    return replace(found, changes=(*found.changes, *changes), skips=(*others, *skips))


def _worth(node: onnx.NodeProto) -> bool:
    return any(one.op_type in WORTH for one in _inside(node))


def _inside(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Every node in the bodies of `node`."""
    for attribute in node.attribute:
        yield from _nodes(attribute.g)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of the graph and of the bodies in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _nodes(body)


def _free(graph: onnx.GraphProto) -> set[str]:
    """The tensors that a graph reads from those around it."""
    known = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    known |= {name for node in graph.node for name in node.output}
    read = {value.name for value in graph.output}
    for node in graph.node:
        read |= {name for name in node.input if name}
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                read |= _free(body)
    return read - known


def _record(
    search: Search, model: Model, condition: str, names: list[str], taken: bool
) -> list[dict[str, Array]]:
    """What the tensors `names` held, sample by sample, where the condition sent it this way."""
    inputs = {value.name for value in model.proto.graph.input}
    constants = {tensor.name: model.array(tensor) for tensor in model.proto.graph.initializer}
    wanted = [name for name in {*names, condition} if name not in inputs and name not in constants]
    session = Session(model, threads=search.job.clock.threads, outputs=wanted)
    feeds: list[dict[str, Array]] = []
    size = 0
    for part in (search.fit, search.held):
        for batch in part.take(RECORDED).batches(1):
            values = {**constants, **batch, **session.run(batch, wanted)}
            if bool(np.asarray(values[condition]).reshape(-1)[0]) == taken and size < KEPT:
                # > a sequence is a list: as an array of objects it is told apart
                feeds.append(
                    {
                        name: np.asarray(v, None if isinstance(v, np.ndarray) else object)
                        for name, v in ((n, values[n]) for n in names)
                    }
                )
                size += sum(value.nbytes for value in feeds[-1].values())
    return feeds


def _alone(
    proto: onnx.ModelProto,
    body: onnx.GraphProto,
    captured: list[str],
    shapes: Mapping[str, Shape],
    feed: Mapping[str, Array],
) -> Model:
    """A branch as a model: what it captures are its inputs, and the weights around it its own."""
    made = onnx.ModelProto(ir_version=proto.ir_version)
    made.opset_import.extend(proto.opset_import)
    made.graph.CopyFrom(body)
    own = {value.name: value for value in body.input}
    del made.graph.input[:]
    for name in [*own, *captured]:
        kind = helper.np_dtype_to_tensor_dtype(feed[name].dtype)
        sizes = _declared(own[name]) if name in own else shapes.get(name)
        sizes = sizes if sizes is not None and len(sizes) == feed[name].ndim else [None] * feed[name].ndim
        shape = [size if isinstance(size, int) else f"{name}_{axis}" for axis, size in enumerate(sizes)]
        made.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    read = _free(body)
    made.graph.initializer.extend(tensor for tensor in proto.graph.initializer if tensor.name in read)
    made.graph.name = made.graph.name or "branch"
    return Model.from_proto(made)


def _declared(value: onnx.ValueInfoProto) -> list[int | None]:
    """The sizes that a body's input is declared with, None where they are open."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims]


def _splice(proto: onnx.ModelProto, body: onnx.GraphProto, result: onnx.ModelProto, prefix: str) -> None:
    """The quantized branch takes the place of `body`; what is new in it gets names of its own."""
    outside = {tensor.name: tensor.SerializeToString() for tensor in proto.graph.initializer}
    known = {name for node in _nodes(body) for name in (node.name, *node.output)} | _free(body)
    known |= {tensor.name for tensor in body.initializer}
    new = result.graph
    own = [t for t in new.initializer if outside.get(t.name) != t.SerializeToString()]
    del new.initializer[:]
    new.initializer.extend(own)
    del new.input[:]
    new.input.extend(body.input)
    made = {name for node in _nodes(new) for name in (node.name, *node.output)} | {t.name for t in own}
    clash = {t.name for t in own if t.name in outside}
    _rename(new, {name: f"{prefix}_{name}" for name in (made - known) | clash if name})
    body.CopyFrom(new)
    present = {entry.domain for entry in proto.opset_import}
    proto.opset_import.extend(entry for entry in result.opset_import if entry.domain not in present)
    used = {name for node in _nodes(proto.graph) for name in node.input} | {
        v.name for v in proto.graph.output
    }
    for graph in [a.g for node in _nodes(proto.graph) for a in node.attribute if a.HasField("g")]:
        used |= {value.name for value in graph.output}
    unused = [tensor for tensor in proto.graph.initializer if tensor.name not in used]
    for tensor in unused:
        proto.graph.initializer.remove(tensor)


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Tensors and nodes of the graph and the bodies in it go by other names."""
    for value in (*graph.initializer, *graph.value_info, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.name = names.get(node.name, node.name)
        for fields in (node.input, node.output):
            fields[:] = [names.get(name, name) for name in fields]
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                _rename(body, names)
