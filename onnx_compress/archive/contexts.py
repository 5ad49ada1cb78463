"""The taps of convolutions' kernels, each in the context of those before it in its kernel.

What is small, or zero, has small neighbours; so have rows and channels. The magnitude of a tap is foretold from its row's, its
channel's and its tap's, and from those before it in the kernel; its value, where that pays, by least squares from theirs. Both
are cut into a few intervals, and every pair of intervals has a frequency table. A pass codes one tap of all kernels, so that what
it looks back at is decoded when it is decoded itself. As in context-adaptive coders (DeepCABAC, Wiedemann 2020, arXiv:1907.11900),
but with tables that are stored, and whole arrays at a time. Integers throughout, so every machine finds the same contexts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.archive.classes import pack_classes, unpack_classes
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
_STEPS = np.array([round(64 * 2 ** ((i - 4) / 2.5)) for i in range(_CLASSES)], np.int32)  # 64ths
_FEW = 40  # symbols up to which magnitude is distance; above, 16 times its logarithm
_COARSE = 8  # bits of a magnitude in 64ths of its unit that make no difference
_OFFSET = 1 << 13  # edges are above minus this
_CHOICES = ((16, 1), (8, 1), (4, 1), (2, 1), (8, 4), (4, 4), (4, 8), (2, 8), (1, 8), (8, 8))


@dataclass(frozen=True)
class Kernels:
    """What the magnitudes of one tensor's taps are like. rows, channels: classes; gains: (taps,) 64ths; mean: of the magnitude."""

    rows: Array
    channels: Array
    gains: Array
    mean: int

    @property
    def count(self) -> int:
        """How many kernels."""
        return int(self.rows.size * self.channels.size)

    def plain(self) -> Array:
        """What row and channel foretell of the magnitude, before the tap's gain: (kernels,)."""
        found: Array = (_STEPS[self.rows][:, np.newaxis] * _STEPS[self.channels] * np.int32(self.mean)) >> 6
        return found.reshape(-1)

    def write(self, head: Writer) -> None:
        """As `read` reads it."""
        head.number(self.channels.size)
        head.number(self.mean)
        head.raw(pack_classes(self.rows, _CLASSES))
        head.raw(pack_classes(self.channels, _CLASSES))
        head.raw(self.gains.astype(np.uint8).tobytes())

    @classmethod
    def read(cls, head: Reader, rows: int, columns: int, taps: int) -> Kernels:
        """What `write` wrote. Raises InputError where it cannot be."""
        channels, mean = head.number(columns), head.number(1 << 12)
        if channels * taps != columns:
            raise damaged("kernels do not fill their rows")
        classes = [unpack_classes(head, length, _CLASSES) for length in (rows, channels)]
        gains = np.frombuffer(head.raw(taps), np.uint8).astype(np.int64)
        return cls(classes[0], classes[1], gains, mean)


