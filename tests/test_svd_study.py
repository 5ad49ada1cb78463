"""svd: what is foretold of a layer's factors (error, multiply-adds, time) is what they turn out to be, and the share-out is the best there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from svd_cases import METHODS, conv, images, job_of, net, run

from onnx_compress.model.cost import cost
from onnx_compress.model.document import Model
from onnx_compress.model.prepare import prepare
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.svd import worth
from onnx_compress.passes.svd.aim import plain_problem, relative_error, solve
from onnx_compress.passes.svd.edits import apply_factors
from onnx_compress.passes.svd.forms import Form, Method, candidates, form_macs, form_params
from onnx_compress.passes.svd.goal import Goal
from onnx_compress.passes.svd.layers import find_layers
from onnx_compress.passes.svd.ranks import ShareOut, option_of
from onnx_compress.passes.svd.study import Study
from onnx_compress.preflight import preflight
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.decision import Decision
from onnx_compress.runtime.session import Session, input_specs

if TYPE_CHECKING:
    from onnx_compress.contract import Job

MODELS = Path(__file__).parents[1] / "models"


def test_predicted_error_is_the_measured_one() -> None:
    """On the samples the Gram matrix was made of, the whitened spectrum's tail is the output error exactly."""
    model = conv((3, 3), 8, 16, pads=[1, 1, 1, 1])
    x = np.random.default_rng(3).normal(size=(16, 8, 9, 9)).cumsum(2).astype(np.float32)
    data = open_data([{"x": x}], input_specs(model))
    study = Study.of(job_of(model, data), exclude=None, data_aware=True)
    study.fit = data  # all of it, so that the same samples can be run
    study.observe(study.layers)
    study.tabulate(study.layers, {"y": ("svd", "spatial", "tucker2", "cp")}, 1, by="macs", only=None)
    y = run(model, x)
    spread = float(((y - y.mean((0, 2, 3), keepdims=True)) ** 2).sum())
    for option in study.tables["y"]:
        measured = float(((run(study.build({"y": option}), x) - y) ** 2).sum()) / spread
        exact = relative_error(study.problems["y"], study.factors("y", option))
        # every third position is left out of the Gram matrix here, or none: float32 sums either way
        assert measured == pytest.approx(exact, rel=0.05, abs=1e-6)
        if option.form.method == "svd":
            assert option.error == pytest.approx(exact, rel=0.01, abs=1e-6)


def test_the_outputs_alone_tell_the_best_factors_of_a_matrix() -> None:
    """U of W G Wᵀ, the outputs' Gram matrix, is all that the best factors U and Uᵀ W need of the inputs: the same error, and foretold."""
    model = conv((3, 3), 16, 8, group=2, pads=[1, 1, 1, 1])
    x = np.random.default_rng(3).normal(size=(64, 16, 9, 9)).cumsum(2).astype(np.float32)
    data = open_data([{"x": x}], input_specs(model))
    y = run(model, x)
    spread = float(((y - y.mean((0, 2, 3), keepdims=True)) ** 2).sum())
    measured = []
    for by_output in (False, True):
        study = Study.of(job_of(model, data), exclude=None, data_aware=True)
        study.fit = data  # all of it, so that the same samples can be run
        study.observe(study.layers, by_output=by_output)
        assert study.projected == ({"y"} if by_output else set())
        (layer,) = study.layers
        option = option_of(layer, study.problems["y"], Form("svd", 2))
        measured.append(float(((run(study.build({"y": option}), x) - y) ** 2).sum()) / spread)
        assert measured[-1] == pytest.approx(option.error, rel=0.01)
    # the damping of one is in terms of inputs, of the other of outputs
    assert measured[1] == pytest.approx(measured[0], rel=0.01)


