"""A matrix of byte symbols in as few bytes as one of these ways gives: raw, zstd, one value, or coded in a batch.

The symbols of a batch of streams, each with its own tables, are coded together: small weights share what a coder costs to
start and to end, and all of them the speed of many lanes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.archive import coders, huffman, lanes
from onnx_compress.archive.fields import Reader, Writer, damaged
from onnx_compress.archive.general import squeeze, stretch
from onnx_compress.archive.grids import Grid, best_grid, counts_of
from onnx_compress.archive.tables import Tables, weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[Any]

CODERS = ("auto", "ans", "range", "huffman", "zstd")
WAYS = ("raw", "zstd", "constant", "coded")  # as stored: the place is the number
BATCH_CODERS = ("lanes", "ans", "range", "huffman")  # as stored
CHAIN = 16  # batches that share lanes, at most
MOST_SYMBOLS = 1 << 24  # of a batch
MOST_TABLES = 1 << 11  # of a batch
_SAMPLE = 1 << 16  # symbols that tell whether a stream can be coded at all
_HOPELESS = 7.97  # bits a symbol of the sample from which on it is stored raw
_PROBE = 1 << 15  # bytes on which zstd is tried first
_GAIN = 0.9  # of the entropy's bytes that zstd must undercut on a sample to be tried on all


@dataclass(frozen=True)
class Stream:
    """A stream as it is to be stored. head: small fields; body: its bytes where it is in no batch; size: bytes, about.

    symbols (n,), grid and tables: what a batch codes.
    """

    way: str
    head: bytes
    body: bytes
    size: float
    symbols: Array | None = None
    grid: Grid | None = None
    tables: Tables | None = None


def plan_stream(matrix: Array, coder: str, *, floor: bool = True) -> Stream:
    """How `matrix` (rows, columns) uint8 is best stored. floor: also by zstd where `coder` is auto and that promises more."""
    flat = matrix.reshape(-1)
    if flat.size and (flat == flat[0]).all():
        return _stored("constant", int(flat[0]), b"")
    if not flat.size or _hopeless(flat):
        return _stored("raw", None, flat.tobytes())
    found: list[Stream] = []
    if coder == "zstd" or (coder == "auto" and floor and repeats(flat)):
        found.append(_stored("zstd", None, squeeze(flat)))
    if coder != "zstd":
        found.append(_coded(matrix, coder))
    best = min(found, key=lambda stream: stream.size)
    return best if best.size < flat.nbytes else _stored("raw", None, flat.tobytes())


def raw_stream(matrix: Array) -> Stream:
    """`matrix` as it stands."""
    return _stored("raw", None, matrix.tobytes())


def _stored(way: str, value: int | None, body: bytes) -> Stream:
    head = Writer()
    head.number(WAYS.index(way))
    head.number(len(body) if value is None else value)
    return Stream(way, bytes(head.buffer), body, len(head.buffer) + len(body))


def _coded(matrix: Array, coder: str) -> Stream:
    low = int(matrix.min())
    symbols = int(matrix.max()) - low + 1
    matrix = matrix - np.uint8(low)
    grid, tables, bits = best_grid(matrix, symbols)
    if coder == "huffman":  # > its codes have a bit at least
        bits = max(bits, float(matrix.size))
    head = Writer()
    head.number(WAYS.index("coded"))
    head.number(low)
    head.number(symbols)
    grid.write(head)
    tables.write(head)
    return Stream("coded", bytes(head.buffer), b"", bits / 8, matrix.reshape(-1), grid, tables)


@dataclass
class Batch:
    """Streams to be coded together: those of `add` when packing, those that `read_stream` promised when unpacking."""

    levels: list[Array] = field(default_factory=list)
    symbols: list[Array] = field(default_factory=list)
    tables: list[Array] = field(default_factory=list)
    size: float = 0.0
    count: int = 0
    decoded: Array | None = None

    def add(self, stream: Stream) -> None:
        """Takes a planned stream in."""
        if stream.symbols is None or stream.grid is None or stream.tables is None:
            return
        self.symbols.append(stream.symbols)
        self.tables.append(stream.grid.block_of(len(self.levels)))
        self.levels += list(stream.tables.levels)
        self.size += stream.size

    def encode(self, coder: str, state: Array | None) -> tuple[bytes, bytes]:
        """The fields and the bytes of all streams; `state`, where lanes are used, becomes that in which decoding begins."""
        if not self.symbols:
            return b"", b""
        head = Writer()
        symbols, tables = np.concatenate(self.symbols), np.concatenate(self.tables)
        way = "ans" if coder == "auto" else coder
        if state is not None:
            way = "lanes"
            body, state[:] = lanes.encode(symbols, tables, _frequencies(self.levels), state)
        elif way == "huffman":
            count = huffman.lanes_for(self.size)
            body = huffman.encode(symbols, tables, [weights(row) for row in self.levels], count)
        else:
            order = np.argsort(tables, kind="stable")
            ends = np.bincount(tables, minlength=len(self.levels)).cumsum()
            body = coders.encode(way, np.split(symbols[order], ends[:-1]), self.levels)
        head.number(BATCH_CODERS.index(way))
        if way == "huffman":
            head.number(count.bit_length())
        head.number(len(body))
        return bytes(head.buffer), body

    def expect(self, grid: Grid, tables: Tables) -> int:
        """Where the symbols of a stream with this grid will start."""
        start = self.count
        self.count += grid.row_class.size * grid.column_class.size
        if self.count > MOST_SYMBOLS or len(self.levels) + grid.blocks > MOST_TABLES:
            raise damaged("a batch is larger than any")
        self.tables.append(grid.block_of(len(self.levels)))
        self.levels += list(tables.levels)
        return start

    def decode(self, head: Reader, body: Reader, state: Array | None) -> None:
        """Decodes all streams that are expected. state: of the chain's lanes, where it has any."""
        if not self.tables:
            return
        way = BATCH_CODERS[head.number(len(BATCH_CODERS) - 1)]
        count = 1 << head.number(huffman.MOST.bit_length()) >> 1 if way == "huffman" else 0
        data = body.raw(head.number())
        tables = np.concatenate(self.tables)
        self.tables = []
        if way == "lanes":
            if state is None:
                raise damaged("a batch has no lanes")
            self.decoded = lanes.decode(data, tables.size, tables, _frequencies(self.levels), state)
        elif way == "huffman":
            if not count:
                raise damaged("a batch has no lanes")
            found = [weights(row) for row in self.levels]
            self.decoded = huffman.decode(data, tables.size, tables, found, count)
        else:
            lengths = np.bincount(tables, minlength=len(self.levels)).tolist()
            runs = coders.decode(way, data, lengths, self.levels)
            self.decoded = np.empty(tables.size, np.uint8)
            self.decoded[np.argsort(tables, kind="stable")] = np.concatenate(runs)


