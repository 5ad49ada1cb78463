"""A matrix of byte symbols in as few bytes as one of these ways gives: raw, zstd, one value, or coded in a batch.

The symbols of a batch of streams, each with its own tables, are coded together: small weights share what a coder costs to
start and to end, and all of them the speed of many lanes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.archive import coders, huffman, lanes
from onnx_compress.archive.contexts import Contexts, find_contexts
from onnx_compress.archive.fields import Reader, Writer, damaged
from onnx_compress.archive.general import squeeze, stretch
from onnx_compress.archive.grids import Grid, best_grid, counts_of
from onnx_compress.archive.tables import Tables, weights
from onnx_compress.archive.tilts import Tilts

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[Any]

CODERS = ("auto", "ans", "range", "huffman", "zstd")
WAYS = ("raw", "zstd", "constant", "coded", "taps")  # as stored: the place is the number
BATCH_CODERS = ("lanes", "ans", "range", "huffman")  # as stored
CHAIN = 16  # batches that share lanes, at most
MOST_SYMBOLS = 1 << 24  # of a batch
MOST_TABLES = 1 << 11  # of a batch
MOST_TAPPED = 1 << 22  # symbols of a batch with contexts, which take more memory
_SAMPLE = 1 << 16  # symbols that tell whether a stream can be coded at all
_HOPELESS = 7.97  # bits a symbol of the sample from which on it is stored raw
_PROBE = 1 << 15  # bytes on which zstd is tried first
_GAIN = 0.9  # of the entropy's bytes that zstd must undercut on a sample to be tried on all


@dataclass(frozen=True)
class Stream:
    """A stream as it is to be stored. head: small fields; body: its bytes where it is in no batch; size: bytes, about.

    passes: what a batch codes, one behind the other: symbols and, for each, the number of its table among `levels`.
    """

    way: str
    head: bytes
    body: bytes
    size: float
    passes: tuple[tuple[Array, Array], ...] = ()
    levels: Array | None = None

    @property
    def symbols(self) -> int:
        """How many a batch codes."""
        return sum(symbols.size for symbols, _ in self.passes)

    @property
    def tables(self) -> int:
        """How many a batch takes."""
        return 0 if self.levels is None else len(self.levels)


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
    passes = ((matrix.reshape(-1), grid.block_of(0)),)
    return Stream("coded", bytes(head.buffer), b"", bits / 8, passes, tables.levels)


def plan_taps(matrix: Array, taps: int) -> Stream:
    """`matrix` (rows, channels · taps) uint8, each tap in the context of those before it."""
    low = int(matrix.min())
    symbols = int(matrix.max()) - low + 1
    matrix = matrix - np.uint8(low)
    contexts, tilts, numbers, bits = find_contexts(matrix, taps, symbols)
    head = Writer()
    head.number(WAYS.index("taps"))
    head.number(low)
    head.number(symbols)
    contexts.write(head)
    tilts.write(head)
    by_tap = matrix.reshape(-1, taps).T
    passes = tuple((np.ascontiguousarray(tap), number) for tap, number in zip(by_tap, numbers, strict=True))
    # > what is in the index is squeezed with it
    size = bits / 8 + 0.75 * len(head.buffer)
    return Stream("taps", bytes(head.buffer), b"", size, passes, tilts.levels)


@dataclass
class Batch:
    """Streams to be coded together: those of `add` when packing, those that `read_stream` promised when unpacking."""

    levels: list[Array] = field(default_factory=list)
    passes: list[list[tuple[Array, Array]]] = field(default_factory=list)
    promised: list[_Promise] = field(default_factory=list)
    size: float = 0.0
    count: int = 0
    tapped: int = 0

    def add(self, stream: Stream) -> None:
        """Takes a planned stream in."""
        if stream.levels is None:
            return
        first = np.uint16(len(self.levels))
        for number, (symbols, tables) in enumerate(stream.passes):
            if number == len(self.passes):
                self.passes.append([])
            self.passes[number].append((symbols, tables + first))
        self.levels += list(stream.levels)
        self.size += stream.size

    def encode(self, coder: str, state: Array | None) -> tuple[bytes, bytes]:
        """The fields and the bytes of all streams; `state`, where lanes are used, becomes that in which decoding begins."""
        if not self.passes:
            return b"", b""
        passes = [
            (np.concatenate([symbols for symbols, _ in held]), np.concatenate([tables for _, tables in held]))
            for held in self.passes
        ]
        way = "lanes" if state is not None else "ans" if coder == "auto" else coder
        head = Writer()
        head.number(BATCH_CODERS.index(way))
        if state is not None:
            frequencies = _frequencies(self.levels)
            pieces = []
            for symbols, tables in reversed(passes):
                piece, state[:] = lanes.encode(symbols, tables, frequencies, state)
                pieces.append(piece)
            pieces.reverse()
        elif way == "huffman":
            count = huffman.lanes_for(self.size)
            head.number(count.bit_length())
            rows = [weights(row) for row in self.levels]
            pieces = [huffman.encode(symbols, tables, rows, count) for symbols, tables in passes]
        else:
            runs = [run for one in passes for run in _runs(*one)]
            pieces = [coders.encode(way, runs, self.levels)]
        for piece in pieces:
            head.number(len(piece))
        return bytes(head.buffer), b"".join(pieces)

    def expect(self, levels: Array, promise: _Promise) -> None:
        """Takes note of a stream that will be decoded."""
        self.count += promise.size
        self.tapped += promise.size if isinstance(promise.finder, Contexts) else 0
        if (
            self.count > MOST_SYMBOLS
            or self.tapped > MOST_TAPPED
            or len(self.levels) + len(levels) > MOST_TABLES
        ):
            raise damaged("a batch is larger than any")
        promise.first = len(self.levels)
        self.promised.append(promise)
        self.levels += list(levels)

    def decode(self, head: Reader, body: Reader, state: Array | None) -> None:
        """Decodes all streams that are expected. state: of the chain's lanes, where it has any."""
        if not self.promised:
            return
        way = BATCH_CODERS[head.number(len(BATCH_CODERS) - 1)]
        if way == "lanes" and state is None:
            raise damaged("a batch has no lanes")
        count = 1 << head.number(huffman.MOST.bit_length()) >> 1 if way == "huffman" else 1
        if not count:
            raise damaged("a batch has no lanes")
        decode = self._decoder(way, head, body, state, count)
        for number in range(max(promise.passes for promise in self.promised)):
            held = [promise for promise in self.promised if promise.passes > number]
            tables = np.concatenate([promise.tables(number) for promise in held])
            symbols, at = decode(tables), 0
            for promise in held:
                end = at + promise.size // promise.passes
                promise.take(symbols[at:end])
                at = end

    def _decoder(
        self, way: str, head: Reader, body: Reader, state: Array | None, count: int
    ) -> Callable[[Array], Array]:
        """What gives the symbols of the next pass, for the tables of each."""
        if way == "lanes":
            assert state is not None
            lookup = lanes.lookup(_frequencies(self.levels))
            return lambda tables: lanes.decode(body.raw(head.number()), tables, lookup, state)
        if way == "huffman":
            rows = [weights(row) for row in self.levels]
            return lambda tables: huffman.decode(body.raw(head.number()), tables.size, tables, rows, count)
        decoder = coders.Decoder(way, body.raw(head.number()), self.levels)

        def found(tables: Array) -> Array:
            lengths = np.bincount(tables)
            runs = [decoder.run(table, int(lengths[table])) for table in np.flatnonzero(lengths).tolist()]
            symbols = np.empty(tables.size, np.uint8)
            symbols[np.argsort(tables, kind="stable")] = np.concatenate(runs)
            return symbols

        return found


