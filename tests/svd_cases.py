"""Layers of every form that svd factors, alone in a model, and what the svd tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnx_compress.contract import Job, Result
from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.svd import Svd
from onnx_compress.passes.svd.aim import plain_problem, solve
from onnx_compress.passes.svd.edits import apply_factors
from onnx_compress.passes.svd.forms import Method, can, full_form
from onnx_compress.passes.svd.layers import find_layers
from onnx_compress.recipe import parse, resolve
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import Data, open_data
from onnx_compress.runtime.session import Session, input_specs

if TYPE_CHECKING:
    from onnx_compress.passes.svd.factors import Factors

Array = NDArray[Any]

METHODS: tuple[Method, ...] = ("svd", "spatial", "tucker2", "cp")


def model_of(
    nodes: list[onnx.NodeProto],
    weights: dict[str, Array],
    shape: tuple[int | str, ...],
    rank: int = 0,
    element: int = TensorProto.FLOAT,
) -> Model:
    """A model from `x` (of `shape` and of this type of elements) to `y` (of as many axes, or `rank`)."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (rank or len(shape)))],
        [onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return Model.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )


def conv(kernel: tuple[int, ...], channels: int, outputs: int, size: int = 9, **attrs: Any) -> Model:
    rng = np.random.default_rng(0)
    group = attrs.get("group", 1)
    weights = {"w": rng.normal(size=(outputs, channels // group, *kernel)), "b": rng.normal(size=outputs)}
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", **attrs)
    return model_of([node], weights, ("N", channels, *(size,) * len(kernel)))


def run(model: Model, x: Array) -> Array:
    result: Array = Session(model, threads=1).run({"x": x})["y"]
    return result


def at_full_rank(model: Model, method: Method) -> tuple[Model, int]:
    """The model with every layer factored at full rank, and how many layers that are."""
    layers, _ = find_layers(Surgery(model), infer(model))
    plan: dict[str, Factors] = {}
    for layer in layers:
        if can(layer, method):
            plan[layer.output] = solve(plain_problem(layer, None), layer, full_form(layer, method))
    return apply_factors(model, plan), len(plan)


def net(seed: int = 0, width: int = 12) -> Model:
    """Conv, residual block, pooling, Gemm: small, with smooth random weights of falling spectrum."""
    rng = np.random.default_rng(seed)

    def filters(n: int, c: int) -> Array:
        return rng.normal(size=(n, c, 3, 3)) * np.exp(-np.arange(c) / 3)[None, :, None, None] / 2

    weights: dict[str, Array] = {
        "w0": rng.normal(size=(width, 3, 3, 3)) / 3,
        "w1": filters(width, width),
        "w2": filters(width, width),
        "w3": rng.normal(size=(10, width)),
        "b": rng.normal(size=width),
    }
    pad: dict[str, Any] = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b"], ["c0"], name="stem", **pad),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu0"),
        helper.make_node("Conv", ["r0", "w1", "b"], ["c1"], name="inner", **pad),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="outer", **pad),
        helper.make_node("Add", ["c2", "r0"], ["sum"], name="add"),
        helper.make_node("Relu", ["sum"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["pool"], name="pool"),
        helper.make_node("Flatten", ["pool"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w3"], ["y"], name="head", transB=1),
    ]
    return model_of(nodes, weights, ("N", 3, 8, 8), rank=2)


def images(model: Model, count: int = 64) -> Data:
    """Smooth random pictures: neighbours correlate, as in real ones."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(count, 3, 8, 8))
    x = (x + np.roll(x, 1, 2) + np.roll(x, 1, 3) + np.roll(x, (1, 1), (2, 3))).astype(np.float32)
    return open_data([{"x": x}], input_specs(model))


def job_of(model: Model, data: Data | None, **extra: Any) -> Job:
    return Job(model, model, data, 0, extra.pop("clock", Clock(1)), **extra)


def svd(spec: str, model: Model, data: Data | None, **extra: Any) -> Result:
    """The result of the pass, checked."""
    before = model.to_proto().SerializeToString()
    (item,) = resolve(parse(spec), [Svd])
    result = item.apply(job_of(model, data, **extra))
    check(result.model)
    assert model.to_proto().SerializeToString() == before
    return result


CASES: dict[str, tuple[Model, tuple[int, ...]]] = {}


def transpose(kernel: tuple[int, ...], channels: int, outputs: int, **attrs: Any) -> Model:
    rng = np.random.default_rng(0)
    size = (channels, outputs // attrs.get("group", 1), *kernel)
    weights = {"w": rng.normal(size=size), "b": rng.normal(size=outputs)}
    node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["y"], name="conv", **attrs)
    return model_of([node], weights, ("N", channels, *(9,) * len(kernel)))


def matmul_like(op: str, shape: tuple[int, ...], weight: tuple[int, ...], left: bool, **attrs: Any) -> Model:
    rng = np.random.default_rng(0)
    out = attrs.pop("out", 0)
    inputs = ["w", "x"] if left else ["x", "w"]
    weights: dict[str, Array] = {"w": rng.normal(size=weight)}
    if op == "Gemm":
        inputs.append("b")
        weights["b"] = rng.normal(size=attrs.pop("bias", (weight[0] if attrs.get("transB") else weight[1],)))
    return model_of([helper.make_node(op, inputs, ["y"], name="layer", **attrs)], weights, shape, rank=out)


CASES["gemm"] = matmul_like("Gemm", (5, 8), (8, 6), False), (5, 8)
CASES["gemm alpha beta transB"] = (
    matmul_like("Gemm", (5, 8), (6, 8), False, alpha=0.5, beta=2.0, transB=1),
    (5, 8),
)
CASES["gemm transA"] = matmul_like("Gemm", (8, 5), (8, 6), False, transA=1, alpha=3.0), (8, 5)
CASES["gemm with a bias matrix"] = matmul_like("Gemm", (5, 8), (8, 6), False, bias=(5, 6)), (5, 8)
CASES["matmul"] = matmul_like("MatMul", (5, 8), (8, 6), False), (5, 8)
CASES["batched matmul"] = matmul_like("MatMul", (2, 3, 5, 8), (8, 6), False), (2, 3, 5, 8)
CASES["matmul, weight left"] = matmul_like("MatMul", (2, 8, 5), (6, 8), True), (2, 8, 5)
CASES["gemm, weight left"] = (
    matmul_like("Gemm", (8, 5), (6, 8), True, bias=(6, 1), alpha=0.5, beta=2.0),
    (8, 5),
)
CASES["gemm, weight left, both flipped"] = (
    matmul_like("Gemm", (5, 8), (8, 6), True, bias=(5,), transA=1, transB=1),
    (5, 8),
)
CASES["stack of matrices"] = matmul_like("MatMul", (2, 3, 5, 8), (3, 8, 6), False), (2, 3, 5, 8)
CASES["one input, a stack of matrices"] = matmul_like("MatMul", (5, 8), (3, 8, 6), False, out=3), (5, 8)
CASES["stack of matrices, left"] = matmul_like("MatMul", (2, 3, 8, 5), (3, 6, 8), True), (2, 3, 8, 5)
CASES["conv transpose"] = transpose((3, 2), 8, 6, strides=[2, 1], pads=[1, 0, 0, 1]), (2, 8, 9, 9)
CASES["conv transpose grouped"] = (
    transpose((3, 3), 8, 8, group=2, dilations=[1, 2], output_padding=[1, 0], strides=[2, 1]),
    (2, 8, 9, 9),
)
CASES["conv 1x1"] = conv((1, 1), 8, 6), (2, 8, 9, 9)
CASES["conv 1x1 strided"] = conv((1, 1), 8, 6, strides=[2, 2]), (2, 8, 9, 9)
CASES["conv 3x3"] = conv((3, 3), 8, 6, pads=[1, 1, 1, 1]), (2, 8, 9, 9)
CASES["conv grouped"] = conv((3, 3), 16, 8, group=2, strides=[2, 1]), (2, 16, 9, 9)
CASES["conv grouped, spatial"] = conv((3, 2), 16, 12, group=2, pads=[1, 0, 1, 1]), (2, 16, 9, 9)
CASES["conv 1-D"] = conv((5,), 8, 6, dilations=[2]), (2, 8, 9)
CASES["conv 3-D"] = conv((2, 3, 2), 4, 6, size=5), (2, 4, 5, 5, 5)
CASES["conv same upper"] = conv((3, 4), 8, 6, auto_pad="SAME_UPPER", strides=[2, 3]), (2, 8, 9, 9)
CASES["conv same lower"] = conv((4, 2), 8, 6, auto_pad="SAME_LOWER", strides=[2, 2]), (2, 8, 9, 9)
CASES["conv valid"] = conv((3, 3), 8, 6, auto_pad="VALID"), (2, 8, 9, 9)
