"""What a batch holds, promised stream by stream, and then decoded: the counterpart of `batches`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from onnx_compress.archive import coders, families, huffman, lanes
from onnx_compress.archive.batches import (
    BATCH_CODERS,
    MOST_FAMILIES,
    MOST_SYMBOLS,
    MOST_TAPPED,
    Key,
    frequencies,
)
from onnx_compress.archive.contexts import BLOCK, Contexts
from onnx_compress.archive.families import CENTER
from onnx_compress.archive.fields import Reader, damaged
from onnx_compress.archive.tables import weights
from onnx_compress.archive.tilts import Tilts

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from onnx_compress.archive.classes import Classes

    Array = NDArray[Any]


@dataclass
class Pending:
    """The streams of a batch that will be decoded."""

    promised: dict[Key, list[Promise]] = field(default_factory=dict)
    count: int = 0
    tapped: int = 0

    def expect(self, key: Key, promise: Promise) -> None:
        """Takes note of a stream that will be decoded."""
        self.count += promise.size
        self.tapped += promise.size if key[2] else 0
        self.promised.setdefault(key, []).append(promise)
        if self.count > MOST_SYMBOLS or self.tapped > MOST_TAPPED or len(self.promised) > MOST_FAMILIES:
            raise damaged("a batch is larger than any")

    def decode(self, head: Reader, body: Reader, state: Array | None, room: tuple[int, int]) -> None:
        """Decodes all streams that are expected. state: of the chain's lanes, where it has any.

        room: from where to where the bytes that lanes take in are symbols, the last of all.
        """
        if not self.promised:
            return
        levels: list[Array] = []
        held: list[_Expected] = []
        for key, promises in sorted(self.promised.items()):
            known = _ContextsExpected if key[2] else _PlainExpected
            held.append(known(head, key, promises, len(levels)))
            levels += list(held[-1].levels)
        way = BATCH_CODERS[head.number(len(BATCH_CODERS) - 1)]
        if way == "lanes" and state is None:
            raise damaged("a batch has no lanes")
        count = 1 << head.number(huffman.MOST.bit_length()) >> 1 if way == "huffman" else 1
        if not count:
            raise damaged("a batch has no lanes")
        decode = _decoder(way, head, body, levels, state, count)
        last = max(one.passes for one in held) - 1
        for number in range(last + 1):
            active = [one for one in held if one.passes > number]
            ends = np.cumsum([one.count(number) for one in active]).tolist()
            every = np.empty(ends[-1], np.uint16)
            parts = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
            for one, part in zip(active, parts, strict=True):
                one.tables(number, every[part])
            if number == last and state is not None and room[1] > room[0]:
                kept = max(every.size - (room[1] - room[0]), 0)
                symbols = decode(every[:kept])
                cut = lanes.spared(state)[room[0] :][: every.size - kept]
                symbols = np.concatenate([symbols, cut])
            else:
                symbols = decode(every)
            for one, part in zip(active, parts, strict=True):
                one.take(symbols[part])


class _Expected(Protocol):
    """A family that is being decoded."""

    levels: Array
    passes: int

    def count(self, number: int, /) -> int:
        """Symbols of a pass."""

    def tables(self, number: int, out: Array, /) -> None:
        """Fills in the tables of the symbols of a pass."""

    def take(self, symbols: Array) -> None:
        """Takes the symbols of the next pass."""


class _PlainExpected:
    """All streams of a family, at once."""

    def __init__(self, head: Reader, key: Key, promises: list[Promise], first: int) -> None:
        self._family = families.Family.read(head, key[1])
        self._promises, self._first = promises, first
        self.levels, self.passes = self._family.levels, 1

    def count(self, _: int, /) -> int:
        return sum(promise.size for promise in self._promises)

    def tables(self, _: int, out: Array, /) -> None:
        at = 0
        for promise in self._promises:
            cells = [one.cells() for one in promise.classes]
            np.add(self._family.numbers(cells), np.uint16(self._first), out[at : at + promise.size])
            at += promise.size

    def take(self, symbols: Array) -> None:
        at = 0
        for promise in self._promises:
            promise.symbols = symbols[at : at + promise.size]
            promise.low = self._family.low
            at += promise.size


class _ContextsExpected:
    """All streams of a family, block by block, tap by tap."""

    def __init__(self, head: Reader, key: Key, promises: list[Promise], first: int) -> None:
        self._taps = key[2]
        shapes = [(rows, columns // self._taps) for rows, columns in (promise.shape for promise in promises)]
        self._low = head.number(255)
        self._contexts = Contexts.read(head, shapes, self._taps)
        if self._low + self._contexts.symbols > 256:
            raise damaged("a stream has no symbols")
        self.levels = Tilts.read(head, self._contexts.blocks, self._contexts.symbols).levels
        self._promises, self._first = promises, first
        self._count = self._contexts.kernels.count
        self.passes = self._taps * -(-self._count // BLOCK)
        self._taken = 0

    @cached_property
    def _plain(self) -> Array:
        return self._contexts.kernels.plain()

    @cached_property
    def _flat(self) -> Array:
        return np.empty((self._count, self._taps), np.uint8)

    @cached_property
    def _before(self) -> tuple[Array, Array]:
        """Magnitudes and values of a block's taps, as far as they are known."""
        count = min(self._count, BLOCK)
        return np.empty((1 + self._taps, count), np.float32), np.empty((self._taps, count), np.float32)

    def _place(self, number: int) -> tuple[slice, int, Array, Array]:
        """The kernels of a pass, its tap, and what is known of the taps before it."""
        block, tap = divmod(number, self._taps)
        part = slice(block * BLOCK, min((block + 1) * BLOCK, self._count))
        sizes, values = (known[:, : part.stop - part.start] for known in self._before)
        return part, tap, sizes, values

    def count(self, number: int, /) -> int:
        part = self._place(number)[0]
        return part.stop - part.start

    def tables(self, number: int, out: Array, /) -> None:
        part, tap, sizes, values = self._place(number)
        if not tap:
            sizes[0] = self._plain[part]
        found = self._contexts.numbers(*self._contexts.expected(sizes, values, tap))
        np.add(found, np.uint16(self._first), out)

    def take(self, symbols: Array) -> None:
        part, tap, sizes, values = self._place(self._taken)
        self._contexts.magnitudes.take(symbols, None, sizes[1 + tap], "clip")
        np.subtract(symbols, np.float32(self._contexts.center), values[tap])
        self._flat[part, tap] = symbols
        self._taken += 1
        at = 0
        for promise in self._promises if self._taken == self.passes else []:
            count = promise.size // self._taps
            promise.symbols, promise.low = self._flat[at : at + count], self._low
            at += count


