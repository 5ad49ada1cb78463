"""The archive file: what is fixed in its header, what is small in its index, the rest in its body.

    header   magic, version, sizes, checksums of itself, of the index and of the body
    body     all bytes that are no weight, by zstd or LZMA, but for the last of them, which the first lanes hold; then small tensors, those of a
             kind as one weight, and the weights, batch by batch
    index    by zstd or LZMA: files and their weights; then, batch by batch, the small fields of each chunk, and those of its families

All numbers are little-endian.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.archive.fields import Reader, Writer, damaged
from onnx_compress.errors import InputError, LimitError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

MAGIC = b"\x89OCZ"
VERSION = 5
_HEADER = struct.Struct("<4sHHQQQQII")
_CHECK = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CHECK.size
_MOST_DIMS = 64
_WORKSPACE = 150_000_000  # bytes that decoding one batch takes at most, beside the index


@dataclass(frozen=True)
class Header:
    """Bytes of the body, of the index packed and unpacked, of all restored files; CRC-32 of body and packed index."""

    body: int
    index: int
    index_raw: int
    restored: int
    body_check: int
    index_check: int

    def pack(self) -> bytes:
        """The header as stored."""
        fields = _HEADER.pack(
            MAGIC,
            VERSION,
            0,
            self.body,
            self.index,
            self.index_raw,
            self.restored,
            self.body_check,
            self.index_check,
        )
        return fields + _CHECK.pack(zlib.crc32(fields))

    @classmethod
    def read(cls, data: bytes, path: str) -> Header:
        """The header of the file at `path`, whose first bytes are `data`. Raises InputError where it is none."""
        if data[:4] != MAGIC:
            raise InputError(f"{path}: not an archive of onnx-compress pack")
        if len(data) < HEADER_BYTES:
            raise damaged("it ends within its header")
        _, version, flags, *rest = _HEADER.unpack_from(data)
        if (zlib.crc32(data[: _HEADER.size]),) != _CHECK.unpack_from(data, _HEADER.size):
            raise damaged("its header has a wrong checksum")
        if version != VERSION or flags:
            raise InputError(
                f"{path}: format version {version}, not {VERSION}; unpack it with the onnx-compress that packed it"
            )
        return cls(*rest)

    def check(self, size: int, limit: int | None) -> None:
        """Raises InputError where the file, `size` bytes, is not what is said; LimitError where it takes too much."""
        if HEADER_BYTES + self.body + self.index != size:
            raise damaged(f"it is {size} bytes, not the {HEADER_BYTES + self.body + self.index} it says")
        # > the index is unpacked at once, everything else in chunks
        need = _WORKSPACE + 3 * self.index_raw
        if limit is not None and need > limit:
            raise LimitError(
                f"unpacking takes {need / 1e9:.2f} GB, over --memory-limit {limit / 1e9:g}; nothing was written"
            )


@dataclass(frozen=True)
class Weight:
    """A stretch of a file that is coded as a tensor. before: bytes since the last one; check: CRC-32."""

    before: int
    data_type: int
    dims: tuple[int, ...]
    length: int
    check: int

    def write(self, index: Writer) -> None:
        """All but the check."""
        index.number(self.before)
        index.number(self.data_type)
        index.number(len(self.dims))
        for size in self.dims:
            index.number(size)
        index.number(self.length)
        index.raw(_CHECK.pack(self.check))

    @classmethod
    def read(cls, index: Reader) -> Weight:
        """What `write` wrote."""
        before, data_type = index.number(), index.number()
        dims = tuple(index.number() for _ in range(index.number(_MOST_DIMS)))
        length = index.number()
        return cls(before, data_type, dims, length, _CHECK.unpack(index.raw(_CHECK.size))[0])


@dataclass(frozen=True)
class Member:
    """A restored file: its name beside the model (empty: the model), bytes, BLAKE2b-64, and how many weights it has."""

    name: str
    size: int
    digest: bytes
    weights: int

    def write(self, index: Writer) -> None:
        """As `read` reads it."""
        index.blob(self.name.encode())
        index.number(self.size)
        index.raw(self.digest)
        index.number(self.weights)

    @classmethod
    def read(cls, index: Reader) -> Member:
        """What `write` wrote. Raises InputError where the name leads out of the model's folder."""
        try:
            name = bytes(index.blob()).decode()
        except UnicodeDecodeError as error:
            raise damaged("a file name is no text") from error
        parts = name.split("/")
        if name and (
            any(part in ("", ".", "..") for part in parts) or not name.isprintable() or "\\" in name
        ):
            raise damaged(f"the file name {name!r} leads out of the model's folder")
        if any(len(part.encode()) > LONGEST for part in parts) or len(parts) > DEEPEST:
            raise damaged(f"the file name {name[:40]!r}... is longer than any that pack could have read")
        return cls(name, index.number(), bytes(index.raw(DIGEST)), index.number())


DIGEST = 8  # bytes of BLAKE2b
LONGEST = 255  # bytes of a file's name, as file systems have it
DEEPEST = 100  # folders, one in the other


def checked_body(mapped: Array, header: Header) -> memoryview:
    """The body of the mapped archive. Raises InputError where its checksum is wrong."""
    body = mapped.data[HEADER_BYTES : HEADER_BYTES + header.body]
    found = 0
    for start in range(0, len(body), 1 << 24):
        found = zlib.crc32(body[start : start + (1 << 24)], found)
    if found != header.body_check:
        raise damaged("its body has a wrong checksum")
    return body


def map_file(path: str) -> Array:
    """The bytes of a file, mapped. Raises OSError."""
    with open(path, "rb") as file:  # noqa: PTH123 - any path-like
        file.seek(0, 2)
        size = file.tell()
    return np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
