"""int8 without calibrated ranges: scales found at run time, and weights alone."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from onnx_compress.contract import Job, Result
from onnx_compress.errors import UsageError
from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.passes.int8 import Int8
from onnx_compress.passes.int8.dynamic import candidates, dynamic
from onnx_compress.passes.int8.weightonly import weight_only
from onnx_compress.recipe import parse, resolve
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import Session, input_specs

Array = NDArray[Any]
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Array:
    return (RNG.normal(size=shape) / np.sqrt(max(shape[-1], 1))).astype(np.float32)


def build(nodes: str, weights: dict[str, Array], inputs: str = "float[N,48] x", opset: int = 17) -> Model:
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> test ({inputs}) => (float y) {{ {nodes} }}'
    )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in weights.items())
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    proto.graph.output[0].CopyFrom(onnx.shape_inference.infer_shapes(proto).graph.output[0])
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}{number}"
    return Model.from_proto(proto)


def executed(model: Model) -> Counter[str]:
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 4
        ort.InferenceSession(
            model.to_proto().SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def apart(first: Model, second: Model, feeds: dict[str, Array]) -> float:
    before, after = (Session(model).run(feeds)["y"] for model in (first, second))
    return float(np.square(before - after).sum() / np.square(before).sum())


def run(spec: str, model: Model, feeds: dict[str, Array]) -> Result:
    (pass_,) = resolve(parse(f"int8:keep_if=always:{spec}"), (Int8,))
    data = open_data([feeds], input_specs(model))
    result = pass_.apply(Job(model, model, data, 0, Clock(1)))
    check(result.model)
    return result


LSTM = {"w": normal(2, 64, 24), "r": normal(2, 64, 16), "b": normal(2, 128)}
LSTM_NODES = {
    "plain": 'y = LSTM<hidden_size=16, direction="bidirectional">(x, w, r, b)',
    "state only": ', h = LSTM<hidden_size=16, direction="bidirectional">(x, w, r, b) y = Relu(h)',
    "initial state": 'y = LSTM<hidden_size=16, direction="bidirectional">(x, w, r, b, , h0, h0)',
}


@pytest.mark.parametrize("form", sorted(LSTM_NODES))
def test_an_lstm_runs_in_integers(form: str) -> None:
    weights = {**LSTM, "h0": normal(2, 3, 16)}
    if form != "initial state":
        weights.pop("h0")
    nodes = LSTM_NODES[form].replace(", h = LSTM", "a, h = LSTM")
    model = build(nodes, weights, "float[5,3,24] x")
    found, made = dynamic(model, set(candidates(model, ())))
    check(found)
    assert executed(found)["DynamicQuantizeLSTM"] == 1
    assert {one.shape for one in made} == {(2, 64, 24), (2, 64, 16)}
    # > 8 bits of weights and activations: 1e-4 of the energy each, through a contracting recurrence
    assert apart(model, found, {"x": normal(5, 3, 24)}) < 2e-3


PRODUCTS = {
    "MatMul": ("y = MatMul(x, w)", normal(48, 32)),
    "Gemm": ("y = Gemm(x, w, c)", normal(48, 32)),
    "Gemm transposed": ("y = Gemm<transB=1, alpha=0.5>(x, w, c)", normal(32, 48)),
}


@pytest.mark.parametrize("form", sorted(PRODUCTS))
def test_a_product_quantizes_what_it_is_given(form: str) -> None:
    nodes, weight = PRODUCTS[form]
    weights = {"w": weight, "c": normal(32)}
    model = build(nodes, {name: value for name, value in weights.items() if f" {name}" in nodes})
    found, _ = dynamic(model, set(candidates(model, ())))
    assert not executed(found).keys() & {"MatMul", "Gemm", "MatMulInteger"}
    assert apart(model, found, {"x": normal(64, 48)}) < 1e-3


def test_dynamic_products_are_what_numpy_computes() -> None:
    """The operators' own definitions, in NumPy: uint8 codes over min(x, 0)..max(x, 0), integer sums, two scales."""
    model = build("y = MatMul(x, w)", {"w": normal(48, 32)})
    found, _ = dynamic(model, set(candidates(model, ())))
    x = normal(64, 48)
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / step), 0, 255)
    codes = np.clip(np.rint(x / step) + zero, 0, 255).astype(np.int64) - int(zero)
    arrays = {tensor.name: found.array(tensor) for tensor in found.proto.graph.initializer}
    weight = next(a for a in arrays.values() if a.dtype == np.int8).astype(np.int64)
    scale = next(a for a in arrays.values() if a.shape == (32,) and a.dtype == np.float32)
    exact = (codes @ weight) * (np.float64(step) * scale)
    got = Session(found).run({"x": x})["y"]
    assert np.abs(got - exact).max() <= 1e-5 * np.abs(exact).max()


def test_products_of_one_tensor_share_its_codes() -> None:
    nodes = "a = MatMul(x, w) b = MatMul(x, v) y = Add(a, b)"
    model = build(nodes, {"w": normal(48, 32), "v": normal(48, 32)})
    found, _ = dynamic(model, set(candidates(model, ())))
    assert executed(found)["DynamicQuantizeLinear"] == 1


def test_dynamic_leaves_what_is_excluded_and_says_what_it_did() -> None:
    model = build("a = MatMul(x, w) y = MatMul(a, v)", {"w": normal(48, 48), "v": normal(48, 32)})
    result = run("activations=dynamic:tolerance=none:exclude=MatMul1", model, {"x": normal(64, 48)})
    assert [(c.node, c.what) for c in result.changes if c.what == "quantize"] == [("MatMul0", "quantize")]
    assert executed(result.model)["MatMul"] == 1


