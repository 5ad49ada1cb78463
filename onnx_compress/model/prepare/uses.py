"""Which tensors are read, and what nobody reads."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from onnx_compress.model.prepare.edits import Edit
from onnx_compress.model.walk import bodies, graphs

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

    from onnx_compress.model.document import Model


def uses(graph: onnx.GraphProto) -> Counter[str]:
    """How often each tensor is read by a node or returned, in `graph` and its bodies. Names are unique (name_tensors)."""
    return Counter(name for inside in graphs(graph) for name in _read(inside))


def drop_dead(model: Model) -> list[Edit]:
    """Removes nodes whose outputs nobody reads."""
    count = uses(model.proto.graph)
    edits: list[Edit] = []
    for graph in graphs(model.proto.graph):
        for index in range(len(graph.node) - 1, -1, -1):
            node = graph.node[index]
            if any(count[name] for name in node.output):
                continue
            edits.append(Edit(node.name, "drop", f"{node.op_type} that nobody reads", "nothing"))
            for name in _read_inside(node):
                count[name] -= 1
            del graph.node[index]
    return edits


def drop_weights(model: Model) -> list[Edit]:
    """Removes initializers that nobody reads, unless they are inputs too, or training or annotations name them."""
    if model.proto.training_info:
        return []
    count = uses(model.proto.graph)
    edits = []
    for graph in graphs(model.proto.graph):
        named = {value.name for value in graph.input}
        named |= {e.value for a in graph.quantization_annotation for e in a.quant_parameter_tensor_names}
        for index in range(len(graph.initializer) - 1, -1, -1):
            tensor = graph.initializer[index]
            if count[tensor.name] or tensor.name in named:
                continue
            size = "x".join(str(size) for size in tensor.dims) or "a scalar"
            edits.append(Edit(tensor.name, "drop", f"weight {size} that nobody reads", "nothing"))
            del graph.initializer[index]
    return edits


def drop_stale_shapes(model: Model) -> None:
    """Forgets the recorded shapes of tensors that are no more."""
    for graph in graphs(model.proto.graph):
        known = {name for node in graph.node for name in node.output}
        known |= {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
        for index in range(len(graph.value_info) - 1, -1, -1):
            if graph.value_info[index].name not in known:
                del graph.value_info[index]


def _read(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (name for node in graph.node for name in node.input if name)
    yield from (value.name for value in graph.output)


def _read_inside(node: onnx.NodeProto) -> Iterator[str]:
    yield from (name for name in node.input if name)
    for body in bodies(node):
        for inside in graphs(body):
            yield from _read(inside)
