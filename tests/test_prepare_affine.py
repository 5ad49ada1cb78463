"""Normalisations and constants by channel become part of the layer before them, where that is the same to rounding."""

import numpy as np
import pytest
from prepare_cases import ops, prepared, read, weights

from onnx_compress.model.prepare import prepare

NORM = "float[{0}] g, float[{0}] h, float[{0}] m, float[{0}] v"


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, NORM4> { c = Conv (x, w)",
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, float[4] b, NORM4> { c = Conv (x, w, b)",
        "g (float[N,4,8,8] x) => (float[N,6,6,6] y) <float[6,2,3,3] w, NORM6> { c = Conv <group = 2> (x, w)",
        "g (float[N,3,8] x) => (float[N,4,6] y) <float[4,3,3] w, NORM4> { c = Conv (x, w)",
        "g (float[N,3,5,5,5] x) => (float[N,4,4,4,4] y) <float[4,3,2,2,2] w, NORM4> { c = Conv (x, w)",
        "g (float[N,3,8,8] x) => (float[N,4,9,9] y) <float[3,4,2,2] w, NORM4> { c = ConvTranspose (x, w)",
        "g (float[N,4,8,8] x) => (float[N,6,9,9] y) <float[4,3,2,2] w, float[6] b, NORM6> { c = ConvTranspose <group = 2> (x, w, b)",
        "g (float[N,3] x) => (float[N,4] y) <float[3,4] w, NORM4> { c = Gemm (x, w)",
        "g (float[N,3] x) => (float[N,4] y) <float[4,3] w, float[4] b, NORM4> { c = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)",
        "g (float[N,3] x) => (float[N,4] y) <float[3,4] w, float[1,1] b, NORM4> { c = Gemm (x, w, b)",
    ],
)
def test_a_normalization_becomes_part_of_the_layer_before_it(text: str) -> None:
    for width in (4, 6):
        text = text.replace(f"NORM{width}", NORM.format(width))
    result = prepared(read(text + " y = BatchNormalization <epsilon = 0.01> (c, g, h, m, v) }"))
    assert len(ops(result.model)) == 1
    assert [edit.what for edit in result.changes if edit.what == "fold"] == ["fold"]
    assert len(result.model.proto.graph.initializer) == 2


def test_a_2d_matmul_takes_the_scale_and_leaves_the_shift() -> None:
    text = f"g (float[N,3] x) => (float[N,4] y) <float[3,4] w, float[4] b, {NORM.format(4)}> {{ MM y = BatchNormalization (c, g, h, m, v) }}"
    assert ops(prepared(read(text.replace("MM", "c = MatMul (x, w)"))).model) == ["MatMul", "Add"]
    assert ops(prepared(read(text.replace("MM", "a = MatMul (x, w) c = Add (b, a)"))).model) == [
        "MatMul",
        "Add",
    ]


def test_a_3d_matmul_keeps_its_normalization() -> None:
    """Its channels are axis 1, which the weight does not make."""
    text = f"g (float[N,5,3] x) => (float[N,5,4] y) <float[3,4] w, {NORM.format(5)}> {{ c = MatMul (x, w) y = BatchNormalization (c, g, h, m, v) }}"
    assert ops(prepared(read(text)).model) == ["MatMul", "BatchNormalization"]


@pytest.mark.parametrize(
    "tail",
    ["Add (c, k)", "Add (k, c)", "Sub (c, k)", "Sub (k, c)", "Mul (c, k)", "Div (c, k)"],
)
@pytest.mark.parametrize("shape", ["", "1", "4,1,1", "1,4,1,1", "1,1,1,1"])
def test_a_constant_by_channel_becomes_part_of_the_convolution(tail: str, shape: str) -> None:
    kind = f"float[{shape}]" if shape else "float"
    result = prepared(
        read(
            f"g (float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, {kind} k> {{ c = Conv (x, w) y = {tail} }}"
        )
    )
    assert ops(result.model) == ["Conv"]


