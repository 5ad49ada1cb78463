"""The model with a factor on every channel that a layer reads, fed at run time: masks without building models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnx_compress.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit
    from onnx_compress.model.document import Model
    from onnx_compress.passes.prune.consumers import Consumer
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]


class Gates:
    """Outputs of `model` on `data` with some channels scaled where layers read them."""

    def __init__(self, model: Model, readers: Sequence[Consumer], data: Data, threads: int) -> None:
        self._readers = [r for r in readers if r.node.op not in ("LSTM", "GRU", "RNN")]
        self._data = data
        gated = model.copy()
        graph = gated.proto.graph
        nodes = {node.name: node for node in graph.node}
        made: list[onnx.NodeProto] = []
        for number, reader in enumerate(self._readers):
            name, node = f"gate {number}", nodes[reader.name]
            shape = [1] * self._rank(reader)
            shape[reader.layer.channel_axis] = self._width(reader)
            graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
            source = next(t for t in node.input if t == reader.layer.tensor)
            made.append(onnx.helper.make_node("Mul", [source, name], [f"{name} on"], name=name))
            at = list(node.input).index(source)
            node.input[at] = f"{name} on"
        ordered = _in_order([*graph.node, *made], {value.name for value in graph.input})
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
        del graph.node[:]
        graph.node.extend(copies)
        self._session = Session(gated, threads=threads)
        self.outputs = [value.name for value in model.proto.graph.output]

    def run(self, units: Sequence[Unit], scale: float) -> list[dict[str, Array]]:
        """The outputs, batch by batch, with the channels of `units` times `scale`."""
        gates = {f"gate {i}": self._gate(reader, units, scale) for i, reader in enumerate(self._readers)}
        return [self._session.run({**feeds, **gates}) for feeds in self._data.batches(64)]

    def _gate(self, reader: Consumer, units: Sequence[Unit], scale: float) -> Array:
        shape = [1] * self._rank(reader)
        shape[reader.layer.channel_axis] = self._width(reader)
        gate = np.ones(self._width(reader), np.float32)
        for unit in units:
            gate[reader.channels(unit)] = scale
        return gate.reshape(shape)

    def _width(self, reader: Consumer) -> int:
        return int(reader.weight.shape[reader.inner]) * (reader.group if reader.node.op == "Conv" else 1)

    def _rank(self, reader: Consumer) -> int:
        if reader.layer.kind != "matmul":
            return len(reader.weight.shape)
        return 2


def _in_order(nodes: list[onnx.NodeProto], known: set[str]) -> list[onnx.NodeProto]:
    """The nodes, each after those whose outputs it reads."""
    made = {name for node in nodes for name in node.output}
    ready = set(known)
    out: list[onnx.NodeProto] = []
    waiting = nodes
    while waiting:
        left = []
        for node in waiting:
            if all(name in ready or name not in made for name in node.input):
                out.append(node)
                ready.update(node.output)
            else:
                left.append(node)
        assert len(left) < len(waiting), "a cycle"
        waiting = left
    return out
