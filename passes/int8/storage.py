"""Weights of what runs in float, stored in int8: `Mul(Cast(codes), scale)`, which onnxruntime computes once, at load.

The file is smaller; memory and speed are those of the float weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnx_compress.model.domains import is_standard
from onnx_compress.model.surgery import Surgery

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model

    Array = NDArray[Any]

LEAST = 1024  # values a weight must have to be worth two nodes


@dataclass(frozen=True)
class Stored:
    """A weight that was stored: of which node, and how large it is."""

    node: str
    op: str
    shape: tuple[int, ...]


def store(model: Model, keep: set[str]) -> tuple[Model, list[Stored]]:
    """`model` with the float32 weights of layers, recurrent ones and tables in int8, in every graph.

    keep: names of nodes whose weights stay in float32.
    """
    surgery = Surgery(model)
    stored: list[Stored] = []
    made: dict[int, gs.Variable] = {}
    returned = {id(tensor) for graph in surgery.graphs() for tensor in graph.outputs}
    for node in list(surgery.nodes()):
        if node.name in keep:
            continue
        for at, shared in places(node):
            weight = node.inputs[at]
            if id(weight) in made:
                node.inputs[at] = made[id(weight)]
            elif _worth(weight) and id(weight) not in returned:
                stored.append(Stored(node.name, node.op, tuple(int(size) for size in weight.shape)))
                made[id(weight)] = _coded(surgery, weight, shared)
                node.inputs[at] = made[id(weight)]
    return (surgery.commit(), stored) if stored else (model, [])


def places(node: gs.Node) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The inputs of `node` that may be its weights, each with the axes along which one scale is shared."""
    if not is_standard(node):
        return
    ranks = [len(tensor.shape or ()) for tensor in node.inputs]
    if node.op in ("LSTM", "GRU", "RNN"):
        yield from ((at, (2,)) for at in (1, 2) if at < len(ranks))
    elif node.op in ("Conv", "ConvTranspose"):
        yield 1, tuple(range(1, ranks[1]))
    elif node.op == "Gemm":
        yield 1, (1 if node.attrs.get("transB", 0) else 0,)
    elif node.op == "MatMul":
        yield from ((at, (-1 - at,)) for at in (0, 1) if ranks[at] > 1)
    elif node.op == "Gather" and ranks[0] == 2:
        yield 0, (1,)


def _worth(weight: gs.Tensor) -> bool:
    if not isinstance(weight, gs.Constant) or np.dtype(weight.dtype) != np.float32:
        return False
    return int(np.prod(weight.shape)) >= LEAST and bool(np.all(np.isfinite(weight.values)))


def _coded(surgery: Surgery, weight: gs.Constant, shared: tuple[int, ...]) -> gs.Variable:
    """The weight as what two new nodes compute from its codes."""
    value = np.asarray(weight.values)
    top = np.abs(value).max(axis=shared, keepdims=True)
    scale = np.where(top > 0, top / 127, 1).astype(np.float32)
    codes = np.rint(value / scale).clip(-127, 127).astype(np.int8)
    graph = surgery.owner(weight)
    cast = surgery.node("Cast", "cast", [surgery.constant(f"{weight.name}_q", codes)], to=TensorProto.FLOAT)
    times = surgery.node("Mul", "scale", [cast.outputs[0], surgery.constant("scales", scale)])
    graph.nodes[:0] = [cast, times]
    out: gs.Variable = times.outputs[0]
    return out
