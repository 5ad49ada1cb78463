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

from onnx_compress.archive import lanes
from onnx_compress.archive.container import DIGEST, HEADER_BYTES, Header, Member, Weight, map_file
from onnx_compress.archive.digits import Digits, typed_digits
from onnx_compress.archive.fields import Writer
from onnx_compress.archive.payloads import CHUNK, Form, Kind, chunks, plan_chunk
from onnx_compress.archive.streams import (
    CHAIN,
    CODERS,
    MOST_SYMBOLS,
    MOST_TABLES,
    Batch,
    Stream,
    order0_bits,
    squeeze,
)
from onnx_compress.errors import InputError, UsageError
from onnx_compress.model import wire
from onnx_compress.model.document import tensors
from onnx_compress.model.external import external_place, map_external, real_folder
from onnx_compress.model.packing import packed_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
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
    digits: Digits | None = None

    @property
    def kind(self) -> Kind:
        """How its bytes are to be looked at."""
        return Kind.of(self.data_type, self.dims, self.length, self.digits)


@dataclass
class _File:
    name: str
    data: Array
    stretches: list[Stretch]


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
        packer.total = sum(part.length for item in files for part in item.stretches)
        coded = packer.run(files)
        packer.finish_rows()
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
class _Waiting:
    """Chunks that will be a batch, each with its tensor's row of the report."""

    forms: list[tuple[Form, dict[str, Any]]] = field(default_factory=list)
    nbytes: int = 0
    symbols: int = 0
    tables: int = 0


