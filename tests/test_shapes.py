from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_compress.errors import UsageError
from onnx_compress.model.document import Model
from onnx_compress.model.shapes import dtypes, infer

TINY = Path(__file__).parents[1] / "models" / "tiny"

CHAIN = """
<ir_version: 8, opset_import: ["": 17]>
chain (float[N,3,H,W] x) => (float[N,M] y)
<float[4,3,3,3] w, int64[2] target = {0, -1}>
{
    c = Conv (x, w)
    y = Reshape (c, target)
}
"""


def model(text: str) -> Model:
    """The model of graph text in which a weight without a value holds ones."""
    proto = onnx.parser.parse_model(text)
    for value in list(proto.graph.value_info):
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(dims, np.float32), value.name))
    del proto.graph.value_info[:]
    return Model.from_proto(proto)


def test_symbolic_axes_keep_their_names() -> None:
    shapes = infer(model(CHAIN))
    assert shapes["x"] == ("N", 3, "H", "W")
    assert shapes["w"] == (4, 3, 3, 3)
    assert shapes["c"][:2] == ("N", 4)


def test_given_inputs_make_every_size_concrete() -> None:
    shapes = infer(model(CHAIN), {"x": (2, 3, 8, 8)})
    assert shapes["c"] == (2, 4, 6, 6)
    assert shapes["y"] == (2, 144)


def test_the_model_is_not_changed() -> None:
    subject = model(CHAIN)
    before = subject.proto.SerializeToString()
    infer(subject, {"x": (2, 3, 8, 8)})
    dtypes(subject)
    assert subject.proto.SerializeToString() == before


def test_a_recorded_shape_yields_to_the_given_one() -> None:
    subject = model(CHAIN)
    stale = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [7, 4, 1, 1])
    subject.proto.graph.value_info.append(stale)
    assert infer(subject, {"x": (2, 3, 8, 8)})["c"] == (2, 4, 6, 6)


def test_recorded_shapes_of_custom_operators_are_kept() -> None:
    subject = model("""
        <ir_version: 8, opset_import: ["": 17, "custom": 1]>
        g (float[N,3] x) => (float[N,3] y) { a = custom.Mystery (x)  y = Relu (a) }
    """)
    subject.proto.graph.value_info.append(
        onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, ["N", 3])
    )
    assert infer(subject)["a"] == ("N", 3)
    assert infer(subject, {"x": (5, 3)})["a"] == (5, 3)


def test_what_onnx_cannot_infer_is_no_error() -> None:
    """The Add below is wrong: nothing is known of its output, and that is all."""
    subject = model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[2,3] x, float[4,5] z) => (float y) { s = Add (x, z)  y = ReduceSum (s) }
    """)
    shapes = infer(subject)
    assert shapes["x"] == (2, 3)
    assert "s" not in shapes


def test_large_weights_are_seen_without_their_bytes() -> None:
    subject = model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N,64] x) => (float[N,M] y) <float[64,32] w> { y = MatMul (x, w) }
    """)
    assert subject.blobs
    assert infer(subject)["y"] == ("N", 32)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"z": (1,)}, "no input named 'z'"),
        ({"x": (1, 4, 8, 8)}, "is Nx3xHxW, not 1x4x8x8"),
        ({"x": (1, 3)}, "not 1x3"),
    ],
)
def test_wrong_input_shapes_are_refused(given: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        infer(model(CHAIN), given)


def test_bodies_are_included() -> None:
    text = (TINY / "loop_body.onnxtxt").read_text()
    proto = onnx.parser.parse_model("\n".join(line for line in text.splitlines() if line[:1] != "#"))
    shapes = infer(Model.from_proto(proto), {"input": (2, 4)})
    assert shapes["w1"] == (5, 5)
    assert shapes["y1"] == (2, 5)


def test_a_name_with_two_shapes_in_two_bodies_is_left_out() -> None:
    subject = model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N,3] x, bool flag) => (float[N,K] y) {
            y = If (flag) <
                then_branch = t () => (float[N,K] a) { s = Concat <axis = 1> (x, x)  same = Relu (x)  a = Relu (s) },
                else_branch = e () => (float[N,K] b) { s = Relu (x)  same = Relu (x)  b = Relu (s) }
            >
        }
    """)
    shapes = infer(subject)
    assert "s" not in shapes
    assert shapes["same"] == ("N", 3)


def test_types_of_tensors() -> None:
    subject = model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N,3] x) => (float16[N,3] y) <int64[1] k = {1}> { i = Cast <to = 7> (x)  y = Cast <to = 10> (i) }
    """)
    types = dtypes(subject)
    names = {name: onnx.TensorProto.DataType.Name(number) for name, number in types.items()}
    assert names == {"x": "FLOAT", "i": "INT64", "y": "FLOAT16", "k": "INT64"}


def test_an_axis_that_no_symbol_moves_is_static() -> None:
    """onnx alone gives a Reshape to -1 beside a symbolic batch a name of its own, the channels' count notwithstanding."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 18]>
        g (float[N,2,3,T] x) => (float[A,B,C] y) {
            s = Shape<end=1>(x)
            r = Constant<value_ints=[-1]>()
            t = Shape<start=3>(x)
            c = Concat<axis=0>(s, r, t)
            y = Reshape(x, c)
        }""")
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    for name in "ABC":
        model.graph.output[0].type.tensor_type.shape.dim.add().dim_param = name
    shape = infer(Model.from_proto(model))["y"]
    assert shape[1] == 6
    assert not any(isinstance(shape[axis], int) for axis in (0, 2))


def test_a_model_of_one_height_keeps_its_channels() -> None:
    """Fifty rows are pooled to one, to stand beside a row that onnx alone cannot follow through the cast: 64 rows fit,
    and 80, but not 192.
    """
    shapes = infer(
        model("""
        <ir_version: 8, opset_import: ["" : 18]>
        g (float[N,3,H,W] x) => (y)
        <int32[1] minus = {-1}, int32[1] one = {1}, int64[1] zero = {0}, int64[1] three = {3}, int64[1] two = {2}, int64[1] last = {1}>
        {
            size = Shape(x)
            short = Cast<to = 6>(size)
            batch = Gather(short, zero)
            width = Gather(short, three)
            sizes = Concat<axis = 0>(batch, minus, one, width)
            long = Cast<to = 7>(sizes)
            first = Slice(x, zero, last, two)
            line = Reshape(first, long)
            pooled = AveragePool<kernel_shape = [50, 1], strides = [50, 1]>(x)
            c = Concat<axis = 1>(line, pooled)
            y = Relu(c)
        }""")
    )
    assert shapes["y"][:3] == ("N", 6, 1)
