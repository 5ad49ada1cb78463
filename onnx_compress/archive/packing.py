"""`pack`: a model file and its external data files into one archive."""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from onnx_compress.archive.container import DIGEST, HEADER_BYTES, Header, Member, Weight, map_file
from onnx_compress.archive.fields import Writer
from onnx_compress.archive.payloads import Kind, chunks, encode_chunk
from onnx_compress.archive.streams import CODERS, order0_bits, squeeze
from onnx_compress.errors import InputError, UsageError
from onnx_compress.model import wire
from onnx_compress.model.document import tensors
from onnx_compress.model.external import external_place, map_external
from onnx_compress.model.packing import Packing, packed_tensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from numpy.typing import NDArray

    Array = NDArray[Any]

_LARGE = 1 << 22  # bytes of skeleton from which on zstd's best level would take too long


@dataclass(frozen=True)
class Stretch:
    """Bytes start..start+length of a file that are the value of a tensor."""

    start: int
    length: int
    name: str
    data_type: int
    dims: tuple[int, ...]


@dataclass
class _File:
    name: str
    data: Array
    stretches: list[Stretch]
    packed: dict[str, tuple[Packing, int]] = field(default_factory=dict)  # of the model, by name


def pack(
    *,
    source: str,
    target: str,
    coder: str = "auto",
    details: bool = False,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> dict[str, Any]:
    """Writes the archive of the model `source` to `target`; returns the report.

    details: measure each tensor by zip and by entropy, too, which takes longer than packing.
    Raises InputError where the model cannot be read, UsageError for a coder that is not known.
    """
    if coder not in CODERS:
        raise UsageError(f"--coder {coder}: no such coder; known: {', '.join(CODERS)}")
    import threadpoolctl

    start = time.monotonic()
    # > one thread: the matrices are small, and a waiting thread of BLAS costs more than it gives
    with threadpoolctl.threadpool_limits(1), open(target, "wb") as file:  # noqa: PTH123 - any path-like
        files = _files(source)
        packer = _Packer(file, coder, details=details, progress=progress)
        packer.packed = files[0].packed
        packer.total = sum(part.length for item in files for part in item.stretches)
        coded = packer.run(files)
    before = sum(item.data.nbytes for item in files)
    return {
        "schema": 1,
        "input": source,
        "output": target,
        "coder": coder,
        "seconds": time.monotonic() - start,
        "before": {"bytes": before, "files": len(files)},
        "after": {"bytes": coded, "ratio": before / coded},
        "skeleton": {"raw": packer.skeleton_raw, "coded": packer.skeleton_coded},
        "tensors": packer.rows,
        "total": {
            key: sum(row[key] for row in packer.rows)
            for key in ("raw", "coded", *(("zip", "entropy_bytes") if details else ()))
        },
    }


@dataclass
class _Packer:
    file: BinaryIO
    coder: str
    details: bool
    progress: Callable[[int, int, str], None]
    packed: dict[str, tuple[Packing, int]] = field(default_factory=dict)
    index: Writer = field(default_factory=Writer)
    rows: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    done: int = 0
    body: int = 0
    check: int = 0
    skeleton_raw: int = 0
    skeleton_coded: int = 0

    def run(self, files: list[_File]) -> int:
        """Writes everything; returns the archive's bytes."""
        self.file.write(bytes(HEADER_BYTES))
        skeleton = b"".join(part for item in files for part in _between(item))
        coded = squeeze(skeleton, 19 if len(skeleton) < _LARGE else 9)
        self.skeleton_raw, self.skeleton_coded = len(skeleton), len(coded)
        self._write(coded)
        for number in (len(files), len(skeleton), len(coded)):
            self.index.number(number)
        for item in files:
            self._pack_file(item)
        raw = bytes(self.index.buffer)
        index = squeeze(raw, 19 if len(raw) < _LARGE else 9)
        self.file.write(index)
        header = Header(
            self.body,
            len(index),
            len(raw),
            sum(item.data.nbytes for item in files),
            self.check,
            zlib.crc32(index),
        )
        self.file.seek(0)
        self.file.write(header.pack())
        return HEADER_BYTES + self.body + len(index)

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.body += len(data)
        self.check = zlib.crc32(data, self.check)

    def _pack_file(self, item: _File) -> None:
        digest = hashlib.blake2b(digest_size=DIGEST)
        for start in range(0, item.data.nbytes, 1 << 24):
            digest.update(item.data[start : start + (1 << 24)].data)
        Member(item.name, item.data.nbytes, digest.digest(), len(item.stretches)).write(self.index)
        at = 0
        for part in item.stretches:
            self._pack_weight(item, part, part.start - at)
            at = part.start + part.length

    def _pack_weight(self, item: _File, part: Stretch, before: int) -> None:
        whole = item.data[part.start : part.start + part.length]
        Weight(before, part.data_type, part.dims, part.length, zlib.crc32(whole.data)).write(self.index)
        kind = Kind.of(part.data_type, part.dims, part.length)
        if part.name in self.packed and part.data_type == TensorProto.UINT8:
            kind = kind.holding(*self.packed[part.name])
        start, began = 0, (self.body, len(self.index.buffer))
        ways: dict[str, int] = {}
        for rows, columns in chunks(kind, part.length):
            length = rows * columns * kind.width
            coded = encode_chunk(np.array(whole[start : start + length]), kind, rows, self.coder)
            self.index.raw(coded.head)
            self._write(coded.body)
            ways[coded.coder] = ways.get(coded.coder, 0) + length
            start += length
            self.done += length
            self.progress(self.done, self.total, "pack")
        coded_bytes = self.body - began[0] + len(self.index.buffer) - began[1]
        row = {
            "tensor": part.name,
            "type": _type_name(part.data_type),
            "dims": list(part.dims),
            "raw": part.length,
            "coded": coded_bytes,
            "coder": max(ways, key=lambda way: ways[way], default="raw"),
        }
        if self.details:
            bits = order0_bits(whole) * part.length
            words = max(1, part.length // kind.width)
            row |= {"zip": _zipped(whole), "entropy_bytes": round(bits / 8), "entropy_bits": bits / words}
            row["coded_bits"] = 8 * coded_bytes / words
        self.rows.append(row)


def _type_name(data_type: int) -> str:
    return (
        TensorProto.DataType.Name(data_type) if data_type in TensorProto.DataType.values() else str(data_type)
    )


def _zipped(data: Array) -> int:
    """Bytes by zip's method at its best."""
    zipper = zlib.compressobj(9)
    size = sum(len(zipper.compress(data[at : at + (1 << 20)].data)) for at in range(0, data.nbytes, 1 << 20))
    return size + len(zipper.flush())


def _between(item: _File) -> list[bytes]:
    """The bytes of the file that are no weight."""
    edges = [
        0,
        *(edge for part in item.stretches for edge in (part.start, part.start + part.length)),
        item.data.nbytes,
    ]
    return [item.data[start:end].tobytes() for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _files(source: str) -> list[_File]:
    """The model and its external data files, with the places of the weights in each."""
    try:
        if not Path(source).is_file():
            what = "is a folder, not a model" if Path(source).is_dir() else "no such file"
            raise InputError(f"{source}: {what}")
        data = map_file(source)
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror}") from error
    if not data.nbytes:
        raise InputError(f"{source}: the file is empty")
    try:
        skeleton, places = wire.split(data.data)
        proto = onnx.ModelProto.FromString(skeleton)
    except (ValueError, DecodeError) as error:
        raise InputError(f"{source}: not an ONNX file, or truncated") from error
    if not proto.HasField("graph"):
        raise InputError(f"{source}: not an ONNX model: it holds no graph")
    inside, outside = _stubs(proto, len(places))
    stretches = [Stretch(at, length, *_described(inside.get(i))) for i, (at, length) in enumerate(places)]
    return [_File("", data, stretches, packed_tensors(proto)), *_external(outside, Path(source).parent)]


def _stubs(proto: onnx.ModelProto, count: int) -> tuple[dict[int, TensorProto], list[TensorProto]]:
    """The tensors that stand for weights left out of the skeleton, by number, and those with external data."""
    inside: dict[int, TensorProto] = {}
    outside = []
    for tensor in tensors(proto):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        # > a stub has no other key, and stubs come in file order
        if len(inside) < count and [entry.value for entry in tensor.external_data] == [str(len(inside))]:
            inside[len(inside)] = tensor
        else:
            outside.append(tensor)
    return inside, outside


def _described(tensor: TensorProto | None) -> tuple[str, int, tuple[int, ...]]:
    if tensor is None or any(size < 0 for size in tensor.dims) or len(tensor.dims) > 64:
        return "", int(TensorProto.UINT8), ()
    return tensor.name, tensor.data_type, tuple(tensor.dims)


def _external(outside: list[TensorProto], folder: Path) -> list[_File]:
    """The files with external data; what no tensor describes there is a weight of bytes where it is large."""
    found: dict[str, list[Stretch]] = {}
    maps: dict[Path, Array] = {}
    for tensor in outside:
        blob = map_external(tensor, folder, maps)
        place = external_place(tensor)
        name = os.path.normpath(place.location).replace(os.sep, "/")
        if blob.nbytes >= wire.THRESHOLD:
            found.setdefault(name, []).append(Stretch(place.offset, blob.nbytes, *_described(tensor)))
        else:
            found.setdefault(name, [])
    return [_outside(name, map_file(str(folder / name)), parts) for name, parts in sorted(found.items())]


def _outside(name: str, data: Array, parts: list[Stretch]) -> _File:
    """Stretches in order, none twice, and those between them."""
    stretches: list[Stretch] = []
    at = 0
    for part in [
        *sorted(parts, key=lambda part: (part.start, -part.length)),
        Stretch(data.nbytes, 0, "", 2, ()),
    ]:
        if part.start < at:  # shared, or overlapping: its bytes are there
            continue
        if part.start - at >= wire.THRESHOLD:
            stretches.append(Stretch(at, part.start - at, "", int(TensorProto.UINT8), ()))
        if part.length:
            stretches.append(part)
        at = part.start + part.length
    return _File(name, data, stretches)
