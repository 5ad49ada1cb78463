"""svd: budgets and tolerances hold, what is left alone says why, and the same words give the same bytes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from svd_cases import CASES, METHODS, at_full_rank, conv, images, job_of, model_of, net, run, svd

from onnx_compress.contract import Job, Result
from onnx_compress.errors import UsageError
from onnx_compress.model.check import check
from onnx_compress.model.cost import cost
from onnx_compress.model.document import Model
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.svd import Svd
from onnx_compress.passes.svd import plan as planning
from onnx_compress.passes.svd.edits import apply_factors
from onnx_compress.passes.svd.factors import Factors
from onnx_compress.passes.svd.layers import find_layers
from onnx_compress.passes.svd.study import Study
from onnx_compress.recipe import parse, resolve
from onnx_compress.runtime import clock
from onnx_compress.runtime.agreement import output_error
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.race import Ratio, Times
from onnx_compress.runtime.session import Session, input_specs

MODELS = Path(__file__).parents[1] / "models"

Array = NDArray[Any]
ALWAYS = "keep_if=always:round_to=1"


def test_a_quick_run_probes_and_refits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds its budget all the same, and loses less than factors of the weights alone."""
    model = net()
    data = images(model)
    for name in ("probe", "error"):
        monkeypatch.setattr(Study, name, None)
    monkeypatch.setattr(planning, "refit", None)
    spec = f"svd:macs=0.5:{ALWAYS}:effort=quick"
    quick, blind = (svd(words, model, data) for words in (spec, f"{spec}:data_aware=false"))
    assert {change.what for change in quick.changes} == {"svd"}
    errors = [output_error(model, result.model, data, threads=1) for result in (quick, blind)]
    assert errors[0] < 0.7 * errors[1]
    shapes = [infer(item, {"x": (1, 3, 8, 8)}) for item in (quick.model, model)]
    left, whole = (cost(item, shape).macs for item, shape in zip((quick.model, model), shapes, strict=True))
    assert left <= 0.5 * whole
    with pytest.raises(UsageError, match="effort=quick is of method=svd alone"):
        resolve(parse("svd:effort=quick:method=spatial"), [Svd])


@pytest.mark.parametrize(
    "words", ["macs=0.5", "params=0.6", "macs=0.5:method=svd", "macs=0.5:data_aware=false"]
)
def test_budgets_hold(words: str) -> None:
    model = net()
    result = halved() if words == "macs=0.5" else svd(f"svd:{words}:{ALWAYS}", model, images(model))
    size = {"x": (1, 3, 8, 8)}
    before, after = cost(model, infer(model, size)), cost(result.model, infer(result.model, size))
    word, value = words.split(":", maxsplit=1)[0].split("=")
    biases = 36  # of the shared bias, copied for each layer that was refitted
    assert getattr(after, word) <= float(value) * getattr(before, word) + biases
    assert any(change.what in METHODS for change in result.changes)


@functools.cache
def halved() -> Result:
    """The net at half its multiply-adds: several tests look at it."""
    model = net()
    return svd(f"svd:macs=0.5:{ALWAYS}", model, images(model))


def test_an_unmet_budget_is_a_warning() -> None:
    model = net()
    result = svd("svd:macs=0.01:keep_if=always", model, images(model))
    assert "0.01" in result.warnings[0]


def test_tolerance_bounds_the_held_out_error() -> None:
    model = net()
    data = images(model)
    errors = []
    for tolerance in (0.001, 0.05):
        result = svd(f"svd:tolerance={tolerance}:keep_if=always:round_to=1", model, data)
        errors.append(output_error(model, result.model, data.split(0.25, 0)[1]))
        assert errors[-1] <= tolerance
    assert errors[0] < errors[1]


def test_a_refit_on_few_samples_keeps_to_the_tolerance() -> None:
    """12 samples to refit a transformer on can do more harm than good: 0.0121 where 0.01 is asked."""
    model = Model.load(MODELS / "fashion_vit.onnx")
    with np.load(MODELS / "fashion_calib.npz") as calib:
        data = open_data([{"input": calib["input"][:16]}], input_specs(model))
    result = svd("svd:keep_if=always", model, data)
    assert result.changes
    assert output_error(model, result.model, data.split(0.25, 0)[1]) <= 0.01


def test_what_earlier_passes_did_is_not_held_against_it() -> None:
    """The tolerance bounds what the pass adds: on a model that is already off by more, there is still room."""
    model = net()
    data = images(model)
    tolerance = 0.02
    given = svd("svd:tolerance=0.05:keep_if=always:round_to=1:exclude=head", model, data).model
    held = data.split(0.25, 0)[1]
    before = output_error(model, given, held)
    assert before > tolerance
    (item,) = resolve(parse(f"svd:tolerance={tolerance}:keep_if=always:round_to=1"), [Svd])
    result = item.apply(Job(given, model, data, 0, Clock(1)))
    assert any(change.what in METHODS for change in result.changes)
    assert output_error(model, result.model, held) <= before + tolerance


def test_data_beats_weights_alone() -> None:
    """At equal work, whitened and refitted factors lose less than half of what plain ones do."""
    model = net()
    data = images(model, 128)
    held = images(model, 256)
    plain, aware = (
        svd(f"svd:macs=0.5:keep_if=always:round_to=1:data_aware={word}", model, data).model
        for word in ("false", "true")
    )
    assert output_error(model, aware, held) < 0.5 * output_error(model, plain, held)


