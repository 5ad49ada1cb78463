"""The taps of convolutions' kernels, each in the context of those before it in its kernel.

What is small, or zero, has small neighbours; so have rows and channels. The magnitude of a tap is foretold, by least squares, from its
row's and its channel's, and from those before it in the kernel; its value, where that pays, from theirs. Both
are cut into a few intervals, and every pair of intervals has a frequency table. A pass codes one tap of all kernels, so that what
it looks back at is decoded when it is decoded itself. As in context-adaptive coders (DeepCABAC, Wiedemann 2020, arXiv:1907.11900),
but with tables that are stored, and whole arrays at a time. Integers throughout, so every machine finds the same contexts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.archive.classes import pack_classes, unpack_classes
from onnx_compress.archive.factors import pack_factors, regression, unpack_factors
from onnx_compress.archive.fields import damaged
from onnx_compress.archive.tilts import Tilts, fit_tilts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onnx_compress.archive.fields import Reader, Writer

    Array = NDArray[Any]

MOST_TAPS = 64
_CLASSES = 8  # of rows, and of channels
_SPREADS, _MEANS = 16, 8  # finest intervals of magnitude and of value
_CONTEXT_BITS = 45  # a table costs, with what it takes to find out that it is another
_POWERS = np.array([round(64 * 2 ** ((i - 8) / 2.5)) for i in range(2 * _CLASSES - 1)], np.int32)  # 64ths
_FEW = 40  # symbols up to which magnitude is distance; above, 16 times its logarithm
_COARSE, _FINE = 7, 2  # bits of a magnitude, and of a value, in 64ths of its unit that make no difference
_OFFSET = 1 << 13  # edges are between minus this and this
_SAMPLE = 1 << 12  # kernels
_AT_ONCE = 1 << 14  # symbols: what is computed of so many stays in the cache
BLOCK = 1 << 15  # kernels that are coded one tap after the other, before the next so many are
_MOST_MEAN = 1 << 12
_MOST_PLAIN = 1023  # > with sizes of 10 bits and values of 9, factors of 8 and 64 taps sums stay below 2^24
_CHOICES = ((16, 1), (8, 1), (4, 1), (2, 1), (8, 4), (4, 4), (4, 8), (2, 8), (1, 8), (8, 8))


@dataclass(frozen=True)
class Kernels:
    """What the magnitudes of taps are like in tensors one behind the other, by the classes of rows and channels.

    shapes: (rows, channels) of each tensor; means: (tensors,) of the magnitudes; rows, channels: classes.
    """

    shapes: Sequence[tuple[int, int]]
    means: Array
    rows: Array
    channels: Array

    @cached_property
    def count(self) -> int:
        """How many kernels."""
        return sum(rows * channels for rows, channels in self.shapes)

    def plain(self) -> Array:
        """What row and channel foretell of the magnitude, in halves: (kernels,) float32."""
        row = channel = 0
        cells = np.empty(self.count, np.uint8)
        means = np.empty(self.count, np.int32)
        at = 0
        for (rows, channels), mean in zip(self.shapes, self.means.tolist(), strict=True):
            end = at + rows * channels
            here = self.rows[row : row + rows, np.newaxis], self.channels[channel : channel + channels]
            np.add(*here, out=cells[at:end].reshape(rows, channels))
            means[at:end] = mean
            at, row, channel = end, row + rows, channel + channels
        found = (_POWERS.take(cells) * means) >> 5
        return np.minimum(found, _MOST_PLAIN).astype(np.float32)

    def write(self, head: Writer) -> None:
        """As `read` reads it."""
        for mean in self.means.tolist():
            head.number(mean)
        head.raw(pack_classes(self.rows, _CLASSES))
        head.raw(pack_classes(self.channels, _CLASSES))

    @classmethod
    def read(cls, head: Reader, shapes: Sequence[tuple[int, int]]) -> Kernels:
        """What `write` wrote."""
        means = np.array([head.number(_MOST_MEAN) for _ in shapes], np.int64)
        lengths = [sum(shape[axis] for shape in shapes) for axis in (0, 1)]
        return cls(shapes, means, *(unpack_classes(head, length, _CLASSES) for length in lengths))


@dataclass(frozen=True)
class Contexts:
    """How contexts are found.

    weights: (taps, 1 + taps) 64ths, of what each tap's magnitude is foretold from: what its row and channel say, and the taps before it;
    factors: (taps, taps) 64ths, of the value, or None; spreads, means: where the intervals begin.
    """

    symbols: int
    center: int
    kernels: Kernels
    weights: Array
    factors: Array | None
    spreads: Array
    means: Array

    @property
    def taps(self) -> int:
        """Of a kernel."""
        return len(self.weights)

    @property
    def blocks(self) -> int:
        """Tables."""
        return (self.spreads.size + 1) * (self.means.size + 1)

    @cached_property
    def magnitudes(self) -> Array:
        """The magnitude of each symbol: (symbols,) float32."""
        return magnitudes(self.symbols, self.center)

    @cached_property
    def _floats(self) -> tuple[Array, Array]:
        taps = len(self.weights)
        factors = np.zeros((taps, taps)) if self.factors is None else self.factors
        return self.weights.astype(np.float32), factors.astype(np.float32)

    @cached_property
    def _spread(self) -> Array:
        return _places(self.spreads, 0) * np.uint16(self.means.size + 1)

    @cached_property
    def _mean(self) -> Array:
        return _places(self.means, _OFFSET)

    def expected(self, sizes: Array, values: Array, tap: int | None = None) -> tuple[Array, Array]:
        """The magnitude that those before it foretell of each tap, and its value, coarsely: (taps, kernels) whole; or of one `tap`.

        sizes: (1 + taps, kernels), the first what `Kernels.plain` gives, then the magnitudes of the taps; values: (taps, kernels) of these.
        """
        weights, factors = self._floats
        if tap is None:
            found = weights @ sizes, factors @ values
        else:
            found = weights[tap, : 1 + tap] @ sizes[: 1 + tap], factors[tap, :tap] @ values[:tap]
        # > sums of products of small integers: exact in float32 below 2^24, in whatever order
        total, foretold = (part.astype(np.int32) for part in found)
        total >>= _COARSE
        foretold >>= _FINE
        return total, foretold

    def numbers(self, total: Array, foretold: Array) -> Array:
        """Which table each symbol has, where this is expected of it: uint16."""
        found: Array = self._spread.take(total, mode="clip")
        if self.means.size:
            foretold += _OFFSET
            found += self._mean.take(foretold, mode="clip")
        return found

    def write(self, head: Writer) -> None:
        """As `read` reads it."""
        self.kernels.write(head)
        head.number(self.symbols)
        head.number(self.center)
        head.raw(pack_factors(self.weights, 1))
        head.number(int(self.factors is not None))
        if self.factors is not None:
            head.raw(pack_factors(self.factors, 0))
        for edges in (self.spreads, self.means):
            head.number(edges.size)
            for number in np.diff(edges, prepend=-_OFFSET).tolist():
                head.number(int(number))

    @classmethod
    def read(cls, head: Reader, shapes: Sequence[tuple[int, int]], taps: int) -> Contexts:
        """What `write` wrote, for tensors of these shapes. Raises InputError where it cannot be."""
        kernels = Kernels.read(head, shapes)
        symbols = head.number(256)
        if symbols < 2:
            raise damaged("a stream has no symbols")
        center = head.number(symbols - 1)
        weights = unpack_factors(head, taps, 1)
        factors = unpack_factors(head, taps, 0) if head.number(1) else None
        edges = [
            np.array([head.number(2 * _OFFSET) for _ in range(head.number(most - 1))], np.int64).cumsum()
            - _OFFSET
            for most in (_SPREADS, _MEANS)
        ]
        if edges[1].size and factors is None:
            raise damaged("values are foretold from nothing")
        return cls(symbols, center, kernels, weights, factors, edges[0], edges[1])


def _places(edges: Array, offset: int) -> Array:
    """For every whole number from minus `offset` on in which interval it is: uint16."""
    ends = np.minimum(np.array([-offset, *edges, _OFFSET + 1]), _OFFSET + 1)
    return np.arange(edges.size + 1, dtype=np.uint16).repeat(np.diff(ends))


def magnitudes(symbols: int, center: int) -> Array:
    """The magnitude of each symbol: (symbols,) float32; of few its distance, of many that distance's logarithm."""
    away = np.abs(np.arange(symbols, dtype=np.int32) - np.int32(center))
    found = 16 * away if symbols <= _FEW else np.floor(16 * np.log2(1 + away) + 0.5)
    return found.astype(np.float32)


