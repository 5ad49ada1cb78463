"""Archives that `pack` did not write: cut, flipped, or made to harm; their checksums are right where that lets them further in."""

from __future__ import annotations

import hashlib
import struct
import tempfile
import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from hostile.case import Case, good
from onnx_compress.archive import pack
from onnx_compress.archive.container import DIGEST, HEADER_BYTES, Header
from onnx_compress.archive.fields import Writer
from onnx_compress.archive.general import squeeze, tight

if TYPE_CHECKING:
    from collections.abc import Callable

UNPACK = "unpack in.ocz out.onnx"


@cache
def packed() -> bytes:
    """A good archive."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "m.onnx").write_bytes(good().SerializeToString())
        pack(source=f"{folder}/m.onnx", target=f"{folder}/m.ocz")
        return (Path(folder) / "m.ocz").read_bytes()


def archive_of(content: bytes | Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Writes these bytes for an archive, or a good archive changed."""
    return lambda folder: (folder / "in.ocz").write_bytes(
        content if isinstance(content, bytes) else content(packed())
    )


def _flipped(share: int) -> Callable[[bytes], bytes]:
    def change(whole: bytes) -> bytes:
        at = len(whole) * share // 100
        return whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :]

    return change


def _cut(share: int) -> Callable[[bytes], bytes]:
    return lambda whole: whole[: len(whole) * share // 100]


def _sealed(
    body: bytes, index: bytes, *, raw: int | None = None, restored: int = 1000, coded: bytes = b""
) -> bytes:
    """An archive of this body and index, all of whose checksums are right."""
    coded = coded or tight(index)
    size = len(index) if raw is None else raw
    header = Header(len(body), len(coded), size, restored, zlib.crc32(body), zlib.crc32(coded))
    return header.pack() + body + coded


def named(name: bytes) -> bytes:
    """An archive of an empty model and a data file of this name."""
    index = Writer()
    body = tight(b"x")
    # > files, the skeleton's bytes, those it has here, those that lanes carry, pools of small tensors
    for number in (2, 1, len(body), 0, 0):
        index.number(number)
    for member, content in ((b"", b""), (name, b"x")):
        index.blob(member)
        index.number(len(content))
        index.raw(hashlib.blake2b(content, digest_size=DIGEST).digest())
        index.number(0)
    return _sealed(body, bytes(index.buffer), restored=1)


def _numbers(*values: int) -> bytes:
    index = Writer()
    for value in values:
        index.number(value)
    return _sealed(b"", bytes(index.buffer))


def _size(whole: bytes, at: int, value: int) -> bytes:
    """The header's number at byte `at` is another; its checksum is right."""
    fields = whole[:at] + struct.pack("<Q", value) + whole[at + 8 : HEADER_BYTES - 4]
    return fields + struct.pack("<I", zlib.crc32(fields)) + whole[HEADER_BYTES:]


def _bomb() -> bytes:
    coded = b"\0" + squeeze(bytes(300_000_000))
    return _sealed(b"", b"", raw=300_000_000, restored=300_000_000, coded=coded)


CASES: dict[str, Case] = {
    f"flipped at {share} %": Case(archive_of(_flipped(share)), UNPACK)
    for share in (1, 3, 6, 20, 40, 60, 80, 95, 99)
}
CASES |= {f"cut after {share} %": Case(archive_of(_cut(share)), UNPACK) for share in (0, 1, 4, 50, 99)}
CASES |= {
    "text": Case(archive_of(lambda _: b"Lorem ipsum" * 99), UNPACK),
    "a magic only": Case(archive_of(lambda whole: whole[:4]), UNPACK),
    "garbage behind it": Case(archive_of(lambda whole: whole + b"x" * 999), UNPACK),
    "a model in its place": Case(archive_of(lambda _: good().SerializeToString()), UNPACK),
    "an archive for a model": Case(archive_of(lambda whole: whole), "in.ocz out.onnx --passes none"),
    "a body of 2^60 bytes": Case(archive_of(lambda whole: _size(whole, 8, 2**60)), UNPACK),
    "an index of 2^60 bytes": Case(archive_of(lambda whole: _size(whole, 24, 2**60)), UNPACK),
    "a model of 2^60 bytes": Case(archive_of(lambda whole: _size(whole, 32, 2**60)), UNPACK),
    "an index that is a bomb": Case(archive_of(lambda _: _bomb()), UNPACK),
    "an index longer than it says": Case(archive_of(lambda _: _sealed(b"", bytes(9999), raw=10)), UNPACK),
    "an index of nothing": Case(archive_of(lambda _: _sealed(b"", b"")), UNPACK),
    "2^50 files": Case(archive_of(lambda _: _numbers(2**50, 0, 0, 0)), UNPACK),
    "a skeleton of 2^60 bytes": Case(archive_of(lambda _: _numbers(1, 2**60, 0, 0)), UNPACK),
    "a name that leads up": Case(archive_of(lambda _: named(b"../evil")), UNPACK),
    "a name that is absolute": Case(archive_of(lambda _: named(b"/tmp/evil")), UNPACK),
    "a name with a NUL": Case(archive_of(lambda _: named(b"a\0b")), UNPACK),
    "a name that is no text": Case(archive_of(lambda _: named(b"\xff\xfe")), UNPACK),
    "a name of 5000 letters": Case(archive_of(lambda _: named(b"n" * 5000)), UNPACK),
    "a name of 5000 folders": Case(archive_of(lambda _: named(b"n/" * 5000 + b"n")), UNPACK),
    "absent": Case(lambda _: None, UNPACK),
    "a folder": Case(lambda folder: (folder / "in.ocz").mkdir(), UNPACK),
    "a model that is none, packed": Case(
        lambda folder: (folder / "in.onnx").write_bytes(b"Lorem" * 99), "pack in.onnx out.ocz"
    ),
}
