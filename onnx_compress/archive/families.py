"""Streams alike share frequency tables: which table each of their symbols has.

What to expect of a cell is the sum of its classes, of spread and, where zeros are many, of how many there are; both are cut into a few
intervals, and every pair of intervals is a table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.archive.classes import CELLS
from onnx_compress.archive.fields import Reader, Writer, damaged
from onnx_compress.archive.tables import Tables, explicit_bits, fit_tables, is_rough
from onnx_compress.archive.tilts import Tilts, fit_tilts, table_bits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

_ZEROS = 0.1  # weight of a zero
_FINE = ((24,), (6, 24))  # finest intervals: of spread alone, of spread and of odds
_TABLE_BITS = 60  # a table costs, with what it takes to find out that it is another
_FEW = 64  # symbols up to which tables need not have a shape to be one, tilted
# > numbers of families: those of the most bits a symbol come last, where lanes take in what they can
FLAGS, GAPS, VALUES, LEFT, PLANES, DIGITS = 0, 1, 2, 3, 8, 1 << 10
BYTES, RESTS, OWN = 1 << 17, (1 << 17) + 256, 1 << 18  # > from OWN on, families of one stream
CENTER = 128  # the commonest symbol of every stream
_SAMPLE = 1 << 14  # symbols that tell the intervals
_AT_ONCE = 1 << 16  # symbols: what is computed of so many stays in the cache


@dataclass(frozen=True)
class Family:
    """places: for each kind of class the interval of each sum, (CELLS,) uint8; low: the least symbol; levels: of the tables."""

    places: tuple[Array, ...]
    low: int
    levels: Array

    def numbers(self, cells: Sequence[Array]) -> Array:
        """The table of each symbol, uint8."""
        if len(cells) == 1:
            return self.places[0].take(cells[0])
        found = (self.places[0] * np.uint8(int(self.places[1][-1]) + 1)).take(cells[0])
        found += self.places[1].take(cells[1])
        return found

    @classmethod
    def read(cls, head: Reader, kinds: int) -> Family:
        """What `fit` wrote."""
        low, symbols = head.number(255), head.number(256)
        if low + symbols > 256 or symbols < 2:
            raise damaged("a stream has no symbols")
        places, blocks = [], 1
        for number in range(kinds):
            place = np.zeros(CELLS, np.uint8)
            edges = [head.number(CELLS) for _ in range(head.number(_FINE[kinds - 1][number] - 1))]
            for edge in np.cumsum(edges).tolist():
                place[edge:] += 1
            places.append(place)
            blocks *= int(place[-1]) + 1
        known = Tilts if head.number(1) else Tables
        return cls(tuple(places), low, known.read(head, blocks, symbols).levels)


def fit(symbols: Array, cells: Sequence[Array]) -> tuple[Family, bytes, Array]:
    """The family of `symbols` (n,) uint8 whose sums of classes are `cells`, its fields, and the table of each symbol."""
    low, high = int(symbols.min()), int(symbols.max())
    count = high - low + 1
    step = max(1, symbols.size // _SAMPLE)
    # > where zeros are many, what there is to tell is where the others are
    weight = (symbols[::step] != CENTER) + _ZEROS if len(cells) > 1 else None
    fine = [
        _even(cell[::step], most, weight) for cell, most in zip(cells, _FINE[len(cells) - 1], strict=True)
    ]
    number = fine[0].take(cells[0])
    for place, cell in zip(fine[1:], cells[1:], strict=True):
        number = number * np.uint8(int(place[-1]) + 1) + place.take(cell)
    shape = [int(place[-1]) + 1 for place in fine]
    counts = np.zeros(256 * math.prod(shape), np.int64)
    for start in range(0, symbols.size, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        keys = number[part].astype(np.uint16) << np.uint16(8)
        keys |= symbols[part]
        counts += np.bincount(keys, minlength=counts.size)
    table = counts.reshape(*shape, 256)[..., low : high + 1]
    rough = count > _FEW and is_rough(table.reshape(-1, count).sum(axis=0))
    places, merged = _joined(table, fine, explicit_bits(count) if rough else _TABLE_BITS)
    head = Writer()
    head.number(low)
    head.number(count)
    for place in places:
        edges = np.flatnonzero(np.diff(place)) + 1
        head.number(edges.size)
        for step in np.diff(edges, prepend=0).tolist():
            head.number(step)
    levels = _fitted(merged.reshape(-1, count), head, tilted=len(cells) > 1 or count <= _FEW)
    family = Family(tuple(places), low, levels)
    return family, bytes(head.buffer), family.numbers(cells)


def _joined(table: Array, fine: list[Array], cost: int) -> tuple[list[Array], Array]:
    """Intervals of each kind of class and their counts: neighbours are joined while that costs less than `cost` bits a table."""
    places = list(fine)
    while True:
        best: tuple[float, int, Array] | None = None
        for axis in range(len(places)):
            if table.shape[axis] > 1:
                saved = cost * (table[..., 0].size // table.shape[axis])
                loss = _losses(np.moveaxis(table, axis, 0)) - saved
                least = float(loss.min())
                if best is None or least < best[0]:
                    best = least, axis, loss
        if best is None or best[0] > 0:
            return places, table
        _, axis, loss = best
        # > all pairs that lose less than those beside them, at once: none has a neighbour in common
        before, after = np.append(np.inf, loss[:-1]), np.append(loss[1:], np.inf)
        starts = np.append(True, (loss > 0) | (loss >= before) | (loss > after))
        table = np.add.reduceat(table, np.flatnonzero(starts), axis=axis)
        places[axis] = (starts.cumsum() - 1).astype(np.uint8)[places[axis]]


def _losses(table: Array) -> Array:
    """Bits lost where neighbours along the first axis are joined."""
    alone = _entropies(table)
    both = _entropies(table[1:] + table[:-1]) - alone[1:] - alone[:-1]
    return both.reshape(len(both), -1).sum(axis=1)


def _entropies(counts: Array) -> Array:
    """Bits of symbols that occur so often, for each table."""
    total = counts.sum(axis=-1)
    found: Array = total * _logarithm(total) - (counts * _logarithm(counts)).sum(axis=-1)
    return found


def _fitted(counts: Array, head: Writer, *, tilted: bool) -> Array:
    """The levels of tables, which go to `head`; where they may be tilted, those of the cheaper kind."""
    tables, bits = fit_tables(counts)
    found: tuple[float, int, Tables | Tilts] = (bits, 0, tables)
    if tilted and len(counts) > 1:
        tilts = fit_tilts(counts)
        trial = Writer()
        tilts.write(trial)
        found = min(
            found,
            (table_bits(counts, tilts.levels) + 6.0 * len(trial.buffer), 1, tilts),
            key=lambda one: one[0],
        )
    head.number(found[1])
    found[2].write(head)
    return found[2].levels


def _even(cells: Array, most: int, weight: Array | None) -> Array:
    """The interval of each sum, so that equally many symbols are in each, or so, and none is empty: (CELLS,) uint8."""
    counts = np.bincount(cells, weight, minlength=CELLS)
    used = np.flatnonzero(counts)
    if used.size > most:
        before = counts.cumsum() - counts / 2
        used = np.searchsorted(before * (most / counts.sum()), np.arange(most))
        used = np.unique(used[used < CELLS])
    # > what is below the first is in its interval
    return np.maximum(np.searchsorted(used, np.arange(CELLS), side="right") - 1, 0).astype(np.uint8)


def _logarithm(numbers: Array) -> Array:
    return np.log2(np.maximum(numbers, 1))
