"""Tensors by name, in memory up to a limit and beyond it in files: a walk holds what later nodes need of every sample."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

LIMIT = 384 * 2**20  # bytes in memory


class Shelf:
    """The memory that several `Held` share, and a folder for what it does not take; gone when it is."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.left = limit
        self._folder: Path | None = None
        self._files = 0

    def file(self, value: Array) -> Path:
        """A new file that holds `value`."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="onnx-compress-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._files += 1
        path = self._folder / f"{self._files}.npy"
        np.save(path, value)
        return path


class Held(MutableMapping[str, Any]):
    """A dict of arrays, some of which lie in files; what is no array stays in memory."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._values: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        return np.load(value) if isinstance(value, Path) else value

    def __setitem__(self, name: str, value: Any) -> None:
        self._drop(name)
        size = int(getattr(value, "nbytes", 0))
        # > arrays of objects (strings) are not written: loading them would need pickle
        if size > self._shelf.left and not value.dtype.hasobject:
            self._values[name] = self._shelf.file(value)
        else:
            self._shelf.left -= size
            self._values[name] = value

    def __delitem__(self, name: str) -> None:
        self._drop(name)
        del self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def _drop(self, name: str) -> None:
        value = self._values.get(name)
        if isinstance(value, Path):
            value.unlink(missing_ok=True)
        else:
            self._shelf.left += int(getattr(value, "nbytes", 0))
