"""onnx-graphsurgeon as the editing view of a model; what no edit touched stays byte for byte what it was.

The view is never the exporter: it remembers the NodeProto behind each node, and `commit` merges only what changed onto
the skeleton.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model

    Array = NDArray[Any]
    _Scope = dict[str, tuple[onnx.GraphProto, onnx.TensorProto]]  # weights by name, each with its graph


class _Mapped(LazyValues):  # type: ignore[misc]
    """The value of a Constant, read from the model when first asked for, and recognisable as unchanged."""

    def __init__(self, tensor: onnx.TensorProto, model: Model) -> None:
        self.tensor = tensor
        self.model = model
        self.shape = list(tensor.dims)
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        self.nbytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        self.loaded: Array | None = None

    def load(self) -> Array:
        """The array, read-only."""
        if self.loaded is None:
            self.loaded = self.model.array(self.tensor)
        return self.loaded


class Surgery:
    """An editing view of `model`, which itself is not changed.

    graph: the main gs.Graph (If, Loop and Scan bodies are attributes of their nodes, as in onnx-graphsurgeon);
    a gs.Constant's `values` reads as an array, and assigning an array to it is an edit.
    """

    def __init__(self, model: Model) -> None:
        self.model = model.copy()
        self._nodes: dict[int, tuple[gs.Node, onnx.NodeProto, tuple[Any, ...]]] = {}
        self._weights: dict[int, tuple[gs.Constant, onnx.GraphProto, onnx.TensorProto]] = {}
        self._protos: dict[int, onnx.GraphProto] = {}
        self._taken: set[str] = set()
        self.graph = _import(self.model.proto)
        self._remember(self.graph, self.model.proto.graph, {})
        self._used_before = {id(constant) for constant, _ in self._used()}

    def graphs(self) -> Iterator[gs.Graph]:
        """The main graph, then every body, outer before inner."""
        waiting = [self.graph]
        while waiting:
            graph = waiting.pop(0)
            yield graph
            for node in graph.nodes:
                waiting += [body for _, bodies in _bodies(node) for body in bodies]

    def nodes(self) -> Iterator[gs.Node]:
        """Every node of every graph."""
        for graph in self.graphs():
            yield from graph.nodes

    def fresh(self, hint: str) -> str:
        """A tensor or node name that is not in use anywhere in the model."""
        name, number = hint, 0
        while name in self._taken:
            number += 1
            name = f"{hint}_{number}"
        self._taken.add(name)
        return name

    def owner(self, weight: gs.Constant) -> gs.Graph:
        """The graph that holds `weight`: the one whose initializer it is; of a new one, the main graph."""
        known = self._weights.get(id(weight))
        holders = (graph for graph in self.graphs() if known and self._protos[id(graph)] is known[1])
        return next(holders, self.graph)

    def constant(self, hint: str, value: Array) -> gs.Constant:
        """A new weight with a fresh name."""
        return gs.Constant(self.fresh(hint), np.asarray(value))

    def variable(self, hint: str) -> gs.Variable:
        """A new tensor with a fresh name."""
        return gs.Variable(self.fresh(hint))

    def node(
        self, op: str, hint: str, inputs: list[Any], outputs: list[Any] | None = None, **attrs: Any
    ) -> gs.Node:
        """A new node with a fresh name, in no graph yet; one fresh output where none are given."""
        domain = attrs.pop("domain", None)
        name = self.fresh(hint)
        out = outputs if outputs is not None else [self.variable(f"{name}_out")]
        return gs.Node(op, name, attrs, inputs, out, domain)

    def proto_of(self, graph: gs.Graph) -> onnx.GraphProto:
        """The skeleton behind a graph, as it was read."""
        return self._protos[id(graph)]

    def holder(self, node: gs.Node) -> gs.Graph:
        """The graph, main or body, that `node` stands in."""
        return next(graph for graph in self.graphs() if any(other is node for other in graph.nodes))

    def replace(self, graph: gs.Graph, old: gs.Node, new: list[gs.Node]) -> None:
        """`new` nodes take the place of `old` in the order of `graph`; the last of them gives old's outputs."""
        at = next(i for i, node in enumerate(graph.nodes) if node is old)
        outputs = list(old.outputs)
        old.inputs.clear()
        old.outputs.clear()
        if new:
            new[-1].outputs = outputs
        graph.nodes[at : at + 1] = new

    def forget_shapes(self, names: Iterable[str]) -> None:
        """Drops the recorded shapes of these tensors: an edit made them untrue. The main graph's inputs and outputs stay."""
        gone = set(names)
        for proto in self._protos.values():
            keep = [info for info in proto.value_info if info.name not in gone]
            if len(keep) != len(proto.value_info):
                del proto.value_info[:]
                proto.value_info.extend(keep)
            for info in [] if proto is self.model.proto.graph else [*proto.input, *proto.output]:
                if info.name in gone:
                    for dim in info.type.tensor_type.shape.dim:
                        dim.Clear()

    def commit(self) -> Model:
        """The edited model. The view must not be used afterwards."""
        self._commit_weights()
        self._commit_graph(self.graph, self.model.proto.graph)
        self.model.collect()
        return self.model

    def _remember(self, graph: gs.Graph, proto: onnx.GraphProto, outer: _Scope) -> None:
        """Keeps the proto behind every node and weight of `graph` and its bodies; `outer`: the weights around it."""
        self._protos[id(graph)] = proto
        named = [*proto.input, *proto.output, *proto.value_info, *proto.initializer]
        self._taken.update(value.name for value in named)
        scope = {**outer, **{tensor.name: (proto, tensor) for tensor in proto.initializer}}
        for tensor in graph.tensors().values():
            if isinstance(tensor, gs.Constant) and id(tensor) not in self._weights and tensor.name in scope:
                # graph.tensors() of the main graph lacks a weight that only a body reads
                owner, initializer = scope[tensor.name]
                tensor._values = _Mapped(initializer, self.model)  # noqa: SLF001
                self._weights[id(tensor)] = (tensor, owner, initializer)
        for node, node_proto in zip(graph.nodes, proto.node, strict=True):
            self._taken.update([node_proto.name, *node_proto.output])
            attributes = {attribute.name: attribute for attribute in node_proto.attribute}
            for key, value in node.attrs.items():
                if isinstance(value, gs.Constant):
                    value._values = _Mapped(attributes[key].t, self.model)  # noqa: SLF001
            for key, bodies in _bodies(node):
                attribute = attributes[key]
                protos = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
                for body, body_proto in zip(bodies, protos, strict=True):
                    self._remember(body, body_proto, scope)
            self._nodes[id(node)] = (node, node_proto, _state(node))

    def _used(self) -> Iterator[tuple[gs.Constant, gs.Graph]]:
        """Every weight that a node reads or a graph returns, with the graph that uses it."""
        for graph in self.graphs():
            for tensor in (t for node in graph.nodes for t in node.inputs):
                if isinstance(tensor, gs.Constant):
                    yield tensor, graph
            for tensor in graph.outputs:
                if isinstance(tensor, gs.Constant):
                    yield tensor, graph

    def _commit_weights(self) -> None:
        """Writes changed and new weights, and drops those whose last user an edit removed."""
        users: dict[int, tuple[gs.Constant, set[int]]] = {}
        for constant, graph in self._used():
            users.setdefault(id(constant), (constant, set()))[1].add(id(graph))
        for key, (constant, graphs) in users.items():
            known = self._weights.get(key)
            values = constant._values  # noqa: SLF001
            if known is None and isinstance(values, np.ndarray):
                graph = next(iter(graphs)) if len(graphs) == 1 else id(self.graph)
                self._protos[graph].initializer.append(self.model.tensor(values, constant.name))
            elif known is not None and isinstance(values, np.ndarray):
                before = self.model.array(known[2])
                if not _same(before, values):
                    self.model.set_array(known[2], values)
        for key, (_, proto, tensor) in self._weights.items():
            if key in self._used_before and key not in users:
                proto.initializer.remove(tensor)

    def _commit_graph(self, graph: gs.Graph, proto: onnx.GraphProto) -> None:
        for node in graph.nodes:
            for _, bodies in _bodies(node):
                for body in bodies:
                    self._commit_graph(body, self._protos[id(body)])
        nodes = [self._commit_node(node) for node in graph.nodes]
        if len(nodes) == len(proto.node) and all(a is b for a, b in zip(nodes, proto.node, strict=True)):
            return
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del proto.node[:]
        proto.node.extend(copies)
        _drop_stale_shapes(proto)

    def _commit_node(self, node: gs.Node) -> onnx.NodeProto:
        known = self._nodes.get(id(node))
        if known is None:
            return self._new_node(node)
        _, proto, before = known
        after = _state(node)
        if after != before:
            _merge(self._new_node(node), proto, before, after)
        return proto

    def _new_node(self, node: gs.Node) -> onnx.NodeProto:
        inputs, outputs = [t.name for t in node.inputs], [t.name for t in node.outputs]
        proto = onnx.helper.make_node(node.op, inputs, outputs, name=node.name, domain=node.domain)
        bodies = {key for key, _ in _bodies(node)}
        for key, value in node.attrs.items():
            if key in bodies or isinstance(value, gs.Node.AttributeRef):
                continue  # these are merged from the node they were read from
            if isinstance(value, gs.Constant):
                value = self.model.tensor(value.values, value.name)  # noqa: PLW2901
            if key == "dtype" and isinstance(value, np.dtype | type):
                value = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(value))  # noqa: PLW2901
            proto.attribute.append(onnx.helper.make_attribute(key, value))
        return proto