def test_rank_and_energy() -> None:
    model = net()
    ranks = svd("svd:rank=3:keep_if=always", model, None)
    assert {c.after.split(",")[0] for c in ranks.changes} <= {"rank 3", "rank 3 and 3"}
    loose, strict = (
        svd(f"svd:energy={share}:keep_if=always:round_to=1", model, images(model)) for share in (0.8, 0.99)
    )
    assert all(change.error <= 0.2 for change in loose.changes if change.error is not None)
    assert loose.model.nbytes < strict.model.nbytes


def test_shared_biases_are_not_shifted_twice() -> None:
    """Two layers read one bias initializer; each gets its own when its layer is refitted."""
    biases = [
        node.input[2]
        for node in halved().model.proto.graph.node
        if node.op_type == "Conv" and len(node.input) > 2
    ]
    assert len(set(biases)) == len(biases)


def test_what_is_left_alone_says_why() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="one"),
        helper.make_node("MatMul", ["a", "w"], ["b"], name="two"),
        helper.make_node("MatMul", ["b", "v"], ["y"], name="thin"),
    ]
    model = model_of(nodes, {"w": rng.normal(size=(8, 8)), "v": rng.normal(size=(8, 2))}, ("N", 8))
    result = svd("svd:macs=0.5:keep_if=always", model, None)
    assert {skip.node for skip in result.skips} == {"one", "two", "thin"}
    assert result.model.to_proto() == model.to_proto()


def test_excluded_nodes_stay_as_they_are() -> None:
    model = net()
    result = svd("svd:macs=0.7:keep_if=always:round_to=1:exclude='outer|head'", model, images(model))
    names = {node.name for node in result.model.proto.graph.node}
    assert {"outer", "head"} <= names
    assert not {"outer", "head"} & {change.node for change in result.changes}


def test_what_the_clock_decides_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every factored layer is timed to be faster, a replay gives the same bytes without a clock."""
    model = net()
    times = Times(1.0, 1.0, 20)
    fast = Ratio(1.5, 1.4, 1.6, 0.01, times, times)
    monkeypatch.setattr(clock, "race", lambda *_: fast)
    first = svd("svd:round_to=4:tolerance=0.05", model, images(model))
    assert {"time", "keep"} <= {decision.what for decision in first.decisions}
    assert any(change.what in METHODS for change in first.changes)
    monkeypatch.setattr(clock, "race", None)
    entries = [decision.__dict__ for decision in first.decisions]
    again = svd("svd:round_to=4:tolerance=0.05", model, images(model), clock=Clock(1, replay=entries))
    assert again.model.to_proto().SerializeToString() == first.model.to_proto().SerializeToString()
    assert again.decisions == first.decisions


def test_the_same_seed_gives_the_same_bytes() -> None:
    model = net()
    again = svd(f"svd:macs=0.5:{ALWAYS}", model, images(model))
    one, two = (result.model.to_proto().SerializeToString() for result in (halved(), again))
    assert one == two


@pytest.mark.parametrize(
    "words", ["macs=0.5:rank=3", "tolerance=0.1:energy=0.9", "tolerance=none", "macs=1.5"]
)
def test_budgets_exclude_each_other(words: str) -> None:
    with pytest.raises(UsageError):
        resolve(parse(f"svd:{words}"), [Svd])


def test_half_floats_stay_half_floats() -> None:
    rng = np.random.default_rng(0)
    model = conv((3, 3), 8, 6)
    proto = model.to_proto()
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(rng.normal(size=tensor.dims).astype(np.float16), tensor.name)
        )
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    factored, _ = at_full_rank(Model.from_proto(proto), "svd")
    assert {tensor.data_type for tensor in factored.proto.graph.initializer} == {TensorProto.FLOAT16}
    check(factored)


def test_a_dense_refit_keeps_the_form() -> None:
    """Refitting with its own weight is the identity, Gemm's alpha and transB included."""
    for name in ("gemm alpha beta transB", "matmul", "matmul, weight left", "conv grouped"):
        model, shape = CASES[name]
        (layer,), _ = find_layers(Surgery(model), infer(model))
        same = apply_factors(model, {"y": Factors("dense", (layer.weight,))})
        x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
        np.testing.assert_allclose(run(same, x), run(model, x), rtol=1e-5, atol=1e-5)


def test_outputs_that_are_constant_allow_any_rank() -> None:
    """A head that is cut off by its Relu: no rank adds any error, with or without a refit."""
    model = net()
    tensors = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    model.set_array(tensors["w3"], np.full((10, 12), -1.0, np.float32))
    model.proto.graph.node.append(helper.make_node("Relu", ["y"], ["z"], name="cut"))
    model.proto.graph.output[0].name = "z"
    result = Svd(tolerance=0.01, keep_if="always", round_to=1).apply(job_of(model, images(model)))
    assert result.changes
    session = Session(result.model, threads=1)
    assert not session.run({"x": np.ones((1, 3, 8, 8), np.float32)})["z"].any()


def test_outputs_that_are_no_numbers_are_aimed_at_by_nothing() -> None:
    """The logarithm of what is below zero: every column behind it holds NaN, and the layers keep the factors of their own."""
    model = net()
    tensors = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    model.set_array(tensors["w0"], -np.abs(model.array(tensors["w0"])))
    model.proto.graph.node[1].op_type = "Log"
    result = svd("svd:rank=3:keep_if=always", model, images(model))
    assert any(change.what in METHODS for change in result.changes)
