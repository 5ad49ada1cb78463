"""Thirteen kinds of networks as exporters write them, small and with random weights: what pruning must cover.

Widths are even, so that half of every kind can go. Weights of the last layer are named `last...`: its outputs are the
model's own, so only its inputs can shrink, and coverage does not count it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[Any]


class Net:
    """Nodes and weights, added one after the other; every method returns the name of the tensor it makes."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(7)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A node; its output, or the list of its outputs where there are several."""
        number = len(self.nodes)
        names = [f"t{number}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"{kind}_{number}", **attributes))
        return names[0] if outputs == 1 else names

    def weight(self, *shape: int, name: str = "w") -> str:
        """Random, of variance 1 / fan-in."""
        fan = int(np.prod(shape[1:])) if len(shape) > 2 else shape[0]
        return self.const(
            (self.rng.normal(0, 1, shape) / np.sqrt(fan)).astype(np.float32), f"{name}{len(self.weights)}"
        )

    def vector(self, size: int, name: str = "b", low: float = -0.3) -> str:
        """A bias, or with low > 0 a scale."""
        value = self.rng.uniform(low, low + 0.8, size).astype(np.float32)
        return self.const(value, f"{name}{len(self.weights)}")

    def const(self, value: Any, name: str = "") -> str:
        """A constant."""
        name = name or f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def ints(self, *values: int) -> str:
        """A vector of int64."""
        return self.const(np.array(values, np.int64))

    def conv(
        self, x: str, i: int, o: int, k: int = 1, *, stride: int = 1, group: int = 1, bias: bool = True
    ) -> str:
        inputs = [x, self.weight(o, i // group, k, k)] + ([self.vector(o)] if bias else [])
        return str(
            self.op(
                "Conv",
                *inputs,
                group=group,
                strides=[stride] * 2,
                pads=[k // 2] * 4,
                kernel_shape=[k, k],
            )
        )

    def norm(self, x: str, channels: int) -> str:
        parameters = [self.vector(channels, low=low) for low in (0.5, -0.3, -0.3, 0.5)]
        return str(self.op("BatchNormalization", x, *parameters))

    def relu(self, x: str) -> str:
        return str(self.op("Relu", x))

    def cbr(self, x: str, i: int, o: int, k: int = 3, *, stride: int = 1, group: int = 1) -> str:
        """Convolution, BatchNormalization, Relu."""
        return self.relu(self.norm(self.conv(x, i, o, k, stride=stride, group=group, bias=False), o))

    def linear(self, x: str, i: int, o: int, name: str = "w") -> str:
        """MatMul and Add, as for inputs of rank 3."""
        return str(
            self.op(
                "Add", self.op("MatMul", x, self.weight(i, o, name=name)), self.vector(o, name=f"{name}b")
            )
        )

    def gemm(self, x: str, i: int, o: int, name: str = "w") -> str:
        return str(
            self.op("Gemm", x, self.weight(o, i, name=name), self.vector(o, name=f"{name}b"), transB=1)
        )

    def layer_norm(self, x: str, width: int) -> str:
        return str(self.op("LayerNormalization", x, self.vector(width, low=0.5), self.vector(width), axis=-1))

    def head(self, x: str, channels: int) -> str:
        """Global average pooling and the last layer."""
        return self.gemm(self.op("Flatten", self.op("GlobalAveragePool", x)), channels, 10, "last")

    def model(self, y: str, x_shape: list[Any], y_shape: list[Any]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, y_shape)],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model)
        return model


IMAGE = ["N", 3, 16, 16]


def conv_chain() -> onnx.ModelProto:
    n, x, before = Net(), "x", 3
    for width in (16, 32, 32, 64):
        x, before = n.relu(n.conv(x, before, width, 3)), width
    return n.model(n.head(x, before), IMAGE, ["N", 10])


def bn_chain() -> onnx.ModelProto:
    """BatchNormalization after convolutions, and before the activation that comes first."""
    n, before = Net(), 16
    x = n.conv("x", 3, before, 3, bias=False)
    for width in (16, 32, 64):
        x = n.relu(n.norm(x, before))
        x, before = n.norm(n.conv(x, before, width, 3, bias=False), width), width
        x = n.norm(n.relu(x), width)
    return n.model(n.head(n.relu(x), before), IMAGE, ["N", 10])


def resnet() -> onnx.ModelProto:
    n, before = Net(), 16
    x = n.cbr("x", 3, before)
    for width, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        y = n.cbr(x, before, width, stride=stride)
        y = n.norm(n.conv(y, width, width, 3, bias=False), width)
        if stride > 1:
            x = n.norm(n.conv(x, before, width, stride=stride, bias=False), width)
        x, before = n.relu(n.op("Add", y, x)), width
    return n.model(n.head(x, before), IMAGE, ["N", 10])


def mobilenet_v2() -> onnx.ModelProto:
    n, before = Net(), 16
    low, high = n.const(np.float32(0)), n.const(np.float32(6))

    def relu6(x: str) -> str:
        return str(n.op("Clip", x, low, high))

    x = relu6(n.norm(n.conv("x", 3, before, 3, bias=False), before))
    for width, stride in ((16, 1), (24, 2), (24, 1), (32, 2), (32, 1)):
        inner = before * 4
        y = relu6(n.norm(n.conv(x, before, inner, bias=False), inner))
        y = relu6(n.norm(n.conv(y, inner, inner, 3, stride=stride, group=inner, bias=False), inner))
        y = n.norm(n.conv(y, inner, width, bias=False), width)
        x, before = n.op("Add", x, y) if stride == 1 and width == before else y, width
    x = relu6(n.norm(n.conv(x, before, 128, bias=False), 128))
    return n.model(n.head(x, 128), IMAGE, ["N", 10])


def densenet() -> onnx.ModelProto:
    n, before, growth = Net(), 16, 8
    x = n.cbr("x", 3, before)
    for block in range(2):
        for _ in range(3):
            y = n.conv(n.relu(n.norm(x, before)), before, 4 * growth, bias=False)
            y = n.conv(n.relu(n.norm(y, 4 * growth)), 4 * growth, growth, 3, bias=False)
            x, before = n.op("Concat", x, y, axis=1), before + growth
        if block == 0:
            x = n.conv(n.relu(n.norm(x, before)), before, before // 2, bias=False)
            x, before = n.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]), before // 2
    return n.model(n.head(n.relu(n.norm(x, before)), before), IMAGE, ["N", 10])


def shufflenet_v2() -> onnx.ModelProto:
    """Units of stride 2 and 1; the shuffle is Reshape, Transpose, Reshape with exported shapes."""
    n, before = Net(), 16
    x = n.cbr("x", 3, before)
    size = 16
    for width, stride in ((32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1)):
        half = width // 2
        size //= stride
        if stride == 2:
            left = n.norm(n.conv(x, before, before, 3, stride=2, group=before, bias=False), before)
            left, right, inner = n.cbr(left, before, half, 1), x, before
        else:
            left, right = n.op("Split", x, n.ints(half, half), outputs=2, axis=1)
            inner = half
        y = n.cbr(right, inner, half, 1)
        y = n.norm(n.conv(y, half, half, 3, stride=stride, group=half, bias=False), half)
        x = n.op("Concat", left, n.cbr(y, half, half, 1), axis=1)
        x = n.op("Reshape", x, _sizes(n, x, 0, 2, half, size, size))
        x = n.op("Transpose", x, perm=[0, 2, 1, 3, 4])
        x, before = n.op("Reshape", x, _sizes(n, x, 0, -1, size, size)), width
    return n.model(n.head(n.cbr(x, before, 96, 1), 96), IMAGE, ["N", 10])


def _sizes(n: Net, x: str, *sizes: int) -> str:
    """The shape of a Reshape as tracing exports it: the batch of `x` from its Shape, then constants."""
    batch = n.op("Gather", n.op("Shape", x), n.const(np.array(sizes[0], np.int64)), axis=0)
    parts = [n.op("Unsqueeze", batch, n.ints(0)), *[n.ints(size) for size in sizes[1:]]]
    return str(n.op("Concat", *parts, axis=0))


def squeeze_excite() -> onnx.ModelProto:
    n, before = Net(), 16
    x = n.cbr("x", 3, before)
    for width in (32, 32, 64):
        y = n.cbr(x, before, width)
        s = n.op("ReduceMean", y, n.ints(2, 3), keepdims=1)
        s = n.op("Sigmoid", n.conv(n.relu(n.conv(s, width, width // 4)), width // 4, width))
        y = n.op("Mul", y, s)
        x, before = n.op("Add", x, y) if width == before else y, width
    return n.model(n.head(x, before), IMAGE, ["N", 10])


def vgg() -> onnx.ModelProto:
    n, before, x = Net(), 3, "x"
    for width in (16, 32, 32):
        x, before = n.relu(n.conv(x, before, width, 3)), width
        x = n.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = n.relu(n.gemm(n.op("Flatten", x), before * 4, 64))
    x = n.relu(n.gemm(x, 64, 64))
    return n.model(n.gemm(x, 64, 10, "last"), IMAGE, ["N", 10])


def c2f() -> onnx.ModelProto:
    """YOLOv8's block: split, bottlenecks with a shortcut each, everything concatenated."""
    n, before = Net(), 16

    def silu(x: str) -> str:
        return str(n.op("Mul", x, n.op("Sigmoid", x)))

    x = silu(n.conv("x", 3, before, 3))
    for width in (32, 64):
        half = width // 2
        x = silu(n.conv(x, before, width, 3, stride=2))
        pieces = list(n.op("Split", silu(n.conv(x, width, width)), n.ints(half, half), outputs=2, axis=1))
        for _ in range(2):
            y = silu(n.conv(silu(n.conv(pieces[-1], half, half, 3)), half, half, 3))
            pieces.append(n.op("Add", pieces[-1], y))
        x, before = silu(n.conv(n.op("Concat", *pieces, axis=1), half * 4, width)), width
    return n.model(n.head(x, before), IMAGE, ["N", 10])


def unet() -> onnx.ModelProto:
    n, before, x = Net(), 3, "x"
    passed: list[tuple[str, int]] = []
    for width in (16, 32):
        x = n.cbr(n.cbr(x, before, width), width, width)
        passed.append((x, width))
        x, before = n.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), width
    x, before = n.cbr(x, before, 64), 64
    for skip, width in reversed(passed):
        x = n.op(
            "ConvTranspose",
            x,
            n.weight(before, width, 2, 2),
            n.vector(width),
            strides=[2, 2],
            kernel_shape=[2, 2],
        )
        x, before = n.cbr(n.op("Concat", skip, x, axis=1), 2 * width, width), width
    y = n.op("Conv", x, n.weight(2, before, 1, 1, name="last"), n.vector(2, "lastb"))
    return n.model(y, IMAGE, ["N", 2, 16, 16])


def vit() -> onnx.ModelProto:
    """q, k and v as separate MatMuls; shapes and the scale of the softmax come from Shape, as tracing exports them."""
    n, width, heads, depth, hidden, tokens = Net(), 32, 4, 2, 64, 17
    per_head = width // heads
    x = n.op("Conv", "x", n.weight(width, 3, 4, 4), n.vector(width), strides=[4, 4], kernel_shape=[4, 4])
    x = n.op("Transpose", n.op("Reshape", x, _sizes(n, x, 0, width, -1)), perm=[0, 2, 1])
    token = n.op(
        "Expand", n.const(n.rng.normal(0, 1, (1, 1, width)).astype(np.float32)), _sizes(n, x, 0, 1, width)
    )
    x = n.op("Concat", token, x, axis=1)
    x = n.op("Add", x, n.const(n.rng.normal(0, 1, (1, tokens, width)).astype(np.float32)))
    for _ in range(depth):
        x = n.op("Add", x, _attention(n, n.layer_norm(x, width), width, heads, per_head))
        y = n.linear(n.layer_norm(x, width), width, hidden)
        gate = n.op(
            "Add", n.op("Erf", n.op("Div", y, n.const(np.float32(np.sqrt(2))))), n.const(np.float32(1))
        )
        y = n.op("Mul", n.op("Mul", y, gate), n.const(np.float32(0.5)))
        x = n.op("Add", x, n.linear(y, hidden, width))
    x = n.op("Gather", n.layer_norm(x, width), n.const(np.array(0, np.int64)), axis=1)
    return n.model(n.gemm(x, width, 10, "last"), IMAGE, ["N", 10])


def _attention(n: Net, x: str, width: int, heads: int, per_head: int) -> str:
    def split(y: str) -> str:
        shape = n.op("Shape", y)
        parts = [
            n.op("Unsqueeze", n.op("Gather", shape, n.const(np.array(i, np.int64)), axis=0), n.ints(0))
            for i in (0, 1)
        ]
        sizes = n.op("Concat", *parts, n.ints(heads), n.ints(per_head), axis=0)
        return str(n.op("Transpose", n.op("Reshape", y, sizes), perm=[0, 2, 1, 3]))

    q, k, v = (split(n.linear(x, width, width)) for _ in range(3))
    size = n.op("Cast", n.op("Gather", n.op("Shape", q), n.ints(-1), axis=0), to=TensorProto.FLOAT)
    scores = n.op("MatMul", q, n.op("Transpose", k, perm=[0, 1, 3, 2]))
    weights = n.op("Softmax", n.op("Div", scores, n.op("Sqrt", size)), axis=-1)
    y = n.op("Transpose", n.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    return n.linear(n.op("Reshape", y, _sizes(n, y, 0, -1, width)), width, width)


def lstm_mlp() -> onnx.ModelProto:
    """Two LSTMs, the first in both directions, then two dense layers on the last step."""
    n, features, hidden, steps = Net(), 4, 32, 7

    def lstm(x: str, inputs: int, directions: int) -> str:
        weights = [
            n.const(
                n.rng.normal(0, 0.3, (directions, 4 * hidden, size)).astype(np.float32), f"w{len(n.weights)}"
            )
            for size in (inputs, hidden)
        ]
        bias = n.const(n.rng.normal(0, 0.3, (directions, 8 * hidden)).astype(np.float32))
        direction = "bidirectional" if directions == 2 else "forward"
        out, *_ = n.op("LSTM", x, *weights, bias, outputs=3, hidden_size=hidden, direction=direction)
        return str(out)

    x = n.op("Transpose", "x", perm=[1, 0, 2])
    y = n.op("Transpose", lstm(x, features, 2), perm=[0, 2, 1, 3])
    y = lstm(n.op("Reshape", y, n.ints(0, 0, -1)), 2 * hidden, 1)
    y = n.op("Gather", n.op("Squeeze", y, n.ints(1)), n.const(np.array(-1, np.int64)), axis=0)
    y = n.relu(n.gemm(y, hidden, 64))
    y = n.relu(n.gemm(y, 64, 64))
    return n.model(n.gemm(y, 64, 10, "last"), ["N", steps, features], ["N", 10])


def grouped() -> onnx.ModelProto:
    """ResNeXt: convolutions of four groups between pointwise ones, with shortcuts."""
    n, before = Net(), 16
    x = n.cbr("x", 3, before)
    for width, stride in ((32, 1), (32, 1), (64, 2), (64, 1)):
        y = n.cbr(x, before, width, 1)
        y = n.cbr(y, width, width, 3, stride=stride, group=4)
        y = n.norm(n.conv(y, width, width, bias=False), width)
        if stride > 1 or width != before:
            x = n.norm(n.conv(x, before, width, stride=stride, bias=False), width)
        x, before = n.relu(n.op("Add", x, y)), width
    return n.model(n.head(x, before), IMAGE, ["N", 10])


ARCHITECTURES: dict[str, Callable[[], onnx.ModelProto]] = {
    "plain conv chain": conv_chain,
    "unfolded BN chain": bn_chain,
    "ResNet": resnet,
    "MobileNetV2": mobilenet_v2,
    "DenseNet": densenet,
    "ShuffleNetV2": shufflenet_v2,
    "squeeze-excite": squeeze_excite,
    "VGG": vgg,
    "C2f": c2f,
    "U-Net": unet,
    "ViT": vit,
    "LSTM + MLP": lstm_mlp,
    "grouped convolution": grouped,
}