def _merge(
    fresh: onnx.NodeProto, proto: onnx.NodeProto, before: tuple[Any, ...], after: tuple[Any, ...]
) -> None:
    """The fields of `proto` that the edit changed become those of `fresh`."""
    if after[:3] != before[:3]:
        proto.op_type, proto.name, proto.domain = fresh.op_type, fresh.name, fresh.domain
    if after[3] != before[3]:
        proto.input[:] = after[3]
    if after[4] != before[4]:
        proto.output[:] = after[4]
    old = {attribute.name: attribute for attribute in proto.attribute}
    new = {attribute.name: attribute for attribute in fresh.attribute}
    for key in before[5].keys() - after[5].keys():
        proto.attribute.remove(old[key])
    for key, value in after[5].items():
        if key not in before[5]:
            proto.attribute.add().CopyFrom(new[key])
        elif value != before[5][key]:
            old[key].CopyFrom(new[key])


def _state(node: gs.Node) -> tuple[Any, ...]:
    """What of a node an edit may change, in a form that compares."""
    attributes = {key: _comparable(value) for key, value in node.attrs.items()}
    inputs, outputs = [t.name for t in node.inputs], [t.name for t in node.outputs]
    return node.op, node.domain or "", node.name, inputs, outputs, attributes


def _comparable(value: Any) -> Any:
    if isinstance(value, gs.Constant):
        values = value._values  # noqa: SLF001
        loaded = values.loaded if isinstance(values, _Mapped) else values
        return ("tensor", id(value), None if isinstance(values, _Mapped) else id(loaded))
    if isinstance(value, gs.Graph):
        return ("graph", id(value))
    if isinstance(value, list) and value and isinstance(value[0], gs.Graph):
        return ("graphs", [id(graph) for graph in value])
    return repr(value)  # > not the value: NaN differs from itself


