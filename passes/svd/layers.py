"""The layers that can be factored: y = W x + b over the columns of an (unfolded) input."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.contract import Skip
from onnx_compress.model.domains import is_standard
from onnx_compress.runtime.layers import weight_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.shapes import Shape
    from onnx_compress.model.surgery import Surgery

    Array = NDArray[Any]

RECURRENT = ("LSTM", "GRU", "RNN")
OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", *RECURRENT)
OTHERS = ("Einsum", "DeformConv")  # that have a weight, but no form here


@dataclass(frozen=True)
class Layer:
    """One such layer. `output`, the name of its output tensor, identifies it; node names may repeat.

    weight: (groups, N / groups, K) float64, K running over (channel, kernel...); bias: (N,) that its output already has, zero
    where that is not known; shifts: whether the bias may be rewritten; aims: whether weight and bias tell its whole output;
    kernel: spatial sizes of a Conv, () otherwise; positions: output positions a sample (of a ConvTranspose: input positions);
    sizes: positions of a Conv's input, then after each axis of its kernel was applied.

    The groups are those of a Conv, or the stacked matrices of a MatMul. Of a Gather the matrix is the transposed table, its
    input a one-hot vector; of a recurrent node the input weights of all gates and directions, of a ConvTranspose the
    products before they are summed.
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
    sizes: tuple[int, ...] = ()

    @property
    def groups(self) -> int:
        """Of a grouped Conv or a stack of matrices; one of any other layer."""
        return len(self.weight)

    @property
    def params(self) -> int:
        """Entries of the weight."""
        return int(self.weight.size)

    @property
    def macs(self) -> int:
        """Multiply-adds of one sample; a lookup does none."""
        return 0 if self.op == "Gather" else self.positions * self.params

    @property
    def signature(self) -> tuple[Any, ...]:
        """Equal for layers that do the same work."""
        return self.op, self.weight.shape, self.kernel, self.positions, self.sizes

    def filters(self, weight: Array, group: int) -> Array:
        """One group of a weight of this layer's shape as (N / groups, C / groups, kernel...)."""
        filters: Array = weight[group].reshape(weight.shape[1], -1, *self.kernel)
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
            if node.op not in OPS or not is_standard(node):
                continue
            why = "inside a body of If, Loop or Scan" if graph is not surgery.graph else None
            why = why or ("excluded" if exclude and re.search(exclude, node.name) else None)
            why = why or reason_against(node, users)
            if why is None:
                layers.append(read_layer(node, shapes))
                if node.op in RECURRENT:
                    skips.append(
                        Skip(
                            node.name,
                            "its recurrent weights stay whole: the operator takes no factors of them",
                        )
                    )
            elif why:
                skips.append(Skip(node.name, why))
    return layers, skips


def reason_against(node: gs.Node, users: Mapping[int, int]) -> str | None:
    """Why `node` is no layer that can be factored: "" where it has no weight at all, None where it can."""
    weight = weight_of(node)
    if weight is None:
        return (
            ""
            if node.op in ("MatMul", "Gather")
            else "its weight is computed in the graph (or already quantized)"
        )
    if node.op == "Gather" and weight.values.dtype.kind in "iub":
        return ""  # a list of indices or sizes
    if users[id(weight)] > 1:
        return f"its weight {weight.name!r} is shared with another node"
    if weight.values.dtype.name not in ("float32", "float16", "float64"):
        return f"its weight is {weight.values.dtype.name}"
    if not np.isfinite(weight.values).all():
        return "its weight holds NaN or infinity"
    if why := _wrong_form(node, tuple(weight.values.shape)):
        return why
    n, k = matrix(node).shape[1:]
    if min(n, k) < 4:
        return f"a {n} x {k} matrix is too small to factor"
    return None


def _wrong_form(node: gs.Node, shape: tuple[int, ...]) -> str | None:
    """Why a weight of this shape cannot be split, by the operator."""
    if node.op == "Gather":
        plain = len(shape) == 2 and node.attrs.get("axis", 0) == 0
        return (
            None
            if plain
            else "no row of a table is looked up: only a matrix gathered along axis 0 is factored"
        )
    if node.op == "MatMul" and len(shape) < 2:
        return f"its weight has {len(shape)} axes; a matrix is needed"
    if node.op in RECURRENT and name_of(node) == "":
        return "none of its outputs is used"
    if node.op.startswith("Conv"):
        group = node.attrs.get("group", 1)
        if node.op == "Conv" and math.prod(shape[1:]) == 1:
            return "one weight an output: nothing to factor"
        if group > 1 and (shape[0] if node.op == "Conv" else shape[1] * group) // group < 4:
            return "depthwise: nothing to factor between channels"
    return None


