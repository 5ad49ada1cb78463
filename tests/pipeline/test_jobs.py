"""What a pass is handed, and what comes of one that breaks the model or fails."""

from __future__ import annotations

import json
from collections.abc import Callable  # noqa: TC003 - recipes read the hints of fields
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from pipeline_cases import Call, Rounded, Scale, W, call, proto

from onnx_compress import compress
from onnx_compress.contract import Job, Result
from onnx_compress.errors import InputError, LimitError, UsageError
from onnx_compress.model.document import Model

if TYPE_CHECKING:
    from pathlib import Path


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


def test_a_model_that_cannot_be_run_is_left_alone_and_said_so() -> None:
    found = compress(proto("h = MatMul(x, w) y = com.acme.Foo(h)"), [Scale(by=2.0)], threads=1)
    assert any("cannot be run" in warning for warning in found.report["warnings"])
    assert found.report["passes"][1]["skips"] == [
        {"node": "*", "why": "the model cannot be run by onnxruntime"}
    ]
    np.testing.assert_array_equal(found.model.array(found.model.proto.graph.initializer[0]), W)


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
