"""What `compress` takes, and what it refuses before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from pipeline_cases import Scale, W, X, call, proto

from onnx_compress import compress
from onnx_compress.compare import compare
from onnx_compress.contract import Job, Result
from onnx_compress.errors import InputError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


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


def test_a_model_that_takes_one_sample_at_a_time_gets_one(data: Path) -> None:
    """Its inner Reshape fixes the batch that its input leaves open: whatever is asked for, it is run and timed on one."""
    fixed = "c = Constant<value = int64[2] {1, 8}>() h = Reshape(x, c) y = MatMul(h, w)"
    for given, batch in ((data, 1), (None, 1), (data, 4), (None, 4)):
        found = compress(proto(fixed), [Scale(by=2.0)], data=given, batch=batch, threads=1).report
        assert found["agreement"][0]["sqnr_db"] == pytest.approx(0, abs=0.01)
        assert found["latency"]["batch"] == 1
        assert any("not on --batch 4" in warning for warning in found["warnings"]) == (batch == 4)
    for found in (
        compress(proto(fixed), "none", eval=data, threads=1).report,
        compare(proto(fixed), proto(fixed), batch=4, threads=1),
    ):
        assert found["agreement"][0]["sqnr_db"] == 200


def test_sizes_found_by_trial_hold_for_all_that_is_run() -> None:
    """Of pictures, only those of 32x32 fit the matrix behind them; nothing in the input says so."""
    pictures = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,3,H,W] x) => (float[N,2] y) '
        "{ f = Flatten(x) y = MatMul(f, w) }"
    )
    weight = np.ones((3 * 32 * 32, 2), np.float32)
    pictures.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    for found in (
        compress(pictures, [call(lambda job: Result(job.model))], threads=1).report,
        compare(pictures, pictures, threads=1),
    ):
        assert found["agreement"][0]["sqnr_db"] == 200
        assert any("--input-shapes x:1,3,32,32" in warning for warning in found["warnings"])


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
