"""A lossless copy, a run in a process of its own, and what neither leaves behind."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_cases import Rounded, Scale, X, outputs, proto

from onnx_compress import compress
from onnx_compress.errors import CompressError, InputError, UsageError


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
