"""Rows and specifications of inputs, and folders of them: what the tests of data share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser

from onnx_compress.runtime.session import InputSpec

if TYPE_CHECKING:
    from pathlib import Path


FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)
SPEC = [InputSpec("input", FLOAT, ("N", 3))]
ROWS = np.arange(30, dtype=np.float32).reshape(10, 3)


def spec(name: str, shape: tuple[int | str | None, ...], dtype: np.dtype[Any] = FLOAT) -> InputSpec:
    return InputSpec(name, dtype, shape)


def gathered(data: Any, size: int = 4, name: str = "input") -> Any:
    return np.concatenate([batch[name] for batch in data.batches(size)])


def save_set(folder: Path, feed: dict[str, Any], *, named: bool = True) -> None:
    folder.mkdir(parents=True)
    for at, (name, value) in enumerate(feed.items()):
        tensor = onnx.numpy_helper.from_array(np.asarray(value), name if named else "")
        (folder / f"input_{at}.pb").write_bytes(tensor.SerializeToString())


def npz_in(folder: Path) -> Path:
    """The rows with labels, and an array that does not count samples, in a compressed file."""
    path = folder / "data.npz"
    np.savez_compressed(path, input=ROWS, label=np.arange(10), other=np.zeros((2, 2)))
    return path
