"""`unpack`: the very files an archive was made from. The archive may be hostile.

Sizes are checked before memory is taken, checksums before and after decoding; what is in memory at a time is the index and one
chunk, however large the model.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zstandard

from onnx_compress.archive import lanes
from onnx_compress.archive.batches import CHAIN, MOST_BYTES
from onnx_compress.archive.container import (
    DIGEST,
    HEADER_BYTES,
    Header,
    Member,
    Weight,
    checked_body,
    map_file,
)
from onnx_compress.archive.fields import Reader, damaged
from onnx_compress.archive.general import loosen
from onnx_compress.archive.payloads import Kind, chunks, read_chunk
from onnx_compress.archive.pool import MOST, POOLS, restore
from onnx_compress.archive.promises import Pending
from onnx_compress.archive.threads import one_thread
from onnx_compress.errors import InputError, LimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from numpy.typing import NDArray

    Array = NDArray[Any]

EXTERNAL = "external"  # folder beside the staged model, for its data files


def unpack(
    *,
    source: str,
    target: str,
    memory: int | None = None,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> dict[str, Any]:
    """Restores the model of the archive `source` at `target`, its data files in the folder EXTERNAL beside; the report.

    memory: bytes it may take.
    Raises InputError where the archive is damaged, LimitError where it needs more memory or disk than there is.
    """
    start = time.monotonic()
    try:
        if not Path(source).is_file():
            raise InputError(f"{source}: {'is a folder' if Path(source).is_dir() else 'no such file'}")
        mapped = map_file(source)
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror}") from error
    header = Header.read(mapped[:HEADER_BYTES].tobytes(), source)
    header.check(mapped.nbytes, memory)
    free = shutil.disk_usage(Path(target).parent).free
    if header.restored > free:
        raise LimitError(
            f"the model is {header.restored / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free; nothing was written"
        )
    packed = mapped[HEADER_BYTES + header.body :].tobytes()
    if zlib.crc32(packed) != header.index_check:
        raise damaged("its index has a wrong checksum")
    body = checked_body(mapped, header)
    index = Reader(loosen(packed, header.index_raw))
    with one_thread():
        names = _restore(index, body, header, Path(target), progress)
    return {
        "schema": 1,
        "input": source,
        "output": target,
        "seconds": time.monotonic() - start,
        "before": {"bytes": mapped.nbytes},
        "after": {"bytes": header.restored},
        "external": names,
    }


def _restore(
    index: Reader, body: memoryview, header: Header, target: Path, progress: Callable[[int, int, str], None]
) -> list[str]:
    """Writes every file; returns the names of the data files."""
    files, structure_raw, structure_coded = index.number(), index.number(), index.number()
    taken = index.number(min(structure_coded, lanes.SPARE * lanes.MOST))
    bulk, spare = Reader(body), _Spare(taken)
    structure = bulk.raw(structure_coded - taken)
    pools = _pools(index)
    members = [_Described.read(index) for _ in range(files)]
    data = _chunks(index, bulk, [*pools, *(weight for member in members for weight in member.weights)], spare)
    skeleton = _Skeleton.of(structure, structure_raw, pools, data, spare)
    written = 0
    names: list[str] = []
    for number, described in enumerate(members):
        member = described.member
        written += member.size
        if written > header.restored or (member.name == "") != (number == 0) or member.name in names:
            raise damaged("its files are not those it says")
        names += [member.name] if number else []
        path = target.parent / EXTERNAL / member.name if number else target
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                _restore_file(described, data, skeleton, file)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise damaged("its file names contradict each other") from error
        progress(written, header.restored, "unpack")
    if next(data, None) is not None:
        raise damaged("it has more weights than it says")
    index.end()
    bulk.end()
    skeleton.end()
    if not files or written != header.restored:
        raise damaged("its files are not those it says")
    return names


@dataclass(frozen=True)
class _Described:
    """A file to restore, and its weights."""

    member: Member
    weights: list[Weight]

    @classmethod
    def read(cls, index: Reader) -> _Described:
        member = Member.read(index)
        return cls(member, [Weight.read(index) for _ in range(member.weights)])


def _pools(index: Reader) -> list[Weight]:
    """The pools of small tensors, as weights without a place in a file."""
    found = [Weight(0, index.number(), (), index.number(MOST), 0) for _ in range(index.number(POOLS))]
    if sum(pool.length for pool in found) > MOST:
        raise damaged("small tensors are not those it says")
    return found


def _kind(weight: Weight) -> Kind:
    return Kind.of(weight.data_type, weight.dims, weight.length)


@dataclass
class _Spare:
    """The end of the structure, `count` bytes, that the states of the first batch's lanes hold when it is decoded."""

    count: int
    data: bytes | None = None

    def take(self, state: Array | None) -> None:
        """What is there after the first batch."""
        if self.data is None:
            self.data = b"" if state is None else lanes.spared(state)[: self.count].tobytes()


