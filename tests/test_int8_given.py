"""int8 of models that other hands, or other passes, had before: codebooks, islands, and whole quantized models."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest
from int8_cases import build, normal
from numpy.typing import NDArray

from onnx_compress.contract import Job, Result
from onnx_compress.model.check import check
from onnx_compress.model.codebook import codebook_of
from onnx_compress.model.document import Model
from onnx_compress.model.prepare import prepare
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.cluster import Cluster
from onnx_compress.passes.int8 import Int8
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import Data, open_data
from onnx_compress.runtime.session import Session, input_specs

if TYPE_CHECKING:
    from pathlib import Path

Array = NDArray[Any]
RNG = np.random.default_rng(0)
PLAIN = Int8(keep_if="always", tolerance=None, calibrate="minmax", rounding="nearest")
X = RNG.normal(size=(32, 3, 8, 8)).astype(np.float32)


def data_of(model: Model) -> Data:
    return open_data([{"x": X}], input_specs(model))


def run(pass_: Any, model: Model) -> Result:
    result: Result = pass_.apply(Job(model, model, data_of(model), 0, Clock(1)))
    check(result.model)
    return result


def chain() -> Model:
    weights = {"w": normal(16, 3, 3, 3), "v": normal(16, 16, 3, 3), "g": normal(256, 40)}
    return build("a = Conv(x, w) r = Relu(a) c = Conv(r, v) f = Flatten(c) y = Gemm(f, g)", weights)


def clustered() -> Model:
    model = run(Cluster(bits=4), chain()).model
    nodes = list(Surgery(model).nodes())
    assert any(codebook_of(tensor) is not None for node in nodes for tensor in node.inputs)
    return model


def test_int8_sees_the_dense_weights_of_a_codebook() -> None:
    model = clustered()
    result = run(PLAIN, model)
    assert [change.node for change in result.changes if change.what == "quantize"] == [
        "Conv0",
        "Conv2",
        "Gemm4",
    ]
    assert not result.skips
    before, after = (Session(m).run({"x": X})["y"] for m in (model, result.model))
    # > 8 bits through three layers
    assert np.square(before - after).sum() < 1e-3 * np.square(before).sum()


def test_a_codebook_stays_where_nothing_is_quantized() -> None:
    model = clustered()
    result = run(replace(PLAIN, exclude="."), model)
    assert result.model.to_proto() == model.to_proto()
    assert {skip.node for skip in result.skips} == {"Conv0", "Conv2", "Gemm4"}


ISLAND = """
    q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
    wd = DequantizeLinear<axis=0>(wq, ws) a = Conv(d, wd)
    aq = QuantizeLinear(a, s, z) ad = DequantizeLinear(aq, s, z) r = Relu(ad)
    c = Conv(r, v) e = Sin(c) k = Conv(e, u) f = Flatten(k) y = Gemm(f, g)
"""


def island() -> Model:
    weights: dict[str, Array] = {
        "s": np.array(0.05, np.float32),
        "z": np.array(128, np.uint8),
        "wq": RNG.integers(-127, 128, (16, 3, 3, 3)).astype(np.int8),
        "ws": np.full(16, 0.002, np.float32),
        "v": normal(16, 16, 3, 3),
        "u": normal(16, 16, 1, 1),
        "g": normal(256, 40),
    }
    return build(ISLAND, weights)


def test_an_island_is_left_as_it_is_and_the_rest_is_quantized() -> None:
    model = island()
    result = run(PLAIN, model)
    changed = {change.node for change in result.changes}
    assert {"Conv7", "Conv9", "Gemm11"} <= changed
    assert "Conv3" not in changed
    before = {node.name: node for node in model.proto.graph.node[:7]}
    after = {node.name: node for node in result.model.proto.graph.node}
    assert all(after[name].SerializeToString() == node.SerializeToString() for name, node in before.items())


def test_a_model_that_is_quantized_for_the_most_part_is_left() -> None:
    once = run(replace(PLAIN, exclude="Gemm"), chain()).model
    again = run(PLAIN, once)
    assert again.model is once
    assert [skip.why for skip in again.skips] == ["the model is quantized already"]


def test_layers_of_another_domain_stay_as_they_are(tmp_path: Path) -> None:
    """onnxruntime saves an optimized model with convolutions of its own, whose weights are laid out in blocks of channels."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "laid_out.onnx")
    options.log_severity_level = 4
    weights = {"w": normal(32, 3, 3, 3), "v": normal(32, 32, 3, 3), "g": normal(512, 40)}
    nodes = "a = Conv(x, w) r = Relu(a) c = Conv(r, v) f = Flatten(c) y = Gemm(f, g)"
    proto = build(nodes, weights).to_proto()
    ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    model = prepare(Model.load(tmp_path / "laid_out.onnx"), None).model
    own = [node.name for node in model.proto.graph.node if node.op_type == "Conv" and node.domain]
    if not own:
        pytest.skip("onnxruntime lays nothing out in blocks on this processor")
    result = run(PLAIN, model)
    assert [change.what for change in result.changes] == ["quantize"]
    reasons = {skip.node: skip.why for skip in result.skips}
    assert all(reasons[name].endswith("Conv is no standard layer") for name in own)