@pytest.mark.parametrize("name", ["fashion_mobilenet", "fashion_vit"])
def test_predicted_errors_are_the_measured_ones_in_real_layers(name: str) -> None:
    """On the fitting samples, of which wide pictures show every layer a part of their positions: within 5 %.

    Of the layer's own output: where the bias stands in the Add behind a MatMul, the mean is made up for there. Every third
    layer; the benchmark `lowrank rank` looks at all.
    """
    model = Model.load(MODELS / f"{name}.onnx")
    data = open_data(MODELS / "fashion_calib.npz", input_specs(model), samples=96)
    model = prepare(model, preflight(model, input_shapes=None, data=data).shapes).model
    study = Study.of(job_of(model, data), exclude=None, data_aware=True)
    study.observe(study.layers[::3])
    assert study.fit is not None
    feeds = next(study.fit.batches(96))
    layers = {layer.output: layer for layer in study.layers[::3]}
    dense = Session(model, outputs=list(layers), threads=1).run(feeds)
    for output, layer in layers.items():
        ranks = candidates(layer, "svd", 1)
        if not ranks:
            continue
        option = option_of(layer, study.problems[output], ranks[len(ranks) // 2])
        thin = Session(study.build({output: option}), outputs=[output], threads=1).run(feeds)[output]
        axis = 1 if layer.kernel else thin.ndim - 1
        noise, signal = (
            np.moveaxis(x.astype(np.float64), axis, -1).reshape(-1, x.shape[axis])
            for x in (thin - dense[output], dense[output])
        )
        assert noise.var(0).sum() / signal.var(0).sum() == pytest.approx(option.error, rel=0.05), layer.node


def test_share_out_is_the_best_there_is() -> None:
    """Against every combination of choices, for many budgets."""
    rng = np.random.default_rng(9)
    tables = [
        [(10.0, 0.0), *((float(rng.integers(1, 9)), float(rng.random())) for _ in range(4))] for _ in range(4)
    ]
    share = ShareOut(tables)
    grid = np.stack(np.meshgrid(*[range(5)] * 4), -1).reshape(-1, 4)
    costs = np.array([sum(tables[i][p][0] for i, p in enumerate(row)) for row in grid])
    errors = np.array([sum(tables[i][p][1] for i, p in enumerate(row)) for row in grid])
    for budget in range(int(costs.min()), 41):
        picks = share.choose(budget)
        assert picks is not None
        assert sum(tables[i][p][0] for i, p in enumerate(picks)) <= budget
        total = sum(tables[i][p][1] for i, p in enumerate(picks))
        # each cost is rounded up to 1/4096 of the range, so the budget may be missed by four such steps
        step = (costs.max() - costs.min()) / 4096
        assert total >= errors[costs <= budget].min() - 1e-9
        assert total <= errors[costs <= max(budget - 4 * step, costs.min())].min() + 1e-9
    assert share.choose(costs.min() - 1) is None


def test_macs_and_params_are_those_counted() -> None:
    """The share-out's costs are what the report will count."""
    model = conv((3, 3), 16, 8, pads=[1, 0, 1, 2], strides=[1, 2])
    shapes = infer(model, {"x": (1, 16, 9, 9)})
    (layer,), _ = find_layers(Surgery(model), shapes)
    assert cost(model, shapes).macs == layer.macs
    for method in METHODS:
        form = Form(method, 4, 3 if method == "tucker2" else 0)
        factors = solve(plain_problem(layer, None), layer, form)
        factored = apply_factors(model, {"y": factors})
        found = cost(factored, infer(factored, {"x": (1, 16, 9, 9)}))
        assert found.macs == form_macs(layer, form)
        assert found.params - 8 == form_params(layer, form) == factors.params  # less the bias


def test_the_fastest_form_that_loses_no_more_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock at the rank in question, whatever the multiply-adds say; the gain orders the trials on the whole model."""
    model = net(width=16)
    data = images(model)
    study = Study.of(job_of(model, data), exclude="stem|head", data_aware=True)
    study.observe(study.layers)
    forms: tuple[Method, ...] = ("svd", "spatial", "tucker2")
    methods = dict.fromkeys((layer.output for layer in study.layers), forms)
    study.tabulate(study.layers, methods, 1, by="macs", only=None)
    layers = {layer.output: layer for layer in study.layers}
    plan = {
        name: min(
            (o for o in study.tables[name] if o.form.method == "spatial"), key=lambda o: abs(o.error - 0.05)
        )
        for name in layers
    }

    def slow_but_for_svd(_job: Job, layer: Any, form: Form, _shapes: Any) -> Decision:
        return Decision(layer.node, "time", 0.4 if form.method == "svd" else 0.1, True)

    monkeypatch.setattr(worth, "propose", slow_but_for_svd)
    goal = Goal(0.01, "faster", forms)
    chosen = worth.fastest_forms(study, goal, layers, plan)
    assert {option.form.method for option in chosen.values()} == {"svd"}
    assert all(chosen[name].error <= plan[name].error for name in plan)
    assert study.gains["c1"][chosen["c1"].form] == pytest.approx(0.4 * layers["c1"].macs)
    assert worth.fastest_forms(study, Goal(0.01, "always", forms), layers, plan) == plan

    def slow(_job: Job, layer: Any, _form: Form, _shapes: Any) -> Decision:
        return Decision(layer.node, "time", -0.1, False)

    monkeypatch.setattr(worth, "propose", slow)
    assert worth.fastest_forms(study, goal, layers, plan) == {}
