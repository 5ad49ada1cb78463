"""Bytes of no known structure, by zstd, or by LZMA where they are few: and back."""

from __future__ import annotations

import lzma
from functools import cache
from typing import TYPE_CHECKING, Any

import zstandard

from onnx_compress.archive.fields import damaged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_ZSTD_LEVEL = 9
_FEW = 1 << 19  # bytes up to which LZMA is quick enough
_LARGE = 1 << 22  # bytes from which on zstd's best level would take too long
_QUICK = 6000  # bytes above which LZMA is to be quick
_LEAST = 1 << 12  # bytes of a dictionary


def tight(data: bytes) -> bytes:
    """`data` in as few bytes as general methods give; a byte in front says which."""
    if len(data) <= _FEW:
        return b"\1" + lzma.compress(data, format=lzma.FORMAT_RAW, filters=_lzma(len(data)))
    return b"\0" + squeeze(data, 19 if len(data) < _LARGE else 9)


def loosen(data: bytes | memoryview, size: int) -> bytes:
    """What `tight` was given, if it is `size` bytes. Raises InputError where it is not; takes no more memory."""
    if not len(data) or data[0] > 1:
        raise damaged("a compressed part cannot be read")
    if not data[0]:
        return stretch(data[1:], size)
    if size > _FEW:
        raise damaged("a size does not fit what it counts")
    reader = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_lzma(size))
    try:
        found = reader.decompress(data[1:], size + 1)
    except lzma.LZMAError as error:
        raise damaged("a compressed part cannot be read") from error
    if len(found) != size or not reader.eof or reader.unused_data:
        raise damaged("a size does not fit what it counts")
    return found


def _lzma(size: int) -> list[dict[str, Any]]:
    """How LZMA takes `size` bytes of no alignment, and text: where they are many in its quick mode, a fifth of the time for 6 % more."""
    found: dict[str, Any] = {"id": lzma.FILTER_LZMA2, "preset": 8, "lc": 2, "pb": 0}
    if size > _QUICK:
        found |= {"mf": lzma.MF_HC4, "mode": lzma.MODE_FAST}
    return [found | {"dict_size": max(_LEAST, 1 << size.bit_length())}]


def squeeze(data: Array | bytes, level: int = _ZSTD_LEVEL) -> bytes:
    """`data` by zstd."""
    return _compressor(level).compress(bytes(data))


@cache
def _compressor(level: int) -> zstandard.ZstdCompressor:
    """Made once: making one takes longer than compressing a bias."""
    return zstandard.ZstdCompressor(level=level, write_content_size=True)


def stretch(data: bytes | memoryview, size: int) -> bytes:
    """What `squeeze` was given, if it is `size` bytes. Raises InputError where it is not; takes no more memory."""
    try:
        if zstandard.frame_content_size(bytes(data[:32])) != size:
            raise damaged("a size does not fit what it counts")
        return zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(
            bytes(data), max_output_size=size
        )
    except zstandard.ZstdError as error:
        raise damaged("a compressed part cannot be read") from error
