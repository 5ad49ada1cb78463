"""Pruning to a budget, to a tolerance, and the repair: each beats doing without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from channel_cases import parse

from onnx_compress.contract import Job, Result
from onnx_compress.errors import UsageError
from onnx_compress.model.channels import Channels, Unit
from onnx_compress.model.check import check
from onnx_compress.model.cost import cost
from onnx_compress.model.document import Model
from onnx_compress.model.prepare import prepare
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.prune import Prune
from onnx_compress.passes.prune.allocate import counts
from onnx_compress.passes.prune.cost import Macs, Measure, Params, Tally, after
from onnx_compress.passes.prune.plan import by_kind
from onnx_compress.runtime.agreement import output_error
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import Data, open_data
from onnx_compress.runtime.session import input_specs

MODELS = Path(__file__).parents[1] / "models"


@pytest.fixture(scope="module")
def model() -> Model:
    loaded = Model.load(MODELS / "fashion_mlp.onnx")
    return prepare(loaded, infer(loaded)).model


@pytest.fixture(scope="module")
def data(model: Model) -> Data:
    return open_data(MODELS / "fashion_calib.npz", input_specs(model), samples=256)


@pytest.fixture(autouse=True)
def few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of six refits does what one of twenty-four does, only less well."""
    monkeypatch.setattr("onnx_compress.passes.prune.shortlist.TRIES", 6)


def run(model: Model, data: Data | None, **options: Any) -> Result:
    return Prune(**options).apply(Job(model, model, data, 0, Clock(1, 0)))


def test_a_budget_is_met(model: Model, data: Data) -> None:
    result = run(model, data, macs=0.5, round_to=1)
    check(result.model)
    shapes = {"input": (1, 1, 28, 28)}
    before, after = (cost(m, infer(m, shapes)).macs for m in (model, result.model))
    assert 0.40 <= after / before <= 0.505  # the least that one unit saves is far below 10 %


def macs(model: Model) -> int:
    return cost(model, infer(model, {"x": (1, 1, 12, 12)})).macs


CHAIN = """g (float[N,1,12,12] x, float[8,1,3,3] w1, float[8] wb, float[16,8,3,3] w2, float[16] wd, float[12,16,3,3] w3, float[12] wc,
    float[4,12,1,1] w4) => (float[N,4,6,6] y) {
    a = Conv(x, w1, wb)
    b = Relu(a)
    c = Conv(b, w2, wd)
    d = Relu(c)
    e = Conv(d, w3, wc)
    f = Relu(e)
    y = Conv(f, w4) }"""


@pytest.fixture(scope="module")
def chain() -> tuple[Model, Data]:
    loaded = Model.from_proto(parse(CHAIN))
    x = np.random.default_rng(0).normal(size=(96, 1, 12, 12)).astype(np.float32)
    return loaded, open_data([{"x": x}], input_specs(loaded), samples=96)


@pytest.mark.parametrize("budget", ["macs", "params"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps": 3},
        {"scope": "layer"},
        {"round_to": 4},
        {"exclude": "Conv_2"},
        {"steps": 2, "scope": "layer"},
    ],
)
def test_every_option_goes_with_a_budget(
    chain: tuple[Model, Data], budget: str, options: dict[str, Any]
) -> None:
    """0.6 of the work or of the weights is left, less what whole units cost: a third of it at most."""
    model, data = chain
    result = run(model, data, **{budget: 0.6, "round_to": 1, **options})
    check(result.model)
    measured = {"macs": macs, "params": params}[budget]
    assert 0.4 <= measured(result.model) / measured(model) <= 0.61
    widths = {t.name: t.dims[0] for t in result.model.proto.graph.initializer if len(t.dims) == 4}
    if "round_to" in options:
        assert all(width % 4 == 0 for width in widths.values())
    if "exclude" in options:
        assert widths["w2"] == 16
        assert any(skip.why == "excluded" for skip in result.skips)


def params(model: Model) -> int:
    return sum(
        int(np.prod(t.dims)) for t in model.proto.graph.initializer if t.name in {"w1", "w2", "w3", "w4"}
    )


def test_the_layers_share_alike_with_scope_layer(chain: tuple[Model, Data]) -> None:
    """Every kind keeps the same share, as near as whole units allow."""
    model, data = chain
    result = run(model, data, macs=0.5, round_to=1, scope="layer")
    kept = [int(change.after) / int(change.before) for change in result.changes]
    assert len(kept) == 3
    assert max(kept) - min(kept) <= 1 / 8


