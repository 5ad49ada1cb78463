"""Preflight: what is refused, what is only warned of, and the shapes that a run gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_compress.errors import InputError, UsageError
from onnx_compress.model.document import Model
from onnx_compress.preflight import preflight, shapes_at
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import input_specs

MODELS = Path(__file__).parents[1] / "models"

IMPORTS = 'opset_import: ["" : 17, "com.acme" : 1, "com.microsoft" : 1]'


def model(body: str, inputs: str = "float[N, 4] x", outputs: str = "float[N, 4] y") -> Model:
    return Model.from_proto(
        onnx.parser.parse_model(f"<ir_version: 8, {IMPORTS}> g ({inputs}) => ({outputs}) {{ {body} }}")
    )


# the target shape of z passes through a Loop's carried value, which inference does not follow
HIDDEN = """
    s = Shape(x) one = Constant<value = int64 {1}>() yes = Constant<value = bool {1}>()
    t = Loop(one, yes, s) <body = b (int64 i, bool c, int64[2] u) => (bool d, int64[2] v) {
        d = Identity(c) v = Identity(u) }>
    z = Reshape(x, t) r = Relu(z) y = Add(r, r)
"""


def test_a_batch_that_runs_and_the_shapes() -> None:
    found = preflight(model("y = Relu(x)"))
    assert found.runs
    assert found.feeds["x"].shape == (1, 4)
    assert found.shapes["y"] == ("N", 4)
    assert found.dtypes["y"] == onnx.TensorProto.FLOAT
    assert found.warnings == []


def test_feeds_are_those_of_the_data() -> None:
    of = model("y = Relu(x)")
    x = np.arange(20, dtype=np.float32).reshape(5, 4)
    found = preflight(of, data=open_data([{"x": x}], input_specs(of)), batch=2)
    assert (found.feeds["x"] == x[:2]).all()


def test_input_shapes_size_symbolic_axes_and_the_model_keeps_its_symbols() -> None:
    found = preflight(model("y = Relu(x)"), input_shapes={"x": (3, 4)})
    assert found.feeds["x"].shape == (3, 4)
    assert found.shapes["y"] == ("N", 4)
    with pytest.raises(UsageError):
        preflight(model("y = Relu(x)"), input_shapes={"x": (3, 5)})


def test_where_inference_stops_two_runs_tell_symbolic_axes_from_static_ones() -> None:
    found = preflight(model(HIDDEN))
    assert found.shapes["z"] == ("N", 4)
    assert found.shapes["r"] == ("N", 4)
    assert found.dtypes["r"] == onnx.TensorProto.FLOAT


def test_without_symbols_one_run_is_enough() -> None:
    found = preflight(model(HIDDEN, "float[2, 4] x", "float[2, 4] y"))
    assert found.shapes["z"] == (2, 4)


def test_symbols_that_could_be_confused_are_unknown() -> None:
    found = preflight(model(HIDDEN, "float[N, M] x", "float[N, M] y"), input_shapes={"x": (3, 3)})
    assert found.shapes["z"] == (None, None)
    found = preflight(model(HIDDEN, "float[N, M] x", "float[N, M] y"), input_shapes={"x": (3, 5)})
    assert found.shapes["z"] == ("N", "M")


def test_shapes_at_sizes_has_numbers_only() -> None:
    feeds = {"x": np.zeros((7, 4), np.float32)}
    shapes = shapes_at(model(HIDDEN), feeds)
    assert shapes["z"] == shapes["y"] == (7, 4)


def test_an_operator_of_a_custom_domain_is_a_warning() -> None:
    found = preflight(model("y = com.acme.Foo(x)"))
    assert not found.runs
    assert "cannot be run" in found.warnings[0]
    assert "Foo" in found.warnings[0]


def test_an_operator_onnx_defines_and_onnxruntime_lacks_is_a_warning() -> None:
    for body, kind in (("y = Conv(x, x)", "double[1, 1, 1, 1]"), ("y = Identity(x)", "complex64[N]")):
        found = preflight(model(body, f"{kind} x", f"{kind} y"))
        assert not found.runs
        assert "cannot be run" in found.warnings[0]


def test_an_input_that_is_no_tensor_is_a_warning() -> None:
    of = model("i = Constant<value = int64 {0}>() y = SequenceAt(x, i)", "seq(float[N, 4]) x")
    assert not preflight(of).runs


@pytest.mark.parametrize("body", ["y = NoSuchOperator(x)", "y = Relu(missing)", "y = Conv(x)"])
def test_an_invalid_model_is_refused(body: str) -> None:
    with pytest.raises(InputError):
        preflight(model(body))


def test_a_run_that_fails_is_refused_and_says_what_to_give() -> None:
    of = model("c = Constant<value = int64[2] {3, 3}>() y = Reshape(x, c)", outputs="float[A, B] y")
    with pytest.raises(InputError, match="--input-shapes"):
        preflight(of)
    with pytest.raises(InputError, match="feeds from Python"):
        preflight(of, data=open_data([{"x": np.zeros((2, 4), np.float32)}], input_specs(of)))


def test_a_batch_axis_that_is_symbolic_in_name_only_is_found() -> None:
    of = model("c = Constant<value = int64[2] {1, 4}>() y = Reshape(x, c)", outputs="float[A, B] y")
    assert preflight(of).single
    x = np.ones((5, 4), np.float32)
    assert preflight(of, data=open_data([{"x": x}], input_specs(of))).single
    assert not preflight(model("y = Relu(x)")).single


# a "same" padding computed from the input's shape, as exports from TensorFlow have it: inference makes up symbols
PADDED = """
    s = Shape(x) two = Constant<value = int64[1] {2}>() h = Gather(s, two) zero = Constant<value = int64[1] {0}>()
    one = Constant<value = int64[1] {1}>() r = Mod(h, one) e = Add(r, one)
    pads = Concat<axis = 0>(zero, zero, e, e, zero, zero, e, e) p = Pad(x, pads) y = Relu(p)
"""


def test_symbols_that_inference_made_up_are_unknown() -> None:
    of = model(PADDED, "float[N, 3, 8, 8] x", "float[A, B, C, D] y")
    found = preflight(of)
    assert found.shapes["p"] == ("N", 3, 10, 10)
    assert shapes_at(of, {"x": np.zeros((2, 3, 8, 8), np.float32)})["p"] == (2, 3, 10, 10)


def test_a_model_of_one_sample_has_static_shapes_but_for_its_symbols() -> None:
    body = HIDDEN.replace(
        "s = Shape(x)", "o = Constant<value = int64[2] {1, 4}>() f = Reshape(x, o) s = Shape(f)"
    )
    assert preflight(model(body)).shapes["r"] == (1, 4)


@pytest.mark.parametrize("part", ["node", "tensor", "weight", "input", "output", "graph"])
def test_a_name_that_is_no_text_is_refused(part: str) -> None:
    """Protobuf reads it as bytes, and refuses to write it back: a pass would end in the middle."""
    path = MODELS / "fashion_mlp.onnx"
    graph = onnx.load(path).graph
    names = {
        "node": graph.node[1].name,
        "tensor": graph.node[1].output[0],
        "weight": graph.initializer[0].name,
        "input": graph.input[0].name,
        "output": graph.output[0].name,
        "graph": graph.name,
    }
    name = names[part].encode()
    spoilt = onnx.ModelProto.FromString(path.read_bytes().replace(name, b"\xff\x80" + name[2:]))
    with pytest.raises(InputError, match=r"the name b'.*\\xff\\x80.*' is no text: names in ONNX are UTF-8"):
        preflight(Model.from_proto(spoilt))