@dataclass(frozen=True)
class Contexts:
    """How contexts are found, for the kernels of many tensors one behind the other.

    weights: (4,) 64ths, of what the magnitude is foretold from; factors: (taps, taps) 64ths, of the value, or None; spreads,
    means: where the intervals begin.
    """

    symbols: int
    center: int
    taps: int
    parts: tuple[Kernels, ...]
    weights: Array
    factors: Array | None
    spreads: Array
    means: Array

    @cached_property
    def kernels(self) -> int:
        """Symbols of a pass."""
        return sum(part.count for part in self.parts)

    @property
    def blocks(self) -> int:
        """Tables."""
        return (self.spreads.size + 1) * (self.means.size + 1)

    @cached_property
    def _plain(self) -> Array:
        return np.concatenate([part.plain() for part in self.parts])

    @cached_property
    def _gains(self) -> Array:
        """(taps, kernels)."""
        each = np.stack([part.gains for part in self.parts], axis=1).astype(np.int32)
        return each.repeat([part.count for part in self.parts], axis=1)

    @cached_property
    def magnitudes(self) -> Array:
        """The magnitude of each symbol: (symbols,) int32."""
        return magnitudes(self.symbols, self.center)

    def features(self, tap: int, sizes: Array, step: int = 1) -> list[Array]:
        """What the magnitude of a tap is foretold from, given those of the taps, (taps, kernels), of which those before count.

        step: only of every so many kernels.
        """
        still = (self._plain[::step] * self._gains[tap, ::step]) >> 12
        if not tap:
            return [still, still, still, still]
        width = _width(self.taps)
        before = sizes[:tap, ::step]
        mean = before.sum(axis=0, dtype=np.int32) // np.int32(tap)
        left = before[tap - 1] if tap % width else mean
        above = before[tap - width] if tap >= width else mean
        return [still, mean, left, above]

    def expected(self, tap: int, sizes: Array) -> Array:
        """The magnitude of a tap that those before it foretell, coarsely."""
        total = np.zeros(self.kernels, np.int32)
        for weight, feature in zip(self.weights.tolist(), self.features(tap, sizes), strict=True):
            total += np.int32(weight) * feature
        return total >> _COARSE

    def foretold(self, tap: int, values: Array) -> Array:
        """The value of a tap by those before it, (taps, kernels), in eighths."""
        assert self.factors is not None
        # > sums of products of small integers: exact in float32 below 2^24, in whatever order
        whole: Array = self.factors[tap, :tap].astype(np.float32) @ values[:tap]
        return whole.astype(np.int32) >> 3

    def numbers(self, tap: int, sizes: Array, values: Array) -> Array:
        """Which table each symbol of a pass has: (kernels,) uint16."""
        found = _interval(self.spreads, self.expected(tap, sizes))
        if self.factors is not None:
            found = found * np.uint16(self.means.size + 1) + _interval(self.means, self.foretold(tap, values))
        return found

    def write(self, head: Writer) -> None:
        """As `read` reads it; all but the kernels."""
        head.number(self.symbols)
        head.number(self.center)
        head.raw(self.weights.astype(np.int8).tobytes())
        head.number(int(self.factors is not None))
        if self.factors is not None:
            head.raw(self.factors[np.tril_indices(self.taps, -1)].astype(np.int8).tobytes())
        for edges in (self.spreads, self.means):
            head.number(edges.size)
            for number in np.diff(edges, prepend=-_OFFSET).tolist():
                head.number(int(number))

    @classmethod
    def read(cls, head: Reader, parts: tuple[Kernels, ...], taps: int) -> Contexts:
        """What `write` wrote, for these kernels. Raises InputError where it cannot be."""
        symbols = head.number(256)
        if symbols < 2:
            raise damaged("a stream has no symbols")
        center = head.number(symbols - 1)
        weights = np.frombuffer(head.raw(4), np.int8).astype(np.int64)
        factors = None
        if head.number(1):
            factors = np.zeros((taps, taps), np.int64)
            lower = np.frombuffer(head.raw(taps * (taps - 1) // 2), np.int8)
            factors[np.tril_indices(taps, -1)] = lower
        edges = [
            np.array([head.number(2 * _OFFSET) for _ in range(head.number(most - 1))], np.int64).cumsum()
            - _OFFSET
            for most in (_SPREADS, _MEANS)
        ]
        if edges[1].size and factors is None:
            raise damaged("values are foretold from nothing")
        return cls(symbols, center, taps, parts, weights, factors, edges[0], edges[1])


def magnitudes(symbols: int, center: int) -> Array:
    """The magnitude of each symbol: (symbols,) int32; of few its distance, of many that distance's logarithm."""
    away = np.abs(np.arange(symbols, dtype=np.int32) - np.int32(center))
    return 16 * away if symbols <= _FEW else np.floor(16 * np.log2(1 + away) + 0.5).astype(np.int32)


def _width(taps: int) -> int:
    """Taps in a row of a kernel, if it is square."""
    root = math.isqrt(taps)
    return root if root * root == taps else taps


def find_contexts(
    by_tap: Array, shapes: Sequence[tuple[int, int]], center: int
) -> tuple[Contexts, Tilts, list[Array]]:
    """Contexts of `by_tap` (taps, kernels) uint8, their tables, and the table of each symbol, tap by tap.

    shapes: (rows, channels) of each tensor, whose kernels stand one behind the other; center: the symbol of magnitude 0.
    """
    taps, symbols = len(by_tap), int(by_tap.max()) + 1
    known = magnitudes(symbols, center)
    sizes, values = known.take(by_tap), by_tap.astype(np.float32) - np.float32(center)
    ends = np.cumsum([rows * channels for rows, channels in shapes])
    parts = tuple(
        _kernels(part, shape) for part, shape in zip(np.split(sizes, ends[:-1], axis=1), shapes, strict=True)
    )
    none = np.empty(0, np.int64)
    first = Contexts(symbols, center, taps, parts, np.zeros(4, np.int64), None, none, none)
    step = max(1, by_tap.size >> 14)
    every = np.concatenate([np.stack(first.features(tap, sizes, step)) for tap in range(taps)], axis=1)
    weights = _least_squares(every, sizes[:, ::step].reshape(-1))
    gram = values @ values.T
    factors = np.zeros((taps, taps), np.int64)
    for tap in range(1, taps):
        factors[tap, :tap] = _solved(gram[:tap, :tap], gram[:tap, tap])
    aimed = replace(first, weights=weights, factors=factors)
    total = np.concatenate([aimed.expected(tap, sizes) for tap in range(taps)])
    foretold = np.concatenate([aimed.foretold(tap, values) for tap in range(taps)])
    spreads, means = _edges(total, _SPREADS), _edges(foretold, _MEANS)
    fine = _interval(spreads, total) * np.uint16(_MEANS) + _interval(means, foretold)
    keys = fine << np.uint16(8)
    keys |= by_tap.reshape(-1)
    counts = np.bincount(keys, minlength=_SPREADS * _MEANS * 256).reshape(-1, 256)[:, :symbols]
    counts = counts.reshape(_SPREADS, _MEANS, symbols)
    high, wide = _best_choice(counts, center, taps)
    tall, broad = _SPREADS // high, _MEANS // wide
    merged = counts.reshape(high, tall, wide, broad, symbols).sum(axis=(1, 3)).reshape(high * wide, symbols)
    tilts = fit_tilts(merged)
    chosen = replace(
        aimed,
        factors=factors if wide > 1 else None,
        spreads=spreads[tall - 1 :: tall][: high - 1],
        means=means[broad - 1 :: broad][: wide - 1],
    )
    every = np.arange(_SPREADS * _MEANS, dtype=np.uint16)
    number = (every // _MEANS // tall * wide + every % _MEANS // broad).take(fine)
    return chosen, tilts, list(number.reshape(taps, -1))


def _kernels(sizes: Array, shape: tuple[int, int]) -> Kernels:
    """The classes of rows and channels, `shape` of them, and the gains of taps, by the magnitudes `sizes` (taps, kernels)."""
    cube = sizes.reshape(-1, *shape).astype(np.float32)
    by_row, by_channel = cube.mean(axis=(0, 2)), cube.mean(axis=(0, 1))
    whole = float(by_row.mean()) + 1e-9
    gains = np.clip(np.rint(64 * cube.mean(axis=(1, 2)) / whole), 1, 255).astype(np.int64)
    return Kernels(_levels(by_row / whole), _levels(by_channel / whole), gains, max(1, round(whole)))


def _levels(ratios: Array) -> Array:
    """The class of each row or channel, by its mean magnitude over that of all."""
    logarithms = np.log2(np.maximum(ratios, 1e-3))
    return np.clip(np.rint(2.5 * logarithms) + 4, 0, _CLASSES - 1).astype(np.int64)


def _least_squares(features: Array, aim: Array) -> Array:
    """Factors of `features` (n, many) in 64ths that a signed byte holds."""
    known = features.astype(np.float64)
    return _solved(known @ known.T, known @ aim)


def _solved(gram: Array, cross: Array) -> Array:
    ridge = 1e-3 * max(float(np.trace(gram)), 1.0) / len(gram) * np.eye(len(gram))
    found: Array = np.rint(64 * np.linalg.solve(gram + ridge, cross))
    return np.clip(found, -128, 127).astype(np.int64)


def _interval(edges: Array, numbers: Array) -> Array:
    """In which interval each number is, uint16: as `searchsorted` on the right, by a table."""
    if not edges.size:
        return np.zeros(numbers.size, np.uint16)
    low, high = int(edges[0]) - 1, int(edges[-1])
    place = np.searchsorted(edges, np.arange(low, high + 1), side="right").astype(np.uint16)
    found: Array = place.take(numbers - np.int32(low), mode="clip")
    return found


def _edges(numbers: Array, count: int) -> Array:
    """Whole numbers between which there are equally many `numbers`, or so."""
    sample = np.sort(numbers[:: max(1, numbers.size >> 13)])
    return np.clip(sample[sample.size * np.arange(1, count) // count], 1 - _OFFSET, _OFFSET).astype(np.int64)


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
