"""Streams of symbols, coded together: those of a family by the same tables.

Small weights so share what tables take, what a coder costs to start and to end, and the speed of many lanes. What is coded in contexts
goes in passes: the first of all families, then the second, each knowing what was decoded before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.archive import coders, families, huffman, lanes
from onnx_compress.archive.contexts import BLOCK, find_contexts
from onnx_compress.archive.families import CENTER
from onnx_compress.archive.fields import Writer
from onnx_compress.archive.tables import ABSENT, weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.archive.classes import Classes

    Array = NDArray[Any]

BATCH_CODERS = ("lanes", "ans", "range", "huffman")  # as stored
CHAIN = 16  # batches that share lanes, at most
MOST_BYTES = 1 << 22  # of a batch, if it is more than a chunk
MOST_SYMBOLS = 1 << 24  # of a batch
MOST_FAMILIES = 64  # of a batch
MOST_TAPPED = 1 << 22  # symbols of a batch with contexts, which take more memory
Key = tuple[int, int, int]  # of a family: number, kinds of classes (0: contexts), taps (0: not in contexts)


@dataclass(frozen=True)
class Stream:
    """A stream as it is to be stored. head: small fields; body: its bytes where it is in no batch; size: bytes, about.

    symbols: what a batch codes, tap by tap where it is in contexts; key: of its family; shape: (rows, channels).
    """

    way: str
    head: bytes
    body: bytes
    size: float
    key: Key | None = None
    symbols: Array | None = None
    classes: tuple[Classes, ...] = ()
    shape: tuple[int, int] = (0, 0)

    @property
    def count(self) -> int:
        """Symbols that a batch codes."""
        return 0 if self.symbols is None else self.symbols.size


@dataclass(frozen=True)
class _Coded:
    """A family as a batch codes it.

    passes: symbols and, for each, the number of its table among `levels`; block: so many of every pass go before the next ones.
    """

    head: bytes
    passes: list[tuple[Array, Array]]
    levels: Array
    block: int = MOST_SYMBOLS

    def blocks(self) -> list[tuple[Array, Array]]:
        """The passes as they are coded."""
        starts = range(0, self.passes[0][0].size, self.block)
        parts = [slice(start, start + self.block) for start in starts]
        return [(symbols[part], tables[part]) for part in parts for symbols, tables in self.passes]

    def sizes(self, streams: list[Stream]) -> list[float]:
        """Bytes of each stream by these tables."""
        found = weights(self.levels)
        bits = np.log2(np.maximum(found.sum(axis=1, keepdims=True), 1) / np.maximum(found, 1))
        starts = np.cumsum([0, *(stream.count // len(self.passes) for stream in streams[:-1])])
        total = np.zeros(len(streams))
        for symbols, tables in self.passes:
            total += np.add.reduceat(bits[tables, symbols], starts)
        found_sizes: list[float] = (total / 8).tolist()
        return found_sizes


def _plain_family(streams: list[Stream], kinds: int) -> _Coded:
    symbols = np.concatenate([stream.symbols for stream in streams if stream.symbols is not None])
    cells = [np.concatenate([stream.classes[kind].cells() for stream in streams]) for kind in range(kinds)]
    family, head, numbers = families.fit(symbols, cells)
    return _Coded(head, [(symbols - np.uint8(family.low), numbers)], family.levels)


def _family_in_contexts(streams: list[Stream]) -> _Coded:
    by_tap = np.concatenate([stream.symbols for stream in streams if stream.symbols is not None], axis=1)
    low = int(by_tap.min())
    by_tap = by_tap - np.uint8(low)
    contexts, tilts, numbers = find_contexts(by_tap, [stream.shape for stream in streams], CENTER - low)
    head = Writer()
    head.number(low)
    contexts.write(head)
    tilts.write(head)
    return _Coded(bytes(head.buffer), list(zip(by_tap, numbers, strict=True)), tilts.levels, BLOCK)


@dataclass
class Batch:
    """Streams to be coded together."""

    held: dict[Key, list[Stream]] = field(default_factory=dict)

    def add(self, stream: Stream) -> None:
        """Takes a planned stream in."""
        if stream.key is not None:
            self.held.setdefault(stream.key, []).append(stream)

    @property
    def size(self) -> float:
        """Bytes, about."""
        return sum(stream.size for streams in self.held.values() for stream in streams)

    def fit(self, *, measure: bool = False) -> _Fitted:
        """Finds the tables of all streams; measure: and what each stream will take by them."""
        sizes: dict[int, float] = {}
        head = Writer()
        levels: list[Array] = []
        passes: list[list[tuple[Array, Array]]] = []
        for (_, kinds, taps), streams in sorted(self.held.items()):
            coded = _family_in_contexts(streams) if taps else _plain_family(streams, kinds)
            head.raw(coded.head)
            first = np.uint16(len(levels))
            for number, (symbols, tables) in enumerate(coded.blocks()):
                if number == len(passes):
                    passes.append([])
                passes[number].append((symbols, tables + first))
            levels += list(coded.levels)
            if measure:
                sizes |= {
                    id(stream): size for stream, size in zip(streams, coded.sizes(streams), strict=True)
                }
        whole = [
            (np.concatenate([symbols for symbols, _ in one]), np.concatenate([tables for _, tables in one]))
            for one in passes
        ]
        return _Fitted(bytes(head.buffer), whole, levels, self.size, sizes)


@dataclass
class _Fitted:
    """A batch whose tables are known. size: bytes, about; sizes: of each stream, by its id, where they were measured."""

    head: bytes
    passes: list[tuple[Array, Array]]
    levels: list[Array]
    size: float
    sizes: dict[int, float]

    def cut(self, count: int) -> bytes:
        """The last `count` symbols, if the last pass has as many, which are then no longer to be coded."""
        if not self.passes or not count:
            return b""
        symbols, tables = self.passes[-1]
        kept = max(symbols.size - count, 0)
        self.passes[-1] = symbols[:kept], tables[:kept]
        return symbols[kept:].tobytes()

    def encode(self, coder: str, state: Array | None) -> tuple[bytes, bytes]:
        """The fields and the bytes of all streams; `state`, where lanes are used, becomes that in which decoding begins."""
        if not self.passes:
            return b"", b""
        head = Writer()
        head.raw(self.head)
        way = "lanes" if state is not None else "ans" if coder == "auto" else coder
        head.number(BATCH_CODERS.index(way))
        if state is not None:
            slots = frequencies(self.levels)
            pieces = []
            for symbols, tables in reversed(self.passes):
                piece, state[:] = lanes.encode(symbols, tables, slots, state)
                pieces.append(piece)
            pieces.reverse()
        elif way == "huffman":
            count = huffman.lanes_for(self.size)
            head.number(count.bit_length())
            rows = [weights(row) for row in self.levels]
            pieces = [huffman.encode(symbols, tables, rows, count) for symbols, tables in self.passes]
        else:
            runs = [run for one in self.passes for run in _runs(*one)]
            pieces = [coders.encode(way, runs, self.levels)]
        for piece in pieces:
            head.number(len(piece))
        return bytes(head.buffer), b"".join(pieces)


def _runs(symbols: Array, tables: Array) -> list[tuple[int, Array]]:
    """The symbols of each table that has any, in order."""
    order = np.argsort(tables, kind="stable")
    ends = np.bincount(tables).cumsum()
    pieces = np.split(symbols[order], ends[:-1])
    return [(table, piece) for table, piece in enumerate(pieces) if piece.size]


def frequencies(levels: list[Array]) -> Array:
    """What lanes take of tables: (tables, symbols)."""
    found = np.full((len(levels), lanes.SYMBOLS), ABSENT, np.uint8)
    for row, level in zip(found, levels, strict=True):
        row[: level.size] = level
    return lanes.frequencies(weights(found))
