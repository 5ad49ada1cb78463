"""int8: options, what stays in float and why, the same bytes again, and nothing lost in silence."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from int8_cases import (
    MODELS,
    PLAIN,
    RNG,
    build,
    data_of,
    executed,
    job_of,
    normal,
    run,
    two_layers,
)
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnx_compress.errors import UsageError
from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.model.prepare import prepare
from onnx_compress.numerics.rounding import nearest
from onnx_compress.passes.int8 import Int8
from onnx_compress.passes.int8.quantizer import compensated
from onnx_compress.passes.int8.storage import store
from onnx_compress.recipe import parse, resolve
from onnx_compress.runtime.agreement import output_error
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import Session, input_specs

Array = NDArray[Any]


SPECS = [
    "int8:activations=int8",
    "int8:calibrate=entropy:rounding=nearest",
    "int8:calibrate=percentile:bias_correction=false",
    "int8:weights=per-tensor",
    "int8:reduce_range=true",
]


@pytest.mark.parametrize("spec", SPECS)
def test_options_hold(spec: str) -> None:
    weights = {"w": normal(8, 3, 3, 3), "b": normal(8), "u": normal(4, 8, 3, 3)}
    model = build("a = Conv(x, w, b) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, u)", weights)
    (pass_,) = resolve(parse(f"{spec}:keep_if=always:tolerance=none"), (Int8,))
    assert isinstance(pass_, Int8)
    result = run(pass_, model)
    graph = result.model.proto.graph
    arrays = [result.model.array(tensor) for tensor in graph.initializer]
    codes = [array for array in arrays if array.dtype == np.int8 and array.ndim == 4]
    assert len(codes) == 2
    # > 5 %: per-tensor scales, 7 bits or cut tails, at most
    assert output_error(model, result.model, data_of(model)) < 0.05
    if "reduce_range" in spec:
        assert max(np.abs(array).max() for array in codes) <= 63
    if "activations=int8" in spec:
        assert not any(array.dtype == np.uint8 for array in arrays)


@pytest.mark.parametrize(
    "spec", ["int8:calibrate=kl", "int8:tolerance=-1", "int8:exclude='('", "int8:target=npu"]
)
def test_a_bad_option_is_a_usage_error(spec: str) -> None:
    with pytest.raises(UsageError):
        resolve(parse(spec), (Int8,))


def test_an_excluded_layer_stays_in_float_and_is_named() -> None:
    result = run(replace(PLAIN, exclude="^Conv2$"), two_layers())
    assert [skip.node for skip in result.skips] == ["Conv2"]
    assert "exclude" in result.skips[0].why
    assert executed(result.model)["QLinearConv"] == 1


def test_the_fewest_layers_stay_in_float_for_the_tolerance() -> None:
    """One of three layers has a channel that drowns the rest in 8 bits: it alone is kept in float."""
    harsh = normal(8, 8, 1, 1)
    harsh[0] *= 3000
    cancel = normal(4, 8, 1, 1)
    cancel[:, 0] = 0
    weights = {"w": normal(8, 3, 3, 3), "h": harsh, "u": cancel}
    model = build("a = Conv(x, w) b = Conv(a, h) y = Conv(b, u)", weights)
    data = data_of(model, 64)
    result = run(replace(PLAIN, tolerance=0.01), model, data)
    assert output_error(model, result.model, data) < 0.02
    assert 1 <= len([skip for skip in result.skips if "tolerance" in skip.why]) <= 2
    assert any(change.what == "quantize" for change in result.changes)


def test_a_tolerance_that_cannot_be_met_leaves_the_model_as_it_was() -> None:
    model = two_layers()
    result = run(replace(PLAIN, tolerance=0.0), model)
    assert result.model.to_proto() == model.to_proto()
    assert len(result.skips) == 2
    assert not result.changes


def replayed(*kept: bool, ratio: float = 0.5) -> list[dict[str, Any]]:
    """Decisions of an earlier run about the whole model, then about scales at run time, then about what is stored."""
    entry = {"what": "keep", "value": 0.0, "ratio": ratio, "low": ratio - 0.01, "high": ratio + 0.01}
    timed = [{"node": "int8", "kept": one, **entry} for one in kept]
    return [
        *timed,
        {"node": "Gemm2", "kept": False, **entry},
        {"node": "int8 storage", "kept": True, **entry},
    ]


def wide() -> Model:
    weights = {"w": normal(16, 3, 3, 3), "g": normal(576, 50)}
    return build("a = Conv(x, w) f = Flatten(a) y = Gemm(f, g)", weights)


def test_a_model_that_int8_slows_down_stays_in_float_with_its_weights_stored() -> None:
    model = wide()
    job = replace(job_of(model), clock=Clock(1, 0, replayed(False)))
    result = Int8(rounding="nearest").apply(job)
    assert {skip.why for skip in result.skips} == {"the model is slower in int8 here: 0.50 of float's speed"}
    assert {change.what for change in result.changes} == {"store"}
    assert executed(result.model) == executed(model)
    assert result.model.nbytes < 0.35 * model.nbytes


@pytest.mark.parametrize("second", [True, False])
def test_the_second_timing_of_a_close_call_decides(second: bool) -> None:
    job = replace(job_of(wide()), clock=Clock(1, 0, replayed(not second, second, ratio=0.95)))
    result = Int8(rounding="nearest").apply(job)
    assert ("quantize" in {change.what for change in result.changes}) == second


def test_a_replayed_run_gives_the_same_bytes() -> None:
    model = wide()
    first = Int8().apply(job_of(model))
    entries = [
        {name: getattr(decision, name) for name in ("node", "what", "value", "kept", "ratio", "low", "high")}
        for decision in first.decisions
    ]
    second = Int8().apply(replace(job_of(model), clock=Clock(1, 0, entries)))
    assert first.model.to_proto().SerializeToString() == second.model.to_proto().SerializeToString()
    assert len(first.decisions) == len(second.decisions)


def test_the_same_input_gives_the_same_bytes() -> None:
    model, pass_ = two_layers(), Int8(keep_if="always")
    first, second = (run(pass_, model).model.to_proto().SerializeToString() for _ in range(2))
    assert first == second


def test_the_input_is_not_changed() -> None:
    model = two_layers()
    before = model.to_proto().SerializeToString()
    run(PLAIN, model)
    assert model.to_proto().SerializeToString() == before


def test_a_quantized_model_is_left_alone() -> None:
    once = run(PLAIN, two_layers()).model
    again = run(PLAIN, once)
    assert again.model is once
    assert "already" in again.skips[0].why


def test_an_old_opset_is_raised() -> None:
    weights = {"w": normal(8, 3, 3, 3), "g": normal(288, 5), "c": normal(5)}
    model = build(
        "a = Conv(x, w) b = Clip<min=0.0, max=6.0>(a) f = Flatten(b) y = Gemm(f, g, c)", weights, opset=10
    )
    result = run(PLAIN, model)
    assert result.model.proto.opset_import[0].version >= 13
    assert executed(result.model)["QLinearConv"] == 1


def test_tied_weights_stay_tied() -> None:
    weights = {"w": normal(8, 8, 3, 3), "v": normal(8, 3, 1, 1), "b": normal(8)}
    model = build("a = Conv(x, v) c = Conv<pads=[1,1,1,1]>(a, w, b) y = Conv(c, w, b)", weights)
    result = run(PLAIN, model)
    codes = [tensor for tensor in result.model.proto.graph.initializer if list(tensor.dims) == [8, 8, 3, 3]]
    assert len(codes) == 1
    assert output_error(model, result.model, data_of(model)) < 0.01


def test_a_graph_output_inside_keeps_its_name_and_type() -> None:
    model = two_layers()
    model.proto.graph.output.add().CopyFrom(
        helper.make_tensor_value_info("r", TensorProto.FLOAT, ["N", 8, 6, 6])
    )
    result = run(PLAIN, model)
    feeds = {"x": RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)}
    before, after = Session(model).run(feeds), Session(result.model).run(feeds)
    assert before.keys() == after.keys()
    assert np.linalg.norm(before["r"] - after["r"]) < 0.02 * np.linalg.norm(
        before["r"]
    )  # ranges may clip one


def test_what_runs_in_float_is_stored_in_int8() -> None:
    """The operators that run are those of the float model: what stores a weight is computed at load."""
    weights = {"w": normal(1, 64, 32), "r": normal(1, 64, 16)}
    model = build("y = LSTM<hidden_size=16>(x, w, r)", weights, "float[5,3,32] x")
    new, stored = store(model, set())
    assert [one.op for one in stored] == ["LSTM", "LSTM"]
    assert new.nbytes < 0.45 * model.nbytes
    assert executed(new) == executed(model)
    feeds = {"x": RNG.normal(size=(5, 3, 32)).astype(np.float32)}
    before, after = (Session(m).run(feeds)["y"] for m in (model, new))
    assert np.abs(before - after).max() < 0.02 * np.abs(before).max()


def test_weights_in_bodies_are_stored_too() -> None:
    model = _branches()
    new, stored = store(model, set())
    check(new)
    assert len(stored) == 2
    for flag in (True, False):
        feeds = {"x": normal(3, 32), "flag": np.array(flag)}
        before, after = Session(model).run(feeds)["y"], Session(new).run(feeds)["y"]
        assert np.abs(before - after).max() < 0.02 * np.abs(before).max()


def _branches() -> Model:
    """An If whose branches each hold a weight called w."""

    def body(name: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], [f"{name}_out"], name=f"{name}_layer")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, ["N", 40])],
            [onnx.numpy_helper.from_array(normal(32, 40), "w")],
        )

    node = helper.make_node(
        "If", ["flag"], ["y"], name="if", then_branch=body("then"), else_branch=body("else")
    )
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 32]),
        helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
    ]
    graph = helper.make_graph(
        [node], "test", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 40])]
    )
    return Model.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )


def test_the_preview_is_quantized_and_quick() -> None:
    model = two_layers()
    preview = Int8().preview(job_of(model))
    assert executed(preview)["QLinearConv"] == 2
    assert Int8().preview(replace(job_of(model), data=None)).nbytes < model.nbytes + 4096


TINY = sorted(path.stem for path in (MODELS / "tiny").glob("*.onnxtxt"))


@pytest.mark.parametrize("name", TINY)
def test_every_layer_is_in_the_changes_or_in_the_skips(name: str) -> None:
    """Silence is a bug: what has a weight and was not quantized says why."""
    model = prepare(
        Model.from_proto(onnx.parser.parse_model((MODELS / "tiny" / f"{name}.onnxtxt").read_text())), None
    ).model
    result = run(replace(PLAIN, tolerance=None), model, data_of(model))
    named = [change.node for change in result.changes if change.what == "quantize"] + [
        s.node for s in result.skips
    ]
    graphs = [model.proto.graph]
    layers = []
    while graphs:
        graph = graphs.pop()
        weights = {tensor.name for tensor in graph.initializer}
        for node in graph.node:
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
            if node.op_type in {"Conv", "Gemm", "MatMul", "LSTM", "GRU"} and weights & set(node.input):
                layers.append(node.name)
    assert set(layers) <= set(named)
    assert len(named) == len(set(named))


def test_fashion_mlp_keeps_its_accuracy_at_a_quarter_of_the_size() -> None:
    model = Model.load(MODELS / "fashion_mlp.onnx")
    data = open_data(MODELS / "fashion_calib.npz", input_specs(model), samples=64)
    result = run(Int8(keep_if="always"), model, data)
    assert model.nbytes > 3.5 * result.model.nbytes
    assert executed(result.model) == Counter({"QGemm": 3, "QuantizeLinear": 1, "Flatten": 1})
    held = np.load(MODELS / "fashion_eval.npz")
    feeds = {"input": held["input"][:1000].astype(np.float32)}
    right = [
        (next(iter(Session(m).run(feeds).values())).argmax(1) == held["label"][:1000]).mean()
        for m in (model, result.model)
    ]
    assert right[0] - right[1] <= 0.01


@pytest.mark.parametrize("inputs", [40, 600])
def test_codes_are_those_of_inputs_of_any_size(inputs: int) -> None:
    """Rounding asks for the least error: in which unit does not matter, even where float32 cannot hold its square."""
    rng = np.random.default_rng(0)
    rows, x = rng.normal(size=(6, inputs)), rng.normal(size=(2 * inputs, inputs)).cumsum(1)
    gram, scale = x.T @ x, np.full(6, 0.05)
    expected = compensated(rows, gram, scale, 8)
    assert (expected != nearest(rows, scale, 8)).any()
    found = compensated(rows, gram * 1e36, scale, 8)
    assert np.mean(found == expected) > 0.999  # > ties of float32 may fall to either side


@pytest.mark.filterwarnings("error")
def test_infinite_inputs_leave_the_nearest_codes() -> None:
    rows, scale = np.random.default_rng(0).normal(size=(6, 40)), np.full(6, 0.05)
    found = compensated(rows, np.full((40, 40), np.inf), scale, 8)
    np.testing.assert_array_equal(found, nearest(rows, scale, 8))