def _same(a: Array, b: Array) -> bool:
    return a is b or (
        a.shape == b.shape and a.dtype == b.dtype and np.ascontiguousarray(a).tobytes() == b.tobytes()
    )


def _bodies(node: gs.Node) -> Iterator[tuple[str, list[gs.Graph]]]:
    for key, value in node.attrs.items():
        if isinstance(value, gs.Graph):
            yield key, [value]
        elif isinstance(value, list) and value and isinstance(value[0], gs.Graph):
            yield key, value


def _drop_stale_shapes(proto: onnx.GraphProto) -> None:
    """Forgets value_info of tensors that no longer exist."""
    known = {name for node in proto.node for name in node.output}
    known |= {tensor.name for tensor in proto.initializer} | {value.name for value in proto.input}
    for info in [info for info in proto.value_info if info.name not in known]:
        proto.value_info.remove(info)


def _import(proto: onnx.ModelProto) -> gs.Graph:
    """The gs.Graph of a copy from which everything was taken that onnx-graphsurgeon cannot read."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.functions[:]
    _soften(copy.graph)
    G_LOGGER.severity = G_LOGGER.ERROR
    return OnnxImporter.import_graph(
        copy.graph, opset=OnnxImporter.get_opset(copy), import_domains=copy.opset_import
    )


def _soften(graph: onnx.GraphProto) -> None:
    inputs = {value.name for value in graph.input}
    for tensor in [t for t in graph.initializer if t.name in inputs]:
        graph.initializer.remove(tensor)  # an input that a caller may override is no constant
    del graph.sparse_initializer[:]
    for tensor in graph.initializer:
        tensor.data_type = onnx.TensorProto.UINT8
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _soften(attribute.g)
            for body in attribute.graphs:
                _soften(body)
            if attribute.HasField("t"):
                attribute.t.data_type = onnx.TensorProto.UINT8
            if attribute.s and not _is_text(attribute.s):
                attribute.s = b""
            if attribute.strings and not all(_is_text(value) for value in attribute.strings):
                del attribute.strings[:]


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
