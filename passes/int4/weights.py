"""The weights of a model that can be stored in blocks, wherever they sit, as rows that end in what is contracted."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.contract import Skip
from onnx_compress.model.codebook import codebook_of
from onnx_compress.model.domains import is_standard
from onnx_compress.runtime.layers import LayerInput, layer_input

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.shapes import Shape
    from onnx_compress.model.surgery import Surgery

    Array = NDArray[Any]

Kind = Literal["product", "table", "other"]
ROLES: dict[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (1, 0),
    "MatMul": (1, 0),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "Gather": (0,),
}
QUANTIZED = {
    "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM",
    "MatMulNBits", "GatherBlockQuantized", "QGemm", "QAttention", "MatMulIntegerToFloat",
}  # fmt: skip
LEAST = 1024  # values a weight must have to be worth its nodes


@dataclass
class Weight:
    """A weight and the nodes that read it.

    users: (node, which input); grid: (groups, A, B) that the stored values reshape to, of which each group's rows are
    the A lines, or where `swapped` the B columns; kind: a product that MatMulNBits computes, a table that rows are looked
    up in, or what onnxruntime must have in float. inputs: how the products among its users unfold their inputs.
    """

    tensor: gs.Constant
    graph: gs.Graph
    grid: tuple[int, int, int]
    swapped: bool
    kind: Kind = "other"
    users: list[tuple[gs.Node, int]] = field(default_factory=list)
    inputs: list[LayerInput] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The layer that the report names."""
        return str(self.users[0][0].name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight as the model has it."""
        return tuple(int(size) for size in self.tensor.shape)

    @property
    def size(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    def rows(self) -> Array:
        """(groups, N, K): what is multiplied and summed lies along the last axis."""
        values: Array = np.asarray(self.tensor.values).reshape(self.grid)
        return np.swapaxes(values, 1, 2) if self.swapped else values

    def stored(self, rows: Array) -> Array:
        """`rows` in the weight's own shape."""
        values = np.swapaxes(rows, 1, 2) if self.swapped else rows
        return np.ascontiguousarray(values).reshape(self.shape)


def find_weights(
    surgery: Surgery, shapes: Mapping[str, Shape], exclude: str | None = None
) -> tuple[list[Weight], list[Skip]]:
    """The weights worth storing in blocks, in the order of the graph, tied ones once; and why others are not."""
    found: dict[int, Weight] = {}
    skips: list[Skip] = []
    for node in surgery.nodes():
        if node.op in QUANTIZED:
            skips.append(Skip(node.name, "its weight is quantized already"))
        for index in _roles(node):
            tensor = node.inputs[index]
            if not isinstance(tensor, gs.Constant):
                why = _why_computed(tensor, node, index)
                if why:
                    skips.append(Skip(node.name, why))
            elif id(tensor) not in found and len(tensor.shape) > 1:
                grid, swapped = _layout(node, index, tensor)
                found[id(tensor)] = Weight(tensor, surgery.owner(tensor), grid, swapped)
    for node in surgery.nodes():
        for index, tensor in enumerate(node.inputs):
            if id(tensor) in found:
                found[id(tensor)].users.append((node, index))
    returned = {id(tensor) for graph in surgery.graphs() for tensor in graph.outputs}
    main = {id(node) for node in surgery.graph.nodes}
    kept: list[Weight] = []
    for weight in found.values():
        weight.users.sort(key=lambda user: user[1] not in _roles(user[0]))
        reason = _why_not(weight, exclude, returned)
        if reason is None:
            _look(weight, shapes, main)
            kept.append(weight)
        elif reason:
            skips.append(Skip(weight.name, reason))
    return kept, skips


def _roles(node: gs.Node) -> tuple[int, ...]:
    if not is_standard(node):
        return ()
    return tuple(index for index in ROLES.get(node.op, ()) if index < len(node.inputs))


def _why_computed(tensor: gs.Tensor, node: gs.Node, index: int) -> str:
    """Why a weight that is no constant is left alone; "" where there is nothing to say: it is no weight."""
    if codebook_of(tensor) is not None:
        return "its weight is clustered already"
    maker = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    for _ in range(4):
        if maker is None or not maker.inputs:
            break
        source = maker.inputs[0]
        if maker.op == "DequantizeLinear":
            if isinstance(source, gs.Constant):
                return "its weight is quantized already"
        elif maker.op not in ("Mul", "Cast", "Reshape", "QuantizeLinear", "Sub", "Transpose"):
            break
        if isinstance(source, gs.Constant):
            return "its weight is stored in fewer bits already"
        maker = source.inputs[0] if len(source.inputs) == 1 else None
    always = node.op in ("Conv", "ConvTranspose", "LSTM", "GRU", "RNN")
    return "its weight is computed, or an input that may be overridden" if always and index else ""


def _layout(node: gs.Node, index: int, tensor: gs.Constant) -> tuple[tuple[int, int, int], bool]:
    """Weight.grid and Weight.swapped for this reader."""
    shape = [int(size) for size in tensor.shape]
    last, count = shape[-1], math.prod(shape)
    match node.op:
        case "Conv":
            group = int(node.attrs.get("group", 1))
            return (group, shape[0] // group, math.prod(shape[1:])), False
        case "ConvTranspose":
            group = int(node.attrs.get("group", 1))
            return (group, shape[0] // group, math.prod(shape[1:])), True
        case "Gemm":
            flipped = bool(node.attrs.get("transA" if index == 0 else "transB", 0))
            return (1, shape[0], shape[1]), (index == 1) != flipped
        case "MatMul":
            return (max(count // max(shape[-2] * last, 1), 0), shape[-2], last), index == 1
    return (1, count // max(last, 1), last), False


def _why_not(weight: Weight, exclude: str | None, returned: set[int]) -> str | None:
    """Why the weight is left alone; "" where that is nothing to report (integers are no weights), None where it is not."""
    dtype = np.dtype(weight.tensor.dtype)
    if dtype != np.float32:
        return "" if dtype.kind in "iubOSU" else f"its weight holds {dtype}"
    if exclude and any(re.search(exclude, node.name) for node, _ in weight.users):
        return "excluded"
    if weight.size < LEAST:
        return f"too small to gain anything: {weight.size} values"
    if id(weight.tensor) in returned:
        return "its weight is an output of the graph"
    return None if np.isfinite(weight.tensor.values).all() else "its weight holds NaN or infinite values"


def _look(weight: Weight, shapes: Mapping[str, Shape], main: set[int]) -> None:
    """Finds the weight's kind, and how its readers unfold their inputs."""
    inside = all(id(node) in main for node, _ in weight.users)
    if inside and all(_is_product(node, index, weight.tensor) for node, index in weight.users):
        weight.kind = "product"
        # > onnxruntime multiplies by the weight of a Gemm only as (K, N): both may read it
        layouts = {_layout(node, index, weight.tensor)[1] for node, index in weight.users}
        if len(layouts) > 1:
            weight.kind = "other"
    elif all(_is_lookup(node, index, weight.tensor) for node, index in weight.users):
        weight.kind = "table"
    for node, index in weight.users:
        if id(node) not in main or _roles(node)[:1] == () or index not in _roles(node):
            continue
        unfolded = layer_input(node, shapes)
        same = _layout(node, index, weight.tensor) == (weight.grid, weight.swapped)
        if isinstance(unfolded, LayerInput) and same:
            weight.inputs.append(unfolded)


def _is_product(node: gs.Node, index: int, weight: gs.Constant) -> bool:
    """Whether MatMulNBits computes the same: the weight on the right, nothing but a vector added."""
    if node.op not in ("MatMul", "Gemm") or not is_standard(node) or index != 1 or len(weight.shape) != 2:
        return False
    if node.op == "MatMul":
        return True
    plain = all(float(node.attrs.get(key, 1.0)) == 1.0 for key in ("alpha", "beta"))
    if node.attrs.get("transA", 0) or not plain:
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    width = weight.shape[0 if node.attrs.get("transB", 0) else 1]
    return bias is None or (isinstance(bias, gs.Constant) and tuple(bias.shape) == (width,))


def _is_lookup(node: gs.Node, index: int, table: gs.Constant) -> bool:
    """Whether GatherBlockQuantized computes the same; two codes share a byte, so rows must be even."""
    standard = node.op == "Gather" and is_standard(node) and index == 0 and not node.attrs.get("axis", 0)
    return bool(standard and len(table.shape) == 2 and table.shape[1] % 2 == 0 and table.shape[1] >= 16)