def _chunks(index: Reader, bulk: Reader, weights: list[Weight], spare: _Spare) -> Iterator[bytes]:
    """The bytes of every chunk of every weight, decoded a batch at a time."""
    waiting = (
        (kind, shape)
        for weight in weights
        for kind in [_kind(weight)]
        for shape in chunks(kind, weight.length)
    )
    item = next(waiting, None)
    while item is not None:
        left = index.number(CHAIN)
        state = _lanes(index, bulk)
        if not left:
            raise damaged("a chain is empty")
        for number in range(left):
            batch = Pending()
            found: list[Callable[[], bytes]] = []
            size = 0
            for _ in range(index.number()):
                if item is None:
                    raise damaged("it has more weights than it says")
                kind, shape = item
                size += shape[0] * shape[1] * kind.width
                if found and size > MOST_BYTES:
                    raise damaged("a batch is larger than any")
                found.append(read_chunk(index, bulk, kind, shape, batch))
                item = next(waiting, None)
            if not found:
                raise damaged("a batch is empty")
            first = spare.count if spare.data is None else 0
            end = lanes.SPARE * state.size if state is not None and number == left - 1 else first
            batch.decode(index, bulk, state, (first, end))
            spare.take(state if left == 1 else None)
            for data in found:
                yield data()


def _lanes(index: Reader, bulk: Reader) -> Array | None:
    """The states of a chain's lanes, where it has any."""
    count = index.number(lanes.MOST)
    if not count:
        return None
    if count < lanes.LEAST:
        raise damaged("a chain has too few lanes")
    return lanes.load(bulk, count)


def _restore_file(
    described: _Described, chunked: Iterator[bytes], skeleton: _Skeleton, file: BinaryIO
) -> None:
    member = described.member
    digest = hashlib.blake2b(digest_size=DIGEST)
    left = member.size

    def write(data: bytes) -> None:
        nonlocal left
        left -= len(data)
        if left < 0:
            raise damaged("a file is longer than it says")
        digest.update(data)
        file.write(data)

    for weight in described.weights:
        if weight.before + weight.length > left:
            raise damaged("a file is longer than it says")
        skeleton.copy(weight.before, write)
        check = 0
        for _ in chunks(_kind(weight), weight.length):
            data = next(chunked)
            check = zlib.crc32(data, check)
            write(data)
        if check != weight.check:
            raise damaged("a tensor has a wrong checksum")
    skeleton.copy(left, write)
    if digest.digest() != member.digest:
        raise damaged("a file has a wrong checksum")


class _Skeleton:
    """The bytes between the weights, decompressed as they are needed."""

    def __init__(self, reader: BinaryIO | zstandard.ZstdDecompressionReader, size: int) -> None:
        self.left = size
        self.reader = reader

    @classmethod
    def of(
        cls, coded: memoryview, size: int, pools: list[Weight], chunked: Iterator[bytes], spare: _Spare
    ) -> _Skeleton:
        """From the coded structure, `size` bytes, and the small tensors, the first of the chunks."""
        if pools:
            if size > MOST:
                raise damaged("a size does not fit what it counts")
            held = [
                (pool.data_type, b"".join(next(chunked) for _ in chunks(_kind(pool), pool.length)))
                for pool in pools
            ]
            if spare.count:
                if spare.data is None or len(spare.data) != spare.count:
                    raise damaged("its skeleton is too short")
                coded = memoryview(bytes(coded) + spare.data)
            whole = restore(loosen(coded, size), held)
            return cls(io.BytesIO(whole), len(whole))
        if spare.count:
            raise damaged("its skeleton is too short")
        if coded and coded[0] == 0:
            reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(coded[1:])
            return cls(reader, size)
        return cls(io.BytesIO(loosen(coded, size)), size)

    def copy(self, length: int, write: Callable[[bytes], None]) -> None:
        """The next `length` bytes, a megabyte at a time."""
        self.left -= length
        if self.left < 0:
            raise damaged("its skeleton is too short")
        while length:
            data = self._read(min(length, 1 << 20))
            if not data:
                raise damaged("its skeleton is too short")
            length -= len(data)
            write(data)

    def end(self) -> None:
        """Raises InputError where something is left."""
        if self.left or self._read(1):
            raise damaged("its skeleton is too long")

    def _read(self, length: int) -> bytes:
        try:
            data: bytes = self.reader.read(length)
        except zstandard.ZstdError as error:
            raise damaged("its skeleton cannot be read") from error
        return data
