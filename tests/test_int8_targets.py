"""int8 for each runtime: what its rules say is what the graph holds, and onnxruntime still runs it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from onnx_compress.contract import Job, Result
from onnx_compress.errors import UsageError
from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.passes.int8 import Int8
from onnx_compress.passes.int8.targets import TARGETS
from onnx_compress.recipe import parse, resolve
from onnx_compress.runtime.agreement import Reference
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import Data, open_data
from onnx_compress.runtime.session import Session, input_specs

Array = NDArray[Any]
RNG = np.random.default_rng(0)
PLAIN = Int8(keep_if="always", tolerance=None, calibrate="minmax", rounding="nearest")
RESIDUAL = """
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)  r = Relu(a)
    b = Conv<pads=[1,1,1,1]>(r, w2, b2)  s = Add(b, r)  t = Relu(s)
    u = ConvTranspose<strides=[2,2]>(t, w3, b3)  v = Relu(u)
    p = MaxPool<kernel_shape=[4,4], strides=[4,4]>(v)  f = Flatten(p)  y = Gemm(f, w4, b4)
"""


def normal(*shape: int) -> Array:
    fan = max(int(np.prod(shape[1:])), 1)
    return (RNG.normal(size=shape) / np.sqrt(fan)).astype(np.float32)


def residual(inputs: str = "float[2,3,8,8] x") -> Model:
    """Two convolutions with a shortcut, a transposed one, a classifier; all with biases."""
    global RNG  # noqa: PLW0603 - the same weights whatever test runs first
    RNG = np.random.default_rng(0)
    weights = {
        "w1": normal(8, 3, 3, 3), "b1": normal(8), "w2": normal(8, 8, 3, 3), "b2": normal(8),
        "w3": normal(8, 6, 2, 2), "b3": normal(6), "w4": normal(96, 5), "b4": normal(5),
    }  # fmt: skip
    text = f'<ir_version: 8, opset_import: ["": 17]> test ({inputs}) => (float[B,5] y) {{ {RESIDUAL} }}'
    proto = onnx.parser.parse_model(text.replace("B,5", "2,5" if "[2" in inputs else "N,5"))
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in weights.items())
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}{number}"
    return Model.from_proto(proto)


def data_of(model: Model) -> Data:
    x = np.random.default_rng(1).normal(size=(24, 3, 8, 8)).astype(np.float32)
    return open_data([{"x": x}], input_specs(model))


def run(spec: str, model: Model) -> Result:
    (pass_,) = resolve(parse(f"int8:keep_if=always:tolerance=none:{spec}"), (Int8,))
    assert isinstance(pass_, Int8)
    result = pass_.apply(Job(model, model, data_of(model), 0, Clock(1)))
    check(result.model)
    # > symmetric 8 bits cost up to 1e-4 of the outputs' energy through four layers; anything wrong is far over 1e-3
    assert error(model, result.model) < 1e-3
    return result


def error(model: Model, quantized: Model, *, exact: bool = False) -> float:
    """Energy of the outputs' difference over that of the outputs: the mean is in it, as these hardly vary."""
    feeds = [dict(batch) for batch in data_of(model).batches(2)]
    before, after = ([Session(m, exact=exact).run(f)["y"] for f in feeds] for m in (model, quantized))
    return float(np.square(np.subtract(before, after)).sum() / np.square(before).sum())


class Graph:
    """The nodes and arrays of a quantized model, by what they are for."""

    def __init__(self, model: Model) -> None:
        self.arrays = {tensor.name: model.array(tensor) for tensor in model.proto.graph.initializer}
        self.nodes = list(model.proto.graph.node)
        self.maker = {name: node for node in self.nodes for name in node.output}

    def of(self, op: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type == op]

    def activations(self) -> list[tuple[Array, Array]]:
        """Scale and zero point of each QuantizeLinear."""
        return [
            (self.arrays[node.input[1]], self.arrays[node.input[2]]) for node in self.of("QuantizeLinear")
        ]

    def weight(self, node: onnx.NodeProto, at: int = 1) -> tuple[Array, Array] | None:
        """Codes and scale of a layer's constant input; None where it is float."""
        maker = self.maker.get(node.input[at])
        return None if maker is None else (self.arrays[maker.input[0]], self.arrays[maker.input[1]])

    def layers(self) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul"}]

    def is_dequantized(self, name: str) -> bool:
        return name in self.maker and self.maker[name].op_type == "DequantizeLinear"


def test_tensorrt_has_zero_points_of_zero_and_no_integer_bias() -> None:
    graph = Graph(run("target=tensorrt", residual()).model)
    assert graph.activations()
    for scale, zero in graph.activations():
        assert zero.dtype == np.int8
        assert not zero.any()
        assert scale.ndim == 0
    for layer in graph.layers():
        weight, bias = graph.weight(layer), graph.weight(layer, 2)
        assert weight is not None
        assert bias is None
        assert weight[0].dtype == np.int8
        axis = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1}[layer.op_type]
        assert weight[1].shape == (weight[0].shape[axis],)
    assert not any(array.dtype == np.int32 for array in graph.arrays.values())


def test_tensorrt_fuses_what_it_fuses() -> None:
    """Relu stays with its convolution, and the shortcut comes in codes, the other operand straight from its layer."""
    graph = Graph(run("target=tensorrt", residual()).model)
    assert len(graph.of("Relu")) == 3
    (add,) = graph.of("Add")
    assert sorted(graph.is_dequantized(name) for name in add.input) == [False, True]
    assert all(graph.maker[relu.input[0]].op_type != "DequantizeLinear" for relu in graph.of("Relu"))
    assert graph.maker["y"].op_type == "Gemm"


