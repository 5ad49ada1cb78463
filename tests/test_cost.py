from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_compress.model.cost import Cost, cost
from onnx_compress.model.document import Model
from onnx_compress.model.shapes import infer

ASSETS = Path(__file__).parents[1].parent / "shared" / "assets"
HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def measure(text: str, **inputs: tuple[int, ...]) -> Cost:
    """The cost of graph text in which a weight without a value holds ones."""
    proto = onnx.parser.parse_model(HEAD + text)
    for value in list(proto.graph.value_info):
        kind = value.type.tensor_type
        dims = [dim.dim_value for dim in kind.shape.dim]
        ones = onnx.helper.make_tensor(value.name, kind.elem_type, dims, np.ones(dims).reshape(-1))
        proto.graph.initializer.append(ones)
    del proto.graph.value_info[:]
    model = Model.from_proto(proto)
    return cost(model, infer(model, inputs))


def test_a_convolution_by_hand() -> None:
    """6·6 places, 4 filters of 3·3·3."""
    result = measure(
        "g (float[N,3,8,8] x) => (float[N,4,6,6] y) <float[4,3,3,3] w, float[4] b> { y = Conv (x, w, b) }"
    )
    assert (result.macs, result.params, result.nodes) == (6 * 6 * 4 * 27, 4 * 27 + 4, 1)
    assert [(layer.op, layer.macs, layer.params, layer.bytes) for layer in result.layers] == [
        ("Conv", 6 * 6 * 4 * 27, 112, 448)
    ]


def test_a_group_sees_its_own_channels_only() -> None:
    result = measure(
        "g (float[N,4,8,8] x) => (float[N,4,8,8] y) <float[4,1,1,1] w> { y = Conv <group = 4> (x, w) }"
    )
    assert result.macs == 8 * 8 * 4


def test_a_transposed_convolution_by_hand() -> None:
    """Each of 5·5·3 inputs reaches 2·2·2 outputs."""
    result = measure(
        "g (float[1,3,5,5] x) => (float[1,2,6,6] y) <float[3,2,2,2] w> { y = ConvTranspose (x, w) }"
    )
    assert result.macs == 5 * 5 * 3 * 8


@pytest.mark.parametrize(
    ("text", "macs"),
    [
        ("g (float[N,5] x) => (float[N,7] y) <float[7,5] w> { y = Gemm <transB = 1> (x, w) }", 35),
        ("g (float[5,N] x) => (float[N,7] y) <float[5,7] w> { y = Gemm <transA = 1> (x, w) }", 35),
        ("g (float[2,3,4] a, float[2,4,5] b) => (float[2,3,5] y) { y = MatMul (a, b) }", 2 * 3 * 4 * 5),
        ("g (float[4] a, float[4] b) => (float y) { y = MatMul (a, b) }", 4),
        (
            'g (float[2,3,4] a, float[2,4,5] b) => (float[2,3,5] y) { y = Einsum <equation = "bij,bjk->bik"> (a, b) }',
            2 * 3 * 4 * 5,
        ),
        (
            'g (float[6,3,4] a, float[6,4] b) => (float[6,3] y) { y = Einsum <equation = "...ij,...j"> (a, b) }',
            6 * 3 * 4,
        ),
        (
            """g (float[9,1,4] x) => (float[9,1,1,6] y) <float[1,24,4] w, float[1,24,6] r>
            { y = LSTM <hidden_size = 6> (x, w, r) }""",
            9 * 24 * (4 + 6),
        ),
    ],
)
def test_multiply_adds_by_hand(text: str, macs: int) -> None:
    assert measure(text).macs == macs


def test_a_symbolic_size_comes_from_the_input_shapes() -> None:
    text = "g (float[N,L,4] x) => (float[N,L,5] y) <float[4,5] w> { y = MatMul (x, w) }"
    assert measure(text).macs == 20
    assert measure(text, x=(1, 16, 4)).macs == 320


def test_a_tied_weight_counts_once() -> None:
    result = measure("""
        g (float[N,4] x) => (float[N,4] y) <float[4,4] w> { a = MatMul (x, w)  y = MatMul (a, w) }
    """)
    assert result.params == 16
    assert [layer.params for layer in result.layers] == [16, 16]