def test_repair_beats_bias_beats_none(model: Model, data: Data) -> None:
    """Least squares can do what the bias can, and the bias what nothing can."""
    errors = [
        output_error(model, run(model, data, channels=0.5, round_to=1, repair=repair).model, data)
        for repair in ("least-squares", "bias", "none")
    ]
    assert errors[0] < errors[1] <= errors[2]


def test_obs_beats_l1_without_repair(model: Model, data: Data) -> None:
    errors = [
        output_error(
            model, run(model, data, channels=0.3, round_to=1, criterion=c, repair="none").model, data
        )
        for c in ("obs", "l1")
    ]
    assert errors[0] < errors[1]


def test_tolerance_bounds_the_error(model: Model, data: Data) -> None:
    """On the held-out part, to which nothing was fitted."""
    result = run(model, data, tolerance=0.02, round_to=1)
    _, held = data.split(0.25, 0)
    assert result.changes
    assert output_error(model, result.model, held) <= 0.02


def test_a_tolerance_of_nothing_leaves_the_model(model: Model, data: Data) -> None:
    result = run(model, data, tolerance=0.0, round_to=1)
    assert output_error(model, result.model, data) <= 1e-9


def test_same_seed_same_bytes(model: Model, data: Data) -> None:
    once, again = (
        run(model, data, macs=0.6, round_to=8).model.to_proto().SerializeToString() for _ in range(2)
    )
    assert once == again


def test_the_input_is_not_changed(model: Model, data: Data) -> None:
    before = model.to_proto().SerializeToString()
    run(model, data, channels=0.5, round_to=1)
    assert model.to_proto().SerializeToString() == before


def test_without_data(model: Model) -> None:
    with pytest.raises(UsageError, match="--data"):
        run(model, None)
    result = run(model, None, criterion="l1", channels=0.5, round_to=1)
    assert result.warnings
    check(result.model)


def test_two_budgets_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="both budgets"):
        Prune(macs=0.5, params=0.5)


def test_exclude_leaves_a_node_alone(model: Model, data: Data) -> None:
    name = model.proto.graph.node[-1].name
    result = run(model, data, channels=0.5, round_to=1, exclude=f"^{name}$")
    assert any(skip.node == name for skip in result.skips)
    last = model.proto.graph.node[-1].input[1]
    shapes = {t.name: list(t.dims) for t in result.model.proto.graph.initializer}
    assert shapes[last] == next(list(t.dims) for t in model.proto.graph.initializer if t.name == last)


