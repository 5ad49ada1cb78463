"""What the pass measures of each layer, and the bounds that it keeps by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from onnx_compress.contract import Job
from onnx_compress.model.document import Model
from onnx_compress.passes.int8 import Int8
from onnx_compress.passes.int8.fallback import hold, sensitivities
from onnx_compress.passes.int8.guard import guard
from onnx_compress.passes.int8.search import FEWEST, Search
from onnx_compress.runtime.agreement import Reference
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import Session, input_specs

if TYPE_CHECKING:
    from onnx_compress.runtime.data import Data

MODELS = Path(__file__).parents[1] / "models"
TWO = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 3, 8, 8] x) => (float[n, 4, 6, 6] y) {
  a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
  r = Relu (a)
  y = Conv <kernel_shape = [3, 3]> (r, w2, b2)
}
"""


def small() -> tuple[Job, Data]:
    rng = np.random.default_rng(3)
    proto = onnx.parser.parse_model(TWO)
    for node in proto.graph.node:
        node.name = node.output[0]
    shapes = {"w1": (6, 3, 3, 3), "b1": (6,), "w2": (4, 6, 3, 3), "b2": (4,)}
    for name, shape in shapes.items():
        value = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    model = Model.from_proto(proto)
    data = open_data([{"x": rng.standard_normal((32, 3, 8, 8)).astype(np.float32)}], input_specs(model))
    return Job(model, model, data, 0, Clock(1)), data


def test_of_two_layers_one_alone_in_int8_is_the_other_alone_in_float() -> None:
    rows = Int8(equalize=False).sensitivity(small()[0])
    errors = {(row["where"], row["share"]): row["error"] for row in rows}
    assert len(rows) == 4
    # > of two, all but one is one: a share of one half in either row
    first, second = ([r["error"] for r in rows if r["where"] == name] for name in ("a", "y"))
    assert first == second[::-1]
    assert all(error > 0 for error in errors.values())


def trained(name: str = "fashion_mobilenet", samples: int = 64) -> Job:
    model = Model.load(MODELS / f"{name}.onnx")
    data = open_data(MODELS / "fashion_calib.npz", input_specs(model), samples=samples)
    return Job(model, model, data, 0, Clock(1))


def worst(job: Job, model: Model) -> float:
    """SQNR on the samples that the pass holds out."""
    assert job.data is not None
    rows = Reference(job.original, job.data.split()[1]).agreements(model)
    return min(row.sqnr_db for row in rows if row.sqnr_db is not None)


@pytest.mark.parametrize("tolerance", [None, 0.02])
def test_the_ratio_asked_of_the_run_is_kept_by_the_pass(tolerance: float | None) -> None:
    """A threshold between all in int8 and all in float leaves some layers in float, and no more is lost than asked."""
    job = trained()
    options = Int8(keep_if="always", rounding="nearest", equalize=False, tolerance=tolerance)
    free = options.apply(job)
    asked = worst(job, free.model) + 3
    kept = options.apply(replace(job, min_sqnr=asked))
    assert worst(job, kept.model) >= asked
    assert 0 < len([c for c in kept.changes if c.what == "quantize"]) < len(free.changes)
    assert any("in float to keep within" in skip.why for skip in kept.skips)


def falls(job: Job, model: Model) -> float:
    """The share of calibration samples to which `model` gives another class than the original."""
    assert job.data is not None
    return max(1 - (row.argmax or 0.0) for row in Reference(job.original, job.data).agreements(model))


@pytest.mark.parametrize("labelled", [True, False])
def test_the_fall_of_the_metric_is_kept_by_the_pass(labelled: bool) -> None:
    """In 8 bits some samples change their class; where one less may, no more do, and some layers are in 8 bits still."""
    job = trained("fashion_mlp", 512)
    assert job.data is not None
    options = Int8(keep_if="always", rounding="nearest", equalize=False, tolerance=None)
    free = options.apply(job)
    asked = falls(job, free.model) - 1 / job.data.samples
    assert asked > 0, "the model must lose something that can be kept"
    score = None
    if labelled:  # > by the original's own classes: then the metric is the agreement

        def score(outputs: Any, data: Any) -> float:
            (scores,) = outputs.values()
            return float((scores.argmax(axis=1) == data["label"]).mean())

        (values,) = Session(job.original).run(next(iter(job.data.batches(512)))).values()
        feeds = next(iter(job.data.batches(512)))
        labels = {**feeds, "label": values.argmax(axis=1)}
        job = replace(job, data=open_data([labels], input_specs(job.model)), score=score)
    kept = options.apply(replace(job, max_drop=asked))
    assert falls(job, kept.model) <= asked + 1e-9
    assert 0 < len([c for c in kept.changes if c.what == "quantize"]) <= len(free.changes)


def test_where_nothing_keeps_to_what_is_asked_all_stays_in_float_and_says_why() -> None:
    job = small()[0]
    result = Int8(keep_if="always", tolerance=None, equalize=False).apply(replace(job, min_sqnr=150.0))
    assert result.model is job.model
    assert [skip.why for skip in result.skips] == ["with any layer in int8 it misses --min-sqnr 150"] * 2


@pytest.mark.parametrize("seed", [0, 3])
def test_held_out_samples_are_those_of_the_seed(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same seed every pass judges on the same samples: what one fitted on is not what another is judged by."""
    job, data = small()
    seen: list[list[int]] = []

    def recorded(job: Job, held: Data, tolerance: float | None, *, exact: bool) -> Any:
        seen.append(held.rows.tolist())
        return guard(job, held, tolerance, exact=exact)

    monkeypatch.setattr("onnx_compress.passes.int8.int8.guard", recorded)
    Int8(keep_if="always").apply(replace(job, seed=seed))
    assert seen == [data.split(seed=seed)[1].rows.tolist()]
    assert (data.split(seed=3)[1].rows != data.split(seed=0)[1].rows).any()


def test_layers_of_a_large_model_are_ranked_with_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look loads the whole model: where that is dear, neighbours are looked at together, and none is left out."""
    job = trained("fashion_resnet")
    assert job.data is not None
    judge = Reference(job.original, job.data.take(8)).error
    quantizer = Int8().quantizer(job.model, job.data.take(8), job)
    asked: list[Model] = []

    def counted(model: Model) -> float:
        asked.append(model)
        return judge(model)

    monkeypatch.setattr("onnx_compress.passes.int8.fallback.LOADED", 3.5 * quantizer.model.nbytes)
    together = sensitivities(quantizer, counted)
    assert len(asked) == 3
    assert list(together) == quantizer.layers
    assert len(together) > 6
    assert len(set(together.values())) == 3
    held = hold(quantizer, judge, judge, judge(quantizer.quantized()[0]) / 2, followers=True)
    assert held is not None
    whys = [why for why in held[1].left.values() if "tolerance" in why]
    assert whys
    assert all("with its neighbours" in why for why in whys)


def test_a_look_takes_fewer_samples_of_a_model_that_runs_long() -> None:
    job, data = small()
    search = Search(Int8(), job, data, data, lambda _: 0.0, 1.0, job.model.nbytes)
    macs = 8 * 8 * 6 * 27 + 6 * 6 * 4 * 54
    assert search.affordable(16, 16 * macs) == 16
    assert search.affordable(16, 5 * macs) == 5
    assert search.affordable(16, macs) == FEWEST
    assert search.affordable(2, macs) == 2
