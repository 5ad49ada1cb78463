"""Each case is a graph in text, what prepare makes of it, and that its outputs stay what they were."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_compress.errors import InputError, LimitError
from onnx_compress.model.document import Model, check
from onnx_compress.model.inline_functions import inline_functions
from onnx_compress.model.prepare import Prepared, prepare
from onnx_compress.model.walk import graphs
from onnx_compress.runtime.session import Session, input_specs

TINY = Path(__file__).parents[1] / "models" / "tiny"
ASSETS = Path(__file__).parents[1].parent / "shared" / "assets"


def read(text: str, opset: int = 17, ir: int = 8) -> Model:
    """The model of graph text; a weight without a value gets a random one."""
    own = ', "own": 1' if "own." in text else ""
    proto = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["": {opset}{own}]>' + text)
    rng = np.random.default_rng(0)
    made = {name for node in proto.graph.node for name in node.output}
    for value in [v for v in proto.graph.value_info if v.name not in made]:
        kind = value.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        # > 0 throughout: a variance must be
        array = (
            (rng.random(shape) + 0.5).astype(dtype)
            if dtype.kind == "f"
            else rng.integers(0, 16, shape).astype(dtype)
        )
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        proto.graph.value_info.remove(value)
    return Model.from_proto(proto)


def feeds_of(model: Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    feeds = {}
    for spec in input_specs(model):
        shape = [size if isinstance(size, int) else 2 for size in spec.shape]
        feeds[spec.name] = (
            rng.standard_normal(shape).astype(spec.dtype)
            if spec.dtype.kind == "f"
            else np.ones(shape, spec.dtype)
        )
    return feeds


def prepared(model: Model, tolerance: float = 1e-5) -> Prepared:
    """`model` prepared, after all that must hold for every model has been seen to hold."""
    before = model.proto.SerializeToString()
    result = prepare(model)
    assert model.proto.SerializeToString() == before, "the input was changed"
    check(result.model)
    assert prepare(result.model).changes == [], "a second time changes more"
    old, new = model.proto.graph, result.model.proto.graph
    assert [v.SerializeToString() for v in old.output] == [v.SerializeToString() for v in new.output]
    names = [node.name for graph in graphs(new) for node in graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    feeds = feeds_of(model)
    expected = Session(model, threads=1, optimize=False).run(feeds)
    got = Session(result.model, threads=1, optimize=False).run(feeds)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_allclose(
            got[name], value, rtol=tolerance, atol=tolerance * (np.abs(value).max() if value.size else 0)
        )
    return result


def ops(model: Model) -> list[str]:
    return [node.op_type for node in model.proto.graph.node]


def weights(model: Model) -> dict[str, tuple[int, ...]]:
    return {
        tensor.name: tuple(tensor.dims) for graph in graphs(model.proto.graph) for tensor in graph.initializer
    }


def test_a_prepared_model_is_left_alone() -> None:
    model = read("""
        g (float[N,3,8,8] x) => (float[N,M] y) <float[4,3,3,3] w, float[4] b, int64[2] s = {0, -1}> {
            [conv] c = Conv (x, w, b)
            [relu] r = Relu (c)
            [flat] y = Reshape (r, s)
        }
    """)
    result = prepared(model)
    assert result.changes == []
    assert result.skips == []
    assert result.model.proto.SerializeToString(deterministic=True) == model.proto.SerializeToString(
        deterministic=True
    )


# ---------------------------------------------------------------- BatchNormalization and other affine nodes

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


# ---------------------------------------------------------------- Constant nodes


def test_every_form_of_constant_node_becomes_an_initializer() -> None:
    model = read("""
        g (float[N,3] x) => (float[N,3] y, int64[2] z, int64 k) {
            a = Constant <value = float[3] {1, 2, 3}> ()
            b = Constant <value_float = 2.0> ()
            c = Constant <value_floats = [1.0, 2.0, 3.0]> ()
            s = Constant <value_ints = [4, 5]> ()
            one = Constant <value_int = 1> ()
            t = Shape (x)
            z = Add (s, t)
            u = Size (x)
            k = Add (one, u)
            p = Add (x, a)
            q = Mul (p, b)
            y = Add (q, c)
        }
    """)
    result = prepared(model)
    assert "Constant" not in ops(result.model)
    assert weights(result.model) == {"a": (3,), "b": (), "c": (3,), "s": (2,), "one": ()}


def test_a_lifted_weight_is_the_same_bytes_in_the_same_place() -> None:
    value = onnx.numpy_helper.from_array(np.arange(4096, dtype=np.float32).reshape(64, 64))
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Constant", [], ["w"], value=value),
            onnx.helper.make_node("MatMul", ["x", "w"], ["y"]),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, ["N", 64])],
        [onnx.helper.make_tensor_value_info("y", 1, ["N", 64])],
    )
    model = Model.from_proto(
        onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    )
    result = prepared(model).model
    (tensor,) = result.proto.graph.initializer
    assert result.blob(tensor) is model.blob(model.proto.graph.node[0].attribute[0].t)


def test_a_constant_that_a_branch_returns_stays() -> None:
    result = prepared(
        read("""
        g (float[3] x, bool f) => (float[3] y) {
            a = If (f) < then_branch = t () => (float[3] p) { p = Constant <value = float[3] {1, 2, 3}> () },
                         else_branch = e () => (float[3] q) { w = Constant <value = float[3] {4, 5, 6}> () q = Add (x, w) } >
            y = Relu (a)
        }
    """)
    )
    inner = [[node.op_type for node in graph.node] for graph in graphs(result.model.proto.graph)]
    assert inner == [["If", "Relu"], ["Constant"], ["Add"]]


# ---------------------------------------------------------------- folding constants


def test_what_is_computed_from_constants_is_folded() -> None:
    result = prepared(
        read("""
        g (float[N,4] x) => (float[N,6] y) <float[6,4] w, float[6,1] gain, int64[1] one = {1}> {
            l = ReduceL2 <axes = [1]> (w)
            d = Div (w, l)
            scaled = Mul (d, gain)
            t = Transpose <perm = [1, 0]> (scaled)
            y = MatMul (x, t)
        }
    """)
    )
    assert ops(result.model) == ["MatMul"]
    assert weights(result.model) == {"t": (4, 6)}


def test_a_computed_value_that_would_make_the_file_larger_stays() -> None:
    result = prepared(
        read("""
        g (float[300,300] x) => (float[300,300] y) <int64[2] s = {300, 300}> {
            ones = ConstantOfShape <value = float[1] {1.0}> (s)
            y = Add (x, ones)
        }
    """)
    )
    assert ops(result.model) == ["ConstantOfShape", "Add"]


def test_a_weight_that_is_tied_to_its_transpose_stays_tied() -> None:
    result = prepared(
        read("""
        g (int64[N] i) => (float[N,500] y) <float[500,64] table> {
            e = Gather (table, i)
            t = Transpose <perm = [1, 0]> (table)
            y = MatMul (e, t)
        }
    """)
    )
    assert ops(result.model) == ["Gather", "Transpose", "MatMul"]


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,4] x) => (float[N,8] y) <int8[4,8] q, float[8] s, int8[8] z> { w = DequantizeLinear <axis = 1> (q, s, z) y = MatMul (x, w) }",
        "g (float[N,4] x) => (float[N,8] y) <uint8[4,8] q, float[16] codes> { i = Cast <to = 6> (q) w = Gather (codes, i) y = MatMul (x, w) }",
        "g (float[N,4] x) => (float[N,8] y) <int8[4,8] q, float s> { i = Cast <to = 1> (q) w = Mul (i, s) y = MatMul (x, w) }",
        "g (float[N,4] x) => (float[N,4] y) <float[4,4] w, float s, uint8 z = {0}> { q = QuantizeLinear (w, s, z) d = DequantizeLinear (q, s, z) y = MatMul (x, d) }",
    ],
)
def test_a_weight_in_its_stored_form_stays(text: str) -> None:
    """Quantized and clustered: onnxruntime folds them at load, in the file they stay small."""
    model = read(text)
    result = prepared(model)
    assert {edit.what for edit in result.changes} == {"name nodes"}


def test_two_branches_that_compute_the_same_share_it() -> None:
    branch = """{
        a = Constant <value = int64[1] {OFF}> () b = Constant <value = int64[1] {0}> () c = Constant <value = int64[1] {64}> ()
        s = Slice (w, b, c, b) t = Transpose <perm = [1, 0]> (s) OUT = MatMul (x, t) }"""
    text = f"""
        g (float[N,400] x, bool f) => (float[N,64] y) <float[64,400] w> {{
            y = If (f) < then_branch = t () => (float[N,64] p) {branch.replace("OUT", "p").replace("OFF", "1")},
                         else_branch = e () => (float[N,64] q) {branch.replace("OUT", "q").replace("OFF", "2")} >
        }}
    """
    result = prepared(read(text, opset=13))
    assert list(weights(result.model).values()) == [(400, 64)]


def test_a_random_value_is_not_frozen() -> None:
    model = read("g (float[2] x) => (float[2] y) <float[2] k> { r = RandomNormalLike (k) y = Add (x, r) }")
    assert ops(prepare(model).model) == ["RandomNormalLike", "Add"]


def test_a_value_that_a_caller_may_override_is_no_constant() -> None:
    model = read("g (float[2] x, float[2] k) => (float[2] y) { n = Neg (k) y = Add (x, n) }")
    model.proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "k"))
    assert ops(prepared(model).model) == ["Neg", "Add"]


def test_before_ir_version_4_initializers_are_constants_although_inputs() -> None:
    model = read("g (float[2] x, float[2] k) => (float[2] y) { n = Neg (k) y = Add (x, n) }", opset=9, ir=3)
    model.proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "k"))
    result = prepared(model)
    assert ops(result.model) == ["Add"]
    assert [value.name for value in result.model.proto.graph.input] == ["x"]
    assert result.model.proto.ir_version == 4


# ---------------------------------------------------------------- what only hands on


@pytest.mark.parametrize(
    "middle",
    [
        "b = Identity (a)",
        "b = Dropout (a)",
        "b = Dropout (a, ratio, off)",
        "b = Transpose <perm = [0, 1]> (a)",
        "c = Identity (a) b = Identity (c)",
    ],
)
def test_what_hands_on_its_input_goes(middle: str) -> None:
    text = f"g (float[N,3] x) => (float[N,3] y) <float ratio = {{0.5}}, bool off = {{0}}> {{ a = Relu (x) {middle} y = Neg (b) }}"
    assert ops(prepared(read(text)).model) == ["Relu", "Neg"]


def test_the_names_of_outputs_survive() -> None:
    result = prepared(
        read("g (float[N,3] x) => (float[N,3] y, float[N,3] z) { a = Relu (x) y = Identity (a) z = Neg (a) }")
    )
    assert ops(result.model) == ["Relu", "Neg"]
    result = prepared(
        read("g (float[N,3] x) => (float[N,3] y, float[N,3] z) { y = Relu (x) z = Identity (y) }")
    )
    assert ops(result.model) == ["Relu", "Identity"]
    result = prepared(read("g (float[N,3] x) => (float[N,3] y) { y = Identity (x) }"))
    assert ops(result.model) == ["Identity"]


def test_a_dropout_in_training_or_whose_mask_is_read_stays() -> None:
    text = "g (float[N,3] x) => (float[N,3] y, bool[N,3] mask) { a = Relu (x) y, mask = Dropout (a) }"
    assert ops(prepared(read(text)).model) == ["Relu", "Dropout"]
    model = read(
        "g (float[3] x) => (float[3] y) <float ratio = {0.5}, bool on = {1}> { a = Dropout (x, ratio, on) y = Neg (a) }"
    )
    assert ops(prepare(model).model) == ["Dropout", "Neg"]


def test_what_nobody_reads_goes() -> None:
    result = prepared(
        read("""
        g (float[N,3] x) => (float[N,3] y) <float[3] k, float[7] unused> { a = Add (x, k) b = Neg (a) y = Relu (x) }
    """)
    )
    assert ops(result.model) == ["Relu"]
    assert weights(result.model) == {}


def test_transposes_that_undo_each_other_go() -> None:
    """As a converter from a channels-last framework leaves them; the bias then is the convolution's."""
    result = prepared(
        read("""
        g (float[N,8,8,3] x) => (float[N,4,4,5] y) <float[4,3,3,3] w, float[4] b, float[5,4,3,3] v> {
            x1 = Transpose <perm = [0, 3, 1, 2]> (x)
            c = Conv (x1, w)
            c1 = Transpose <perm = [0, 2, 3, 1]> (c)
            a = Add (c1, b)
            r = Relu (a)
            r1 = Transpose <perm = [0, 3, 1, 2]> (r)
            d = Conv (r1, v)
            y = Transpose <perm = [0, 2, 3, 1]> (d)
        }
    """)
    )
    assert ops(result.model) == ["Transpose", "Conv", "Relu", "Conv", "Transpose"]


