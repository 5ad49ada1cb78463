"""Valid models drawn at random: pictures, vectors and sequences through the operators that networks are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

Shape = tuple[int, ...]  # without the batch
Draw = Any
SAMPLES = 12
ACTIVATIONS = (
    "Relu",
    "LeakyRelu",
    "Sigmoid",
    "Tanh",
    "HardSwish",
    "Softplus",
    "Elu",
    "Abs",
    "Identity",
    "Neg",
)


@dataclass
class Net:
    """A model that grows: its nodes, its weights, and the tensors that later steps may take up again."""

    draw: Draw
    rng: np.random.Generator
    batch: int | str
    nodes: list[NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    count: int = 0

    def pick(self, *choices: Any) -> Any:
        """One of these."""
        return self.draw(st.sampled_from(choices))

    def chance(self) -> bool:
        """Heads or tails."""
        return bool(self.draw(st.booleans()))

    def name(self, kind: str = "t") -> str:
        """A new name."""
        self.count += 1
        return f"{kind}{self.count}"

    def weight(self, *shape: int, scale: float | None = None) -> str:
        """A new weight, in an initializer or a Constant node."""
        deviation = scale if scale is not None else 1.5 / math.sqrt(max(1, math.prod(shape[1:])))
        value = (deviation * self.rng.standard_normal(shape)).astype(np.float32)
        return self.constant(value)

    def constant(self, value: Any) -> str:
        """A new tensor of this value, in an initializer or a Constant node."""
        name = self.name("w")
        tensor = numpy_helper.from_array(np.asarray(value), name)
        if self.draw(st.integers(0, 4)) == 0:
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.weights.append(tensor)
        return name

    def node(self, kind: str, inputs: list[str], shape: Shape, **attributes: Any) -> str:
        """A new node of one output of this shape, named or not."""
        output = self.name()
        named = {} if self.draw(st.integers(0, 3)) == 0 else {"name": f"{kind}_{self.count}"}
        self.nodes.append(helper.make_node(kind, inputs, [output], **named, **attributes))
        self.shapes[output] = shape
        return output

    def earlier(self, at: str, like: Callable[[Shape, Shape], bool]) -> str | None:
        """An earlier tensor whose shape is `like` that of `at`."""
        found = [name for name, shape in self.shapes.items() if name != at and like(shape, self.shapes[at])]
        return self.pick(*found) if found else None


def _activation(net: Net, at: str) -> str:
    return net.node(net.pick(*ACTIVATIONS), [at], net.shapes[at])


def _residual(net: Net, at: str) -> str:
    other = net.earlier(at, lambda a, b: a == b)
    return net.node(net.pick("Add", "Add", "Mul", "Sub"), [at, other or at], net.shapes[at])


def _concat(net: Net, at: str) -> str:
    axis = 0 if len(net.shapes[at]) != 2 else 1  # of the shape without the batch
    other = net.earlier(at, lambda a, b: len(a) == len(b) and _without(a, axis) == _without(b, axis)) or at
    sizes = [net.shapes[name] for name in (at, other)]
    shape = (*sizes[0][:axis], sizes[0][axis] + sizes[1][axis], *sizes[0][axis + 1 :])
    return net.node("Concat", [at, other], shape, axis=axis + 1)


def _without(shape: Shape, axis: int) -> Shape:
    return (*shape[:axis], *shape[axis + 1 :])


def _split(net: Net, at: str) -> str:
    shape = net.shapes[at]
    axis = 0 if len(shape) != 2 else 1
    if shape[axis] < 2:
        return at
    first = net.draw(st.integers(1, shape[axis] - 1))
    sizes = [first, shape[axis] - first]
    names = [net.name(), net.name()]
    net.nodes.append(helper.make_node("Split", [at, net.constant(np.array(sizes))], names, axis=axis + 1))
    for name, size in zip(names, sizes, strict=True):
        net.shapes[name] = (*shape[:axis], size, *shape[axis + 1 :])
    if net.chance():  # both halves, the other way round
        return net.node("Concat", names[::-1], shape, axis=axis + 1)
    return names[0]


def _if(net: Net, at: str) -> str:
    """Branches with weights of their own, or with one from outside; the condition is known or is not."""
    shape = net.shapes[at]
    if net.chance():
        condition = net.constant(np.array(net.chance()))
    else:
        total = net.node("ReduceSum", [at], (), keepdims=0)
        condition = net.node("Greater", [total, net.constant(np.float32(0.0))], ())
    shared = net.weight(shape[-1], shape[-1])
    branches = [_branch(net, at, shape, shared) for _ in range(2)]
    return net.node("If", [condition], shape, then_branch=branches[0], else_branch=branches[1])


def _branch(net: Net, at: str, shape: Shape, shared: str) -> GraphProto:
    names = [net.name("b"), net.name("b")]
    own: list[TensorProto] = []
    if net.chance():
        value = (net.rng.standard_normal((shape[-1], shape[-1])) / math.sqrt(shape[-1])).astype(np.float32)
        own.append(numpy_helper.from_array(value, net.name("v")))
    nodes = [
        helper.make_node("MatMul", [at, own[0].name if own else shared], [names[0]]),
        helper.make_node(net.pick("Relu", "Tanh"), [names[0]], [names[1]]),
    ]
    return helper.make_graph(nodes, net.name("g"), [], [_value(names[1], (net.batch, *shape))], own)


# pictures: (channels, height, width)


def _conv(net: Net, at: str) -> str:
    channels, height, width = net.shapes[at]
    group = net.pick(*(g for g in (1, 1, 2, channels) if channels % g == 0))
    out = group * net.draw(st.integers(1, max(1, 12 // group)))
    kernel, stride = net.pick(1, 3), net.pick(1, 1, 2)
    weight = net.weight(out, channels // group, kernel, kernel)
    inputs = [at, weight, *([net.weight(out, scale=0.2)] if net.chance() else [])]
    pad = kernel // 2
    shape = (out, (height - 1) // stride + 1, (width - 1) // stride + 1)
    attributes = {"kernel_shape": [kernel] * 2, "pads": [pad] * 4, "strides": [stride] * 2, "group": group}
    return net.node("Conv", inputs, shape, **attributes)


def _conv_transpose(net: Net, at: str) -> str:
    channels, height, width = net.shapes[at]
    group = net.pick(*(g for g in (1, 2) if channels % g == 0))
    each, stride = net.draw(st.integers(1, 4)), net.pick(1, 2)
    weight = net.weight(channels, each, 2, 2)
    inputs = [at, weight, *([net.weight(each * group, scale=0.2)] if net.chance() else [])]
    shape = (each * group, (height - 1) * stride + 2, (width - 1) * stride + 2)
    return net.node("ConvTranspose", inputs, shape, kernel_shape=[2, 2], strides=[stride] * 2, group=group)


def _batch_norm(net: Net, at: str) -> str:
    size = net.shapes[at][0]
    scale, offset, mean = (net.weight(size, scale=0.5) for _ in range(3))
    variance = net.constant((0.5 + net.rng.random(size)).astype(np.float32))
    return net.node("BatchNormalization", [at, scale, offset, mean, variance], net.shapes[at])


def _pool(net: Net, at: str) -> str:
    channels, height, width = net.shapes[at]
    if min(height, width) < 2:
        return at
    kind = net.pick("MaxPool", "AveragePool")
    return net.node(kind, [at], (channels, height // 2, width // 2), kernel_shape=[2, 2], strides=[2, 2])


def _excite(net: Net, at: str) -> str:
    channels, _, _ = net.shapes[at]
    pooled = net.node("GlobalAveragePool", [at], (channels, 1, 1))
    inner = net.draw(st.integers(1, 6))
    small = net.node("Conv", [pooled, net.weight(inner, channels, 1, 1)], (inner, 1, 1))
    wide = net.node("Conv", [_activation(net, small), net.weight(channels, inner, 1, 1)], (channels, 1, 1))
    return net.node("Mul", [at, net.node("Sigmoid", [wide], (channels, 1, 1))], net.shapes[at])


def _shuffle(net: Net, at: str) -> str:
    channels, height, width = net.shapes[at]
    if channels % 2:
        return at
    first = [0, 2, channels // 2, height, width]
    a = net.node("Reshape", [at, net.constant(np.array(first))], (2, channels // 2, height, width))
    b = net.node("Transpose", [a], (channels // 2, 2, height, width), perm=[0, 2, 1, 3, 4])
    return net.node("Reshape", [b, net.constant(np.array([0, channels, height, width]))], net.shapes[at])


def _to_depth(net: Net, at: str) -> str:
    channels, height, width = net.shapes[at]
    if channels % 4 == 0 and net.chance():
        return net.node("DepthToSpace", [at], (channels // 4, 2 * height, 2 * width), blocksize=2)
    if height % 2 or width % 2 or channels > 6:
        return at
    return net.node("SpaceToDepth", [at], (4 * channels, height // 2, width // 2), blocksize=2)


def _flat(net: Net, at: str) -> str:
    channels, height, width = net.shapes[at]
    way = net.pick("pool", "flatten", "reshape", "sequence")
    if way == "pool":
        pooled = net.node("GlobalAveragePool", [at], (channels, 1, 1))
        return net.node("Flatten", [pooled], (channels,))
    if way == "flatten":
        return net.node("Flatten", [at], (channels * height * width,))
    if way == "reshape":
        return net.node("Reshape", [at, net.constant(np.array([0, -1]))], (channels * height * width,))
    rows = net.node("Reshape", [at, net.constant(np.array([0, channels, -1]))], (channels, height * width))
    return net.node("Transpose", [rows], (height * width, channels), perm=[0, 2, 1])


# vectors: (width,), and sequences: (length, width)


def _gemm(net: Net, at: str) -> str:
    width, out = net.shapes[at][0], net.draw(st.integers(1, 24))
    if net.chance():
        inputs = [at, net.weight(out, width), *([net.weight(out, scale=0.2)] if net.chance() else [])]
        return net.node("Gemm", inputs, (out,), transB=1)
    return net.node("Gemm", [at, net.weight(width, out), net.weight(out, scale=0.2)], (out,))


def _matmul(net: Net, at: str) -> str:
    *lead, width = net.shapes[at]
    out = net.draw(st.integers(1, 24))
    product = net.node("MatMul", [at, net.weight(width, out)], (*lead, out))
    return net.node("Add", [product, net.weight(out, scale=0.2)], (*lead, out)) if net.chance() else product


def _tied(net: Net, at: str) -> str:
    """There and back through one weight."""
    *lead, width = net.shapes[at]
    out = net.draw(st.integers(1, 16))
    weight = net.weight(width, out)
    there = net.node("MatMul", [at, weight], (*lead, out))
    back = net.name()
    net.nodes.append(helper.make_node("Transpose", [weight], [back], perm=[1, 0]))
    return net.node("MatMul", [_activation(net, there), back], (*lead, width))


def _layer_norm(net: Net, at: str) -> str:
    width = net.shapes[at][-1]
    inputs = [at, net.weight(width, scale=1.0), net.weight(width, scale=0.2)]
    return net.node("LayerNormalization", inputs, net.shapes[at], axis=-1)


def _fold(net: Net, at: str) -> str:
    """A vector as a sequence of parts."""
    (width,) = net.shapes[at]
    parts = next((p for p in (4, 3, 2) if width % p == 0), 1)
    return net.node(
        "Reshape", [at, net.constant(np.array([0, parts, width // parts]))], (parts, width // parts)
    )


def _gather(net: Net, at: str) -> str:
    width = net.shapes[at][0]
    index = net.rng.integers(0, width, net.draw(st.integers(1, 8)))
    return net.node("Gather", [at, net.constant(index)], (len(index), *net.shapes[at][1:]), axis=1)


def _slice(net: Net, at: str) -> str:
    width = net.shapes[at][0]
    end = net.draw(st.integers(1, width))
    inputs = [at, *(net.constant(np.array([number])) for number in (0, end, 1))]
    return net.node("Slice", inputs, (end, *net.shapes[at][1:]))


def _recurrent(net: Net, at: str) -> str:
    """(batch, length, width) is turned to (length, batch, width) and back."""
    length, width = net.shapes[at]
    kind, hidden = net.pick("LSTM", "GRU", "RNN"), net.draw(st.integers(1, 6))
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    turned = net.name()
    net.nodes.append(helper.make_node("Transpose", [at], [turned], perm=[1, 0, 2]))
    weights = [net.weight(1, gates * hidden, size, scale=0.5) for size in (width, hidden)]
    bias = [net.weight(1, 2 * gates * hidden, scale=0.2)] if net.chance() else []
    made = net.name()
    net.nodes.append(helper.make_node(kind, [turned, *weights, *bias], [made], hidden_size=hidden))
    squeezed = net.name()
    net.nodes.append(helper.make_node("Squeeze", [made, net.constant(np.array([1]))], [squeezed]))
    return net.node("Transpose", [squeezed], (length, hidden), perm=[1, 0, 2])


def _attention(net: Net, at: str) -> str:
    length, width = net.shapes[at]
    inner = net.draw(st.integers(1, 8))
    q, k, v = (net.node("MatMul", [at, net.weight(width, inner)], (length, inner)) for _ in range(3))
    turned = net.node("Transpose", [k], (inner, length), perm=[0, 2, 1])
    scores = net.node("MatMul", [q, turned], (length, length))
    return net.node("MatMul", [net.node("Softmax", [scores], (length, length), axis=-1), v], (length, inner))


def _mean(net: Net, at: str) -> str:
    length, width = net.shapes[at]
    if net.chance():
        axes = net.constant(np.array([1]))
        return net.node("ReduceMean", [at, axes], (width,), keepdims=0)
    return net.node("Flatten", [at], (length * width,))


ANY = [_activation, _activation, _residual, _concat, _split]
STEPS: dict[int, list[Callable[[Net, str], str]]] = {
    3: [
        *ANY,
        _conv,
        _conv,
        _conv,
        _conv_transpose,
        _batch_norm,
        _batch_norm,
        _pool,
        _excite,
        _shuffle,
        _to_depth,
        _flat,
    ],
    1: [*ANY, _gemm, _gemm, _matmul, _tied, _layer_norm, _batch_norm, _fold, _gather, _slice, _if],
    2: [*ANY, _matmul, _recurrent, _attention, _layer_norm, _mean, _tied, _gather, _if],
}
INPUTS: list[Shape] = [(3, 8, 8), (4, 6, 5), (1, 4, 4), (12,), (16,), (5, 6), (4, 8)]
MOST = 3000  # values of one sample of a tensor


def _value(name: str, shape: tuple[int | str, ...]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


@st.composite
def models(draw: Draw, most_steps: int = 14) -> ModelProto:
    """A valid model, its weights of a network's size, its batch fixed or free."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    net = Net(draw, rng, draw(st.sampled_from(["N", "N", 1])))
    shape = draw(st.sampled_from(INPUTS))
    net.shapes["x"] = shape
    at = "x"
    for _ in range(draw(st.integers(1, most_steps))):
        step = net.pick(*STEPS[len(net.shapes[at])])
        new = step(net, at)
        at = new if math.prod(net.shapes[new]) <= MOST else at
    outputs = [at] if at != "x" else [net.node("Relu", [at], shape)]
    used = {name for node in net.nodes for name in node.input}
    extra = [
        name for name, size in net.shapes.items() if name not in used and name != at and size and name != "x"
    ]
    outputs += extra if net.chance() else []
    graph = helper.make_graph(
        net.nodes,
        "drawn",
        [_value("x", (net.batch, *shape))],
        [_value(name, (net.batch, *net.shapes[name])) for name in dict.fromkeys(outputs)],
        net.weights,
        doc_string="drawn at random",
    )
    made = helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)])
    made.metadata_props.add(key="owner", value="someone")
    onnx.checker.check_model(made, full_check=True)
    return made


def feeds_of(model: ModelProto, seed: int = 0) -> list[dict[str, Any]]:
    """Inputs for a model of `models`, one sample each."""
    rng = np.random.default_rng(seed)
    sizes = [dim.dim_value or 1 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    return [{"x": rng.standard_normal(sizes).astype(np.float32)} for _ in range(SAMPLES)]
