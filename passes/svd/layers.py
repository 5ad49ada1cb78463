"""The layers that can be factored: y = W x + b over the columns of an (unfolded) input."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.contract import Skip

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.shapes import Shape
    from onnx_compress.model.surgery import Surgery

    Array = NDArray[Any]

OPS = ("Conv", "Gemm", "MatMul")
OTHERS = ("ConvTranspose", "Einsum", "LSTM", "GRU", "RNN")  # that have a weight, but no form here yet


@dataclass(frozen=True)
class Layer:
    """One such layer. `output`, the name of its output tensor, identifies it; node names may repeat.

    weight: (groups, N / groups, K) float64, K running over (channel, kernel...); bias: (N,) that its output already has, zero
    where that is not known; shifts: whether the bias may be rewritten; aims: whether weight and bias tell its whole output;
    kernel: spatial sizes of a Conv, () otherwise; positions: output positions a sample; between: positions of the tensor
    between a k x 1 and a 1 x k Conv.
    """

    node: str
    op: str
    input: str
    output: str
    weight: Array
    bias: Array
    kernel: tuple[int, ...]
    shifts: bool
    aims: bool
    positions: int
    between: int
    left: bool = False

    @property
    def groups(self) -> int:
        """Of a grouped Conv; one of any other layer."""
        return len(self.weight)

    @property
    def params(self) -> int:
        """Entries of the weight."""
        return int(self.weight.size)

    @property
    def macs(self) -> int:
        """Multiply-adds of one sample."""
        return self.positions * self.params

    @property
    def spatial(self) -> bool:
        """Whether a k x 1 and a 1 x k Conv can take its place."""
        return len(self.kernel) == 2 and min(self.kernel) > 1 and self.groups == 1

    @property
    def signature(self) -> tuple[Any, ...]:
        """Equal for layers that do the same work."""
        return self.op, self.weight.shape, self.kernel, self.positions, self.between

    def filters(self) -> Array:
        """The weight of an ungrouped 2-D Conv as (N, C, kh, kw)."""
        filters: Array = self.weight[0].reshape(self.weight.shape[1], -1, *self.kernel)
        return filters


def find_layers(
    surgery: Surgery, shapes: Mapping[str, Shape], exclude: str | None = None
) -> tuple[list[Layer], list[Skip]]:
    """The layers of the main graph in its order, and why each other node with a weight is left alone."""
    users = _count_users(surgery)
    layers: list[Layer] = []
    skips: list[Skip] = []
    for graph in surgery.graphs():
        for node in graph.nodes:
            if node.op in OTHERS and any(isinstance(tensor, gs.Constant) for tensor in node.inputs):
                skips.append(Skip(node.name, f"{node.op} is not factored"))
            if node.op not in OPS or node.domain not in (None, "", "ai.onnx"):
                continue
            why = "inside a body of If, Loop or Scan" if graph is not surgery.graph else None
            why = why or ("excluded" if exclude and re.search(exclude, node.name) else None)
            why = why or reason_against(node, users)
            if why is None:
                layers.append(read_layer(node, shapes))
            elif why:
                skips.append(Skip(node.name, why))
    return layers, skips


def reason_against(node: gs.Node, users: Mapping[int, int]) -> str | None:
    """Why `node` is no layer that can be factored: "" where it has no weight at all, None where it can."""
    weight = weight_of(node)
    if weight is None:
        return "" if node.op == "MatMul" else "its weight is computed in the graph (or already quantized)"
    if users[id(weight)] > 1:
        return f"its weight {weight.name!r} is shared with another node"
    if weight.values.dtype.name not in ("float32", "float16", "float64"):
        return f"its weight is {weight.values.dtype.name}"
    if not np.isfinite(weight.values).all():
        return "its weight holds NaN or infinity"
    if node.op == "MatMul" and weight.values.ndim != 2:
        return f"its weight has {weight.values.ndim} axes; a matrix is needed"
    if node.op == "Gemm" and weight is node.inputs[0]:
        return "the weight is the left operand of a Gemm"
    if node.op == "Conv" and weight.values.shape[1] * math.prod(weight.values.shape[2:]) == 1:
        return "one weight an output: nothing to factor"
    n, k = matrix(node).shape[1:]
    if min(n, k) < 4:
        return f"a {n} x {k} matrix is too small to factor"
    if node.op == "Conv" and node.attrs.get("group", 1) > 1 and len(weight.values) // node.attrs["group"] < 4:
        return "depthwise: nothing to factor between channels"
    return None


def weight_of(node: gs.Node) -> gs.Constant | None:
    """The constant operand that is the layer's matrix."""
    candidates = node.inputs[:2] if node.op in ("MatMul", "Gemm") else node.inputs[1:2]
    constants = [tensor for tensor in candidates if isinstance(tensor, gs.Constant)]
    return constants[0] if len(constants) == 1 else None