def test_a_channels_last_residual_net_loses_its_inner_transposes() -> None:
    """Both branches come transposed to the Add, and to the Concat: one Transpose behind does for them."""
    result = prepared(
        read("""
        g (float[N,3,8,8] x) => (float[N,8,8,7] y) <float[4,3,3,3] w, float[4,4,3,3] v, float[3,4,1,1] u, float[4] s> {
            a = Conv <pads = [1, 1, 1, 1]> (x, w)
            a1 = Transpose <perm = [0, 2, 3, 1]> (a)
            r = Relu (a1)
            r1 = Transpose <perm = [0, 3, 1, 2]> (r)
            b = Conv <pads = [1, 1, 1, 1]> (r1, v)
            b1 = Transpose <perm = [0, 2, 3, 1]> (b)
            b2 = Mul (b1, s)
            c = Add (b2, r)
            c1 = Clip (c)
            d1 = Transpose <perm = [0, 3, 1, 2]> (c1)
            d = Conv (d1, u)
            d2 = Transpose <perm = [0, 2, 3, 1]> (d)
            y = Concat <axis = -1> (c1, d2)
        }
    """)
    )
    assert ops(result.model) == ["Conv", "Relu", "Conv", "Add", "Clip", "Conv", "Concat", "Transpose"]