def tables() -> tuple[Model, dict[str, Array]]:
    """An embedding, then a MatMul and a Gemm."""
    nodes = "e = Gather(t, ids) a = MatMul(e, w) f = Flatten(a) y = Gemm<transB=1>(f, g, c)"
    weights = {"t": normal(500, 32), "w": normal(32, 48), "g": normal(10, 4 * 48), "c": normal(10)}
    ids = RNG.integers(0, 500, (96, 4))
    return build(nodes, weights, "int64[N,4] ids"), {"ids": ids}


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_weights_alone_stay_in_eight_bits_while_they_run(rounding: str) -> None:
    """The tables' rows are looked up as codes, and products read codes: no float weight is made at load."""
    model, feeds = tables()
    result = run(f"activations=float:rounding={rounding}", model, feeds)
    ops = executed(result.model)
    assert ops["MatMulNBits"] == 2
    assert not ops.keys() & {"MatMul", "Gemm", "DequantizeLinear"}
    assert {change.node for change in result.changes} == {"Gather0", "MatMul1", "Gemm3"}
    assert result.model.nbytes < 0.36 * model.nbytes
    assert apart(model, result.model, feeds) < 1e-3


def test_weight_error_is_half_a_step_at_most() -> None:
    model, feeds = tables()
    found, _ = weight_only(model, (), {})
    arrays = {tensor.name: found.array(tensor) for tensor in found.proto.graph.initializer}
    weight = next(model.array(tensor) for tensor in model.proto.graph.initializer if tensor.name == "t")
    error = np.abs(arrays["t_q"] * arrays["t_scale"] - weight)
    assert np.all(error <= arrays["t_scale"] * 0.5001)
    assert apart(model, found, feeds) < 1e-3


def test_a_table_that_is_multiplied_too_is_right_in_both_places() -> None:
    nodes = "e = Gather(t, ids) f = Flatten(e) r = Transpose<perm=[1,0]>(t) m = MatMul(z, t) s = MatMul(f, m) y = Relu(s)"
    weights = {"t": normal(64, 64), "z": normal(256, 64)}
    model = build(nodes.replace(" r = Transpose<perm=[1,0]>(t)", ""), weights, "int64[N,4] ids")
    found, _ = weight_only(model, (), {})
    assert apart(model, found, {"ids": RNG.integers(0, 64, (8, 4))}) < 1e-3


@pytest.mark.parametrize("activations", ["float", "dynamic"])
def test_other_targets_have_no_such_kernels(activations: str) -> None:
    with pytest.raises(UsageError, match="ort-cpu"):
        resolve(parse(f"int8:activations={activations}:target=tensorrt"), (Int8,))


@pytest.mark.parametrize("activations", ["uint8", "dynamic", "float"])
def test_a_preview_runs_what_the_pass_ships(activations: str) -> None:
    """Earlier passes time their candidates as the preview leaves them: with another LSTM they would time another model."""
    nodes = """a, h = LSTM<hidden_size=32>(x, w, r, b)
        axes = Constant<value_ints=[0]>() s = Squeeze(h, axes) y = Gemm<transB=1>(s, v)"""
    weights = {"w": normal(1, 128, 64), "r": normal(1, 128, 32), "b": normal(1, 256), "v": normal(128, 32)}
    model = build(nodes, weights, "float[10,N,64] x")
    feeds = {"x": RNG.normal(size=(10, 8, 64)).astype(np.float32)}
    shipped = run(f"activations={activations}:tolerance=none", model, feeds).model
    job = Job(model, model, open_data([feeds], input_specs(model)), 0, Clock(1))
    (pass_,) = resolve(parse(f"int8:activations={activations}"), (Int8,))
    assert isinstance(pass_, Int8)
    made = executed(pass_.preview(job))
    assert made == executed(shipped)
    assert made != executed(model)
    assert made["DynamicQuantizeLSTM"] == (activations != "float")


TIED = "a = MatMul(x, w) r = Relu(a) b = MatMul(r, w) s = Relu(b) c = Gemm(s, w) t = Tanh(c) y = MatMul(t, v)"


@pytest.mark.parametrize("activations", ["dynamic", "float"])
def test_tied_weights_are_stored_once_and_never_dequantized_while_they_run(activations: str) -> None:
    """Of a DequantizeLinear that two products read onnxruntime makes no MatMulNBits: it runs it anew each time, 50 times slower."""
    model = build(TIED, {"w": normal(64, 64), "v": normal(64, 40)}, "float[N,64] x")
    feeds = {"x": RNG.normal(size=(64, 64)).astype(np.float32)}
    result = run(f"activations={activations}:tolerance=none", model, feeds)
    assert "DequantizeLinear" not in executed(result.model)
    assert result.model.nbytes < 0.32 * model.nbytes
    assert apart(model, result.model, feeds) < 1e-3


def test_a_weight_tied_between_bodies_is_found_from_both() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N,64] x, bool c) => (float[N,64] y) {
            a = MatMul(x, w)
            y = If (c) <then_branch = f () => (float[N,64] p) { [one] p = MatMul(a, w) },
                        else_branch = h () => (float[N,64] q) { [two] q = MatMul(x, w) }>
        }"""
    )
    proto.graph.node[0].name = "main"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(64, 64), "w"))
    model = Model.from_proto(proto)
    found, done = dynamic(model, {"main", "one", "two"})
    assert len(done) == 3
    check(found)
    for flag in (True, False):
        feeds = {"x": RNG.normal(size=(8, 64)).astype(np.float32), "c": np.array(flag)}
        assert apart(model, found, feeds) < 1e-3