def test_qnn_wants_fixed_shapes() -> None:
    with pytest.raises(UsageError, match="axis 0 of input 'x'"):
        run("target=qnn", residual("float[N,3,8,8] x"))


@pytest.mark.parametrize("activations", ["uint8", "uint16"])
def test_qnn_is_integer_from_input_to_output(activations: str) -> None:
    result = run(f"target=qnn:activations={activations}", residual())
    graph = Graph(result.model)
    assert {zero.dtype.name for _, zero in graph.activations()} == {activations}
    for layer in graph.layers():
        weight, bias = graph.weight(layer), graph.weight(layer, 2)
        assert weight is not None
        assert bias is not None
        assert bias[0].dtype == np.int32
        assert (weight[1].ndim == 1) == (layer.op_type != "Gemm")
    assert graph.is_dequantized("y")
    floats = {"QuantizeLinear", "DequantizeLinear"}
    for node in graph.nodes:
        if node.op_type not in floats:
            assert graph.is_dequantized(node.input[0])
    version = next(entry.version for entry in result.model.proto.opset_import)
    assert version == (21 if activations == "uint16" else 17)


def kinds_of(model: Model) -> set[str]:
    """Types of the codes between nodes."""
    weights = {tensor.name: model.array(tensor) for tensor in model.proto.graph.initializer}
    return {
        weights[node.input[2]].dtype.name
        for node in model.proto.graph.node
        if node.op_type == "QuantizeLinear"
    }


@pytest.mark.parametrize(("share", "kind"), [(2.0, "uint8"), (0.5, "uint16")])
def test_qnn_takes_sixteen_bits_before_it_leaves_a_layer_in_float(share: float, kind: str) -> None:
    """A layer in float runs on another processor. share: of the error of 8 bits, as the tolerance."""
    model = residual()
    job = Job(model, model, data_of(model), 0, Clock(1))
    pass_ = Int8(keep_if="always", target="qnn", equalize=False, bias_correction=False, tolerance=None)
    held = data_of(model).split(seed=0)[1]
    error_of = Reference(model, held, exact=True).error
    bound = share * error_of(pass_.apply(job).model)
    result = replace(pass_, tolerance=bound).apply(job)
    assert kinds_of(result.model) == {kind}
    assert not result.skips
    assert all(f"{kind} activations" in change.after for change in result.changes)
    assert error_of(result.model) <= bound


def test_openvino_adds_biases_in_float() -> None:
    graph = Graph(run("target=openvino", residual()).model)
    assert {zero.dtype.name for _, zero in graph.activations()} == {"uint8"}
    assert all(graph.weight(layer) is not None for layer in graph.layers())
    assert all(graph.weight(layer, 2) is None for layer in graph.layers())


def test_only_onnxruntime_leaves_a_transposed_convolution_in_float() -> None:
    left = {target: [skip.node for skip in run(f"target={target}", residual()).skips] for target in TARGETS}
    assert left == {"ort-cpu": ["ConvTranspose5"], "tensorrt": [], "qnn": [], "openvino": []}


def test_sixteen_bits_leave_the_error_of_the_weights() -> None:
    model = residual()
    eight, sixteen = (
        error(model, run(f"activations={word}", model).model, exact=True) for word in ("uint8", "uint16")
    )
    # > the activations' share falls by 256^2, that of the weights stays
    assert sixteen < eight / 2


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_weights_of_a_transposed_convolution_are_within_a_step(rounding: str) -> None:
    """GPTQ moves codes on purpose, but a channel's scale is its own: taps and channels are not mixed up."""
    model = residual()
    graph = Graph(run(f"target=openvino:rounding={rounding}", model).model)
    (layer,) = graph.of("ConvTranspose")
    found = graph.weight(layer)
    assert found is not None
    codes, scale = found
    weight = next(model.array(t) for t in model.proto.graph.initializer if t.name == "w3")
    real = codes * scale.reshape(1, -1, 1, 1)
    assert np.abs(real - weight).max() <= (0.5001 if rounding == "nearest" else 3) * scale.max()


@pytest.mark.parametrize(
    "spec", ["target=tensorrt:activations=uint16", "target=openvino:activations=uint16", "target=dsp"]
)
def test_what_a_target_cannot_do_is_a_usage_error(spec: str) -> None:
    with pytest.raises(UsageError):
        run(spec, residual())


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_clock_of_this_machine_decides_for_this_machine_only(target: Any) -> None:
    model = residual()
    job = Job(model, model, data_of(model), 0, Clock(1))
    decisions = replace(PLAIN, keep_if="not-slower", target=target).apply(job).decisions
    assert any(decision.node == "int8" for decision in decisions) == (target == "ort-cpu")


def test_an_exact_session_rounds_what_the_graph_says_and_nothing_else() -> None:
    """onnxruntime 1.32 rounds float activations to 8 bits where a product's weight is dequantized; the oracle is ONNX's own."""
    model = run("target=qnn:activations=uint16", residual()).model
    oracle = ReferenceEvaluator(model.to_proto())
    for batch in data_of(model).batches(2):
        feeds = dict(batch)
        (expected,) = oracle.run(None, feeds)
        np.testing.assert_allclose(
            Session(model, exact=True).run(feeds)["y"], np.asarray(expected), atol=1e-4
        )


def test_the_codes_of_a_session_are_those_of_the_options() -> None:
    result = run("activations=int8", residual())
    assert {zero.dtype.name for _, zero in Graph(result.model).activations()} == {"int8"}
    assert Session(result.model).run({"x": np.zeros((2, 3, 8, 8), np.float32)})["y"].shape == (2, 5)
