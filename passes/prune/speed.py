"""Milliseconds of every layer at every width, from micro-models of the layer as it will be shipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnx_compress.errors import CompressError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.contract import Job
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.passes.prune.consumers import Consumer
    from onnx_compress.passes.prune.cost import Gone

    Array = NDArray[Any]

POINTS = (1.0, 0.75, 0.5, 0.25)  # of an axis at which a layer is timed; between them time is taken as linear
RUNS = 8  # samples for each time: a table forgives what a decision would not


@dataclass(frozen=True)
class Table:
    """Milliseconds of one layer: `whole`, and at shares of its inner and outer axis, relative to it."""

    whole: float
    inner: Array
    outer: Array

    def at(self, inner: Any, outer: Any) -> Any:
        """With these shares of its input and output channels left."""
        points = POINTS[::-1]
        return (
            self.whole
            * np.interp(inner, points, self.inner[::-1])
            * np.interp(outer, points, self.outer[::-1])
        )


@dataclass(frozen=True)
class Milliseconds:
    """The table of every layer that could be timed; what could not is no part of any sum."""

    tables: dict[str, Table]
    readers: dict[str, Consumer]

    def of(self, gone: Gone) -> Any:
        """Milliseconds of all layers."""
        total = 0.0
        for name, table in self.tables.items():
            reader = self.readers[name]
            weight = reader.weight
            shares = [
                1 - gone.get((weight.name, axis), 0) / weight.shape[axis]
                for axis in (reader.inner, reader.outer)
            ]
            total += table.at(*shares)
        return total


def measure(
    job: Job, readers: Sequence[Consumer], shapes: Mapping[str, Shape], multiple: int
) -> Milliseconds:
    """Times every layer; layers that differ in their weights only share a table."""
    tables: dict[str, Table] = {}
    known: dict[str, Table | None] = {}
    usable = [r for r in readers if r.output]
    for done, reader in enumerate(usable):
        job.progress(done, len(usable), "timing layers")
        key = _signature(job.model, reader, shapes)
        if key not in known:
            known[key] = _table(job, reader, shapes, multiple)
        table = known[key]
        if table is not None:
            tables[reader.name] = table
    return Milliseconds(tables, {r.name: r for r in usable})


def _signature(model: Model, reader: Consumer, shapes: Mapping[str, Shape]) -> str:
    node = next(node for node in model.proto.graph.node if node.name == reader.name)
    attributes = sorted(str(attribute) for attribute in node.attribute)
    return f"{node.op_type} {attributes} {reader.weight.shape} {shapes.get(reader.layer.tensor)}"


def _table(job: Job, reader: Consumer, shapes: Mapping[str, Shape], multiple: int) -> Table | None:
    whole = _time(job, reader, shapes, 1.0, 1.0, multiple)
    if not whole:
        return None
    grouped = reader.group > 1  # its inner axis is of one group: input and output shrink together
    inner = [1.0] + [
        1.0 if grouped else _time(job, reader, shapes, point, 1.0, multiple) / whole for point in POINTS[1:]
    ]
    outer = [1.0] + [
        point if grouped else _time(job, reader, shapes, 1.0, point, multiple) / whole for point in POINTS[1:]
    ]
    return Table(whole, np.array(inner), np.array(outer))


def _time(
    job: Job, reader: Consumer, shapes: Mapping[str, Shape], inner: float, outer: float, multiple: int
) -> float:
    made = _micro_model(job.model, reader, shapes, inner, outer, multiple)
    if made is None:
        return 0.0
    model, feeds = made
    try:
        return job.clock.time(f"{reader.name} {inner}x{outer}", job.finish(model), feeds, RUNS)
    except CompressError:
        if job.clock.replaying:
            raise
        return 0.0


def _micro_model(
    model: Model, reader: Consumer, shapes: Mapping[str, Shape], inner: float, outer: float, multiple: int
) -> tuple[Model, dict[str, Array]] | None:
    """The layer alone with shares of its channels, and one batch for it."""
    shape = shapes.get(reader.layer.tensor)
    if shape is None or not all(isinstance(size, int) for size in shape):
        return None
    sizes = [int(size) for size in shape if isinstance(size, int)]
    node = next(node for node in model.proto.graph.node if node.name == reader.name)
    micro = model.copy()
    keep_in = _kept(int(reader.weight.shape[reader.inner]), inner, multiple)
    keep_out = _kept(int(reader.weight.shape[reader.outer]), outer, multiple)
    weights = []
    for tensor in [t for t in micro.proto.graph.initializer if t.name in node.input]:
        value = np.asarray(micro.array(tensor))
        if tensor.name == reader.weight.name:
            value = np.take(np.take(value, range(keep_in), reader.inner), range(keep_out), reader.outer)
        elif value.ndim == 1 and len(value) == reader.weight.shape[reader.outer]:
            value = value[:keep_out]
        weights.append(micro.tensor(np.ascontiguousarray(value), tensor.name))
    if inner < 1:
        sizes[reader.layer.channel_axis] = keep_in
    source, result = reader.layer.tensor, node.output[0]
    if set(filter(None, node.input)) - {source} - {tensor.name for tensor in weights}:
        return None
    micro.proto.graph.CopyFrom(onnx.GraphProto(name="layer", node=[node], initializer=weights))
    kind = onnx.TensorProto.FLOAT
    micro.proto.graph.input.append(onnx.helper.make_tensor_value_info(source, kind, sizes))
    micro.proto.graph.output.append(onnx.helper.make_tensor_value_info(result, kind, None))
    del micro.proto.functions[:]
    micro.collect()
    values = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
    return micro, {source: values}


def _kept(size: int, share: float, multiple: int) -> int:
    """A share of an axis, as a multiple where there is room for one."""
    if share == 1 or size < 2 * multiple:
        return max(1, round(size * share))
    return max(multiple, round(size * share / multiple) * multiple)