@dataclass
class _Packer:
    file: BinaryIO
    coder: str
    details: bool
    progress: Callable[[int, int, str], None]
    index: Writer = field(default_factory=Writer)
    rows: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    done: int = 0
    body: int = 0
    check: int = 0
    skeleton_raw: int = 0
    skeleton_coded: int = 0
    waiting: _Waiting = field(default_factory=_Waiting)
    chain: list[_Waiting] = field(default_factory=list)

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
            self._describe(item)
        for item in files:
            for part in item.stretches:
                self._pack_weight(item, part)
        self._flush()
        self._write_chain()
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

    def _describe(self, item: _File) -> None:
        digest = hashlib.blake2b(digest_size=DIGEST)
        for start in range(0, item.data.nbytes, 1 << 24):
            digest.update(item.data[start : start + (1 << 24)].data)
        Member(item.name, item.data.nbytes, digest.digest(), len(item.stretches)).write(self.index)
        at = 0
        for part in item.stretches:
            whole = item.data[part.start : part.start + part.length]
            check = zlib.crc32(whole.data)
            Weight(part.start - at, part.data_type, part.dims, part.length, check).write(self.index)
            at = part.start + part.length

    def _pack_weight(self, item: _File, part: Stretch) -> None:
        whole, kind = item.data[part.start : part.start + part.length], part.kind
        row = {
            "tensor": part.name,
            "type": _type_name(part.data_type),
            "dims": list(part.dims),
            "raw": part.length,
            "coded": 0,
            "coder": "raw",
        }
        if self.details:
            bits = order0_bits(whole) * part.length
            words = max(1, part.length // kind.width)
            row |= {"zip": _zipped(whole), "entropy_bytes": round(bits / 8), "entropy_bits": bits / words}
            row["coded_bits"] = 0.0
        self.rows.append(row)
        start = 0
        for rows, columns in chunks(kind, part.length):
            length = rows * columns * kind.width
            form = plan_chunk(np.array(whole[start : start + length]), kind, rows, self.coder)
            self._take(form, length, row)
            start += length
            self.done += length
            self.progress(self.done, self.total, "pack")

    def _take(self, form: Form, length: int, row: dict[str, Any]) -> None:
        """Puts a chunk into the batch, and the batch before it into the file where there is no room for both."""
        coded = [part for part in form.parts if isinstance(part, Stream) and part.symbols is not None]
        symbols = sum(part.symbols.size for part in coded if part.symbols is not None)
        tables = sum(part.grid.blocks for part in coded if part.grid is not None)
        held = self.waiting
        if held.forms and (
            held.nbytes + length > CHUNK
            or held.symbols + symbols > MOST_SYMBOLS
            or held.tables + tables > MOST_TABLES
        ):
            self._flush()
            held = self.waiting
        held.forms.append((form, row))
        held.nbytes += length
        held.symbols += symbols
        held.tables += tables

    def _flush(self) -> None:
        """Puts what waits into the chain, and the chain into the file where it is long enough."""
        held, self.waiting = self.waiting, _Waiting()
        if held.forms:
            self.chain.append(held)
        if len(self.chain) >= CHAIN:
            self._write_chain()

    def _write_chain(self) -> None:
        """Codes the batches that wait, the last first: the lanes of each begin where those of the one before it end."""
        chain, self.chain = self.chain, []
        if not chain:
            return
        batches = []
        for held in chain:
            batch = Batch()
            for form, _ in held.forms:
                form.write(Writer(), _nowhere, batch)
            batches.append(batch)
        size = sum(batch.size for batch in batches)
        count = lanes.lanes_for(size) if self.coder in ("auto", "ans") else 0
        state = lanes.start(count) if count else None
        coded = [batch.encode(self.coder, state) for batch in reversed(batches)][::-1]
        self.index.number(len(chain))
        self.index.number(count.bit_length())
        share = sum(len(head) + len(body) for head, body in coded) / max(size, 1e-9)
        if state is not None:
            self._write(state.astype("<u4").tobytes())
        for held, (head, body) in zip(chain, coded, strict=True):
            self.index.number(len(held.forms))
            for form, _ in held.forms:
                form.write(self.index, self._write, Batch())
            self.index.raw(head)
            self._write(body)
            self._report(held, share)

    def _report(self, held: _Waiting, share: float) -> None:
        """Adds to the rows of the tensors what they took. share: of what the batches' tables promised."""
        for form, row in held.forms:
            for part in form.parts:
                size = len(part) if isinstance(part, bytes) else part.size
                in_batch = isinstance(part, Stream) and part.symbols is not None
                row["coded"] += size * share if in_batch else size
            if form.way in ("coded", "zstd") or row["coder"] == "raw":
                row["coder"] = self._coder_of(form.way)

    def _coder_of(self, way: str) -> str:
        return ("ans" if self.coder == "auto" else self.coder) if way == "coded" else way

    def finish_rows(self) -> None:
        """Whole bytes, and bits a weight, in every row of the report."""
        for row in self.rows:
            row["coded"] = round(row["coded"])
            if "coded_bits" in row:
                words = max(
                    1, row["raw"] // Kind.of(_type_number(row["type"]), row["dims"], row["raw"]).width
                )
                row["coded_bits"] = 8 * row["coded"] / words


def _nowhere(data: bytes) -> None:
    """Takes what is written later."""


def _type_name(data_type: int) -> str:
    return (
        TensorProto.DataType.Name(data_type) if data_type in TensorProto.DataType.values() else str(data_type)
    )


def _type_number(name: str) -> int:
    return int(name) if name.isdigit() else int(TensorProto.DataType.Value(name))


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
    packed = {name: Digits(*how) for name, how in packed_tensors(proto).items()}
    stretches = [
        Stretch(at, length, *_described(inside.get(i), packed)) for i, (at, length) in enumerate(places)
    ]
    return [_File("", data, stretches), *_external(outside, Path(source), packed)]


def _stubs(proto: onnx.ModelProto, count: int) -> tuple[dict[int, TensorProto], list[TensorProto]]:
    """The tensors that stand for weights left out of the skeleton, by number, and those with external data."""
    inside: dict[int, TensorProto] = {}
    outside = []
    for tensor in tensors(proto):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        # > stubs come in file order
        if len(inside) < count and wire.stands_for(tensor, len(inside)):
            inside[len(inside)] = tensor
        else:
            outside.append(tensor)
    return inside, outside


def _described(
    tensor: TensorProto | None, packed: Mapping[str, Digits]
) -> tuple[str, int, tuple[int, ...], Digits | None]:
    if tensor is None or any(size < 0 for size in tensor.dims) or len(tensor.dims) > 64:
        return "", int(TensorProto.UINT8), (), None
    dims = tuple(tensor.dims)
    digits = packed.get(tensor.name) or typed_digits(tensor.data_type, dims)
    return tensor.name, tensor.data_type, dims, digits


def _external(outside: list[TensorProto], source: Path, packed: Mapping[str, Digits]) -> list[_File]:
    """The files with external data; what no tensor describes there is a weight of bytes where it is large."""
    found: dict[str, list[Stretch]] = {}
    maps: dict[Path, Array] = {}
    for tensor in outside:
        blob = map_external(tensor, source.parent, maps, real_folder(source))
        place = external_place(tensor)
        name = os.path.normpath(place.location).replace(os.sep, "/")
        if blob.nbytes >= wire.THRESHOLD:
            found.setdefault(name, []).append(Stretch(place.offset, blob.nbytes, *_described(tensor, packed)))
        else:
            found.setdefault(name, [])
    return [
        _outside(name, map_file(str(source.parent / name)), parts) for name, parts in sorted(found.items())
    ]


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