def read_stream(head: Reader, body: Reader, rows: int, columns: int, batch: Batch) -> Callable[[], Array]:
    """What gives the matrix of a stream, uint8, once the batch is decoded. Raises InputError where the fields make none."""
    way = WAYS[head.number(len(WAYS) - 1)]
    size = rows * columns
    if way == "constant":
        value = head.number(255)
        return lambda: np.full((rows, columns), value, np.uint8)
    if way in {"raw", "zstd"}:
        data = body.raw(head.number())
        if way == "raw" and len(data) != size:
            raise damaged("a stream has the wrong length")
        return lambda: np.frombuffer(data if way == "raw" else stretch(data, size), np.uint8).reshape(
            rows, columns
        )
    low, symbols = head.number(255), head.number(256)
    if low + symbols > 256 or symbols < 2:
        raise damaged("a stream has no symbols")
    grid = Grid.read(head, rows, columns)
    start = batch.expect(grid, Tables.read(head, grid.blocks, symbols))

    def found() -> Array:
        assert batch.decoded is not None
        matrix: Array = batch.decoded[start : start + size].reshape(rows, columns)
        return matrix + np.uint8(low) if low else matrix

    return found


def _frequencies(levels: list[Array]) -> Array:
    found = np.zeros((len(levels), lanes.SYMBOLS), np.int64)
    for row, level in zip(found, levels, strict=True):
        row[: level.size] = weights(level)
    return lanes.frequencies(found)


def order0_bits(flat: Array) -> float:
    """Bits a symbol when each is coded by its frequency alone."""
    counts = counts_of(flat)
    shares = counts[counts > 0] / flat.size
    return float(-(shares * np.log2(shares)).sum())


def _hopeless(flat: Array) -> bool:
    """Whether a sample has so many bits a symbol that no coder is worth its time."""
    if flat.size < _SAMPLE:
        return False
    step = flat.size // _SAMPLE
    sample = flat[: step * _SAMPLE : step] if step > 1 else flat[:_SAMPLE]
    # > a pattern with an even histogram is for zstd
    return order0_bits(sample) > _HOPELESS and not repeats(flat)


def repeats(data: Array) -> bool:
    """Whether zstd finds more in the first bytes of `data` than how often each of them occurs."""
    sample = data[:_PROBE]
    found = len(squeeze(sample, 1))
    return found < _GAIN * order0_bits(sample) / 8 * sample.size + 64