def find_contexts(
    by_tap: Array, shapes: Sequence[tuple[int, int]], center: int
) -> tuple[Contexts, Tilts, Array]:
    """Contexts of `by_tap` (taps, kernels) uint8, their tables, and the table of each symbol, alike.

    shapes: (rows, channels) of each tensor, whose kernels stand one behind the other; center: the symbol of magnitude 0.
    """
    taps, symbols = len(by_tap), int(by_tap.max()) + 1
    known = magnitudes(symbols, center)
    kernels = _kernels(by_tap, known, shapes)
    plain = kernels.plain()
    step = max(1, by_tap.shape[1] // _SAMPLE)
    sizes, values = _before(by_tap[:, ::step], known, center, plain[::step])
    finest = Contexts(
        symbols, center, kernels, regression(sizes)[1:], regression(values), *[np.empty(0, np.int64)] * 2
    )
    total, foretold = finest.expected(sizes, values)
    finest = replace(finest, spreads=_edges(total, _SPREADS, 1), means=_edges(foretold, _MEANS, 1 - _OFFSET))
    few = _counted(finest.numbers(total, foretold), by_tap[:, ::step], finest.blocks)[:, :symbols]
    high, wide = _best_choice(step * few.reshape(_SPREADS, _MEANS, symbols), center, taps)
    tall, broad = _SPREADS // high, _MEANS // wide
    chosen = replace(
        finest,
        factors=finest.factors if wide > 1 else None,
        spreads=finest.spreads[tall - 1 :: tall][: high - 1],
        means=finest.means[broad - 1 :: broad][: wide - 1],
    )
    numbers = np.empty(by_tap.shape, np.uint16)
    counts = np.zeros((chosen.blocks, 256), np.int64)
    many = max(1, _AT_ONCE // taps)
    for start in range(0, by_tap.shape[1], many):
        part = slice(start, start + many)
        here = by_tap[:, part]
        found = chosen.numbers(*chosen.expected(*_before(here, known, center, plain[part])))
        counts += _counted(found, here, chosen.blocks)
        numbers[:, part] = found
    return chosen, fit_tilts(counts[:, :symbols]), numbers


def _counted(numbers: Array, symbols: Array, blocks: int) -> Array:
    """How often each symbol has each of the tables: (blocks, 256)."""
    keys = numbers.astype(np.intp)
    keys <<= 8
    keys |= symbols
    return np.bincount(keys.reshape(-1), minlength=256 * blocks).reshape(blocks, 256)


def _before(by_tap: Array, known: Array, center: int, plain: Array) -> tuple[Array, Array]:
    """Of symbols (taps, kernels), whose magnitudes are `known`: what `Contexts.expected` takes."""
    sizes = np.empty((1 + len(by_tap), by_tap.shape[1]), np.float32)
    sizes[0] = plain
    known.take(by_tap, None, sizes[1:], "clip")
    return sizes, by_tap - np.float32(center)


def _kernels(by_tap: Array, known: Array, shapes: Sequence[tuple[int, int]]) -> Kernels:
    """The classes of rows and channels of tensors of these shapes, by the magnitudes of their symbols (taps, kernels)."""
    sums = np.zeros(by_tap.shape[1], np.float32)
    for symbols in by_tap:
        sums += known.take(symbols)
    ends = np.cumsum([rows * channels for rows, channels in shapes])[:-1]
    parts = [part.reshape(shape) for part, shape in zip(np.split(sums, ends), shapes, strict=True)]
    size = np.array(shapes, np.int64)
    by_row = np.concatenate([part.sum(axis=1) for part in parts])
    by_channel = np.concatenate([part.sum(axis=0) for part in parts])
    whole = np.add.reduceat(by_row, np.cumsum([0, *size[:-1, 0].tolist()])) + np.float32(1e-9)
    rows, channels = (
        _levels(found * np.repeat(size[:, axis] / whole, size[:, axis]))
        for axis, found in enumerate((by_row, by_channel))
    )
    means = np.rint(whole / (len(by_tap) * size.prod(axis=1)))
    return Kernels(shapes, np.maximum(means, 1).astype(np.int64), rows, channels)


def _levels(ratios: Array) -> Array:
    """The class of each row or channel, by its mean magnitude over that of all."""
    logarithms = np.log2(np.maximum(ratios, 1e-3))
    return np.clip(np.rint(2.5 * logarithms) + _CLASSES // 2, 0, _CLASSES - 1).astype(np.uint8)


def _edges(numbers: Array, count: int, least: int) -> Array:
    """Whole numbers from `least` on between which there are equally many `numbers`, or so."""
    sample = np.sort(numbers.reshape(-1))
    return np.clip(sample[sample.size * np.arange(1, count) // count], least, _OFFSET).astype(np.int64)


def _best_choice(table: Array, center: int, taps: int) -> tuple[int, int]:
    """How many intervals of magnitude and of value take the fewest bits, by entropies; large alphabets coarsely."""
    symbols = table.shape[2]
    if symbols > _FEW:
        away = np.arange(symbols) - center
        coarse = np.sign(away) * np.rint(2 * np.log2(1 + np.abs(away))).astype(np.int64)
        classes = np.unique(coarse, return_inverse=True)[1]
        table = np.stack(
            [table[..., classes == i].sum(axis=-1) for i in range(int(classes.max()) + 1)], axis=-1
        )

    def bits(high: int, wide: int) -> float:
        merged = table.reshape(high, _SPREADS // high, wide, _MEANS // wide, -1).sum(axis=(1, 3))
        total = merged.sum(axis=-1, keepdims=True)
        shares = np.log2(np.maximum(total, 1) / np.maximum(merged, 1))
        extra = _CONTEXT_BITS * high * wide + (4 * taps * (taps - 1) if wide > 1 else 0)
        return float((merged * shares).sum()) + extra

    return min(_CHOICES, key=lambda choice: bits(*choice))
