"""Runs a request in a child process, so that a crash, a hang or an out-of-memory there is an error here."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_compress.model.document import Model
from onnx_compress.request import load_model
from onnx_compress.supervise import call

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx_compress.request import Request


def run_isolated(
    request: Request, progress: Callable[[int, int, str], None] | None
) -> tuple[Model, dict[str, Any], bool]:
    """Model, report and whether the model is the input itself, as `pipeline.run` gives them.

    Raises the child's CompressError, or LimitError where the child died.
    """
    keywords = {name: value for name, value in vars(request).items() if name not in ("model", "passes")}
    keywords |= {name: _picklable(keywords[name]) for name in ("data", "eval")}
    with tempfile.TemporaryDirectory(prefix="onnx-compress-") as folder:
        source, target = request.model, Path(folder) / "result.onnx"
        own = not isinstance(source, str | os.PathLike)
        if own:
            source = Path(folder) / "input.onnx"
            load_model(request.model).save(source)
        arguments = {
            "source": os.fspath(source),
            "target": str(target),
            "passes": request.passes,
            "keywords": keywords,
        }
        report = call("onnx_compress.worker:compress_to", arguments, progress=progress)
        # mapped: the file may go, its bytes stay until the model does
        model = Model.load(target)
    model.source = None
    report["output"] = None
    if own:
        report["input"] = None
    lossless = not report["passes"]
    if lossless and not own:
        model = Model.load(source)
    return model, report, lossless


def _picklable(data: Any) -> Any:
    """Paths as they are; feeds, and what a CalibrationDataReader gives, as a list."""
    if data is None or isinstance(data, str | os.PathLike | dict):
        return data
    if hasattr(data, "get_next"):
        return list(iter(data.get_next, None))
    return list(data) if hasattr(data, "__iter__") else data
