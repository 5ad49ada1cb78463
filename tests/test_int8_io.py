"""io=int8: the model takes and gives codes, and is compared in float all the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnx_compress import compress
from onnx_compress.contract import Job, Result
from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.model.edges import edges
from onnx_compress.passes.int8 import Int8
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import Session, input_specs

Array = NDArray[Any]
RNG = np.random.default_rng(0)
FLOAT = Int8(keep_if="always", tolerance=None, rounding="nearest", calibrate="minmax", bias_correction=False)
X = RNG.normal(size=(24, 3, 8, 8)).astype(np.float32)


def normal(*shape: int) -> Array:
    return (RNG.normal(size=shape) / np.sqrt(max(int(np.prod(shape[1:])), 1))).astype(np.float32)


def model_of(nodes: str, inputs: str = "float[N,3,8,8] x", outputs: str = "float[N,5] y") -> Model:
    weights = {"w": normal(8, 3, 3, 3), "g": normal(288, 5), "b": normal(5)}
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> test ({inputs}) => ({outputs}) {{ {nodes} }}'
    )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in weights.items())
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}{number}"
    return Model.from_proto(proto)


def run(pass_: Int8, model: Model) -> Result:
    data = open_data([{"x": X}], input_specs(model))
    result = pass_.apply(Job(model, model, data, 0, Clock(1)))
    check(result.model)
    return result


CHAIN = "a = Conv(x, w) r = Relu(a) f = Flatten(r) y = Gemm(f, g, b)"


def test_no_conversion_is_left_at_the_edges() -> None:
    result = run(replace(FLOAT, io="int8"), model_of(CHAIN))
    graph = result.model.proto.graph
    kinds = [value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)]
    assert kinds == [onnx.TensorProto.UINT8, onnx.TensorProto.UINT8]
    ends = {name for value in (*graph.input, *graph.output) for name in [value.name]}
    assert not any(node.op_type == "QuantizeLinear" and ends & set(node.input) for node in graph.node)
    assert [(c.node, c.what) for c in result.changes[-2:]] == [("x", "input"), ("y", "output")]


def test_the_codes_mean_what_the_metadata_says() -> None:
    """Quantizing the input by hand and undoing the output's scale by hand gives what the session gives in float."""
    quantized = run(replace(FLOAT, io="int8"), model_of(CHAIN)).model
    meaning = edges(quantized)
    given, returned = meaning["x"], meaning["y"]
    codes = np.clip(np.rint(X / np.float32(given.scale)) + given.zero_point, 0, 255).astype(np.uint8)
    raw = Session(quantized)._session.run(["y"], {"x": codes})[0]
    assert raw.dtype == np.uint8
    by_hand = (raw.astype(np.int32) - returned.zero_point) * np.float32(returned.scale)
    assert np.array_equal(by_hand.astype(np.float32), Session(quantized).run({"x": X})["y"])
    assert np.array_equal(Session(quantized).run({"x": codes})["y"], by_hand.astype(np.float32))


def test_only_the_outputs_own_rounding_is_added() -> None:
    """Beside io=float, whose last Gemm gives float32: half a step of the output's codes, and nothing else."""
    model = model_of(CHAIN)
    plain, coded = (run(replace(FLOAT, io=io), model).model for io in ("float", "int8"))
    before, after = (Session(m).run({"x": X})["y"] for m in (plain, coded))
    edge = edges(coded)["y"]
    ends = edge.decode(np.array([0, 255], np.uint8))  # > held-out samples reach beyond
    assert np.abs(before.clip(*ends) - after).max() <= 0.501 * edge.scale


def test_a_float_end_keeps_its_type_and_says_why() -> None:
    result = run(replace(FLOAT, io="int8"), model_of(f"{CHAIN.replace('y =', 'z =')} y = Tanh(z)"))
    assert "y" not in edges(result.model)
    assert next(skip.why for skip in result.skips if skip.node == "y").startswith("it stays float32")


def test_an_input_read_in_float_too_is_converted_for_that() -> None:
    nodes = f"{CHAIN} e = Exp(x) z = ReduceSum<keepdims=0>(e)"
    model = model_of(nodes, outputs="float[N,5] y, float z")
    result = run(replace(FLOAT, io="int8"), model)
    assert edges(result.model).keys() == {"x", "y"}
    first, second = (Session(m).run({"x": X})["z"] for m in (model, result.model))
    assert abs(first - second) < 1e-2 * abs(first)


def test_a_whole_run_compares_it_in_float() -> None:
    model = model_of(CHAIN)
    words = "int8:io=int8:keep_if=always:tolerance=none"
    done = compress(model.to_proto(), words, data=[{"x": X}], batch=4)
    report = done.report if isinstance(done.report, dict) else done.report.as_dict()
    (row,) = report["agreement"]
    assert row["sqnr_db"] > 25
    assert edges(done.model).keys() == {"x", "y"}