def _runs(symbols: Array, tables: Array) -> list[tuple[int, Array]]:
    """The symbols of each table that has any, in order."""
    order = np.argsort(tables, kind="stable")
    ends = np.bincount(tables).cumsum()
    pieces = np.split(symbols[order], ends[:-1])
    return [(table, piece) for table, piece in enumerate(pieces) if piece.size]


class _Promise:
    """A stream whose symbols will be decoded, all at once or tap by tap. finder: what knows the tables."""

    def __init__(self, finder: Grid | Contexts, rows: int, columns: int) -> None:
        self.finder = finder
        self.size = rows * columns
        self.shape = rows, columns
        self.passes = finder.taps if isinstance(finder, Contexts) else 1
        self.first = 0
        self.taken: list[Array] = []

    @cached_property
    def _before(self) -> tuple[Array, Array]:
        """Magnitudes and values of the taps, as far as they are known."""
        assert isinstance(self.finder, Contexts)
        shape = self.finder.taps, self.finder.kernels
        return np.zeros(shape, np.int32), np.zeros(shape, np.float32)

    def tables(self, number: int) -> Array:
        """The tables of the symbols of a pass."""
        if isinstance(self.finder, Grid):
            return self.finder.block_of(self.first)
        return self.finder.numbers(number, *self._before) + np.uint16(self.first)

    def take(self, symbols: Array) -> None:
        """Takes the symbols of the next pass."""
        if isinstance(self.finder, Contexts):
            sizes, values = self._before
            sizes[len(self.taken)] = self.finder.magnitudes[symbols]
            values[len(self.taken)] = symbols.astype(np.float32) - np.float32(self.finder.center)
        self.taken.append(symbols)

    def matrix(self) -> Array:
        """What was taken, in its place."""
        if len(self.taken) == 1:
            return self.taken[0].reshape(self.shape)
        return np.stack(self.taken, axis=1).reshape(self.shape)


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
    finder: Grid | Contexts
    if way == "taps":
        finder = Contexts.read(head, rows, columns, symbols)
        levels = Tilts.read(head, finder.blocks, symbols).levels
    else:
        finder = Grid.read(head, rows, columns)
        levels = Tables.read(head, finder.blocks, symbols).levels
    promise = _Promise(finder, rows, columns)
    batch.expect(levels, promise)

    def found() -> Array:
        matrix = promise.matrix()
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
