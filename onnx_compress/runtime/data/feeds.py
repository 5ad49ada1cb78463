"""Feeds from Python (iterables, onnxruntime's CalibrationDataReader) and from ONNX test_data_set folders."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from onnx_compress.errors import InputError
from onnx_compress.runtime.data.pieces import Entry, Piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from onnx_compress.runtime.session import InputSpec

    Array = NDArray[Any]

IN_MEMORY = 64 * 2**20  # bytes of feeds kept in memory; what a generator yields beyond goes to a scratch file


def feed_pieces(source: Any) -> Iterator[Piece]:
    """A piece for every feed (a mapping of names to arrays).

    source: one feed, an iterable of feeds, or an object with `get_next()` as onnxruntime's CalibrationDataReader,
    which is rewound afterwards where it can be. Feeds of a list are referred to; those of anything that makes them up
    on the way are copied, beyond 64 MB into a scratch file.
    Raises InputError where something else than feeds comes out.
    """
    if isinstance(source, Mapping):
        source = [source]
    keep = _referred if isinstance(source, Sequence) else _Store().keep
    for number, feed in enumerate(_feeds(source)):
        where = f"feed {number} of the data"
        if not isinstance(feed, Mapping):
            raise InputError(f"{where}: is a {type(feed).__name__}, not a dict of input names and arrays")
        arrays = {str(name): np.asarray(value) for name, value in feed.items()}
        yield Piece(where, {name: _entry(keep(array)) for name, array in arrays.items()})


def set_pieces(folders: Sequence[Path], specs: Sequence[InputSpec]) -> Iterator[Piece]:
    """A piece for every folder of input_*.pb; a tensor goes to the input of its name, else of its number."""
    for folder in folders:
        files = sorted(folder.glob("input_*.pb"), key=lambda path: _number(path.stem))
        names = {spec.name for spec in specs}
        entries = {}
        for file in files:
            name, array = _read_tensor(file)
            at = _number(file.stem)
            if name not in names and at < len(specs):
                name = specs[at].name
            entries[name] = Entry(array.shape, array.dtype, _reading(file))
        yield Piece(str(folder), entries)


def data_sets(folder: Path) -> list[Path]:
    """`folder` itself where it is a test data set, else the test data sets in it, by number."""
    if any(folder.glob("input_*.pb")):
        return [folder]
    inner = [path for path in folder.glob("test_data_set_*") if any(path.glob("input_*.pb"))]
    return sorted(inner, key=lambda path: _number(path.name))


def _feeds(source: Any) -> Iterator[Any]:
    if not hasattr(source, "get_next"):
        yield from source
        return
    while (feed := source.get_next()) is not None:
        yield feed
    if hasattr(source, "rewind"):
        source.rewind()


class _Store:
    """Copies of arrays: in memory up to a budget, then in a scratch file that has no name and goes with them."""

    def __init__(self) -> None:
        self._used = 0

    def keep(self, array: Array) -> Array:
        self._used += array.nbytes
        if self._used <= IN_MEMORY or array.dtype.hasobject or array.nbytes == 0:
            return array.copy()
        with tempfile.TemporaryFile(prefix="onnx-compress-") as file:
            np.ascontiguousarray(array).tofile(file)
            file.flush()
            return np.memmap(file, array.dtype, "r", 0, array.shape)


def _referred(array: Array) -> Array:
    return array


def _entry(array: Array) -> Entry:
    return Entry(array.shape, array.dtype, lambda: array, cheap=True)


def _reading(file: Path) -> Callable[[], Array]:
    return lambda: _read_tensor(file)[1]


def _read_tensor(file: Path) -> tuple[str, Array]:
    tensor = onnx.TensorProto()
    if not file.is_file():
        raise InputError(f"{file}: is no regular file")
    try:
        tensor.ParseFromString(file.read_bytes())
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise InputError(f"{file}: its values are in another file; save the tensor with them")
        return tensor.name, onnx.numpy_helper.to_array(tensor)
    except (DecodeError, OSError, ValueError, TypeError, KeyError) as error:
        words = " ".join(str(error).split())
        raise InputError(f"{file}: not an ONNX tensor, or truncated: {words}") from error


def _number(name: str) -> int:
    digits = re.search(r"(\d+)$", name)
    return int(digits.group()) if digits else 0