def test_two_transposes_in_a_row_become_one() -> None:
    result = prepared(
        read("""
        g (float[2,3,4] x) => (float[3,4,2] y) {
            r = Relu (x)
            a = Transpose <perm = [0, 2, 1]> (r)
            b = Transpose <perm = [2, 1, 0]> (a)
            y = Neg (b)
        }
    """)
    )
    assert ops(result.model) == ["Relu", "Transpose", "Neg"]


def test_a_transposed_value_that_others_read_stays() -> None:
    result = prepared(
        read("""
        g (float[2,3] x) => (float[2,3] y, float[3,2] z) {
            a = Transpose <perm = [1, 0]> (x)
            z = Relu (a)
            y = Transpose <perm = [1, 0]> (z)
        }
    """)
    )
    assert ops(result.model) == ["Transpose", "Relu", "Transpose"]


# ---------------------------------------------------------------- sharing, names, functions, barriers


def test_a_bias_shared_by_chance_is_copied_and_a_tied_kernel_stays_tied() -> None:
    result = prepared(
        read("""
        g (float[N,4,9,9] x) => (float[N,4,3,3] y) <float[4,4,3,3] w, float[4,4,3,3] v, float[4] b> {
            c = Conv (x, w, b)
            r = Relu (c)
            d = Conv (r, w, b)
            s = Relu (d)
            y = Conv (s, v, b)
        }
    """)
    )
    convolutions = [node for node in result.model.proto.graph.node if node.op_type == "Conv"]
    assert len({node.input[2] for node in convolutions}) == 3
    assert [node.input[1] for node in convolutions] == ["w", "w", "v"]


