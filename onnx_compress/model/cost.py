"""What a model costs: bytes, weights, and multiply-adds, as a whole and layer by layer."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from onnx import TensorProto, helper

from onnx_compress.model.inline_functions import inline_functions
from onnx_compress.model.macs import MACS
from onnx_compress.model.shapes import infer
from onnx_compress.model.walk import bodies

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx

    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape


@dataclass(frozen=True)
class LayerCost:
    """A node that multiplies or holds weights. bytes: of its weights as stored; a tied weight counts at every user."""

    node: str
    op: str
    macs: int
    params: int
    bytes: int


@dataclass(frozen=True)
class Cost:
    """bytes: of the file; params: elements of all weights, tied ones once; macs: multiply-adds of one run, of the
    costlier branch of an If and one turn of a Loop; nodes: of all graphs; layers: in graph order; memory: bytes of the
    weights once the model is loaded, where clustered ones are unfolded.
    """

    bytes: int
    params: int
    macs: int
    nodes: int
    layers: list[LayerCost]
    memory: int = 0


def cost(model: Model, shapes: Mapping[str, Shape]) -> Cost:
    """The cost of `model`, whose tensors have `shapes`; an unknown size counts as 1, so a symbolic batch is one sample.

    Multiply-adds are those of Conv, ConvTranspose, Gemm, MatMul, Einsum and the RNNs, and of their quantized forms.
    Weights are the constants of rank 1 or more that nodes use, of a float or a small integer type: not scales, zero
    points and shapes; of a clustered weight the indices count, not the codebook.
    """
    proto = model.proto
    if proto.functions:
        inlined = inline_functions(model)
        shapes = {**infer(inlined, _fixed(proto.graph, shapes)), **shapes}
        proto = inlined.proto
    count = _Count(shapes)
    macs = count.graph(proto.graph, {})
    params = sum(weight.params for weight in count.used.values())
    memory = sum(weight.bytes if weight.loaded is None else weight.loaded for weight in count.used.values())
    return Cost(model.nbytes, params, macs, count.nodes, count.layers, memory)


def _fixed(graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> dict[str, tuple[int, ...]]:
    """The inputs all of whose sizes are known."""
    fixed = {}
    for value in graph.input:
        shape = shapes.get(value.name, (None,))
        sizes = tuple(axis for axis in shape if isinstance(axis, int))
        if len(sizes) == len(shape):
            fixed[value.name] = sizes
    return fixed


@dataclass(frozen=True)
class _Weight:
    """A constant as stored: `key` tells tied weights; `params` is 0 where its type is no weight's; `loaded`: bytes it is
    unfolded to.
    """

    key: int
    data_type: int
    params: int
    bytes: int
    loaded: int | None = None


@dataclass(frozen=True)
class _Constant:
    """A tensor computed from constants alone: the weights behind it, and its shape where it is itself a constant."""

    weights: tuple[_Weight, ...] = ()
    dims: tuple[int, ...] | None = None


@dataclass
class _Count:
    """The state of one count; a scope holds the constants that a graph sees."""

    shapes: Mapping[str, Shape]
    layers: list[LayerCost] = field(default_factory=list)
    used: dict[int, _Weight] = field(default_factory=dict)
    nodes: int = 0
    keys: Iterator[int] = field(default_factory=itertools.count)

    def graph(self, graph: onnx.GraphProto, outer: Mapping[str, _Constant]) -> int:
        """The MACs of `graph`, whose weights and layers are added to the count."""
        scope = dict(outer)
        for tensor in graph.initializer:
            scope[tensor.name] = _constant(next(self.keys), tensor)
        for sparse in graph.sparse_initializer:
            scope[sparse.values.name] = _constant(next(self.keys), sparse.values, tuple(sparse.dims))
        return sum(self._node(node, scope) for node in graph.node)

    def _node(self, node: onnx.NodeProto, scope: dict[str, _Constant]) -> int:
        self.nodes += 1
        inner = [self.graph(body, scope) for body in bodies(node)]
        if node.op_type == "Constant":
            scope[node.output[0]] = _constant_node(next(self.keys), node)
            return 0
        found = list(_weights(node, scope))
        if node.op_type == "Gather" and _is_clustered(node, scope):
            found = self._indexed(node, found, scope[node.input[0]])
        weights = {weight.key: weight for weight in found if weight.params}
        if not inner and node.input and all(name in scope for name in node.input if name):
            derived = _Constant(tuple(weights.values()))
            scope.update(dict.fromkeys(node.output, derived))
            return 0

        def shape(name: str) -> Shape | None:
            constant = scope.get(name)
            return constant.dims if constant and constant.dims is not None else self.shapes.get(name)

        macs = MACS[node.op_type](node, shape) if node.op_type in MACS else 0
        self.used.update(weights)
        if macs or weights:
            params = sum(weight.params for weight in weights.values())
            stored = sum(weight.bytes for weight in weights.values())
            self.layers.append(LayerCost(node.name, node.op_type, macs, params, stored))
        return macs + (max(inner, default=0) if node.op_type == "If" else sum(inner))

    def _indexed(self, node: onnx.NodeProto, weights: list[_Weight], values: _Constant) -> list[_Weight]:
        """The indices of a clustered weight: as many as it has values, however they are packed; values: its codebook."""
        largest = max(weights, key=lambda weight: weight.bytes, default=None)
        shape = self.shapes.get(node.output[0])
        if largest is None or shape is None or not all(isinstance(axis, int) for axis in shape):
            return weights
        count = math.prod(axis for axis in shape if isinstance(axis, int))
        loaded = count * _width(values.weights[0].data_type) // 8
        return [
            replace(weight, params=count, loaded=loaded) if weight is largest else replace(weight, params=0)
            for weight in weights
        ]


def _constant(key: int, tensor: TensorProto, dims: tuple[int, ...] | None = None) -> _Constant:
    count = math.prod(tensor.dims)
    counts = len(tensor.dims) > 0 and tensor.data_type in _BITS
    stored = -(-count * _width(tensor.data_type) // 8)
    weight = _Weight(key, tensor.data_type, count if counts else 0, stored)
    return _Constant((weight,), tuple(tensor.dims) if dims is None else dims)


def _width(data_type: int) -> int:
    """Bits of one element."""
    if data_type in _BITS or data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        return _BITS.get(data_type, 0)
    return 8 * int(helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _constant_node(key: int, node: onnx.NodeProto) -> _Constant:
    for attribute in node.attribute:
        if attribute.name == "value":
            return _constant(key, attribute.t)
        if attribute.name == "sparse_value":
            return _constant(key, attribute.sparse_tensor.values, tuple(attribute.sparse_tensor.dims))
        if attribute.name == "value_floats":
            size = len(attribute.floats)
            return _Constant((_Weight(key, TensorProto.FLOAT, size, 4 * size),), (size,))
    return _Constant()


def _weights(node: onnx.NodeProto, scope: Mapping[str, _Constant]) -> Iterator[_Weight]:
    """The constants that `node` reads as data: no scales, zero points or codebooks."""
    beside = _BESIDE.get(node.op_type, frozenset())
    if node.op_type in ("Gather", "GatherElements", "GatherND") and _is_clustered(node, scope):
        beside = frozenset({0})
    for index, name in enumerate(node.input):
        constant = scope.get(name)
        if constant is None or index in beside:
            continue
        for weight in constant.weights:
            yield replace(weight, params=_params(node, weight))


def _params(node: onnx.NodeProto, weight: _Weight) -> int:
    if node.op_type in _INT32_DATA and weight.data_type == TensorProto.INT32:
        return weight.bytes // 4  # a quantized bias
    if node.op_type == "MatMulNBits":
        bits = next((a.i for a in node.attribute if a.name == "bits"), 4)
        return weight.bytes * 8 // int(bits)
    return weight.params


def _is_clustered(node: onnx.NodeProto, scope: Mapping[str, _Constant]) -> bool:
    """Gather(codebook, Cast(indices)), the stored form of a clustered weight: its indices have a weight's type."""
    codebook, indices = (scope.get(name) for name in node.input[:2])
    return codebook is not None and indices is not None and any(weight.params for weight in indices.weights)