def is_left(node: gs.Node) -> bool:
    """Whether the weight of a MatMul stands on the left."""
    return node.op == "MatMul" and isinstance(node.inputs[0], gs.Constant)


def matrix(node: gs.Node) -> Array:
    """The layer's matrix as (groups, N / groups, K) float64, Gemm's alpha and transB applied."""
    weight = weight_of(node)
    assert weight is not None
    value = np.asarray(weight.values, np.float64)
    if node.op == "Conv":
        groups = node.attrs.get("group", 1)
        return value.reshape(groups, value.shape[0] // groups, -1)
    if node.op == "Gemm":
        value = value if node.attrs.get("transB", 0) else value.T
        return node.attrs.get("alpha", 1.0) * value[None]
    return value[None] if is_left(node) else value.T[None]


def read_layer(node: gs.Node, shapes: Mapping[str, Shape]) -> Layer:
    """The layer that `node` is; sizes that `shapes` does not know count as one."""
    weight, left = matrix(node), is_left(node)
    source = node.inputs[1 if left else 0]
    out, into = shapes.get(node.outputs[0].name, ()), shapes.get(source.name, ())
    kernel = tuple(weight_of(node).values.shape[2:]) if node.op == "Conv" else ()  # type: ignore[union-attr]
    positions = between = max(_area(out) // (weight.shape[0] * weight.shape[1]), 1)
    if len(kernel) == 2 and len(out) == 4 and len(into) == 4:
        between = _area((out[0], out[2], into[3]))
    holder = bias_holder(node)
    biased = node.op == "MatMul" or len(node.inputs) > 2
    return Layer(
        node=node.name,
        op=node.op,
        input=source.name,
        output=node.outputs[0].name,
        weight=weight,
        bias=_own_bias(node, weight.shape[0] * weight.shape[1]),
        kernel=kernel,
        shifts=holder is not None or not biased,
        aims=node.op == "MatMul" or not biased or holder is not None,
        positions=positions,
        between=between,
        left=left,
    )


def bias_holder(node: gs.Node) -> tuple[gs.Node, int] | None:
    """The node and input that hold the layer's bias: its own, or that of the Add right after a MatMul.

    None where there is none, or it is no vector over the outputs, or another node uses it too.
    """
    n = matrix(node).shape[0] * matrix(node).shape[1]
    if node.op != "MatMul":
        return (node, 2) if len(node.inputs) > 2 and _is_vector(node.inputs[2], n) else None
    users = node.outputs[0].outputs
    if is_left(node) or len(users) != 1 or users[0].op != "Add":
        return None
    place = next((i for i, t in enumerate(users[0].inputs) if t is not node.outputs[0]), None)
    if place is None or not _is_vector(users[0].inputs[place], n) or len(users[0].inputs[place].outputs) != 1:
        return None
    return users[0], place


def _own_bias(node: gs.Node, n: int) -> Array:
    holder = bias_holder(node)
    if node.op == "MatMul" or holder is None:
        return np.zeros(n)
    value = np.asarray(node.inputs[2].values, np.float64).reshape(n)
    return value * float(node.attrs.get("beta", 1.0)) if node.op == "Gemm" else value


def _is_vector(tensor: Any, n: int) -> bool:
    if not isinstance(tensor, gs.Constant):
        return False
    shape = tuple(tensor.shape)
    return math.prod(shape) == n and shape[-1:] == (n,) and len(shape) <= 2


def _area(shape: tuple[Any, ...]) -> int:
    return math.prod(size if isinstance(size, int) else 1 for size in shape)


def _count_users(surgery: Surgery) -> dict[int, int]:
    users: dict[int, int] = {}
    for node in surgery.nodes():
        for tensor in node.inputs:
            users[id(tensor)] = users.get(id(tensor), 0) + 1
    return users
