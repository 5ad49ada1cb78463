"""The examples run as they stand: the one for torch where torch is installed, which the project itself never needs."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import onnx
import pytest

TESTS = Path(__file__).parent
MODELS = TESTS.parent / "models"


def run(name: str, *words: str, folder: Path) -> str:
    paths = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(TESTS / "examples" / name), *words],
        cwd=folder, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_step_of_a_pipeline_writes_its_model(tmp_path: Path) -> None:
    given = [str(MODELS / "fashion_mlp.onnx"), "small.onnx", str(MODELS / "fashion_calib.npz")]
    assert run("pipeline_step.py", *given, folder=tmp_path).startswith("small.onnx: ")
    onnx.checker.check_model(tmp_path / "small.onnx")


@pytest.mark.skipif(not (util.find_spec("torch") and util.find_spec("onnxscript")), reason="no torch here")
def test_an_onnx_program_is_taken_as_it_is(tmp_path: Path) -> None:
    assert "sqnr_db" in run("torch_export.py", folder=tmp_path)
    onnx.checker.check_model(tmp_path / "small.onnx")
