"""Constant nodes become weights, and what is computed from constants becomes one, where that stores no more."""

import numpy as np
import onnx
import pytest
from prepare_cases import ops, prepared, read, weights

from onnx_compress.model.document import Model
from onnx_compress.model.prepare import prepare
from onnx_compress.model.walk import graphs


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
