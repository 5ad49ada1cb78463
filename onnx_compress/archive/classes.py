"""Classes of the rows, channels and taps of a matrix of symbols: how far its symbols spread there.

A row's class is the logarithm of how far its symbols are from the commonest on average, a channel's and a tap's likewise, against
those of the whole. Their sum tells what to expect of a cell, in one scale for all tensors, so that those of unlike spread share frequency
tables. What does not pay for its classes has none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.archive.fields import damaged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.archive.fields import Reader, Writer

    Array = NDArray[Any]

CELLS = 128  # sums of classes are below this
_MOST_BASE = 34
_LEAST, _MOST = -15, 16  # of a class
_STEPS = 4.0  # an octave of spread
_ODDS_STEPS = 2.0  # an octave of odds
_CLASS_BITS = 4  # of the square root of so many classes, beside their entropy, about, as they are stored
_MANY = 256  # rows
_FEW = 16  # cells of a row, or rows, below which there are no classes
_NATS = 0.75 * np.log(
    2
)  # bits an octave squared by which a scale is missed costs a symbol, between Laplace and Gauss


@dataclass(frozen=True)
class Classes:
    """base: of the whole, 0..34; rows (rows,), channels (channels,), taps (taps,): int8."""

    base: int
    rows: Array
    channels: Array
    taps: Array

    def cells(self) -> Array:
        """The sum for each cell, flat: (rows · channels · taps,) uint8 below CELLS."""
        across = (self.channels[:, np.newaxis] + self.taps).reshape(-1).view(np.uint8)
        rows = (self.rows + np.int8(self.base - 3 * _LEAST)).view(np.uint8)
        return (rows[:, np.newaxis] + across).reshape(-1)

    def write(self, head: Writer) -> None:
        """As `read` reads it."""
        used = [bool(part.any()) for part in self._parts]
        head.number(self.base << 3 | used[0] << 2 | used[1] << 1 | used[2])
        for part, has in zip(self._parts, used, strict=True):
            if has:
                head.raw((part - _LEAST).astype(np.uint8).tobytes())

    @property
    def _parts(self) -> tuple[Array, Array, Array]:
        return self.rows, self.channels, self.taps

    @classmethod
    def read(cls, head: Reader, *lengths: int) -> Classes:
        """What `write` wrote for so many rows, channels and taps."""
        first = head.number(_MOST_BASE << 3 | 7)
        parts = []
        for flag, length in zip((4, 2, 1), lengths, strict=True):
            if first & flag:
                found = np.frombuffer(head.raw(length), np.uint8)
                if int(found.max(initial=0)) > _MOST - _LEAST:
                    raise damaged("a class is out of range")
                parts.append(found.view(np.int8) + np.int8(_LEAST))
            else:
                parts.append(np.zeros(length, np.int8))
        return cls(first >> 3, *parts)


def spreads(matrix: Array, center: int, taps: int) -> Classes:
    """By how far the symbols of `matrix` (rows, channels · taps) uint8 are from `center`."""
    away = _away(matrix, center)
    rows, columns = matrix.shape
    if rows < _FEW or columns < _FEW:
        return _plain(_STEPS * np.log2(away.mean() + 1e-3), rows, columns, taps)
    return _classes(away.astype(np.float32), taps)


def odds(matrix: Array, center: int, taps: int) -> tuple[Classes, Classes]:
    """By how far the symbols that are not `center` are from it, and by how many there are."""
    away = _away(matrix, center).astype(np.float32)
    live = (away > 0).astype(np.float32)
    rows, columns = matrix.shape
    far = _sums(away, taps)
    many = _sums(live, taps)
    share = float(many[0].sum()) / matrix.size
    few = rows < _FEW or columns < _FEW
    size = [matrix.size / max(part.size, 1) for part in many]
    chances = [
        (part + 0.5) / np.maximum(count - part + 0.5, 0.5) for part, count in zip(many, size, strict=True)
    ]
    spread = [one / np.maximum(two, 0.5) for one, two in zip(far, many, strict=True)]
    whole = _ODDS_STEPS * np.log2(share / max(1 - share, 1e-6))
    base = min(max(round(whole) + 12, 0), _MOST_BASE)
    mean = float(far[0].sum()) / max(float(many[0].sum()), 1.0)
    if few:
        none = _plain(whole + 12, rows, columns, taps)
        return _plain(_STEPS * np.log2(mean + 1e-3), rows, columns, taps), none
    worth = 0.5 * np.log(2) * share * (1 - share) / _ODDS_STEPS**2
    second = _of_logarithms(
        base, [_ODDS_STEPS * np.log2(part) - (base - 12) for part in chances], matrix.size, worth
    )
    first_base = _base(_STEPS * np.log2(mean + 1e-3))
    # > the mean of a row with few of them says little
    logs = [_STEPS * np.log2(part + 1e-3) - first_base for part in spread]
    worth = (
        _NATS / _STEPS**2 * min(1.0, float(away.max()) / 16)
    )  # > few symbols tell less of how far they spread
    first = _of_logarithms(first_base, logs, round(share * matrix.size), worth)
    return first, second


def _away(matrix: Array, center: int) -> Array:
    """How far each symbol is from `center`, around the end of the bytes: uint8."""
    away = (matrix - np.uint8(center)).view(np.int8)
    return np.abs(away).view(np.uint8)


def _sums(values: Array, taps: int) -> tuple[Array, Array, Array]:
    """By row, by channel and by tap."""
    across = values @ np.ones(values.shape[1], np.float32)
    down = (np.ones(values.shape[0], np.float32) @ values).reshape(-1, taps)
    return across, down.sum(axis=1), down.sum(axis=0)


def _classes(away: Array, taps: int) -> Classes:
    """By the mean of each row, of each channel and of each tap, or where rows are many of each column."""
    sums = _sums(away, taps if len(away) < _MANY else 1)
    base = _base(_STEPS * math.log2(float(sums[0].sum()) / away.size + 1e-3))
    logs = [_logarithms(part, away.size, base) for part in sums]
    return _of_logarithms(base, logs, away.size, _NATS / _STEPS**2)


def _logarithms(sums: Array, size: int, base: int) -> Array:
    """Of the means of `size` numbers in parts, from their sums, in steps from `base` on."""
    return _STEPS * np.log2(sums * (sums.size / size) + 1e-3) - base


def _base(value: float) -> int:
    return min(max(round(float(value)), 0), _MOST_BASE)


def _plain(value: float, rows: int, columns: int, taps: int) -> Classes:
    """No classes but that of the whole."""
    parts = (np.zeros(length, np.int8) for length in (rows, columns // taps, taps))
    return Classes(_base(value), *parts)


def _of_logarithms(base: int, logs: list[Array], size: int, worth: float) -> Classes:
    """Classes of logarithms in steps, where they save more than they take: `worth` bits a symbol for each step squared."""
    parts = []
    for log in logs:
        count = size / log.size
        # > what rounding to a stride loses, count · worth · stride² / 12, against the bits it spares a class
        stride = 1 << min(max(round(0.5 * math.log2(6 / (math.log(2) * worth * count + 1e-9))), 0), 2)
        rounded = np.minimum(np.maximum(stride * np.rint(log / stride), _LEAST), _MOST)
        gain = worth * count * float(rounded @ rounded) - _CLASS_BITS * math.sqrt(log.size)
        found = rounded.astype(np.int8)
        if gain > 0:
            gain -= _entropy(found) * log.size
        parts.append(found if gain > 0 else np.zeros(log.size, np.int8))
    return Classes(base, *parts)


def _entropy(classes: Array) -> float:
    """Bits a class."""
    shares = np.bincount(classes.view(np.uint8)) / classes.size
    used = shares[shares > 0]
    return -float(used @ np.log2(used))


def pack_classes(classes: Array, count: int) -> bytes:
    """`classes` (n,) uint8 below `count`, a power of two above one, in as many bits each as that takes."""
    bits = count.bit_length() - 1
    return np.packbits(np.unpackbits(classes[:, np.newaxis], axis=1, count=bits, bitorder="little")).tobytes()


def unpack_classes(head: Reader, length: int, count: int) -> Array:
    """The `length` classes that `pack_classes` wrote."""
    bits = count.bit_length() - 1
    packed = np.frombuffer(head.raw(-(-length * bits // 8)), np.uint8)
    flags = np.unpackbits(packed, count=length * bits).reshape(length, bits)
    return np.packbits(flags, axis=1, bitorder="little")[:, 0]
