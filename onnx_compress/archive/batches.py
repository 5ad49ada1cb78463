"""Streams of symbols, each with its own tables, coded together.

Small weights so share what a coder costs to start and to end, and all of them the speed of many lanes. What is coded in contexts
goes in passes: the first of all streams, then the second, each knowing what was decoded before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.archive import coders, huffman, lanes
from onnx_compress.archive.contexts import Contexts
from onnx_compress.archive.fields import Reader, Writer, damaged
from onnx_compress.archive.tables import weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from onnx_compress.archive.grids import Grid

    Array = NDArray[Any]

BATCH_CODERS = ("lanes", "ans", "range", "huffman")  # as stored
CHAIN = 16  # batches that share lanes, at most
MOST_SYMBOLS = 1 << 24  # of a batch
MOST_TABLES = 1 << 11  # of a batch
MOST_TAPPED = 1 << 22  # symbols of a batch with contexts, which take more memory


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


@dataclass
class Batch:
    """Streams to be coded together: those of `add` when packing, those that `read_stream` promised when unpacking."""

    levels: list[Array] = field(default_factory=list)
    passes: list[list[tuple[Array, Array]]] = field(default_factory=list)
    promised: list[Promise] = field(default_factory=list)
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

    def expect(self, levels: Array, promise: Promise) -> None:
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


class Promise:
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
        if not isinstance(self.finder, Contexts):
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


def _frequencies(levels: list[Array]) -> Array:
    found = np.zeros((len(levels), lanes.SYMBOLS), np.int64)
    for row, level in zip(found, levels, strict=True):
        row[: level.size] = weights(level)
    return lanes.frequencies(found)
