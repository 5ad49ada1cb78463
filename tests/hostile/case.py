"""What a hostile case is, and the small good model that most of them spoil."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RUN = "in.onnx out.onnx --no-verify --passes "
SHAPES = {"w": (8, 3, 3, 3), "b": (8,), "v": (20, 8), "c": (20,)}
GRAPH = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N, 3, 8, 8] x) => (float[N, 20] y)
{
  h = Conv <kernel_shape = [3, 3]> (x, w, b)
  r = Relu (h)
  p = GlobalAveragePool (r)
  f = Flatten (p)
  y = Gemm <transB = 1> (f, v, c)
}
"""


@dataclass(frozen=True)
class Case:
    """make: writes the files of the case to a folder; words: what is typed there. `expected.txt` says how it ends."""

    make: Callable[[Path], object]
    words: str = RUN + "int8"


def good() -> onnx.ModelProto:
    """A small model that is right in every respect."""
    made = onnx.parser.parse_model(GRAPH)
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        value = rng.standard_normal(shape).astype(np.float32)
        made.graph.initializer.append(numpy_helper.from_array(value, name))
    return made


def of(proto: onnx.ModelProto) -> Callable[[Path], object]:
    """Writes a model."""
    return lambda folder: (folder / "in.onnx").write_bytes(proto.SerializeToString())


def raw(content: bytes) -> Callable[[Path], object]:
    """Writes these bytes for a model."""
    return lambda folder: (folder / "in.onnx").write_bytes(content)


def spoilt(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], object]:
    """Writes the good model, changed."""

    def make(folder: Path) -> None:
        proto = good()
        change(proto)
        of(proto)(folder)

    return make


def text(body: str, head: str = "", functions: str = "") -> Callable[[Path], object]:
    """Writes the model of this text, which is not checked."""
    head = head or "g (float[2, 4] x) => (float[2, 4] y)"
    imports = '<ir_version: 10, opset_import: ["" : 21, "f" : 1, "com.acme" : 1]>'
    return of(onnx.parser.parse_model(f"{imports} {head} {{ {body} }} {functions}"))


def constant(name: str, value: object, dtype: type = np.int64) -> onnx.NodeProto:
    """A Constant node."""
    return helper.make_node(
        "Constant", [], [name], value=numpy_helper.from_array(np.array(value, dtype), name)
    )


def graph(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str] | None] | None = None,
    outputs: dict[str, int] | None = None,
    weights: list[TensorProto] | None = None,
    kinds: tuple[int, int] = (TensorProto.FLOAT, TensorProto.FLOAT),
    opset: int = 17,
) -> onnx.ModelProto:
    """A model of these nodes, not checked; inputs with their shapes, outputs with the number of their axes."""
    ins = {"x": [2, 4]} if inputs is None else inputs
    ranks = {"y": 2} if outputs is None else outputs
    outs = {name: [f"{name}{axis}" for axis in range(rank)] for name, rank in ranks.items()}
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kinds[0], sizes) for name, sizes in ins.items()],
        [helper.make_tensor_value_info(name, kinds[1], axes) for name, axes in outs.items()],
        weights or [],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    """A node; names are separated by spaces, `-` is none."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), **attributes)
