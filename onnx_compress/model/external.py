"""External data: where a tensor's bytes are, and only inside the model's own folder."""

from __future__ import annotations

import math
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import onnx

from onnx_compress.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Place:
    """Bytes offset..offset+length of a file; length None means to its end."""

    location: str
    offset: int
    length: int | None


def external_place(tensor: onnx.TensorProto) -> Place:
    """Where the external data of `tensor` is said to be. Raises InputError where the numbers are no numbers."""
    words = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset = int(words.get("offset") or 0)
        length = int(words["length"]) if words.get("length") else None
    except ValueError as error:
        raise InputError(f"tensor {tensor.name!r}: its external offset or length is no number") from error
    if offset < 0 or (length is not None and length < 0):
        raise InputError(f"tensor {tensor.name!r}: its external offset or length is negative")
    return Place(words.get("location", ""), offset, length)


def map_external(
    tensor: onnx.TensorProto,
    folder: Path,
    maps: dict[Path, NDArray[np.uint8]],
    home: Path | None = None,
) -> NDArray[np.uint8]:
    """The external bytes of `tensor`, mapped; `maps` keeps one mapping a file.

    folder: where the model was opened; home: where the model lies, links resolved (default: `folder`, resolved).
    Raises InputError where the file is missing, too short, no regular file, or outside the model's folder.
    """
    place = external_place(tensor)
    where = f"tensor {tensor.name!r}: external data {place.location!r}"
    try:
        path = _inside(folder, place.location, where, home)
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            if status.st_nlink > 1:
                raise InputError(f"{where} is a hard link, perhaps to another's file; make a copy of it")
            length = status.st_size - place.offset if place.length is None else place.length
            if place.length is None:
                length = min(length, _size(tensor))
            if place.offset + length > status.st_size or length < 0:
                raise InputError(f"{where} is truncated")
            if length == 0:
                return np.empty(0, np.uint8)
            if path not in maps:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                maps[path] = np.frombuffer(memoryview(mapped), np.uint8)
    except FileNotFoundError as error:
        raise InputError(f"{where} is missing beside the model") from error
    except OSError as error:
        raise InputError(f"{where}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    return maps[path][place.offset : place.offset + length]


def open_regular(path: Path) -> BinaryIO:
    """The file, opened to be read; it does not wait where the path is a FIFO.

    Raises OSError, and InputError where it is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path}: is no regular file")
    return os.fdopen(descriptor, "rb")


def real_folder(path: Path) -> Path:
    """The folder that the file at `path` lies in, links resolved."""
    return Path(os.path.realpath(path)).parent


def _size(tensor: onnx.TensorProto) -> int:
    dtype: Any = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return math.prod(tensor.dims) * int(dtype.itemsize)


def _inside(folder: Path, location: str, where: str, home: Path | None) -> Path:
    """The file `location` of the model's folder, links resolved: inside that folder, or inside that of the model itself.

    (In a cache of Hugging Face, both the model and its data are links into one folder of blobs.)
    """
    pure = Path(location)
    if not location or pure.is_absolute() or ".." in pure.parts:
        raise InputError(f"{where} is outside the model's folder")
    path = Path(os.path.realpath(folder / pure))
    homes = [Path(os.path.realpath(folder)), *([home] if home else [])]
    if not path.exists():
        raise FileNotFoundError
    if not any(path.is_relative_to(place) for place in homes):
        raise InputError(f"{where} is a link to a place outside the model's folder")
    if not path.is_file():
        raise InputError(f"{where} is no regular file")
    return path
