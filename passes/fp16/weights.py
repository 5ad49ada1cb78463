"""The float32 weights of a model, and putting halves in their place."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnx_compress.contract import Skip
from onnx_compress.model.codebook import codebook_of
from onnx_compress.model.domains import is_standard

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from onnx_compress.model.surgery import Surgery

    Array = NDArray[Any]

LEAST = 256  # values a weight must have to be worth a node
LARGEST = float(np.finfo(np.float16).max)
SCALED = {"QuantizeLinear", "DequantizeLinear"}  # their scales are read when the model is loaded


@dataclass
class Weight:
    """A float32 weight and the nodes that read it: (node, which input)."""

    tensor: gs.Constant
    users: list[tuple[gs.Node, int]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The node that the report names."""
        return str(self.users[0][0].name)

    @property
    def halves(self) -> Array:
        """The weight in half precision; what is too small for it becomes subnormal or 0."""
        return np.asarray(self.tensor.values).astype(np.float16)

    def error(self) -> float:
        """Σ(w − w̃)² / Σ w²."""
        values: Array = np.asarray(self.tensor.values)
        energy = float(np.vdot(values, values))
        apart = values - self.halves.astype(np.float32)
        return float(np.vdot(apart, apart)) / energy if energy else 0.0


def find_weights(surgery: Surgery, exclude: str | None = None) -> tuple[list[Weight], list[Skip]]:
    """The weights worth storing in halves, in the order of the graph, tied ones once; and why others are not."""
    found: dict[int, Weight] = {}
    books = {
        id(part)
        for node in surgery.nodes()
        for book in [codebook_of(node.outputs[0]) if node.op in ("Gather", "Mul") and node.outputs else None]
        if book is not None
        for part in book.nodes
    }
    barred: dict[int, str] = {}
    for node in surgery.nodes():
        for index, tensor in enumerate(node.inputs):
            if not isinstance(tensor, gs.Constant):
                continue
            if not is_standard(node):
                barred[id(tensor)] = f"{node.domain}.{node.op} reads it"
            if id(node) in books or (node.op in SCALED and index):
                barred[id(tensor)] = ""
            found.setdefault(id(tensor), Weight(tensor)).users.append((node, index))
    for graph in surgery.graphs():
        barred.update((id(tensor), "it is an output of the graph") for tensor in graph.outputs)
    weights, skips = [], []
    for key, weight in found.items():
        if np.dtype(weight.tensor.dtype) != np.float32 or math.prod(weight.tensor.shape) < LEAST:
            continue
        why = barred[key] if key in barred else _why_not(weight, exclude)
        if why is None:
            weights.append(weight)
        elif why:
            skips.append(Skip(weight.name, why))
    return weights, skips


def _why_not(weight: Weight, exclude: str | None) -> str | None:
    if exclude and any(re.search(exclude, node.name) for node, _ in weight.users):
        return "excluded"
    values = np.asarray(weight.tensor.values)
    if not np.isfinite(values).all():
        return "its weight holds NaN or infinite values"
    top = float(np.abs(values).max(initial=0.0))
    if top > LARGEST:
        return f"its weight reaches {top:.4g}, and halves end at {LARGEST:.0f}"
    return None


def store(surgery: Surgery, weights: Collection[Weight]) -> None:
    """Puts Cast(halves) in the place of each weight, before everything that may read it."""
    for weight in weights:
        graph = surgery.owner(weight.tensor)
        halves = surgery.constant(f"{weight.tensor.name}_half", weight.halves)
        cast = surgery.node("Cast", f"{weight.tensor.name}_cast", [halves], to=TensorProto.FLOAT)
        for node, index in weight.users:
            node.inputs[index] = cast.outputs[0]
        graph.nodes.insert(0, cast)
