"""`pack`: a model file and its external data files into one archive."""

from __future__ import annotations

import hashlib
import time
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from onnx_compress.archive import lanes
from onnx_compress.archive.batches import (
    CHAIN,
    MOST_BYTES,
    MOST_FAMILIES,
    MOST_SYMBOLS,
    MOST_TAPPED,
    Batch,
    Stream,
)
from onnx_compress.archive.container import DIGEST, HEADER_BYTES, Header, Member, Weight
from onnx_compress.archive.fields import Writer
from onnx_compress.archive.general import tight
from onnx_compress.archive.payloads import Kind, chunks, plan_chunk
from onnx_compress.archive.pool import extract
from onnx_compress.archive.sources import File, Stretch, between, files_of
from onnx_compress.archive.streams import CODERS, order0_bits
from onnx_compress.archive.threads import one_thread
from onnx_compress.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import BinaryIO

    from numpy.typing import NDArray

    from onnx_compress.archive.batches import Key
    from onnx_compress.archive.forms import Form

    Array = NDArray[Any]


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
    start = time.monotonic()
    with one_thread(), open(target, "wb") as file:  # noqa: PTH123 - any path-like
        files = files_of(source)
        packer = _Packer(file, coder, details=details, progress=progress)
        packer.total = sum(part.length for item in files for part in item.stretches)
        packer.total += sum(small.length for small in files[0].smalls)
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
    tapped: int = 0
    keys: set[Key] = field(default_factory=set)


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
    structure: bytes = b""
    spare: int = 0
    taken: int = 0
    written: bool = False
    squeezed: float = 1.0
    waiting: _Waiting = field(default_factory=_Waiting)
    chain: list[_Waiting] = field(default_factory=list)

    def run(self, files: list[File]) -> int:
        """Writes everything; returns the archive's bytes."""
        self.file.write(bytes(HEADER_BYTES))
        skeleton = b"".join(part for item in files for part in between(item))
        structure, pools = extract(skeleton, files[0].smalls)
        self.structure = tight(structure)
        # > lanes take in the end of what is read after the first batch: that begins with small tensors where there are any
        self.spare = len(self.structure) if any(pool.data for pool in pools) else 0
        self.skeleton_raw, self.skeleton_coded = len(skeleton), len(self.structure)
        for number in (
            len(pools),
            *(number for pool in pools for number in (pool.data_type, len(pool.data))),
        ):
            self.index.number(number)
        for item in files:
            self._describe(item)
        for pool in pools:
            whole = np.frombuffer(pool.data, np.uint8)
            self._pack_weight(whole, Stretch(0, whole.size, "small tensors", pool.data_type, ()))
        for item in files:
            for part in item.stretches:
                self._pack_weight(item.data, part)
        self._flush()
        self._write_chain()
        self._write_structure(0)
        front = Writer()
        for number in (len(files), len(structure), self.skeleton_coded, self.taken):
            front.number(number)
        raw = bytes(front.buffer + self.index.buffer)
        index = tight(raw)
        self.squeezed = len(index) / len(raw)
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

    def _write_structure(self, taken: int) -> bytes:
        """Puts all but the last `taken` bytes of the structure into the file, the first time; returns these."""
        if self.written:
            return b""
        self.written, self.taken = True, taken
        cut = len(self.structure) - taken
        self._write(self.structure[:cut])
        return self.structure[cut:]

    def _describe(self, item: File) -> None:
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

    def _pack_weight(self, data: Array, part: Stretch) -> None:
        whole, kind = data[part.start : part.start + part.length], part.kind
        row = {
            "tensor": part.name,
            "type": _type_name(part.data_type),
            "dims": list(part.dims),
            "raw": part.length,
            "coded": 0,
            "index": 0,
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
        coded = [part for part in form.parts if isinstance(part, Stream)]
        symbols = sum(part.count for part in coded)
        tapped = sum(part.count for part in coded if part.way == "taps")
        keys = {part.key for part in coded if part.key is not None}
        held = self.waiting
        if held.forms and (
            held.nbytes + length > MOST_BYTES
            or held.symbols + symbols > MOST_SYMBOLS
            or held.tapped + tapped > MOST_TAPPED
            or len(held.keys | keys) > MOST_FAMILIES
        ):
            self._flush()
            held = self.waiting
        held.forms.append((form, row))
        held.nbytes += length
        held.symbols += symbols
        held.tapped += tapped
        held.keys |= keys

    def _flush(self) -> None:
        """Puts what waits into the chain, and the chain into the file where it is long enough."""
        held, self.waiting = self.waiting, _Waiting()
        if held.forms:
            self.chain.append(held)
        if len(self.chain) >= (CHAIN if self.written else 1):
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
        size, symbols = sum(batch.size for batch in batches), sum(held.symbols for held in chain)
        spare = 0 if self.written else self.spare
        count = lanes.lanes_for(size, symbols, spare) if self.coder in ("auto", "ans") else 0
        taken = self._write_structure(min(spare, lanes.SPARE * count))
        fitted = [batch.fit(measure=self.details) for batch in batches]
        state = None
        if count:
            state = lanes.start(count, taken + fitted[-1].cut(lanes.SPARE * count - len(taken)))
        coded = [batch.encode(self.coder, state) for batch in reversed(fitted)][::-1]
        self.index.number(len(chain))
        self.index.number(count)
        promised = sum(sum(one.sizes.values()) if self.details else one.size for one in fitted)
        share = sum(len(head) + len(body) for head, body in coded) / max(promised, 1e-9)
        if state is not None:
            self._write(lanes.dump(state))
        for waited, one, (head, body) in zip(chain, fitted, coded, strict=True):
            self.index.number(len(waited.forms))
            for form, _ in waited.forms:
                form.write(self.index, self._write, Batch())
            self.index.raw(head)
            self._write(body)
            self._report(waited, one.sizes, share)

    def _report(self, held: _Waiting, sizes: Mapping[int, float], share: float) -> None:
        """Adds to the rows of the tensors what they took. sizes: of streams, where they were measured; share: of what was promised."""
        for form, row in held.forms:
            for part in form.parts:
                if isinstance(part, bytes):
                    row["coded"] += len(part)
                elif part.key is None:
                    row["coded"] += part.size
                else:
                    row["index"] += len(part.head)
                    row["coded"] += sizes.get(id(part), part.size) * share
            if form.way in ("coded", "taps", "zstd") or row["coder"] == "raw":
                row["coder"] = self._coder_of(form.way)

    def _coder_of(self, way: str) -> str:
        return ("ans" if self.coder == "auto" else self.coder) if way in ("coded", "taps") else way

    def finish_rows(self) -> None:
        """Whole bytes, and bits a weight, in every row of the report."""
        for row in self.rows:
            row["coded"] = round(row["coded"] + row.pop("index") * self.squeezed)
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