def test_what_is_counted_as_saved_is_the_difference_that_removal_makes() -> None:
    """Against removing each number of units on its own; the units share indices, so that savings do not add up."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"w1": (12, 9), "w2": (4, 12)}
    units = [
        Unit(
            frozenset([number]),
            {("w1", 0): rng.choice(11, 2), ("w2", 1): rng.choice(11, 3), ("w1", 1): rng.choice(8, 1)},
        )
        for number in range(6)
    ]
    measures: list[Measure] = [Params(shapes), Macs(shapes, {"w1": 70, "w2": 300})]
    kinds = [units[:4], units[4:]]
    tally = Tally(kinds)
    for measure in measures:
        expected = [after(measure, ()) - after(measure, units[:count]) for count in (0, 1, 3, 4)]
        np.testing.assert_allclose(tally.saved(measure, 0, [0, 1, 3, 4]), expected)
        for first, second in [(0, 0), (2, 1), (4, 2)]:
            together = after(measure, [*kinds[0][:first], *kinds[1][:second]])
            assert measure.of(tally.gone([first, second])) == pytest.approx(together)


@pytest.mark.parametrize(("size", "multiple"), [(16, 8), (10, 4), (5, 8), (64, 1)])
def test_some_unit_always_stays_and_widths_are_round(size: int, multiple: int) -> None:
    kept = size - counts(size, multiple)
    assert kept.min() >= 1
    assert np.all((kept % multiple == 0) | (kept == size) | (size < 2 * multiple))


def test_a_layer_without_a_bias_gets_one_of_the_right_length(data: Data) -> None:
    """Both its inputs and its outputs lose channels, so the bias that the repair makes must lose some too."""
    proto = parse("""g (float[N,1,28,28] x, float[8,1,3,3] w1, float[8,8,3,3] w2, float[3,8,1,1] w3) => (float[N,3,24,24] y) {
        a = Conv(x, w1)
        b = Relu(a)
        c = Conv(b, w2)
        d = Relu(c)
        y = Conv(d, w3) }""")
    loaded = Model.from_proto(proto)
    images = open_data([{"x": next(iter(data.batches(64)))["input"]}], input_specs(loaded), samples=64)
    result = run(loaded, images, channels=0.5, round_to=1)
    shapes = sorted(list(t.dims) for t in result.model.proto.graph.initializer if len(t.dims) == 1)
    assert shapes == [[3], [4]]  # the first layer only loses outputs: the others are as they were
    assert output_error(loaded, result.model, images) < output_error(
        loaded, run(loaded, images, channels=0.5, round_to=1, repair="none").model, images
    )


def test_weights_in_the_body_of_an_if_are_ranked_and_cut() -> None:
    """As Silero keeps all of its weights."""
    proto = parse("""g (float[N,4] x, float[4,6] w1, float[6,3] w2, bool[1] c) => (float[N,3] y) {
        h = MatMul(x, w1)
        g = If (c) <
            then_branch = t () => (float[N,6] a) { a = MatMul(h, w3) },
            else_branch = e () => (float[N,6] b) { b = Neg(h) }
        >
        y = MatMul(g, w2) }""")
    body = next(a.g for a in proto.graph.node[1].attribute if a.name == "then_branch")
    square = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    body.initializer.append(onnx.numpy_helper.from_array(square, "w3"))
    result = run(Model.from_proto(proto), None, criterion="l1", channels=0.5, round_to=1)
    check(result.model)
    body = next(a.g for a in result.model.proto.graph.node[1].attribute if a.name == "then_branch")
    assert list(body.initializer[0].dims) == [3, 3]


def test_units_that_only_computed_weights_read_go_by_what_makes_them() -> None:
    """A weight that the graph makes of its shape can be narrowed, though nothing refits it: a share of channels is taken."""
    text = """g (float[N,3,6,6] x, float[8,3,1,1] w1) => (float[N,4,6,6] y) <int64[4] s = {4,8,1,1}> {
        a = Conv(x, w1)
        v = ConstantOfShape(s)
        y = Conv(a, v) }"""
    model = Model.from_proto(parse(text))
    x = np.random.default_rng(0).normal(size=(16, 3, 6, 6)).astype(np.float32)
    data = open_data([{"x": x}], input_specs(model), samples=16)
    halved = run(model, data, channels=0.5, round_to=1).model
    check(halved)
    assert [list(t.dims) for t in halved.proto.graph.initializer if t.name == "w1"] == [[4, 3, 1, 1]]
    kept = run(model, data, macs=0.5, round_to=1)
    assert any("take over" in skip.why for skip in kept.skips)


SPLIT = """
    g (float[N,3,4,4] x, float[GROUPS,3,1,1] w0, float[6,1,1,1] w1, float[2,6,1,1] w2) => (float[N,2,4,4] y) {
        p = Conv (x, w0)
        grouped = Conv <group = GROUPS> (p, w1)
        half = Constant <value_ints = [3, 3]> ()
        low, high = Split <axis = 1> (grouped, half)
        swapped = Concat <axis = 1> (high, low)
        y = Conv (swapped, w2)
    }"""


@pytest.mark.parametrize(("groups", "kinds"), [(2, 1), (3, 2)])
def test_no_axis_is_emptied_by_kinds_that_overlap(groups: int, kinds: int) -> None:
    """Whole groups, and an output of each group. Of two groups one is a half of what is split, and can never go; of three
    one can, and so can every second output, but not both: what is told to have gone is what went.
    """
    loaded = Model.from_proto(parse(SPLIT.replace("GROUPS", str(groups))))
    model = prepare(loaded, infer(loaded)).model
    units, _ = Channels(Surgery(model), infer(model)).units()
    assert len(by_kind(units)) == kinds
    x = np.random.default_rng(0).normal(size=(64, 3, 4, 4)).astype(np.float32)
    result = run(model, open_data([{"x": x}], input_specs(model)), tolerance=1.0, round_to=1)
    check(result.model)
    (before, after), *more = [(int(change.before), int(change.after)) for change in result.changes]
    left = {tensor.name: list(tensor.dims) for tensor in result.model.proto.graph.initializer}
    assert not more
    assert left["w1"][0] == 6 * after // before
