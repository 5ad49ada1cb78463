"""What a run says of its result: the report, the warnings, the thresholds, and two models compared."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from pipeline_cases import Rounded, Scale, W, X, outputs, proto

import onnx_compress
from onnx_compress import compress
from onnx_compress.compare import compare
from onnx_compress.errors import InputError, ThresholdError
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.race import Ratio, Times

if TYPE_CHECKING:
    from pathlib import Path


def test_the_result_is_what_the_passes_made_and_says_who_made_it(
    model: Path, data: Path, tmp_path: Path
) -> None:
    before = model.read_bytes()
    made = compress(model, [Scale(by=2.0)], data=data, threads=1)
    made.save(tmp_path / "out.onnx")
    np.testing.assert_allclose(outputs(tmp_path / "out.onnx"), 2 * (X @ W), rtol=1e-4)
    assert model.read_bytes() == before
    written = {entry.key: entry.value for entry in onnx.load(tmp_path / "out.onnx").metadata_props}
    assert written == {
        "onnx_compress.version": onnx_compress.__version__,
        "onnx_compress.recipe": "scale:by=2.0",
        "onnx_compress.input_sha256": hashlib.sha256(before).hexdigest(),
    }


def test_the_report_has_the_words_of_schema_1(model: Path, data: Path, tmp_path: Path) -> None:
    made = compress(model, [Scale(by=2.0)], data=data, eval=data, min_sqnr=-10, threads=1, samples=16)
    found = made.report
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    words = "schema input output recipe seed seconds peak_rss_bytes before after stages passes agreement metric latency"
    assert [*words.split(), "data", "thresholds", "environment", "warnings", "layers", "arguments"] == list(
        found
    )
    assert (found["schema"], found["input"], found["output"]) == (1, str(model), None)
    totals = {"bytes", "memory", "params", "macs", "nodes"}
    assert found["before"].keys() == found["after"].keys() == totals
    assert found["before"]["bytes"] == model.stat().st_size
    assert found["before"]["macs"] == 48
    prepare, scale = found["passes"]
    assert prepare["name"] == "prepare"
    assert scale.keys() == {
        "name",
        "options",
        "seconds",
        "before",
        "after",
        "changes",
        "skips",
        "decisions",
        "curves",
    }
    assert scale["changes"] == [
        {"node": "matmul", "what": "scale", "before": "1", "after": "2", "error": 0.0}
    ]
    assert scale["skips"] == [{"node": "other", "why": "is not there"}]
    assert (scale["name"], scale["options"]) == ("scale", {"by": 2.0})
    (row,) = found["agreement"]
    assert row.keys() == {"output", "sqnr_db", "max_abs", "cosine", "argmax", "samples"}
    assert (row["output"], row["samples"], row["argmax"]) == ("y", 64, 1.0)
    assert row["sqnr_db"] == pytest.approx(0, abs=0.01)
    assert found["metric"] == {"name": "top1", "before": 1.0, "after": 1.0, "drop": 0.0, "samples": 64}
    latency = found["latency"]
    assert (latency["threads"], latency["batch"]) == (1, 1)
    assert latency["runs"] >= 20
    assert latency["before_ms"].keys() == latency["after_ms"].keys() == {"median", "p95"}
    assert latency["speedup"].keys() == {"median", "low", "high"}
    assert found["data"] == {"source": str(data), "samples": 16, "random": False}
    assert found["thresholds"] == [
        {"name": "min_sqnr", "limit": -10, "value": pytest.approx(0, abs=0.01), "met": True}
    ]
    assert found["stages"].keys() == {"load", "data", "preflight", "prepare", "passes", "verify"}
    assert "scaled" in found["warnings"]
    assert any("this processor only" in warning for warning in found["warnings"])
    made.save(tmp_path / "out.onnx")
    assert found["output"] == str(tmp_path / "out.onnx")
    assert found["after"]["bytes"] == (tmp_path / "out.onnx").stat().st_size


def test_a_missed_threshold_names_the_pass_that_cost_most(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ThresholdError, match=r"--min-sqnr 40; scale cost most; nothing was written"
    ) as caught:
        compress(model, [Rounded(digits=3), Scale(by=1.1)], data=data, min_sqnr=40, threads=1)
    report = caught.value.report  # type: ignore[attr-defined]
    assert report["thresholds"][0]["met"] is False
    with pytest.raises(ThresholdError, match="rounded cost most"):
        compress(model, [Rounded(digits=0), Scale(by=1.0)], data=data, eval=data, max_drop=0.001, threads=1)
    with pytest.raises(ThresholdError, match="--min-speedup 1000"):
        compress(model, [Rounded(), Scale()], data=data, min_speedup=1000, threads=1)
    assert not list(tmp_path.glob("*out*"))


def test_without_data_agreement_is_of_random_inputs_and_labelled_so(model: Path) -> None:
    found = compress(model, [Scale()], threads=1).report
    assert found["data"]["random"] is True
    assert any("random inputs" in warning for warning in found["warnings"])
    assert found["agreement"][0]["samples"] == found["data"]["samples"] > 1


@pytest.mark.parametrize(("high", "told"), [(0.6, True), (1.01, False)])
def test_a_result_that_is_measurably_slower_is_said_to_be(
    model: Path, data: Path, high: float, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = Times(1.0, 1.0, 20)
    monkeypatch.setattr(Clock, "compare", lambda *_, **__: Ratio(0.5, 0.4, high, 0.01, times, times))
    found = compress(model, [Scale()], data=data, threads=1).report
    assert any("slower than the input here: 0.50" in line for line in found["warnings"]) == told


@pytest.mark.parametrize(("by", "told"), [(2.5, True), (1.5, False)])
def test_a_result_with_more_error_than_signal_is_said_to_be_another_function(
    model: Path, data: Path, by: float, told: bool
) -> None:
    found = compress(model, [Scale(by=by)], data=data, threads=1).report
    assert any("more error than signal (-3.5 dB" in line for line in found["warnings"]) == told


def test_no_verify_measures_nothing(model: Path, data: Path) -> None:
    found = compress(model, [Scale()], data=data, verify=False, threads=1).report
    assert (found["agreement"], found["metric"], found["latency"]) == ([], None, None)


def test_two_models_are_compared(model: Path, data: Path) -> None:
    other = proto("h = MatMul(x, w) y = Add(h, h)")
    found = compare(model, other, data=data, eval=data, threads=1)
    assert found["agreement"][0]["sqnr_db"] == pytest.approx(0, abs=0.01)
    assert found["metric"]["drop"] == 0
    assert (found["before"]["nodes"], found["after"]["nodes"]) == (1, 2)
    assert found["passes"] == []
    with pytest.raises(ThresholdError):
        compare(model, other, data=data, min_sqnr=20, threads=1)
    renamed = proto("y = MatMul(z, w)")
    renamed.graph.input[0].name = "z"
    with pytest.raises(InputError, match="the second takes 'z'"):
        compare(model, renamed, data=data, threads=1)
