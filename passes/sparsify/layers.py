"""The layers whose weights can take zeros, as matrices over the columns of their unfolded inputs."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.contract import Skip
from onnx_compress.model.codebook import codebook_of
from onnx_compress.model.domains import is_standard
from onnx_compress.runtime.layers import LayerInput, layer_input, weight_from_rows, weight_index, weight_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.shapes import Shape
    from onnx_compress.model.surgery import Surgery

    Array = NDArray[Any]

OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
OTHERS = ("LSTM", "GRU", "RNN")  # they hold weights that this pass does not reach
QUANTIZED = {
    "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulNBits", "QGemm",
    "MatMulIntegerToFloat",
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One layer y = W x. rows: (groups, N/groups, K) float64, K over (channel, kernel...); node: where it stands.

    place: of the node in the graph's list; taps: elements of a kernel, 1 where there is none; shifts: whether its bias can take up a change of its mean.
    """

    node: gs.Node
    place: int
    input: LayerInput
    rows: Array
    taps: int
    shifts: bool

    @property
    def name(self) -> str:
        """The node that the report names."""
        return str(self.node.name)

    @property
    def size(self) -> int:
        """Entries of the weight."""
        return int(self.rows.size)

    @property
    def zeros(self) -> int:
        """Entries that are zero already."""
        return int((self.rows == 0).sum())


def find_layers(
    surgery: Surgery, shapes: Mapping[str, Shape], exclude: str | None = None
) -> tuple[list[Layer], list[Skip]]:
    """The layers of the main graph in its order, and why each other node with a weight is left alone."""
    users = Counter(id(tensor) for node in surgery.nodes() for tensor in node.inputs)
    returned = {id(tensor) for graph in surgery.graphs() for tensor in graph.outputs}
    layers: list[Layer] = []
    skips: list[Skip] = []
    for graph in surgery.graphs():
        for place, node in enumerate(graph.nodes):
            if node.op in QUANTIZED:
                skips.append(Skip(node.name, "its weight is quantized already"))
            if node.op in OTHERS:
                skips.append(Skip(node.name, f"weights of {node.op} are not made sparse"))
            if node.op not in OPS or not is_standard(node):
                continue
            why = "inside a body of If, Loop or Scan" if graph is not surgery.graph else None
            why = why or ("excluded" if exclude and re.search(exclude, node.name) else None)
            found = why or _layer(node, place, shapes, users, returned)
            if isinstance(found, Layer):
                layers.append(found)
            elif found:
                skips.append(Skip(node.name, found))
    return layers, skips


def put(surgery: Surgery, node: gs.Node, rows: Array, shift: Array | None) -> None:
    """Gives `node` the weight `rows`, and adds `shift` (N,), where there is one, to its bias."""
    tensor = node.inputs[weight_index(node)]
    old: Array = tensor.values
    kernel = old.shape[2:] if node.op.startswith("Conv") else ()
    tensor.values = weight_from_rows(node, rows.astype(old.dtype), kernel)
    if shift is None:
        return
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if bias is None:
        made = surgery.constant(f"{node.name}_bias", shift.astype(old.dtype))
        node.inputs = [*node.inputs[:2], made]
        return
    if node.op == "Gemm":
        shift = shift * float(node.attrs.get("alpha", 1.0)) / float(node.attrs.get("beta", 1.0))
    values: Array = bias.values
    # > a new one: several layers may share the old one
    node.inputs[2] = surgery.constant(
        bias.name, (values + shift.reshape(values.shape[-1:])).astype(values.dtype)
    )


def _layer(
    node: gs.Node, place: int, shapes: Mapping[str, Shape], users: Mapping[int, int], returned: set[int]
) -> Layer | str:
    """The layer that `node` is, or why it is none: "" where it has no weight at all."""
    for tensor in node.inputs[:2]:
        if codebook_of(tensor) is not None:
            return "its weight is clustered already; sparsify goes before cluster"
        if not isinstance(tensor, gs.Constant) and _is_quantized(tensor):
            return "its weight is quantized already; sparsify goes before int8"
    unfolded = layer_input(node, shapes)
    if isinstance(unfolded, str):
        return "" if "two computed" in unfolded else unfolded
    weight = node.inputs[weight_index(node)]
    if weight.dtype not in (np.float32, np.float64, np.float16):
        return f"its weight holds {np.dtype(weight.dtype)}"
    if users[id(weight)] > 1:
        return f"its weight {weight.name!r} is shared with another node"
    if id(weight) in returned:
        return "its weight is an output of the graph"
    values: Array = weight.values
    if not np.isfinite(values).all():
        return "its weight holds NaN or infinite values"
    if values.size < 2:
        return "its weight is a single value"
    rows = weight_rows(node, values.astype(np.float64))
    taps = math.prod(values.shape[2:]) if node.op == "Conv" else 1
    return Layer(node, place, unfolded, rows, taps, _takes_shift(node, rows.shape[0] * rows.shape[1]))


def _takes_shift(node: gs.Node, outputs: int) -> bool:
    """Whether `put` can add to the bias: that of a Conv, or a vector that a Gemm with the weight on the right adds."""
    if node.op not in ("Conv", "Gemm"):
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if bias is None:
        return bool(node.op == "Conv")
    if not isinstance(bias, gs.Constant) or math.prod(bias.shape) != outputs or bias.shape[-1] != outputs:
        return False
    return bool(node.op == "Conv" or (weight_index(node) == 1 and node.attrs.get("beta", 1.0)))


def _is_quantized(tensor: gs.Tensor) -> bool:
    """Whether `tensor` is a constant in integers, or in a few of them, taken back to float."""
    for _ in range(3):
        if len(tensor.inputs) != 1:
            return False
        node = tensor.inputs[0]
        if node.op == "DequantizeLinear" and isinstance(node.inputs[0], gs.Constant):
            return True
        if node.op == "Mul" and len(node.inputs[0].inputs) == 1 and node.inputs[0].inputs[0].op == "Cast":
            return isinstance(node.inputs[0].inputs[0].inputs[0], gs.Constant)
        if node.op not in ("DequantizeLinear", "QuantizeLinear"):
            return False
        tensor = node.inputs[0]
        if isinstance(tensor, gs.Constant):
            return True
    return False
