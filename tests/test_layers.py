"""A layer's unfolded input is what its weight multiplies: weight @ columns equals onnxruntime's own output."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnx_compress.model.document import Model
from onnx_compress.model.surgery import Surgery
from onnx_compress.runtime.layers import LayerInput, layer_input, own_bias, weight_from_rows, weight_rows
from onnx_compress.runtime.session import Session
from onnx_compress.runtime.unfold import choose, unfold

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)


def one_node(
    op: str, inputs: list[str], weight: np.ndarray[Any, Any], name: str = "w", rank: int = 2, **attrs: Any
) -> tuple[Model, Any]:
    """A model of one layer of input x and output y, and the layer's node in a surgery view."""
    node = helper.make_node(op, inputs, ["y"], "layer", **attrs)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * rank)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weight, name)])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = Model.from_proto(proto)
    return model, next(iter(Surgery(model).nodes()))


def random(seed: int, *shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def understood(node: Any) -> LayerInput:
    layer = layer_input(node, {})
    assert not isinstance(layer, str), layer
    return layer


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]:
    """Attributes, weight shape and input shape of a valid convolution."""
    axes = draw(st.integers(1, 3))
    group = draw(st.sampled_from([1, 1, 2, 3]))
    per_group = draw(st.integers(1, 3))
    outputs = draw(st.integers(1, 2))

    def each(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(axes)]

    kernel, dilations, spatial = each(1, 3), each(1, 2), each(3, 7)
    attrs: dict[str, Any] = {"group": group, "strides": each(1, 3)}
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if auto_pad == "NOTSET":
        attrs["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * axes)]
    else:
        attrs["auto_pad"] = auto_pad
    if not auto_pad.startswith("SAME"):
        # onnxruntime pads SAME for undilated kernels only
        attrs["dilations"] = dilations
    pads = attrs.get("pads", [0] * 2 * axes)
    reach = [d * (k - 1) + 1 for d, k in zip(attrs.get("dilations", [1] * axes), kernel, strict=True)]
    assume(
        auto_pad.startswith("SAME")
        or all(s + pads[i] + pads[i + axes] >= reach[i] for i, s in enumerate(spatial))
    )
    return attrs, (group * outputs, per_group, *kernel), (2, group * per_group, *spatial)


@SETTINGS
@given(convolutions())
def test_conv_equals_weight_times_columns(
    case: tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]],
) -> None:
    attrs, weight_shape, input_shape = case
    weight, x = random(0, *weight_shape), random(1, *input_shape)
    model, node = one_node("Conv", ["x", "w"], weight, rank=len(input_shape), **attrs)
    y = Session(model, threads=1).run({"x": x})["y"]
    layer = understood(node)
    columns = unfold(x, layer)
    rows = weight_rows(node, weight)
    assert columns.shape[:2] == (layer.group, rows.shape[2])
    assert layer.positions(x.shape[2:]) == y.shape[2:]
    product = (rows @ columns).reshape(weight_shape[0], len(x), -1)
    np.testing.assert_allclose(np.moveaxis(product, 1, 0).reshape(y.shape), y, rtol=1e-5, atol=1e-5)
    assert (weight_from_rows(node, rows, weight_shape[2:]) == weight).all()


@pytest.mark.parametrize("group", [1, 2, 6])
def test_conv_transpose_sums_the_products_of_its_columns(group: int) -> None:
    """With stride = kernel nothing overlaps, so each output is one product."""
    weight, x = random(0, 6, 3, 2, 2), random(1, 2, 6, 4, 5)
    model, node = one_node("ConvTranspose", ["x", "w"], weight, rank=4, group=group, strides=[2, 2])
    y = Session(model, threads=1).run({"x": x})["y"]
    rows = weight_rows(node, weight)
    product = (rows @ unfold(x, understood(node))).reshape(group * 3, 2, 2, 2, 4, 5)
    expected = product.transpose(3, 0, 4, 1, 5, 2).reshape(y.shape)
    np.testing.assert_allclose(expected, y, rtol=1e-5, atol=1e-5)
    assert (weight_from_rows(node, rows, (2, 2)) == weight).all()


