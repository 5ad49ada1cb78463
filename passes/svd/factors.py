"""The edits: a layer's node becomes two, whose weights are its factors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.svd.layers import bias_holder, is_left, weight_of
from onnx_compress.passes.svd.spatial import spatial_product

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.passes.svd.layers import Layer

    Array = NDArray[Any]

Method = Literal["svd", "spatial", "dense"]


@dataclass(frozen=True)
class Factors:
    """Two weights for one, or ("dense") another weight of the same shape.

    svd: first (groups, r, K) and second (groups, N / groups, r); spatial: first (r, C, kh) and second (N, r, kw);
    dense: second is the weight (groups, N / groups, K), and first is empty.
    shift: what is added to the layer's bias (N,), or None.
    """

    method: Method
    first: Array
    second: Array
    shift: Array | None = None

    @property
    def rank(self) -> int:
        """Of each group."""
        return int(self.first.shape[1] if self.method == "svd" else self.first.shape[0])

    @property
    def params(self) -> int:
        """Weights they hold."""
        return int(self.first.size + self.second.size)

    def product(self) -> Array:
        """The weight they stand for, (groups, N / groups, K)."""
        if self.method == "dense":
            return self.second
        if self.method == "svd":
            return np.matmul(self.second, self.first)
        return spatial_product(self.first, self.second).reshape(1, len(self.second), -1)


def factored_macs(layer: Layer, method: str, rank: int) -> int:
    """Multiply-adds of one sample with `layer` factored at `rank` (a group)."""
    groups, n, k = layer.weight.shape
    if method == "svd":
        return layer.positions * groups * rank * (n + k)
    kw = layer.kernel[1]
    return layer.between * rank * (k // kw) + layer.positions * rank * n * kw


def factored_params(layer: Layer, method: str, rank: int) -> int:
    """Weights of `layer` factored at `rank` (a group)."""
    groups, n, k = layer.weight.shape
    if method == "svd":
        return groups * rank * (n + k)
    return rank * (k // layer.kernel[1] + n * layer.kernel[1])


def apply_factors(model: Model, plan: Mapping[str, Factors]) -> Model:
    """A model in which the layer that writes each tensor of `plan` is replaced by its factors."""
    surgery = Surgery(model)
    nodes = [node for node in surgery.graph.nodes if node.outputs and node.outputs[0].name in plan]
    for node in nodes:
        replace_node(surgery, node, plan[node.outputs[0].name])
    return surgery.commit()


def replace_node(surgery: Surgery, node: gs.Node, factors: Factors) -> None:
    """`factors` take the place of `node` in the main graph."""
    weight = weight_of(node)
    assert weight is not None
    kind = weight.values.dtype
    if factors.shift is not None:
        _shift_bias(surgery, node, factors.shift.astype(kind))
    if factors.method == "dense":
        _put_weight(surgery, node, factors.second, kind)
        return
    make = {"Conv": _conv, "Gemm": _gemm, "MatMul": _matmul}[node.op]
    first, second = make(surgery, node, factors, kind)
    surgery.replace(surgery.graph, node, [first, second])


def _conv(surgery: Surgery, node: gs.Node, factors: Factors, kind: np.dtype[Any]) -> tuple[gs.Node, gs.Node]:
    weight = weight_of(node)
    assert weight is not None
    shape = tuple(weight.values.shape)
    if factors.method == "svd":
        groups, rank, _ = factors.first.shape
        one = factors.first.reshape(groups * rank, *shape[1:])
        two = factors.second.reshape(shape[0], rank, *(1,) * len(shape[2:]))
        before = {**node.attrs, "kernel_shape": list(shape[2:])}
        after: dict[str, Any] = {"kernel_shape": [1] * len(shape[2:])}
        if groups > 1:
            after["group"] = groups
    else:
        one, two = factors.first[..., None], factors.second[:, :, None, :]
        before, after = _axis(node.attrs, shape[2:], 0), _axis(node.attrs, shape[2:], 1)
    return _pair(surgery, node, "Conv", (one.astype(kind), two.astype(kind)), (before, after))


def _axis(attrs: dict[str, Any], kernel: tuple[int, ...], axis: int) -> dict[str, Any]:
    """The attributes of the half of a 2-D Conv that works along `axis`."""
    other = 1 - axis
    half = {key: value for key, value in attrs.items() if key != "group"}
    half["kernel_shape"] = [kernel[0], 1] if axis == 0 else [1, kernel[1]]
    for key in ("strides", "dilations"):
        if key in attrs:
            half[key] = list(attrs[key])
            half[key][other] = 1
    if "pads" in attrs:
        half["pads"] = list(attrs["pads"])
        half["pads"][other] = half["pads"][other + 2] = 0
    return half


def _gemm(surgery: Surgery, node: gs.Node, factors: Factors, kind: np.dtype[Any]) -> tuple[gs.Node, gs.Node]:
    one, two = factors.first[0], factors.second[0]
    transposed = node.attrs.get("transB", 0)
    weights = (one.astype(kind), two.astype(kind)) if transposed else (one.T.astype(kind), two.T.astype(kind))
    keep = {"transB": 1} if transposed else {}
    before = {**keep, **{key: value for key, value in node.attrs.items() if key == "transA"}}
    after = {**keep, **{key: value for key, value in node.attrs.items() if key == "beta"}}
    return _pair(surgery, node, "Gemm", weights, (before, after))


def _matmul(
    surgery: Surgery, node: gs.Node, factors: Factors, kind: np.dtype[Any]
) -> tuple[gs.Node, gs.Node]:
    one, two = factors.first[0].astype(kind), factors.second[0].astype(kind)
    if is_left(node):
        return _pair(surgery, node, "MatMul", (one, two), ({}, {}), left=True)
    return _pair(surgery, node, "MatMul", (one.T, two.T), ({}, {}))


def _pair(
    surgery: Surgery,
    node: gs.Node,
    op: str,
    weights: tuple[Array, Array],
    attrs: tuple[dict[str, Any], dict[str, Any]],
    *,
    left: bool = False,
) -> tuple[gs.Node, gs.Node]:
    """Two nodes in a row; the second takes the bias and, once placed, the outputs of `node`."""
    name = node.name or node.outputs[0].name
    ones, twos = (surgery.constant(f"{name}_weight_{i}", weight) for i, weight in enumerate(weights))
    source = node.inputs[1 if left else 0]
    first = surgery.node(op, f"{name}_first", [ones, source] if left else [source, ones], **attrs[0])
    middle = first.outputs[0]
    extra = list(node.inputs[2:])
    inputs = [twos, middle] if left else [middle, twos, *extra]
    return first, surgery.node(op, f"{name}_second", inputs, **attrs[1])


def _put_weight(surgery: Surgery, node: gs.Node, rows: Array, kind: np.dtype[Any]) -> None:
    """The weight of `node` becomes `rows` (groups, N / groups, K)."""
    weight = weight_of(node)
    assert weight is not None
    node.attrs.pop("alpha", None)
    if node.op == "Conv":
        value = rows.reshape(weight.values.shape)
    else:
        value = rows[0] if is_left(node) or node.attrs.get("transB", 0) else rows[0].T
    place = next(i for i, tensor in enumerate(node.inputs) if tensor is weight)
    node.inputs[place] = surgery.constant(f"{weight.name}_refitted", np.ascontiguousarray(value.astype(kind)))


def _shift_bias(surgery: Surgery, node: gs.Node, shift: Array) -> None:
    """Adds `shift` to the layer's bias, in a constant of its own: torch exports share biases between layers."""
    holder = bias_holder(node)
    if holder is None:
        assert node.op != "MatMul"
        node.inputs.append(surgery.constant(f"{node.name}_bias", shift))
        return
    owner, place = holder
    bias = owner.inputs[place]
    value = np.asarray(bias.values, np.float64)
    if owner.op == "Gemm":
        value = value * owner.attrs.pop("beta", 1.0)
    total = (value + shift.reshape(value.shape)).astype(bias.values.dtype)
    owner.inputs[place] = surgery.constant(f"{bias.name}_shifted", total)
