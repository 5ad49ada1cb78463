"""int8: integer kernels for every node that has one, and float rewrites that lead to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from int8_cases import (
    FOLLOWERS,
    PLAIN,
    build,
    data_of,
    executed,
    follower_model,
    normal,
    run,
)
from numpy.typing import NDArray

from onnx_compress.model.check import check
from onnx_compress.model.prepare import prepare
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.int8.kinds import REQUANTIZED, SHARED
from onnx_compress.passes.int8.lower import RULES, lower
from onnx_compress.passes.int8.placement import place
from onnx_compress.runtime.agreement import output_error
from onnx_compress.runtime.session import Session

Array = NDArray[Any]


def test_every_integer_operator_has_a_case() -> None:
    assert FOLLOWERS.keys() == SHARED | REQUANTIZED


@pytest.mark.parametrize("op", sorted(FOLLOWERS))
def test_nothing_is_converted_between_integer_nodes(op: str) -> None:
    """Values are quantized once, at the input, and never come back to float before the last layer."""
    model = follower_model(op)
    result = run(PLAIN, model)
    ops = executed(result.model)
    assert ops["QuantizeLinear"] == 1, ops
    assert ops["DequantizeLinear"] == 0, ops
    assert not ops.keys() & {
        "Conv",
        "Gemm",
        "MatMul",
        "FusedConv",
        "Add",
        "Mul",
        "Relu",
        "LeakyRelu",
        "Sigmoid",
    }
    # > 8 bits of activations and weights through three layers: 1 % leaves room over what is seen (up to 0.3 %)
    assert output_error(model, result.model, data_of(model)) < 0.01


@pytest.mark.parametrize("clip", ["b = Relu(a)", "b = Clip(a, low, high)"])
def test_a_clipping_activation_vanishes_into_the_range(clip: str) -> None:
    weights = {"w": normal(8, 3, 3, 3), "g": normal(288, 5)}
    if "Clip" in clip:
        weights |= {"low": np.array(0, np.float32), "high": np.array(0.5, np.float32)}
    model = build(f"a = Conv(x, w) {clip} f = Flatten(b) y = Gemm(f, g)", weights)
    result = run(PLAIN, model)
    assert not {"Relu", "Clip"} & {node.op_type for node in result.model.proto.graph.node}
    assert output_error(model, result.model, data_of(model)) < 0.01


@pytest.mark.parametrize(
    ("clip", "beside", "scales"),
    [
        ("r = Relu(a)", "s = MaxPool<kernel_shape=[1,1]>(c)", 3),  # the other half goes below zero
        ("r = Clip(a, low, high)", "s = Relu(c)", 3),  # the other half goes beyond the bound
        ("r = Relu(a)", "s = Relu(c)", 1),
        ("r = Relu(a)", "d = Relu(c) s = AveragePool<kernel_shape=[1,1]>(d)", 1),
        ("r = Clip(a, low, high)", "s = Clip(c, low, high)", 1),
    ],
)
def test_an_activation_vanishes_into_a_shared_range_only_where_it_still_clips(
    clip: str, beside: str, scales: int
) -> None:
    """Concat shares a scale among what it joins; the range of all may reach where the activation does not let its half."""
    weights = {
        "w": normal(8, 3, 3, 3),
        "v": normal(8, 3, 3, 3),
        "u": normal(4, 16, 3, 3),
        "t": normal(4, 20, 3, 3),
    }
    weights |= {"low": np.array(0, np.float32), "high": np.array(0.3, np.float32)}
    used = {name: value for name, value in weights.items() if name in "wvut" or name in clip}
    model = build(
        f"a = Conv(x, w) c = Conv(x, v) {clip} {beside} k = Concat<axis=1>(r, s) e = Conv<pads=[1,1,1,1]>(k, u) "
        "m = Concat<axis=1>(k, e) y = Conv(m, t)",
        used,
    )
    result = run(PLAIN, prepare(model, None).model)
    shared = place(Surgery(lower(model, infer(model), {})).graph, {}).group
    assert len({shared[name] for name in ("r", "s", "k")}) == scales
    ops = executed(result.model)
    assert not ops.keys() & {"Concat", "Conv", "Relu", "Clip"}
    assert ops["QuantizeLinear"] == 1, ops
    assert output_error(model, result.model, data_of(model)) < 0.01


LOWERED: dict[str, tuple[str, dict[str, Array]]] = {
    "ReduceMean": (
        "a = Conv(x, w) b = ReduceMean<axes=[2,3], keepdims=0>(a) y = Gemm(b, g)",
        {"g": normal(8, 5)},
    ),
    "BatchNormalization": (
        "a = Conv(x, w) c = Conv(x, v) d = Concat<axis=1>(a, c) b = BatchNormalization(d, s, s, t, s) y = Conv(b, u)",
        {
            "v": normal(8, 3, 3, 3),
            "s": np.full(16, 0.5, np.float32),
            "t": normal(16),
            "u": normal(4, 16, 1, 1),
        },
    ),
    "HardSwish": ("a = Conv(x, w) b = HardSwish(a) y = Conv(b, u)", {"u": normal(4, 8, 1, 1)}),
    "HardSigmoid": ("a = Conv(x, w) b = HardSigmoid(a) y = Conv(b, u)", {"u": normal(4, 8, 1, 1)}),
    "Pad": (
        "p = Constant<value_ints=[0,0,1,2,0,0,0,1]>() a = Conv(x, w) b = Pad(a, p) y = Conv(b, u)",
        {"u": normal(4, 8, 3, 3)},
    ),
    "Add": (
        "c = Transpose<perm=[0,2,3,1]>(x) a = MatMul(c, m) y = Add(a, t)",
        {"m": normal(3, 5), "t": normal(5)},
    ),
    "Div": (
        "a = Conv(x, w) b = Div(a, c) y = Conv(b, u)",
        {"c": np.array(0.3, np.float32), "u": normal(4, 8, 1, 1)},
    ),
    "Sum": (
        "a = Conv(x, w) c = Conv(x, v) b = Sum(a, c) y = Conv(b, u)",
        {"v": normal(8, 3, 3, 3), "u": normal(4, 8, 1, 1)},
    ),
    "Sub": (
        "a = Conv(x, w) b = Sub(a, c) y = Conv(b, u)",
        {"c": np.array(0.3, np.float32), "u": normal(4, 8, 1, 1)},
    ),
}


@pytest.mark.parametrize("shape", [(0, 40), (32, 0)])
def test_an_empty_weight_stays_as_it_is(shape: tuple[int, int]) -> None:
    """Nothing to round, and no scale to round it by."""
    weights = {"w": normal(32, 40), "v": normal(*shape), "at": np.array([3]), "one": np.array([1])}
    nodes = "a = MatMul(x, w) e = Slice(x, at, at, one) b = MatMul(e, v) y = Add(a, b)"
    if shape[1] == 0:
        del weights["at"], weights["one"]
        nodes = "a = MatMul(x, w) b = MatMul(x, v) y = Concat<axis=1>(a, b)"
    result = run(PLAIN, build(nodes, weights, "float[N,32] x"))
    assert [change.node for change in result.changes] == ["MatMul0"]
    assert "its weight is empty" in {skip.why for skip in result.skips}


def test_every_rewrite_has_a_case() -> None:
    assert LOWERED.keys() == RULES.keys()


@pytest.mark.parametrize("op", sorted(LOWERED))
def test_a_rewrite_changes_no_result(op: str) -> None:
    """Float arithmetic in another order: 1e-12 of the energy is far over its rounding, far under any mistake."""
    nodes, weights = LOWERED[op]
    convolved = {"w": normal(8, 3, 3, 3)} if "w)" in nodes else {}
    model = prepare(build(nodes, {**convolved, **weights}), None).model
    new = lower(model, infer(model), {})
    check(new)
    assert op not in {node.op_type for node in new.proto.graph.node}
    assert output_error(model, new, data_of(model)) < 1e-12
    result = run(PLAIN, model)
    ops = executed(result.model)
    assert op not in ops
    assert not ops.keys() & {"Conv", "Gemm", "MatMul"}


def test_a_scalar_factor_costs_nothing() -> None:
    """y = 0.25 · x in codes is y = x with another scale: no node is left of it, and no rounding is added."""
    weights = {"w": normal(8, 3, 3, 3), "u": normal(4, 8, 1, 1), "c": np.array(0.25, np.float32)}
    model = build("a = Conv(x, w) b = Mul(a, c) y = Conv(b, u)", weights)
    assert "Mul" not in {node.op_type for node in run(PLAIN, model).model.proto.graph.node}


def test_integer_outputs_match_exact_arithmetic() -> None:
    """A quantized Gemm in NumPy, integers in int64: codes differ by one at most, where a float32 product rounds."""
    weights = {"w": normal(6, 16), "b": normal(6), "v": normal(6, 6)}
    inputs = "float[N,16] x"
    model = build("a = Gemm<transB=1>(x, w, b) y = Gemm<transB=1>(a, v)", weights, inputs)
    quantized = run(PLAIN, model).model
    graph = quantized.proto.graph
    value = {tensor.name: quantized.array(tensor) for tensor in graph.initializer}
    made = {node.output[0]: node for node in graph.node}
    first = next(node for node in graph.node if node.op_type == "Gemm")
    source, weight, bias = (made[name] for name in first.input)
    after = next(node for node in graph.node if node.input[0] == first.output[0])
    x = data_of(model).reader.read(np.arange(8))["x"]
    sx, zx = value[source.input[1]], int(value[source.input[2]])
    codes = np.clip(np.rint(x / sx) + zx, 0, 255).astype(np.int64) - zx
    total = codes @ value[weight.input[0]].astype(np.int64).T + value[bias.input[0]]
    sy, zy = value[after.input[1]], int(value[after.input[2]])
    exact = np.clip(np.rint(total * (sx * value[weight.input[1]] / sy).astype(np.float64)) + zy, 0, 255)
    got = Session(quantized, outputs=[after.output[0]]).run({"x": x})[after.output[0]]
    assert np.abs(got.astype(np.int64) - exact).max() <= 1
    assert (got == exact).mean() > 0.9