@pytest.mark.parametrize(
    ("tail", "kinds"),
    [
        ("y = Div (k, c)", "float[4,1,1] k"),
        ("y = Mul (c, k)", "float[6] k"),
        ("y = Add (c, k)", "float[4,6,6] k"),
        ("y = Add (c, c)", ""),
    ],
)
def test_what_is_not_one_number_a_channel_stays(tail: str, kinds: str) -> None:
    kinds = f", {kinds}" if kinds else ""
    result = prepared(
        read(
            f"g (float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w{kinds}> {{ c = Conv (x, w) {tail} }}"
        )
    )
    assert len(ops(result.model)) == 2


def test_a_convolution_that_others_read_keeps_its_normalization() -> None:
    head = (
        f"g (float[N,3,8,8] x) => (float[N,4,6,6] y, float[N,4,6,6] z) <float[4,3,3,3] w, {NORM.format(4)}>"
    )
    norm = "y = BatchNormalization (c, g, h, m, v)"
    assert "BatchNormalization" in ops(
        prepared(read(f"{head} {{ c = Conv (x, w) {norm} z = Relu (c) }}")).model
    )
    assert "BatchNormalization" in ops(
        prepared(read(f"{head} {{ z = Conv (x, w) {norm.replace('(c', '(z')} }}")).model
    )


def test_a_convolution_read_in_a_body_keeps_its_normalization() -> None:
    result = prepared(
        read(f"""
        g (float[N,3,8,8] x, bool f) => (float[N,4,6,6] y, float[N,4,6,6] z) <float[4,3,3,3] w, {NORM.format(4)}> {{
            c = Conv (x, w)
            y = BatchNormalization (c, g, h, m, v)
            z = If (f) < then_branch = t () => (float[N,4,6,6] a) {{ a = Relu (c) }},
                         else_branch = e () => (float[N,4,6,6] b) {{ b = Neg (c) }} >
        }}
    """)
    )
    assert "BatchNormalization" in ops(result.model)


def test_a_shared_kernel_is_copied_before_its_normalization_is_folded() -> None:
    result = prepared(
        read(f"""
        g (float[N,3,8,8] x) => (float[N,3,4,4] y) <float[3,3,3,3] w, {NORM.format(3)}> {{
            c = Conv (x, w)
            n = BatchNormalization (c, g, h, m, v)
            y = Conv (n, w)
        }}
    """)
    )
    assert ops(result.model) == ["Conv", "Conv"]
    assert sum(shape == (3, 3, 3, 3) for shape in weights(result.model).values()) == 2


def test_a_kernel_that_is_also_an_output_is_returned_as_it_was() -> None:
    result = prepared(
        read(f"""
        g (float[N,3,8,8] x) => (float[N,4,6,6] y, float[4,3,3,3] w) <float[4,3,3,3] w, {NORM.format(4)}> {{
            c = Conv (x, w)
            y = BatchNormalization (c, g, h, m, v)
        }}
    """)
    )
    assert ops(result.model) == ["Conv"]


def test_a_normalization_in_training_is_left_and_named() -> None:
    text = f"""
        g (float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, {NORM.format(4)}> {{
            c = Conv (x, w)
            [bn] y, m2, v2 = BatchNormalization <training_mode = 1> (c, g, h, m, v)
        }}
    """
    result = prepared(read(text))
    assert ops(result.model) == ["Conv", "BatchNormalization"]
    assert [(left.node, left.why) for left in result.skips] == [("bn", "BatchNormalization in training mode")]


def test_a_normalization_that_is_not_finite_stays() -> None:
    model = read(
        f"g (float[N,3] x) => (float[N,4] y) <float[3,4] w, {NORM.format(4)}> {{ c = Gemm (x, w) y = BatchNormalization (c, g, h, m, v) }}"
    )
    variance = next(tensor for tensor in model.proto.graph.initializer if tensor.name == "v")
    model.set_array(variance, np.full(4, -1, np.float32))
    assert ops(prepare(model).model) == ["Gemm", "BatchNormalization"]