# inputs that stand beside a node's data: scales, zero points, sizes
_BESIDE: dict[str, frozenset[int]] = {
    "QuantizeLinear": frozenset({1, 2}),
    "DequantizeLinear": frozenset({1, 2}),
    "QLinearConv": frozenset({1, 2, 4, 5, 6, 7}),
    "QLinearMatMul": frozenset({1, 2, 4, 5, 6, 7}),
    "ConvInteger": frozenset({2, 3}),
    "MatMulInteger": frozenset({2, 3}),
    "QGemm": frozenset({1, 2, 4, 5, 7, 8}),
    "DynamicQuantizeMatMul": frozenset({2, 3}),
    "DynamicQuantizeLSTM": frozenset({8, 9, 10, 11}),
    "MatMulNBits": frozenset({2, 3, 4}),
    "Resize": frozenset({1, 2, 3}),
    "Upsample": frozenset({1}),
}
_INT32_DATA = frozenset({"DequantizeLinear", "QLinearConv", "QGemm"})

_BITS: dict[int, int] = {
    TensorProto.DOUBLE: 64,
    TensorProto.FLOAT: 32,
    **dict.fromkeys([TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.UINT16, TensorProto.INT16], 16),
    **dict.fromkeys([TensorProto.UINT8, TensorProto.INT8], 8),
    **dict.fromkeys(range(TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2FNUZ + 1), 8),
    **dict.fromkeys([TensorProto.UINT4, TensorProto.INT4], 4),
    **dict.fromkeys([TensorProto.UINT2, TensorProto.INT2], 2),
}
