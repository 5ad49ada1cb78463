"""The straight line, with small passes made here: what they get, what is refused, what is reported, and what is left behind."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable  # noqa: TC003 - recipes read the hints of fields
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest

import onnx_compress
from onnx_compress import compress
from onnx_compress.compare import compare
from onnx_compress.contract import Change, Job, Result, Skip
from onnx_compress.errors import CompressError, InputError, LimitError, ThresholdError, UsageError
from onnx_compress.model.document import Model
from onnx_compress.recipe import option
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.machine import physical_cores, products_saturate
from onnx_compress.runtime.race import Ratio, Times
from onnx_compress.runtime.session import Session

RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 8)).astype(np.float32)
W = RNG.standard_normal((8, 6)).astype(np.float32)
LABELS = (X @ W).argmax(1)
FOLDER = Path(onnx_compress.__file__).parents[1]


def proto(body: str = "y = MatMul(x, w)") -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17, "com.acme" : 1]> g (float[N, 8] x) => (float[N, 6] y) {{ {body} }}'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(W, "w"))
    return model


@pytest.fixture(autouse=True)
def _short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_compress.runtime.race.SAMPLE", 0.0001)
    monkeypatch.setattr(importlib.import_module("onnx_compress.verify"), "MOST_RUNS", 20)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "in.onnx"
    onnx.save(proto(), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "data.npz", x=X, label=LABELS)
    return tmp_path / "data.npz"


def scaled(model: Model, factor: float) -> Model:
    result = model.copy()
    weight = next(t for t in result.proto.graph.initializer if list(t.dims) == [8, 6])
    result.set_array(weight, result.array(weight) * np.float32(factor))
    return result


@dataclass(frozen=True)
class Scale:
    """Multiplies the weight, which changes the outputs by a known amount."""

    name: ClassVar[str] = "scale"
    by: float = option(1.0, "factor", low=0.0, high=10.0)

    def apply(self, job: Job) -> Result:
        change = Change("matmul", "scale", "1", f"{self.by:g}", 0.0)
        return Result(
            scaled(job.model, self.by), [change], [Skip("other", "is not there")], warnings=["scaled"]
        )


@dataclass(frozen=True)
class Rounded:
    """A pass with a preview and clock decisions."""

    name: ClassVar[str] = "rounded"
    digits: int = option(3, "digits to keep", low=0, high=9)

    def apply(self, job: Job) -> Result:
        model = self.preview(job)
        feeds = {"x": X[:1]}
        job.clock.round_to("gemm")
        decision = job.clock.decide(
            "matmul", "keep", job.finish(job.model), job.finish(model), feeds, "not-slower"
        )
        kept = job.clock.keep_best(job.model, {"matmul": 0.5}, lambda _: model, feeds, "not-slower")
        return Result(model if decision.kept and kept else job.model, decisions=[decision])

    def preview(self, job: Job) -> Model:
        result = job.model.copy()
        weight = next(t for t in result.proto.graph.initializer if list(t.dims) == [8, 6])
        result.set_array(weight, result.array(weight).round(self.digits))
        return result


@dataclass(frozen=True)
class Call:
    """Does what it is told, to see what comes of it."""

    name: ClassVar[str] = "call"
    function: Callable[[Job], Any] = dataclasses.field(default=lambda job: Result(job.model), init=False)

    def apply(self, job: Job) -> Result:
        found: Result = self.function(job)
        return found


def call(function: Callable[[Job], Any]) -> Call:
    item = Call()
    object.__setattr__(item, "function", function)
    return item


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, which nobody else uses meanwhile."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def outputs(path: Path) -> Any:
    return Session(Model.load(path), threads=1).run({"x": X})["y"]


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


def test_a_pass_gets_the_model_as_it_is_and_the_prepared_original(model: Path, data: Path) -> None:
    seen: list[Job] = []

    def look(job: Job) -> Result:
        seen.append(job)
        return Result(job.model)

    progress: list[tuple[int, int, str]] = []
    compress(
        model,
        [Scale(by=3.0), call(look)],
        data=data,
        samples=10,
        seed=5,
        threads=1,
        verify=False,
        progress=lambda *told: progress.append(told),
    )
    (job,) = seen
    weight = job.model.proto.graph.initializer[0]
    np.testing.assert_array_equal(job.model.array(weight), 3 * W)
    np.testing.assert_array_equal(job.original.array(job.original.proto.graph.initializer[0]), W)
    assert job.data is not None
    assert (job.data.samples, job.seed, job.clock.threads) == (10, 5, 1)
    assert job.finish(job.model) is job.model
    stages = list(dict.fromkeys(what for _, _, what in progress))
    assert stages == ["load", "data", "preflight", "prepare", "passes", "scale", "call"]


def test_a_pass_sees_its_result_as_later_passes_will_leave_it(model: Path, data: Path) -> None:
    seen: list[Any] = []

    def look(job: Job) -> Result:
        finished = job.finish(job.model)
        seen.append(finished.array(finished.proto.graph.initializer[0]))
        return Result(job.model)

    compress(model, [call(look), Scale(by=2.0), Rounded(digits=0)], data=data, threads=1, verify=False)
    np.testing.assert_array_equal(seen[0], W.round())


def test_a_micro_model_is_finished_without_the_run_s_data(model: Path, data: Path) -> None:
    given: list[Job] = []

    class Looking(Rounded):
        def preview(self, job: Job) -> Model:
            given.append(job)
            return job.model

    micro = Model.from_proto(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[1, 8] t) => (float[1, 8] u) { u = Relu(t) }'
        )
    )

    def propose(job: Job) -> Result:
        job.finish(micro)
        job.finish(job.model)
        return Result(job.model)

    compress(model, [call(propose), Looking()], data=data, threads=1, verify=False)
    assert [(job.data is None) for job in given[:2]] == [True, False]


def test_a_pass_that_breaks_the_model_is_named(model: Path, data: Path) -> None:
    def broken(change: Callable[[onnx.ModelProto], object]) -> Call:
        def apply(job: Job) -> Result:
            result = job.model.copy()
            change(result.proto)
            return Result(result)

        return call(apply)

    changes: list[Callable[[onnx.ModelProto], object]] = [
        lambda proto: proto.graph.node.pop(),
        lambda proto: proto.graph.initializer.pop(),
        lambda proto: setattr(proto.graph.node[0], "op_type", "Nope"),
        lambda proto: proto.graph.initializer[0].dims.reverse(),
        lambda proto: setattr(proto.graph.output[0], "name", "x"),
    ]
    for change in changes:
        with pytest.raises(LimitError, match=r"pass 'call' broke the model, after prepare, scale: "):
            compress(model, [Scale(), broken(change)], data=data, threads=1)


def test_any_error_of_a_pass_is_one_line_with_its_name(model: Path) -> None:
    def fails(error: Exception) -> Call:
        def apply(_: Job) -> Result:
            raise error

        return call(apply)

    with pytest.raises(LimitError, match=r"^pass 'call' failed after prepare: KeyError: 'a'$"):
        compress(model, [fails(KeyError("a"))], threads=1)
    for kind in (UsageError, InputError, LimitError):
        with pytest.raises(kind, match=r"^call: why not$"):
            compress(model, [fails(kind("why not"))], threads=1)


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


def test_words_that_are_wrong_are_usage_errors_before_any_work(data: Path) -> None:
    nowhere = "nowhere.onnx"
    wrongs: tuple[dict[str, Any], ...] = (
        {"threads": 0},
        {"batch": 0},
        {"samples": 0},
        {"seed": -1},
        {"metric": "top3", "eval": data},
        {"max_drop": 0.01},
        {"min_sqnr": 30.0},
        {"min_speedup": float("nan")},
        {"min_speedup": 1.0, "verify": False},
        {"decisions": "nowhere.json"},
        {"decisions": {"passes": [{}]}},
        {"decisions": {"passes": [{"name": "prune", "decisions": []}]}},
    )
    for wrong in wrongs:
        with pytest.raises(UsageError):
            compress(nowhere, [Scale()], **wrong)
    for passes in (3, "nope", "scale:by=", [Scale], [Scale(by=11.0)], ["scale"]):
        with pytest.raises(UsageError):
            compress(nowhere, passes)


def test_what_is_no_model_or_no_data_is_an_input_error(model: Path, data: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", z=X)
    for arguments in (
        {"model": 5},
        {"model": tmp_path / "no.onnx"},
        {"data": tmp_path / "bad.npz"},
        {"data": "no.npz"},
    ):
        with pytest.raises(InputError):
            compress(**{"model": model, "passes": [Scale()], "data": data, **arguments})  # type: ignore[arg-type]
    np.savez(tmp_path / "nolabel.npz", x=X)
    with pytest.raises(UsageError, match="label"):
        compress(model, [Scale()], eval=tmp_path / "nolabel.npz")


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


def test_a_model_that_takes_one_sample_at_a_time_gets_one(data: Path) -> None:
    fixed = "c = Constant<value = int64[2] {1, 8}>() h = Reshape(x, c) y = MatMul(h, w)"
    for given in (data, None):
        found = compress(proto(fixed), [Scale(by=2.0)], data=given, threads=1).report
        assert found["agreement"][0]["sqnr_db"] == pytest.approx(0, abs=0.01)


def test_no_verify_measures_nothing(model: Path, data: Path) -> None:
    found = compress(model, [Scale()], data=data, verify=False, threads=1).report
    assert (found["agreement"], found["metric"], found["latency"]) == ([], None, None)


def test_a_model_that_cannot_be_run_is_left_alone_and_said_so() -> None:
    found = compress(proto("h = MatMul(x, w) y = com.acme.Foo(h)"), [Scale(by=2.0)], threads=1)
    assert any("cannot be run" in warning for warning in found.report["warnings"])
    assert found.report["passes"][1]["skips"] == [
        {"node": "*", "why": "the model cannot be run by onnxruntime"}
    ]
    np.testing.assert_array_equal(found.model.array(found.model.proto.graph.initializer[0]), W)


def test_models_come_as_paths_protos_and_holders_and_are_not_changed(model: Path) -> None:
    class Holder:
        model_proto = proto()

    given = proto()
    untouched = given.SerializeToString(deterministic=True)
    results = [
        compress(each, [Scale(by=2.0)], verify=False).model for each in (model, str(model), given, Holder())
    ]
    for result in results:
        np.testing.assert_array_equal(result.array(result.proto.graph.initializer[0]), 2 * W)
    assert given.SerializeToString(deterministic=True) == untouched


def test_data_comes_as_paths_iterables_and_readers(model: Path, data: Path) -> None:
    class Reader:
        def __init__(self) -> None:
            self.left = [{"x": row[None]} for row in X]

        def get_next(self) -> dict[str, Any] | None:
            return self.left.pop(0) if self.left else None

    counts: list[int] = []

    def count(job: Job) -> Result:
        assert job.data is not None
        counts.extend(sum(len(feeds["x"]) for feeds in job.data.batches()) for _ in range(2))
        return Result(job.model)

    for source in (data, [{"x": X}], ({"x": row[None]} for row in X), Reader()):
        compress(model, [call(count)], data=source, threads=1, verify=False)
    assert counts == [64] * 8


def test_replayed_decisions_give_the_same_bytes_without_timing(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = [Rounded(digits=2), Scale(by=2.0), Rounded(digits=1)]
    first = compress(model, passes, data=data, threads=1)
    first.save(tmp_path / "a.onnx")
    (tmp_path / "report.json").write_text(json.dumps(first.report))
    decisions = [step["decisions"] for step in first.report["passes"]]
    assert [len(made) for made in decisions] == [0, 3, 0, 3]
    assert [made["what"] for made in decisions[1]] == ["round_to", "keep", "keep"]
    monkeypatch.setattr("onnx_compress.runtime.clock.race", None)
    for given in (first.report, tmp_path / "report.json"):
        again = compress(model, passes, data=data, threads=1, decisions=given, verify=False)
        again.save(tmp_path / "b.onnx")
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
        assert [step["decisions"] for step in again.report["passes"]] == decisions
    with pytest.raises(UsageError, match="of the passes rounded, scale, rounded, not rounded"):
        compress(model, passes[:1], data=data, decisions=first.report)
    decisions[1].pop(1)
    with pytest.raises(UsageError, match="'keep' about 'matmul'"):
        compress(model, passes, data=data, decisions=first.report)


def test_none_neither_prepares_nor_runs_unless_asked(model: Path, data: Path) -> None:
    made = compress(model, "none")
    assert (made.report["passes"], made.report["agreement"], made.report["latency"]) == ([], [], None)
    assert made.report["recipe"] == "none"
    assert not made.model.proto.metadata_props
    asked = compress(model, "none", eval=data, max_drop=0.0, threads=1).report
    assert asked["metric"]["drop"] == 0
    assert asked["agreement"][0]["sqnr_db"] == 200
    compress(proto("h = MatMul(x, w) y = com.acme.Foo(h)"), "none")


def test_isolated_the_result_is_the_same(model: Path, tmp_path: Path, scratch: Path) -> None:
    from onnx_compress.recipe import parse

    for given in (model, proto()):
        made = compress(given, "none", data=({"x": row[None]} for row in X), isolate=True)
        made.save(tmp_path / "out.onnx")
        np.testing.assert_array_equal(outputs(tmp_path / "out.onnx"), outputs(model))
        assert made.report["input"] == (str(model) if given is model else None)
    with pytest.raises(UsageError, match="no pass named 'nope'"):
        compress(model, parse("nope"), isolate=True)
    with pytest.raises(InputError):
        compress(tmp_path / "nowhere.onnx", "none", isolate=True)
    assert not list(scratch.iterdir())


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


def test_nothing_is_left_behind(model: Path, data: Path, tmp_path: Path, scratch: Path) -> None:
    def held() -> dict[str, Any]:
        ours = (str(tmp_path), "onnx-compress-")
        process = Path("/proc/self")
        files = [str(file.readlink()) for file in (process / "fd").iterdir() if file.is_symlink()]
        maps = (process / "maps").read_text(encoding="utf-8").splitlines()
        return {
            "open": [file for file in files if any(word in file for word in ours)],
            "mapped": [line for line in maps if any(word in line for word in ours)],
            "scratch": list(scratch.iterdir()),
            "threads": threading.enumerate(),
            "native threads": len(list((process / "task").iterdir())),
        }

    compress(model, [Rounded()], data=data, eval=data, threads=2)  # what libraries keep, they keep once
    before = held()
    for passes in ([Rounded(), Scale(by=2.0)], "none"):
        made = compress(model, passes, data=data, eval=data, threads=2)
        made.save(tmp_path / "out.onnx")
        (tmp_path / "out.onnx").unlink()
        del made
    with pytest.raises(CompressError):
        compress(model, [Scale(by=2.0)], data=data, min_sqnr=100, threads=2)
    assert held() == before


def test_the_package_is_imported_in_an_instant() -> None:
    code = "import onnx_compress, sys; print(sorted(m for m in sys.modules if m.split('.')[0] in ('numpy', 'onnx', 'onnxruntime', 'onnx_compress')))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(FOLDER)},
    )
    assert found.stdout.strip() == "['onnx_compress']"


def test_exports_are_functions_though_modules_share_their_names() -> None:
    module = importlib.import_module("onnx_compress.verify")
    assert module.__name__ == "onnx_compress.verify"
    assert onnx_compress.verify is compare
    assert callable(onnx_compress.inspect)
    assert set(onnx_compress.__all__) <= {
        *dir(onnx_compress),
        "Compressed",
        "__version__",
        "compress",
        "inspect",
        "verify",
    }
    with pytest.raises(AttributeError):
        _ = onnx_compress.nothing  # type: ignore[attr-defined]


def test_this_machine_has_a_core_and_an_answer() -> None:
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
    assert products_saturate() in {True, False}
