"""Networks that a benchmark builds for itself: real shapes and random weights, by onnx.helper alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence

STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
WIDTHS = (64, 128, 256, 512)
DEEP = 50  # from this depth on, blocks are bottlenecks
CLASSES = 1000
OPSET = 17
HE = 2 / (
    1 - 1 / np.pi
)  # variance times inputs that keeps a signal's size, where means are taken out after a Relu
BIAS = 0.01  # standard deviation
BRANCH = 0.5  # sums of many blocks stay in range


@dataclass
class Net:
    """A network being written: every method adds nodes and returns the name of their output."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """One node of one output."""
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def weight(self, shape: Sequence[int], size: float) -> str:
        """Normal numbers of standard deviation `size`; the rows of a matrix or filter have mean 0.

        What all inputs share then goes no further, as with normalisations in training: or deep outputs would hardly
        depend on the input.
        """
        name = f"weight_{len(self.weights)}"
        values = self.rng.standard_normal(shape) * size
        if len(shape) > 1:
            values -= values.mean(axis=tuple(range(1, len(shape))), keepdims=True)
        self.weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def conv(
        self, x: str, shape: tuple[int, int, int], *, stride: int = 1, relu: bool = True, gain: float = 1.0
    ) -> str:
        """A convolution (inputs, outputs, kernel) with random weights, a small bias and a Relu."""
        inputs, outputs, kernel = shape
        size = gain * float(np.sqrt(HE / (inputs * kernel * kernel)))
        names = [x, self.weight((outputs, inputs, kernel, kernel), size), self.weight((outputs,), BIAS)]
        y = self.node(
            "Conv", names, kernel_shape=[kernel, kernel], strides=[stride] * 2, pads=[kernel // 2] * 4
        )
        return self.node("Relu", [y]) if relu else y

    def block(
        self, x: str, channels: tuple[int, int], stride: int, *, deep: bool, branch: float
    ) -> tuple[str, int]:
        """A residual block of (inputs, width) channels, and how many channels it returns."""
        inputs, width = channels
        outputs = 4 * width if deep else width
        if deep:
            y = self.conv(x, (inputs, width, 1))
            y = self.conv(y, (width, width, 3), stride=stride)
            y = self.conv(y, (width, outputs, 1), relu=False, gain=branch)
        else:
            y = self.conv(x, (inputs, width, 3), stride=stride)
            y = self.conv(y, (width, outputs, 3), relu=False, gain=branch)
        if stride > 1 or inputs != outputs:
            x = self.conv(x, (inputs, outputs, 1), stride=stride, relu=False, gain=0.7)
        return self.node("Relu", [self.node("Add", [y, x])]), outputs


def resnet(depth: int, size: int, seed: int, branch: float = BRANCH) -> onnx.ModelProto:
    """A ResNet of `depth` 18, 34, 50 or 101 for images (N, 3, size, size), weights random, normalisations folded.

    branch: size of the last convolution of a block against the others. At 0.5 a depth of 50 amplifies any noise (8 bits
    leave 3 dB of the outputs), at 0.2 it bears it as trained networks do (19 dB).
    """
    net = Net(np.random.default_rng(seed))
    deep = depth >= DEEP
    x = net.conv("input", (3, 64, 7), stride=2)
    x = net.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = 64
    for stage, (width, blocks) in enumerate(zip(WIDTHS, STAGES[depth], strict=True)):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            x, channels = net.block(x, (channels, width), stride, deep=deep, branch=branch)
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x])])
    logits = net.node(
        "Gemm",
        [x, net.weight((CLASSES, channels), float(np.sqrt(1 / channels))), net.weight((CLASSES,), BIAS)],
        transB=1,
    )
    net.nodes[-1].output[0] = logits = "logits"
    graph = helper.make_graph(
        net.nodes,
        f"resnet{depth}",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["N", CLASSES])],
        net.weights,
    )
    return helper.make_model(
        graph, producer_name="onnx-compress", ir_version=8, opset_imports=[helper.make_opsetid("", OPSET)]
    )
