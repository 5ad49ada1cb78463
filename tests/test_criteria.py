"""Every criterion ranks every unit once; those with a plain definition agree with it."""

from __future__ import annotations

from typing import get_args

import numpy as np
import onnx
import pytest
from channel_cases import parse

from onnx_compress.contract import Job
from onnx_compress.model.channels import Channels, Unit
from onnx_compress.model.document import Model
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.prune import Prune
from onnx_compress.passes.prune.consumers import consumers
from onnx_compress.passes.prune.criteria import CRITERIA, DATA_FREE, Criterion
from onnx_compress.passes.prune.criteria.context import Context
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import Data, open_data
from onnx_compress.runtime.observe import observe
from onnx_compress.runtime.requests import Gram
from onnx_compress.runtime.session import Session, input_specs

TEXT = """g (float[N,4] x, float[4,6] w1, float[6] wb, float[6,5] w2) => (float[N,5] y) {
    h = Gemm(x, w1, wb)
    g = Relu(h)
    y = MatMul(g, w2) }"""


@pytest.fixture(scope="module")
def model() -> Model:
    proto = parse(TEXT)
    w1 = onnx.numpy_helper.to_array(proto.graph.initializer[0]).copy()
    w1[:, 2] *= 0.01  # the third unit hardly does anything
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(w1, "w1"))
    bias = np.zeros(6, np.float32)
    bias[4] = -100  # the fifth never fires
    proto.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(bias, "wb"))
    return Model.from_proto(proto)


@pytest.fixture(scope="module")
def data(model: Model) -> Data:
    rng = np.random.default_rng(0)
    return open_data([{"x": rng.normal(size=(64, 4)).astype(np.float32)}], input_specs(model), samples=64)


@pytest.fixture(scope="module")
def context(model: Model, data: Data) -> Context:
    surgery = Surgery(model)
    readers = consumers(surgery, infer(model))
    found = observe(model, data, [Gram(r.layer) for r in readers])
    grams = {r.layer: found[Gram(r.layer)] for r in readers}
    weights = {t.name: model.array(t) for t in model.proto.graph.initializer}
    return Context(model, surgery, readers, data, grams, 1, np.random.default_rng(0), 1e-3, weights)


@pytest.fixture(scope="module")
def units(context: Context, model: Model) -> list[Unit]:
    return sorted(Channels(context.surgery, infer(model)).units()[0], key=place)


def place(unit: Unit) -> int:
    return int(unit.places["w1", 1][0])


def test_the_table_holds_every_word() -> None:
    assert tuple(CRITERIA) == get_args(Criterion)


@pytest.mark.parametrize("name", CRITERIA)
def test_every_unit_is_ranked_once_and_the_loss_only_grows(
    name: Criterion, context: Context, units: list[Unit]
) -> None:
    curve = CRITERIA[name](context, units)
    assert sorted(map(place, curve.units)) == list(range(6))
    assert len(curve.loss) == 7
    assert curve.loss[0] == 0
    assert np.all(np.diff(curve.loss) >= -1e-9)


def test_obs_takes_the_two_that_cost_next_to_nothing(context: Context, units: list[Unit]) -> None:
    """In which order is a matter of the damping."""
    assert {place(u) for u in CRITERIA["obs"](context, units).units[:2]} == {2, 4}


@pytest.mark.parametrize("name", ["activation", "apoz", "entropy", "taylor", "oracle"])
def test_a_unit_that_never_fires_goes_first(name: Criterion, context: Context, units: list[Unit]) -> None:
    """Whatever looks at activations or outputs sees nothing there."""
    assert place(CRITERIA[name](context, units).units[0]) == 4


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_the_smallest_filter_goes_first(name: Criterion, context: Context, units: list[Unit]) -> None:
    assert place(CRITERIA[name](context, units).units[0]) == 2


def test_fpgm_orders_by_the_distance_to_all_filters(context: Context, units: list[Unit]) -> None:
    w1 = context.weights["w1"].astype(float)
    # the bias, a vector, is no filter
    distances = [sum(np.linalg.norm(w1[:, i] - w1[:, j]) for j in range(6)) for i in range(6)]
    assert [place(u) for u in CRITERIA["fpgm"](context, units).units] == list(np.argsort(np.array(distances)))


def test_the_oracle_is_the_measured_error(
    context: Context, units: list[Unit], model: Model, data: Data
) -> None:
    x = next(iter(data.batches(64)))
    plain = Session(model).run(x)["y"]
    errors = []
    for unit in range(6):
        edited = model.copy()
        w2 = edited.array(edited.proto.graph.initializer[2]).copy()
        w2[unit] = 0
        edited.set_array(edited.proto.graph.initializer[2], w2)
        errors.append(float(np.sum((Session(edited).run(x)["y"] - plain) ** 2)))
    assert [place(u) for u in CRITERIA["oracle"](context, units).units] == list(np.argsort(errors))


def test_lda_prefers_what_tells_classes_apart(context: Context, units: list[Unit]) -> None:
    """Brute force over the definition, classes the model's own answers."""
    values, classes = context.pooled["g", -1], context.classes
    ratio = []
    for column in values.T:
        means = {c: column[classes == c].mean() for c in np.unique(classes)}
        between = sum((classes == c).sum() * (m - column.mean()) ** 2 for c, m in means.items())
        within = sum(((column[classes == c] - m) ** 2).sum() for c, m in means.items())
        ratio.append(between / within if within else 0.0)
    ranked = [place(u) for u in CRITERIA["lda"](context, units).units]
    assert ranked == list(np.argsort(ratio, kind="stable"))


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - set(DATA_FREE) - {"random-mask"}))
def test_prune_runs_with_it(name: Criterion, model: Model, data: Data) -> None:
    result = Prune(channels=0.5, criterion=name, round_to=1).apply(Job(model, model, data, 0, Clock(1, 0)))
    assert Session(result.model).run({"x": np.ones((2, 4), np.float32)})["y"].shape == (2, 5)
    assert [change.after for change in result.changes] == ["3"]
