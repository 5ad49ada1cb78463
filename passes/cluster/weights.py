"""The weights of a model that can be clustered, wherever they sit."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.contract import Skip
from onnx_compress.model.codebook import Codebook, Shared, Storage, codebook_of, store
from onnx_compress.model.domains import is_standard

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.model.surgery import Surgery

    Array = NDArray[Any]

# which inputs of an operator are weights
ROLES: dict[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "Einsum": (0, 1, 2),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "Gather": (0,),
}
ALWAYS = {
    "Conv",
    "ConvTranspose",
    "Gemm",
    "LSTM",
    "GRU",
    "RNN",
}  # a MatMul of two activations has no weight to miss
QUANTIZED = {
    "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM",
    "MatMulNBits", "QGemm", "QAttention", "MatMulIntegerToFloat",
}  # fmt: skip
OVERHEAD = 300  # bytes of the nodes that hold a codebook
TYPES = (np.float32, np.float64, np.float16)


@dataclass
class Weight:
    """A weight and everything that reads it. users: (node, which input); name: of the first of them."""

    tensor: gs.Tensor
    graph: gs.Graph
    users: list[tuple[gs.Node, int]] = field(default_factory=list)
    book: Codebook | None = None  # how it is stored now, if it is clustered

    @property
    def name(self) -> str:
        """The layer that the report names."""
        return str(self.users[0][0].name)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        shape = self.tensor.shape if self.book is None else self.book.indices.shape
        return tuple(int(size) for size in shape)

    @property
    def values(self) -> Array:
        """The weight itself, however it is stored."""
        if self.book is not None:
            return self.book.dense()
        values: Array = self.tensor.values
        return values


def find_weights(surgery: Surgery, exclude: str | None = None) -> tuple[list[Weight], list[Skip]]:
    """The weights worth clustering, in the order of the graph, tied ones once; and why others are not."""
    weights: dict[int, Weight] = {}
    skips: list[Skip] = []
    for graph in surgery.graphs():
        for node in graph.nodes:
            if node.op in QUANTIZED:
                skips.append(Skip(node.name, "its weight is quantized"))
            for index in _roles(node):
                tensor = node.inputs[index]
                if id(tensor) in weights:
                    continue
                if _is_quantized(tensor):
                    skips.append(Skip(node.name, "its weight is quantized"))
                    continue
                book = codebook_of(tensor)
                if book is not None or (isinstance(tensor, gs.Constant) and len(tensor.shape) > 1):
                    owner = surgery.owner(tensor) if book is None else _holder(surgery, book)
                    weights[id(tensor)] = Weight(tensor, owner, [], book)
                elif not isinstance(tensor, gs.Constant) and node.op in ALWAYS and index > 0:
                    skips.append(
                        Skip(node.name, "its weight is computed, or an input that may be overridden")
                    )
    _add_users(surgery, weights)
    returned = {id(tensor) for graph in surgery.graphs() for tensor in graph.outputs}
    kept = []
    for weight in weights.values():
        why = "it is an output of the graph" if id(weight.tensor) in returned else _why_not(weight, exclude)
        if why is None:
            kept.append(weight)
        elif why:
            skips.append(Skip(weight.name, why))
    return kept, skips


def replace_dense(surgery: Surgery, weight: Weight, values: Array) -> None:
    """Puts a plain constant in the weight's place."""
    if weight.book is None:
        weight.tensor.values = values
    else:
        _redirect(weight, surgery.constant(f"{weight.tensor.name}_dense", values))


def replace_stored(
    surgery: Surgery, weight: Weight, book: Codebook, shared: Shared, storage: Storage
) -> None:
    """Puts `book`, stored as a codebook, in the weight's place, before everything that may read it."""
    name = weight.tensor.name.removesuffix("_clustered")
    nodes, tensor = store(surgery, name, book, shared, storage=storage)
    _redirect(weight, tensor)
    weight.graph.nodes[0:0] = nodes


def _redirect(weight: Weight, tensor: gs.Tensor) -> None:
    for node, index in weight.users:
        node.inputs[index] = tensor
    if weight.book is not None:
        for node in weight.book.nodes:
            at = next(i for i, other in enumerate(weight.graph.nodes) if other is node)
            del weight.graph.nodes[at]


def _roles(node: gs.Node) -> list[int]:
    if not is_standard(node):
        return []
    return [index for index in ROLES.get(node.op, ()) if index < len(node.inputs)]


def _is_quantized(tensor: gs.Tensor) -> bool:
    if isinstance(tensor, gs.Constant) or len(tensor.inputs) != 1:
        return False
    node = tensor.inputs[0]
    if node.op != "DequantizeLinear":
        return False
    source = node.inputs[0]
    if (
        isinstance(source, gs.Variable)
        and len(source.inputs) == 1
        and source.inputs[0].op == "QuantizeLinear"
    ):
        source = source.inputs[0].inputs[0]
    return isinstance(source, gs.Constant)


def _holder(surgery: Surgery, book: Codebook) -> gs.Graph:
    gather = book.nodes[-1]
    return next(graph for graph in surgery.graphs() if any(node is gather for node in graph.nodes))


def _add_users(surgery: Surgery, weights: dict[int, Weight]) -> None:
    for node in surgery.nodes():
        for index, tensor in enumerate(node.inputs):
            if id(tensor) in weights:
                weights[id(tensor)].users.append((node, index))
    for weight in weights.values():  # a layer names the weight, not a node that happens to come before it
        weight.users.sort(key=lambda user: user[1] not in ROLES.get(user[0].op, ()))


def _why_not(weight: Weight, exclude: str | None) -> str | None:
    """Why the weight is left alone; "" where that is nothing to report (integers are no weights), None where it is not."""
    tensor = weight.tensor
    dtype = np.dtype(tensor.dtype) if weight.book is None else weight.book.values.dtype
    if dtype.type not in TYPES:
        return "" if dtype.kind in "iubOSU" else f"its weight holds {dtype}"
    if exclude and any(re.search(exclude, node.name) for node, _ in weight.users):
        return "excluded"
    size = math.prod(weight.shape)
    if size * (dtype.itemsize - 1) <= OVERHEAD:
        return f"too small to gain anything: {size} values"
    if not np.isfinite(weight.values).all():
        return "its weight holds NaN or infinite values"
    return None