@pytest.mark.parametrize("weight_first", [False, True])
@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_equals_weight_times_columns(trans_a: int, trans_b: int, *, weight_first: bool) -> None:
    a, b = random(0, 5, 4), random(1, 4, 3)
    a, b = np.ascontiguousarray(a.T if trans_a else a), np.ascontiguousarray(b.T if trans_b else b)
    weight, x = (a, b) if weight_first else (b, a)
    inputs = ["w", "x"] if weight_first else ["x", "w"]
    model, node = one_node("Gemm", inputs, weight, transA=trans_a, transB=trans_b)
    y = Session(model, threads=1).run({"x": x})["y"]
    layer, rows = understood(node), weight_rows(node, weight)
    product = (rows @ unfold(x, layer))[0]
    np.testing.assert_allclose(np.moveaxis(y, layer.output_axis, 0), product, rtol=1e-5, atol=1e-5)
    assert (weight_from_rows(node, rows) == weight).all()


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (2, 3, 5, 4)])
def test_matmul_rows_are_all_leading_axes(shape: tuple[int, ...]) -> None:
    weight, x = random(0, 4, 6), random(1, *shape)
    model, node = one_node("MatMul", ["x", "w"], weight, rank=len(shape))
    y = Session(model, threads=1).run({"x": x})["y"]
    product = (weight_rows(node, weight) @ unfold(x, understood(node)))[0]
    np.testing.assert_allclose(product.T.reshape(y.shape), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 3), (2, 3, 4, 5)])
def test_matmul_weight_on_the_left_multiplies_columns(shape: tuple[int, ...]) -> None:
    weight, x = random(0, 6, 4), random(1, *shape)
    model, node = one_node("MatMul", ["w", "x"], weight, rank=len(shape))
    y = Session(model, threads=1).run({"x": x})["y"]
    layer = understood(node)
    product = (weight_rows(node, weight) @ unfold(x, layer))[0]
    rows = np.moveaxis(y, layer.output_axis, -1)
    np.testing.assert_allclose(product.T.reshape(rows.shape), rows, rtol=1e-5, atol=1e-5)


def test_what_is_no_layer_says_why() -> None:
    _, node = one_node("MatMul", ["x", "x"], random(0, 4, 4))
    assert layer_input(node, {}) == "it multiplies two computed tensors"
    _, node = one_node("MatMul", ["x", "w"], random(0, 2, 4, 4), rank=3)
    assert layer_input(node, {}) == "its weight has 3 axes, not 2"
    _, node = one_node("Relu", ["x"], random(0, 2))
    assert layer_input(node, {}) == "Relu multiplies no weight matrix"


def test_layers_that_read_alike_share_one_key() -> None:
    _, a = one_node("Gemm", ["x", "w"], random(0, 4, 4), transB=1)
    _, b = one_node("MatMul", ["x", "w"], random(1, 4, 7))
    assert layer_input(a, {}) == layer_input(b, {})


@SETTINGS
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 50))
def test_chosen_positions_are_distinct_and_do_not_depend_on_the_batch(
    total: int, wanted: int, first: int
) -> None:
    chosen = choose(total, wanted, first, 4)
    assert chosen.shape == (4, min(total, wanted))
    assert all(len(set(row)) == len(row) for row in chosen.tolist())
    assert chosen.min() >= 0
    assert chosen.max() < total
    assert (choose(total, wanted, first + 1, 1)[0] == chosen[1]).all()


def test_every_position_comes_up() -> None:
    """Over the samples, no position (a padded border, say) is left out or preferred."""
    counts = np.bincount(choose(12 * 12, 16, 0, 144).ravel(), minlength=144)
    assert counts.min() == counts.max() == math.prod((16, 144)) // 144


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("beta", [0.0, 2.0])
@pytest.mark.parametrize("shape", [(), (1,), (6,), (1, 6), (5, 1), (5, 6), (1, 1)])
def test_an_own_bias_is_what_comes_of_no_input(shape: tuple[int, ...], beta: float, left: bool) -> None:
    """(5, 6) outputs, of which the weight makes the columns, or the rows where it is the left factor; told, or said to be no vector."""
    bias = random(2, *shape)
    inputs = ["w", "x", "b"] if left else ["x", "w", "b"]
    weight, zeros = (random(0, 5, 4), np.zeros((4, 6))) if left else (random(0, 4, 6), np.zeros((5, 4)))
    model, _ = one_node("Gemm", inputs, weight, beta=beta)
    model.proto.graph.initializer.append(numpy_helper.from_array(bias, "b"))
    made = Session(model, threads=1).run({"x": zeros.astype(np.float32)})["y"]
    made = made if not left else made.T
    found = own_bias(next(iter(Surgery(model).nodes())), made.shape[1])
    if found is None:
        assert (made != made[0]).any()
    else:
        np.testing.assert_allclose(np.broadcast_to(found, made.shape), made, rtol=1e-6)
