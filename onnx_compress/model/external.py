"""External data: where a tensor's bytes are, and only inside the model's own folder."""

from __future__ import annotations

import math
import mmap
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    tensor: onnx.TensorProto, folder: Path, maps: dict[Path, NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """The external bytes of `tensor`, mapped; `maps` keeps one mapping a file.

    Raises InputError where the file is missing, too short, no regular file, or outside the model's folder.
    """
    place = external_place(tensor)
    path = _inside(folder, place.location, tensor.name)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise InputError(
                    f"tensor {tensor.name!r}: external data {place.location!r} is no regular file"
                )
            length = status.st_size - place.offset if place.length is None else place.length
            if place.length is None:
                length = min(length, _size(tensor))
            if place.offset + length > status.st_size or length < 0:
                raise InputError(f"tensor {tensor.name!r}: external data {place.location!r} is truncated")
            if length == 0:
                return np.empty(0, np.uint8)
            if path not in maps:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                maps[path] = np.frombuffer(memoryview(mapped), np.uint8)
    except OSError as error:
        why = error.strerror
        raise InputError(f"tensor {tensor.name!r}: external data {place.location!r}: {why}") from error
    return maps[path][place.offset : place.offset + length]


def _size(tensor: onnx.TensorProto) -> int:
    dtype: Any = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return math.prod(tensor.dims) * int(dtype.itemsize)


def _inside(folder: Path, location: str, name: str) -> Path:
    """The file `location` of the model's folder, links resolved on both sides."""
    pure = Path(location)
    if not location or pure.is_absolute() or ".." in pure.parts:
        raise InputError(f"tensor {name!r}: external data {location!r} is outside the model's folder")
    path = folder / pure
    if not path.exists():
        raise InputError(f"tensor {name!r}: external data {location!r} is missing beside the model")
    if not path.is_file():
        raise InputError(f"tensor {name!r}: external data {location!r} is no regular file")
    return path