def test_weights_in_constant_nodes_count() -> None:
    result = measure("""
        g (float[N,2] x) => (float[N,3] y) {
            w = Constant <value = float[2,3] {1, 2, 3, 4, 5, 6}> ()
            b = Constant <value_floats = [1.0, 2.0, 3.0]> ()
            y = Gemm (x, w, b)
        }
    """)
    assert result.params == 9


def test_a_quantized_weight_counts_its_elements_not_its_scales() -> None:
    result = measure("""
        g (float[N,4] x) => (float[N,8] y) <int8[4,8] q, float[8] s, int8[8] z, int32[8] b, float[8] bs> {
            w = DequantizeLinear <axis = 1> (q, s, z)
            c = DequantizeLinear <axis = 0> (b, bs)
            y = Gemm (x, w, c)
        }
    """)
    assert result.params == 32 + 8
    assert [(layer.op, layer.macs, layer.params, layer.bytes) for layer in result.layers] == [
        ("Gemm", 32, 40, 32 + 32)
    ]


def test_a_clustered_weight_counts_its_indices() -> None:
    result = measure("""
        g (float[N,4] x) => (float[N,8] y) <float[16] codebook, uint4[4,8] index> {
            i = Cast <to = 6> (index)
            w = Gather (codebook, i)
            y = MatMul (x, w)
        }
    """)
    assert (result.params, result.layers[0].bytes) == (32, 16)


def test_shapes_are_no_weights() -> None:
    result = measure("g (float[N,4] x) => (float[M,2] y) <int64[2] s = {-1, 2}> { y = Reshape (x, s) }")
    assert (result.params, result.layers) == (0, [])


def test_what_is_computed_from_weights_alone_costs_nothing() -> None:
    """onnxruntime folds it at load: the product of two weights is no work of a run."""
    result = measure("""
        g (float[N,4] x) => (float[N,4] y) <float[4,2] a, float[2,4] b> { w = MatMul (a, b)  y = MatMul (x, w) }
    """)
    assert (result.macs, result.params, [layer.op for layer in result.layers]) == (16, 16, ["MatMul"])


def test_a_loop_body_counts_once_and_an_if_its_costlier_branch() -> None:
    result = measure("""
        g (float[N,4] x, bool f) => (float[N,4] y) <int64 turns = {9}, bool on = {1}, float[4,4] w> {
            a = Loop (turns, on, x) <body = b (int64 t, bool c, float[N,4] s) => (bool c2, float[N,4] s2) {
                c2 = Identity (c)
                s2 = MatMul (s, w)
            }>
            y = If (f) <
                then_branch = p () => (float[N,4] p1) { p0 = MatMul (x, w)  p1 = MatMul (p0, w) },
                else_branch = q () => (float[N,4] q0) { q0 = Add (a, x) }
            >
        }
    """)
    assert (result.macs, result.params, result.nodes) == (16 + 32, 16, 7)


def test_functions_count_at_every_call() -> None:
    text = """
        g (float[N,4] x) => (float[N,4] y) <float[4,4] w, float[4,4] v> { a = own.Twice (x, w)  y = own.Twice (a, v) }
        <opset_import: ["": 21], domain: "own">
        Twice (t, w) => (o) { m = MatMul (t, w)  o = MatMul (m, w) }
    """
    model = Model.from_proto(
        onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 21, "own": 1]>'
            + text.replace("<float[4,4] w, float[4,4] v>", "<float[4,4] w = {1}, float[4,4] v = {1}>", 0)
        )
    )
    result = cost(model, infer(model))
    assert (result.macs, result.nodes) == (64, 4)


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [("cifar10/resnet20", 0.27e6, 40.55e6), ("cifar10/resnet44", 0.66e6, 97.2e6)],
)
def test_known_models(name: str, params: float, macs: float) -> None:
    path = ASSETS / f"{name}.onnx"
    if not path.exists():
        pytest.skip("assets absent")
    model = Model.load(path)
    result = cost(model, infer(model, {"input": (1, 3, 32, 32)}))
    assert result.bytes == pytest.approx(path.stat().st_size, abs=4)
    assert result.params == pytest.approx(params, rel=0.01)
    assert result.macs == pytest.approx(macs, rel=0.01)
