"""fp16: halves in the file, the same model in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.pipeline import compress
from onnx_compress.runtime.session import Session

MODELS = Path(__file__).parents[1] / "models"
CALIB = MODELS / "fashion_calib.npz"


def chain(*weights: Any) -> Model:
    """x times one matrix after the other."""
    names = ["x", *(f"h{i}" for i in range(len(weights) - 1)), "y"]
    nodes = [
        helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]], f"layer{i}")
        for i in range(len(weights))
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 32]) for name in "xy")
    tensors = [onnx.numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return Model.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )


def matrix(seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((32, 32)).astype(np.float32)


def halved(model: Model, spec: str = "fp16") -> Any:
    return compress(model.to_proto(), spec, data=[{"x": np.eye(32, dtype=np.float32)}], verify=False)


def test_weights_that_halves_can_hold_change_nothing() -> None:
    weight = matrix(0).astype(np.float16).astype(np.float32)
    weight[0, :4] = [6e-8, -6e-8, 65504, 0]  # subnormal halves, and the largest
    model = chain(weight)
    found = halved(model).model
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)}
    np.testing.assert_array_equal(Session(found).run(feeds)["y"], Session(model).run(feeds)["y"])


def test_a_weight_beyond_halves_stays_and_says_so() -> None:
    large = matrix(0)
    large[3, 3] = 7e4
    result = halved(chain(matrix(1), large))
    step = result.report["passes"][1]
    assert [change["node"] for change in step["changes"]] == ["layer0"]
    assert step["skips"] == [{"node": "layer1", "why": "its weight reaches 7e+04, and halves end at 65504"}]


def test_what_runs_is_the_float_model(tmp_path: Path) -> None:
    """onnxruntime computes the Casts when it loads the model: the optimised graphs have the same nodes."""
    ops = []
    path = MODELS / "fashion_lstm.onnx"
    found = compress(path, "fp16", data=CALIB, samples=64, verify=False).model
    for model in (Model.load(path), found):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        ort.InferenceSession(model.to_proto().SerializeToString(), options)
        ops.append([node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node])
    assert ops[0] == ops[1]


def test_the_file_is_half_as_large() -> None:
    path = MODELS / "fashion_mlp.onnx"
    result = compress(path, "fp16", data=CALIB, samples=64, verify=False)
    check(result.model)
    assert result.model.nbytes < 0.501 * Model.load(path).nbytes


def test_a_tied_weight_is_stored_once_and_the_excluded_stay() -> None:
    weight = matrix(2)
    model = chain(weight, weight)
    del model.proto.graph.initializer[1]
    model.proto.graph.node[1].input[1] = "w0"
    assert [t.data_type for t in halved(model).model.proto.graph.initializer] == [TensorProto.FLOAT16]
    step = halved(chain(matrix(3), matrix(4)), "fp16:exclude=layer1").report["passes"][1]
    assert [change["node"] for change in step["changes"]] == ["layer0"]
    assert step["skips"] == [{"node": "layer1", "why": "excluded"}]


def test_the_tolerance_leaves_out_what_costs_most() -> None:
    """A weight whose values are subnormal halves loses digits; one that halves hold exactly costs nothing."""
    exact = np.eye(32, dtype=np.float32)
    tiny = matrix(5) * np.float32(1e-7)
    step = halved(chain(exact, tiny), "fp16:tolerance=1e-6").report["passes"][1]
    assert [change["node"] for change in step["changes"]] == ["layer0"]
    assert "tolerance" in step["skips"][0]["why"]


def test_without_data_what_halves_cannot_hold_stays() -> None:
    model = chain(matrix(6), matrix(7) * np.float32(1e-7))
    step = compress(model.to_proto(), "fp16", verify=False).report["passes"][1]
    assert [change["node"] for change in step["changes"]] == ["layer0"]
    assert "too small for halves" in step["skips"][0]["why"]
