"""What `import onnx_compress` gives, and how little it loads."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import onnx_compress
from onnx_compress.compare import compare

FOLDER = Path(onnx_compress.__file__).parents[1]


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