def test_nodes_get_names_of_their_own() -> None:
    model = read("g (float[N,3] x) => (float[N,3] y) { [Relu_1] a = Relu (x) b = Relu (a) y = Relu (b) }")
    result = prepared(model)
    assert [node.name for node in result.model.proto.graph.node] == ["Relu_1", "Relu_0", "Relu_2"]


def test_tensors_of_two_bodies_get_names_of_their_own() -> None:
    result = prepared(
        read("""
        g (float[N,3] x, bool f) => (float[N,3] y) {
            y = If (f) < then_branch = t () => (float[N,3] o) { a = Relu (x) o = Neg (a) },
                         else_branch = e () => (float[N,3] o) { a = Neg (x) o = Abs (a) } >
        }
    """)
    )
    names = Counter(
        name for graph in graphs(result.model.proto.graph) for node in graph.node for name in node.output
    )
    assert max(names.values()) == 1


def test_functions_are_inlined() -> None:
    result = prepared(
        read("""
        g (float[N,3] x) => (float[N,3] y) { a = own.Twice (x) y = own.Twice (a) }
        <domain: "own", opset_import: ["": 17]> Twice (t) => (o) { k = Constant <value = float[3] {1, 2, 3}> () m = Mul (t, k) o = Relu (m) }
    """)
    )
    assert ops(result.model) == ["Mul", "Relu", "Mul", "Relu"]
    assert not result.model.proto.functions


