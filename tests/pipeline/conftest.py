"""The model and the data as files, a folder for what is temporary, and a clock that does not take long."""

from __future__ import annotations

import importlib
import tempfile
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from pipeline_cases import LABELS, X, proto

if TYPE_CHECKING:
    from pathlib import Path


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


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, which nobody else uses meanwhile."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder
