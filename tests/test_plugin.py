"""A pass of another package, installed as a user would, is a word like any other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnx_compress.model.document import Model

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "fashion_mlp.onnx"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which Python finds the example package, as pip installed it."""
    folder = tmp_path_factory.mktemp("plugin")
    source, target = folder / "source", folder / "target"
    shutil.copytree(Path(__file__).parent / "plugin_example", source)  # building leaves files there
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(target), str(source)], check=True, capture_output=True)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(target), str(ROOT)])}


def command(environment: dict[str, str], *words: str) -> str:
    line = [sys.executable, "-m", "onnx_compress", *words]
    return subprocess.run(line, env=environment, check=True, capture_output=True, text=True).stdout


def test_pass_is_listed_with_its_options(environment: dict[str, str]) -> None:
    found = json.loads(command(environment, "passes", "round_weights", "--json"))["passes"]
    assert [item["name"] for item in found] == ["round_weights"]
    assert "binary digits" in command(environment, "passes", "round_weights")


def test_pass_runs_and_its_changes_are_reported(environment: dict[str, str], tmp_path: Path) -> None:
    """Seven digits behind the leading one: no weight moves by more than 2^-8 of itself."""
    out = tmp_path / "out.onnx"
    words = [str(MODEL), str(out), "--passes", "round_weights:bits=7", "--no-verify", "--json"]
    report = json.loads(command(environment, *words))
    step = report["passes"][-1]
    assert (step["name"], step["options"]) == ("round_weights", {"bits": 7})
    assert step["changes"]
    before, after = Model.load(MODEL), Model.load(out)
    old = {tensor.name: before.array(tensor) for tensor in before.proto.graph.initializer}
    for change in step["changes"]:
        tensor = next(t for t in after.proto.graph.initializer if t.name == change["node"])
        new, known = after.array(tensor), old[change["node"]]
        assert not np.array_equal(new, known)
        assert (np.abs(new - known) <= np.abs(known) * 2**-8).all()