def recursive() -> Model:
    return read("""
        g (float[N] x) => (float[N] y) { y = own.A (x) }
        <domain: "own", opset_import: ["": 17, "own": 1]> A (t) => (o) { o = own.B (t) }
        <domain: "own", opset_import: ["": 17, "own": 1]> B (t) => (o) { o = own.A (t) }
    """)


def test_a_recursive_function_is_refused() -> None:
    with pytest.raises(InputError, match="calls itself"):
        prepare(recursive())


def test_functions_that_expand_without_end_are_refused() -> None:
    """Each of 30 functions calls the one before twice: 2^30 nodes."""
    text = "g (float[N] x) => (float[N] y) { y = own.F29 (x) }"
    text += '<domain: "own", opset_import: ["": 17]> F0 (t) => (o) { o = Relu (t) }'
    for i in range(1, 30):
        text += f'<domain: "own", opset_import: ["": 17, "own": 1]> F{i} (t) => (o) {{ a = own.F{i - 1} (t) o = own.F{i - 1} (a) }}'
    model = read(text)
    with pytest.raises(LimitError, match="1000000"):
        prepare(model)
    with pytest.raises(LimitError, match="1000000"):
        inline_functions(model)


def test_barriers_are_kept_and_named() -> None:
    model = read("""
        g (float[N,3] x) => (float[N,3] y) {
            [mystery] a = own.Mystery (x)
            [pair] s = SequenceConstruct (a, x)
            [joined] y = ConcatFromSequence <axis = 0> (s)
        }
    """)
    result = prepare(model)
    assert ops(result.model) == ["Mystery", "SequenceConstruct", "ConcatFromSequence"]
    assert [left.node for left in result.skips] == ["mystery", "pair", "joined"]


# ---------------------------------------------------------------- whole models


@pytest.mark.parametrize("path", sorted(TINY.glob("*.onnxtxt")), ids=lambda path: path.stem)
def test_tiny_graphs(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    prepared(Model.from_proto(onnx.parser.parse_model("\n".join(lines))))


@pytest.mark.parametrize(("name", "nodes"), [("cifar10/resnet20", 55), ("imagenet/efficientnet_lite0", 115)])
def test_real_models(name: str, nodes: int) -> None:
    path = ASSETS / f"{name}.onnx"
    if not path.exists():
        pytest.skip("assets absent")
    result = prepared(Model.load(path)).model
    assert len(result.proto.graph.node) == nodes
    assert result.nbytes <= Model.load(path).nbytes
