"""Verification: scores against counts by hand, thresholds, and latency in turns."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from onnx_compress.errors import InputError, UsageError
from onnx_compress.model.document import Model
from onnx_compress.runtime.agreement import LIMIT_DB, Agreement
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.race import Ratio, Times
from onnx_compress.runtime.session import input_specs
from onnx_compress.verify import Latency, Limits, Metric, Verification, costliest, metric, stacked, verify

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(0)
X = RNG.standard_normal((70, 6)).astype(np.float32)
LABELS = RNG.integers(0, 6, 70)
ROW = Agreement("y", 40.0, 0.1, 0.999, 0.98, 70)
TIMES = Times(1.0, 1.2, 20)


def model(body: str = "y = Identity(x)", outputs: str = "float[N, 6] y") -> Model:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N, 6] x) => ({outputs}) {{ {body} }}'
    return Model.from_proto(onnx.parser.parse_model(text))


def score(name: str, outputs: dict[str, Any], **data: Any) -> float:
    return metric(name)(outputs, data)


def test_top1_and_top5_count_hits() -> None:
    order = np.argsort(-X, axis=1)
    assert score("top1", {"y": X}, label=LABELS) == (order[:, 0] == LABELS).mean()
    assert score("top5", {"y": X}, label=LABELS) == (order[:, :5] == LABELS[:, None]).any(1).mean()
    assert score("top1", {"y": X[:, :, None, None]}, label=LABELS) == (order[:, 0] == LABELS).mean()


def test_top1_is_argmax_also_for_ties_and_takes_picked_classes() -> None:
    tied = np.array([[1, 1, 0], [0, 1, 1]], np.float32)
    assert score("top1", {"y": tied}, label=np.array([0, 2])) == 0.5
    assert score("top1", {"y": np.array([4, 2])}, label=np.array([4, 3])) == 0.5


def test_mse_is_negated() -> None:
    target = X + 2
    assert score("mse", {"y": X}, label=target) == pytest.approx(-4, rel=1e-5)


def test_metrics_that_cannot_be_computed_say_why() -> None:
    for name in ("top1", "mse"):
        with pytest.raises(UsageError, match="no array 'label'"):
            score(name, {"y": X})
    with pytest.raises(InputError, match="labels go from 0 to 9"):
        score("top1", {"y": X[:2]}, label=np.array([0, 9]))
    with pytest.raises(UsageError, match="no output"):
        score("top1", {"y": X[0]}, label=LABELS)
    with pytest.raises(UsageError, match="no output"):
        score("mse", {"y": X[0]}, label=LABELS)


@pytest.mark.parametrize("name", ["top2", "nowhere:f", "math:nothing", "math:pi", ":f", "math:", ".:f"])
def test_a_metric_that_is_none_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError):
        metric(name)


def test_own_metric_is_called_once_a_model_on_all_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_metric.py").write_text(
        "calls = []\n"
        "def score(outputs, data):\n"
        "    calls.append((outputs['y'].shape, data['x'].shape, data['score'].shape))\n"
        "    return float(outputs['y'].sum())\n"
        "def bad(outputs, data): return outputs['z']\n"
        "def nan(outputs, data): return float('nan')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    of, doubled = model(), model("y = Add(x, x)")
    data = open_data([{"x": X, "score": LABELS}], input_specs(of))
    found = verify(of, doubled, data, score=("my_metric:score", metric("my_metric:score")), threads=1)
    import my_metric  # type: ignore[import-not-found]

    assert my_metric.calls == [((70, 6), (70, 6), (70,))] * 2
    assert found.metric is not None
    assert found.metric.drop == pytest.approx(X.sum() - 2 * X.sum(), rel=1e-5)
    for name in ("my_metric:bad", "my_metric:nan"):
        with pytest.raises(UsageError, match=name):
            verify(of, of, data, score=(name, metric(name)), threads=1)


def test_a_model_verified_against_itself_loses_nothing() -> None:
    data = open_data([{"x": X, "label": LABELS}], input_specs(model()))
    found = verify(model(), model(), data, score=("top1", metric("top1")), feeds={"x": X[:1]}, threads=1)
    assert [(row.output, row.sqnr_db, row.samples) for row in found.agreement] == [("y", LIMIT_DB, 70)]
    assert found.metric == Metric("top1", (X.argmax(1) == LABELS).mean(), (X.argmax(1) == LABELS).mean(), 70)
    assert found.latency is not None
    assert found.latency.ratio.first.runs >= 20
    assert found.latency.ratio.low <= found.latency.ratio.median <= found.latency.ratio.high


def test_thresholds_are_met_at_their_value_and_missed_beyond() -> None:
    ratio = Ratio(2.0, 1.9, 2.1, 0.01, TIMES, TIMES)
    found = Verification([ROW], Metric("top1", 0.9, 0.89, 100), Latency(1, 1, ratio))
    assert all(limit.met for limit in found.thresholds(Limits(0.01, 40, 2.0)))
    missed = found.thresholds(Limits(0.009, 40.1, 2.1))
    assert [limit.met for limit in missed] == [False] * 3
    assert [limit.name for limit in missed] == ["max_drop", "min_sqnr", "min_speedup"]
    assert str(missed[0]) == "the metric fell by 0.01, more than --max-drop 0.009"
    assert found.thresholds(Limits()) == []
    assert not Limits()


def test_what_was_not_measured_meets_no_threshold() -> None:
    for limit in Verification().thresholds(Limits(0.5, 1, 1)):
        assert not limit.met
        assert math.isnan(limit.value)
        assert "it was not measured" in str(limit)


def test_integer_outputs_meet_a_ratio_only_when_equal() -> None:
    equal = Verification([Agreement("y", None, None, None, 1.0, 5)])
    other = Verification([Agreement("y", None, None, None, 0.9, 5)])
    assert equal.thresholds(Limits(min_sqnr=60))[0].met
    assert not other.thresholds(Limits(min_sqnr=0))[0].met


def test_samples_of_varying_shape_stack_as_objects() -> None:
    found = stacked([{"x": np.zeros((2, 3))}, {"x": np.zeros((1, 4))}])
    assert [row.shape for row in found["x"]] == [(3,), (3,), (4,)]
    assert stacked([{"x": [1, 2]}, {"x": [3]}])["x"] == [1, 2, 3]


def test_the_costliest_stage_is_where_the_score_fell_most() -> None:
    assert costliest([("original", 40.0), ("prune", 30.0), ("svd", 29.0), ("int8", 25.0)]) == "prune"