class Promise:
    """A stream whose symbols will be decoded. classes: of a plain family's."""

    def __init__(self, shape: tuple[int, int], center: int, classes: tuple[Classes, ...] = ()) -> None:
        self.shape, self.center, self.classes = shape, center, classes
        self.size = shape[0] * shape[1]
        self.symbols: Array | None = None
        self.low = 0

    def matrix(self) -> Array:
        """What was decoded, in its place."""
        assert self.symbols is not None
        shift = (self.low + self.center - CENTER) & 0xFF
        found = self.symbols + np.uint8(shift) if shift else self.symbols
        return found.reshape(self.shape)


def _decoder(
    way: str, head: Reader, body: Reader, levels: list[Array], state: Array | None, count: int
) -> Callable[[Array], Array]:
    """What gives the symbols of the next pass, for the tables of each."""
    if way == "lanes":
        assert state is not None
        lookup = lanes.lookup(frequencies(levels))
        return lambda tables: lanes.decode(body.raw(head.number()), tables, lookup, state)
    if way == "huffman":
        rows = [weights(row) for row in levels]
        return lambda tables: huffman.decode(body.raw(head.number()), tables.size, tables, rows, count)
    decoder = coders.Decoder(way, body.raw(head.number()), levels)

    def found(tables: Array) -> Array:
        lengths = np.bincount(tables)
        runs = [decoder.run(table, int(lengths[table])) for table in np.flatnonzero(lengths).tolist()]
        symbols = np.empty(tables.size, np.uint8)
        symbols[np.argsort(tables, kind="stable")] = np.concatenate(runs)
        return symbols

    return found
