"""The arrays of an npz file, known by their headers and read one by one."""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from onnx_compress.errors import InputError
from onnx_compress.runtime.data.pieces import Entry, Piece

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[Any]

# what zipfile and numpy raise at files that are not what they say; numpy reads a header with Python's tokenizer and parser
_UNREADABLE = (
    OSError, ValueError, EOFError, KeyError, TypeError, OverflowError, SyntaxError, MemoryError,
    NotImplementedError, RuntimeError, struct.error, tokenize.TokenError, zlib.error,
)  # fmt: skip


def npz_piece(path: Path) -> Piece:
    """The arrays of the npz file at `path`; members that np.savez stored unpacked are mapped when they are read.

    Raises InputError where it is no npz file, is truncated, or holds pickled objects.
    """
    entries: dict[str, Entry] = {}
    if not path.is_file():
        raise InputError(f"{path}: is no regular file")
    try:
        check = _guard(path)
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".npy"):
                    name = info.filename.removesuffix(".npy")
                    entries[name] = _entry(path, archive, info, check)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: not an npz file, or truncated") from error
    except _UNREADABLE as error:
        raise InputError(f"{path}: cannot be read: {_one_line(error)}") from error
    return Piece(str(path), entries)


def _guard(path: Path) -> Callable[[], None]:
    """What raises InputError once the file is another than it is now."""

    def state() -> tuple[int, ...]:
        status = path.stat()
        return status.st_ino, status.st_size, status.st_mtime_ns

    before = state()

    def check() -> None:
        if state() != before:
            raise InputError(f"{path}: changed while it was read; run again with data that stays as it is")

    return check


def _entry(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, check: Callable[[], None]) -> Entry:
    with archive.open(info) as file:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        header = file.tell()
    if dtype.hasobject:
        raise InputError(
            f"{path}: array {info.filename.removesuffix('.npy')!r} is pickled; save it as numbers"
        )
    if any(size < 0 for size in shape) or header + math.prod(shape) * dtype.itemsize != info.file_size:
        raise InputError(f"{path}: array {info.filename.removesuffix('.npy')!r} is truncated, or no array")
    if info.compress_type == zipfile.ZIP_STORED and np.prod(shape) > 0 and shape:
        offset = _data_offset(path, info) + header
        load = _mapping(path, dtype, shape, offset, "F" if fortran else "C", check)
        return Entry(shape, dtype, load, cheap=True)
    return Entry(shape, dtype, _loading(path, info.filename, check))


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the member's bytes start: behind its local header, whose extra field may differ from the directory's."""
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        lengths = file.read(4)
    return (
        info.header_offset
        + 30
        + int.from_bytes(lengths[:2], "little")
        + int.from_bytes(lengths[2:], "little")
    )


def _mapping(
    path: Path,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    offset: int,
    order: Any,
    check: Callable[[], None],
) -> Callable[[], Array]:
    def load() -> Array:
        # mapped anew for every read: pages of a mapping that lives on count as resident
        try:
            check()
            return np.memmap(path, dtype, "r", offset, shape, order)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {_one_line(error)}") from error

    return load


def _loading(path: Path, member: str, check: Callable[[], None]) -> Callable[[], Array]:
    def load() -> Array:
        try:
            check()
            with zipfile.ZipFile(path) as archive, archive.open(member) as file:
                return npy.read_array(file, allow_pickle=False)
        except MemoryError:
            raise  # > a limit was hit, whatever the file is
        except (*_UNREADABLE, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path}: array {member.removesuffix('.npy')!r} cannot be read: {_one_line(error)}"
            ) from error

    return load


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
