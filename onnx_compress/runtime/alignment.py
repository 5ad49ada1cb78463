"""What multiple the kernels of this machine want of a layer's width, found on a micro-model of two layers.

Widths are dense enough where time is linear in them: `m` is too fine where a width between two multiples of 2m takes
longer than the mean of its neighbours, since the kernel then works on padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnx_compress.model.document import Model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Array = NDArray[Any]

WIDTH = 48  # a multiple of 16 below which each finer step has a width of its own
WIDTHS = (32, 40, 44, 48)
SLACK = 0.03  # of the time at WIDTH: differences below it are noise
OUTER = 64


def multiple(times: Mapping[int, float]) -> int:
    """The finest multiple, 4 to 16, that still saves time (finer ones save less than noise); `times`: at each of WIDTHS.

    >>> multiple({w: w for w in WIDTHS}), multiple({w: -(-w // 8) * 8 for w in WIDTHS})
    (4, 8)
    """
    for step in (8, 4):
        width = WIDTH - step  # a multiple of `step`, but not of 2 · step
        middle = (times[width - step] + times[width + step]) / 2
        if times[width] > middle + SLACK * times[WIDTH]:
            return 2 * step
    return 4


def micro_model(
    kind: Literal["conv", "gemm"], width: int, *, quantized: bool
) -> tuple[Model, dict[str, Array]]:
    """OUTER -> width -> OUTER by two layers with a ReLU between, and one batch for it."""
    rng = np.random.default_rng(0)
    graph = _Micro(quantized)
    square = (3, 3) if kind == "conv" else ()
    feeds = {"x": rng.standard_normal((1, OUTER, 14, 14) if square else (512, OUTER)).astype(np.float32)}
    tensor = graph.activation("x", "x")
    for number, (out, into) in enumerate(((width, OUTER), (OUTER, width))):
        weight = (
            rng.standard_normal((out, into, *square) if square else (into, out)).astype(np.float32) * 0.05
        )
        weights = graph.weight(f"w{number}", weight)
        if square:
            graph.add("Conv", [tensor, weights], f"y{number}", pads=[1, 1, 1, 1])
        else:
            graph.add("MatMul", [tensor, weights], f"y{number}")
        graph.add("Relu", [f"y{number}"], f"z{number}")
        tensor = graph.activation(f"z{number}", f"z{number}")
    graph.add("Identity", [tensor], "out")
    return graph.model(feeds["x"].shape), feeds


class _Micro:
    """A graph under construction; with `quantized`, DequantizeLinear(QuantizeLinear) around layers."""

    def __init__(self, quantized: bool) -> None:
        self.quantized = quantized
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: Array) -> str:
        self.weights.append(onnx.numpy_helper.from_array(value, name))
        return name

    def activation(self, tensor: str, hint: str) -> str:
        if not self.quantized:
            return tensor
        scale = self.constant(f"{hint}_scale", np.array(0.05, np.float32))
        zero = self.constant(f"{hint}_zero", np.array(128, np.uint8))
        codes = self.add("QuantizeLinear", [tensor, scale, zero], f"{hint}_q")
        return self.add("DequantizeLinear", [codes, scale, zero], f"{hint}_dq")

    def weight(self, name: str, value: Array) -> str:
        if not self.quantized:
            return self.constant(name, value)
        codes = self.constant(f"{name}_q", np.clip(np.rint(value / 0.002), -127, 127).astype(np.int8))
        scale = self.constant(f"{name}_scale", np.array(0.002, np.float32))
        zero = self.constant(f"{name}_zero", np.array(0, np.int8))
        return self.add("DequantizeLinear", [codes, scale, zero], f"{name}_dq")

    def model(self, shape: tuple[int, ...]) -> Model:
        graph = helper.make_graph(
            self.nodes,
            "micro",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
            self.weights,
        )
        return Model.from_proto(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        )