def name_of(node: gs.Node) -> str:
    """The name of the first output of `node` that is used: what identifies it."""
    return next((tensor.name for tensor in node.outputs if tensor.name), "")


def weight_of(node: gs.Node) -> gs.Constant | None:
    """The constant operand that is the layer's matrix."""
    candidates = node.inputs[1:2]
    if node.op in ("MatMul", "Gemm"):
        candidates = node.inputs[:2]
    elif node.op == "Gather":
        candidates = node.inputs[:1] if not isinstance(node.inputs[1], gs.Constant) else []
    constants = [tensor for tensor in candidates if isinstance(tensor, gs.Constant)]
    return constants[0] if len(constants) == 1 else None


def source_of(node: gs.Node) -> gs.Tensor:
    """The tensor that the layer's matrix multiplies (of a Gather: the indices)."""
    if node.op in RECURRENT or node.op.startswith("Conv"):
        return node.inputs[0]
    weight = weight_of(node)
    return next(tensor for tensor in node.inputs[:2] if tensor is not weight)


def is_left(node: gs.Node) -> bool:
    """Whether the weight of a MatMul or Gemm stands on the left."""
    return node.op in ("MatMul", "Gemm") and isinstance(node.inputs[0], gs.Constant)


def matrix(node: gs.Node) -> Array:
    """The layer's matrix as (groups, N / groups, K) float64, Gemm's alpha and the transpositions applied."""
    weight = weight_of(node)
    assert weight is not None
    value = np.asarray(weight.values, np.float64)
    if node.op == "Gather":
        return value.T[None]
    if node.op in RECURRENT:
        return value.reshape(1, -1, value.shape[2])
    if node.op == "MatMul" and value.ndim > 2:
        stack = value.reshape(-1, *value.shape[-2:])
        return stack if is_left(node) else stack.swapaxes(1, 2)
    scale = node.attrs.get("alpha", 1.0) if node.op == "Gemm" else 1.0
    rows: Array = scale * weight_rows(node, value)
    return rows


def read_layer(node: gs.Node, shapes: Mapping[str, Shape]) -> Layer:
    """The layer that `node` is; sizes that `shapes` does not know count as one."""
    weight, source = matrix(node), source_of(node)
    out, into = shapes.get(name_of(node), ()), shapes.get(source.name, ())
    stored = tuple(weight_of(node).values.shape)  # type: ignore[union-attr]
    kernel = stored[2:] if node.op == "Conv" else ()
    positions = max(_area(out) // (weight.shape[0] * weight.shape[1]), 1)
    sizes: tuple[int, ...] = ()
    if node.op in RECURRENT or node.op == "ConvTranspose":
        positions = max(_area(into) // (weight.shape[0] * weight.shape[2]), 1)
    elif kernel:
        sizes = _between(out, into, len(kernel)) or (positions,) * (len(kernel) + 1)
    holder = bias_holder(node)
    biased = node.op == "MatMul" or len(node.inputs) > 2
    linear = node.op in ("Conv", "Gemm") or (node.op == "MatMul" and len(stored) == 2)
    return Layer(
        node=node.name,
        op=node.op,
        input=source.name,
        output=name_of(node),
        weight=weight,
        bias=_own_bias(node, weight.shape[0] * weight.shape[1]),
        kernel=kernel,
        shifts=linear and (holder is not None or not (biased or is_left(node))),
        aims=linear and (node.op == "MatMul" or not biased or holder is not None),
        positions=positions,
        sizes=sizes,
    )


def _between(out: Shape, into: Shape, axes: int) -> tuple[int, ...] | None:
    """Positions of a Conv's input, then after each axis of its kernel; None where the shapes are not known."""
    if len(out) != axes + 2 or len(into) != axes + 2:
        return None
    return tuple(_area((out[0], *out[2 : 2 + done], *into[2 + done :])) for done in range(axes + 1))


def bias_holder(node: gs.Node) -> tuple[gs.Node, int] | None:
    """The node and input that hold the layer's bias: its own, or that of the Add right after a MatMul.

    None where there is none, or it is no vector over the outputs, or another node uses it too.
    """
    if node.op not in ("Conv", "Gemm", "MatMul") or (node.op == "Gemm" and is_left(node)):
        return None
    rows = matrix(node)
    n = rows.shape[0] * rows.shape[1]
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
