"""A walk through a model, node after node, with the tensors that later nodes need held for every sample.

To fit a layer to what the layers before it now give, one needs its input after every earlier edit. Run from the start for
each layer, that costs layers²; on a walk each node runs once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnx_compress.errors import InputError
from onnx_compress.runtime.held import Held, Shelf
from onnx_compress.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]


class Walk:
    """`model` on the samples of `data`, run up to a node of the main graph, at first to none.

    wanted: tensors, each with the place up to which it is held; only what these need is run.
    batches: the live tensors of each batch by name, beyond a limit in files; sizes: samples in each.
    `advance` raises InputError where a tensor to be held is a sequence or a map.
    """

    def __init__(
        self, model: Model, data: Data, wanted: Mapping[str, int], *, batch: int = 32, threads: int = 0
    ) -> None:
        self.model = model
        self.wanted = dict(wanted)
        self.at = 0
        shelf = Shelf()
        self.batches: list[Held] = []
        for feeds in data.batches(batch):
            self.batches.append(Held(shelf))
            self.batches[-1].update(feeds)
        self.sizes = [
            next((len(value) for value in feeds.values() if np.ndim(value)), 1) for feeds in self.batches
        ]
        self._nodes = list(model.proto.graph.node)
        self._reads = [_reads(node) for node in self._nodes]
        self._needed = _ancestors(self._nodes, self._reads, set(wanted))
        self._weights = {tensor.name for tensor in model.proto.graph.initializer}
        self._threads = threads

    def live(self, at: int) -> set[str]:
        """The tensors that nodes from the `at`-th on still need, and those wanted, as far as they are there."""
        there = {name for node in self._nodes[:at] for name in node.output}
        there |= {name for feeds in self.batches[:1] for name in feeds}
        later = {name for i in range(at, len(self._nodes)) if i in self._needed for name in self._reads[i]}
        held = {name for name, last in self.wanted.items() if last >= at}
        return (later | held) & there - self._weights - {""}

    def advance(self, at: int, edit: Callable[[Model], Model] | None = None) -> None:
        """Runs the nodes before the `at`-th, as `edit` leaves the model made of them alone."""
        nodes = [self._nodes[i] for i in range(self.at, at) if i in self._needed]
        live = self.live(at)
        self.at = max(self.at, at)
        if nodes:
            part = _segment(self.model, nodes, self.batches[0], live)
            session = Session(edit(part) if edit else part, threads=self._threads)
            fresh = [name for name in session.outputs if name in live]
            for held in self.batches:
                held.update(session.run(held, fresh))
        for held in self.batches:
            for name in [name for name in held if name not in live]:
                del held[name]


def _segment(
    model: Model, nodes: Sequence[onnx.NodeProto], given: Mapping[str, Array], live: set[str]
) -> Model:
    """The model of `nodes` alone: from the tensors `given` (one batch of them) to those of them that are `live`."""
    part = model.copy()
    graph = part.proto.graph
    made = {name for node in nodes for name in node.output}
    reads = {name for node in nodes for name in _reads(node)}
    inputs = []
    for name in sorted(reads.intersection(given)):
        if not isinstance(given[name], np.ndarray):
            raise InputError(f"tensor {name!r} is no array, so a walk cannot hold it")
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.asarray(given[name]).dtype)
        # free sizes: the last batch may be smaller
        inputs.append(onnx.helper.make_tensor_value_info(name, kind, [None] * np.ndim(given[name])))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    weights = [tensor for tensor in graph.initializer if tensor.name in reads]
    fresh = onnx.GraphProto(name=graph.name or "segment", node=copies, input=inputs, initializer=weights)
    fresh.sparse_initializer.extend(t for t in graph.sparse_initializer if t.values.name in reads)
    fresh.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(made & live))
    graph.CopyFrom(fresh)
    part.collect()
    return part


def _ancestors(nodes: Sequence[onnx.NodeProto], reads: Sequence[set[str]], wanted: set[str]) -> set[int]:
    """Places of the nodes that `wanted` depends on."""
    needed, places = set(wanted), set()
    for place in range(len(nodes) - 1, -1, -1):
        if needed.intersection(nodes[place].output):
            places.add(place)
            needed |= reads[place]
    return places


def _reads(node: onnx.NodeProto) -> set[str]:
    """The tensors that `node` reads, those that its bodies capture included."""
    names = set(node.input)
    for attribute in node.attribute:
        for body in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            for inner in body.node:
                names |= _reads(inner)
            names |= {value.name for value in body.output}
    return names
