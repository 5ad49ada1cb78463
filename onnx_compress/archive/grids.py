"""Blocks of a matrix of symbols, each with a frequency table of its own.

Rows and columns of a weight differ in how far its values spread, and in how many are zero: each is put into one of up to eight
classes, and every pair of classes is a block. Classes cost three bits a row or column at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.archive.fields import damaged
from onnx_compress.archive.tables import LeastBits, Tables, fit_tables, merged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.archive.fields import Reader, Writer

    Array = NDArray[Any]

_CLASSES = 8
_NARROW = 16  # rows or columns below which there is but one class
_CELLS = 64  # symbols a block has on average, at least


@dataclass(frozen=True)
class Grid:
    """Classes of rows and of columns. row_class: (rows,), below row_classes; columns alike."""

    row_class: Array
    column_class: Array
    row_classes: int
    column_classes: int

    @property
    def blocks(self) -> int:
        """How many pairs of classes there are."""
        return self.row_classes * self.column_classes

    def block_of(self, first: int) -> Array:
        """Which block each symbol of the matrix is in, counted from `first`: flat, uint16."""
        rows = (self.row_class * self.column_classes + first).astype(np.uint16)
        found: Array = (rows[:, np.newaxis] + self.column_class.astype(np.uint16)).reshape(-1)
        return found

    def write(self, head: Writer) -> None:
        """As `read` reads it."""
        for count, classes in ((self.row_classes, self.row_class), (self.column_classes, self.column_class)):
            head.number(count)
            if count > 1:
                head.raw(pack_classes(classes, count))

    @classmethod
    def read(cls, head: Reader, rows: int, columns: int) -> Grid:
        """What `write` wrote. Raises InputError where it cannot be."""
        found: list[Any] = []
        for length in (rows, columns):
            count = head.number(_CLASSES)
            if count not in (1, 2, 4, 8):
                raise damaged("a stream has an odd number of classes")
            found += [unpack_classes(head, length, count), count]
        return cls(found[0], found[2], found[1], found[3])


def best_grid(matrix: Array, symbols: int) -> tuple[Grid, Tables, float]:
    """The classes whose tables and symbols take the fewest bits, and these bits."""
    rows, columns = matrix.shape
    many = rows >= _NARROW and columns >= _NARROW
    row_count = column_count = _CLASSES if many else 1
    while row_count > 1 and matrix.size < _CELLS * row_count * column_count:
        row_count, column_count = row_count // 2, column_count // 2
    row_class, column_class = _spread_classes(matrix, row_count, column_count)
    counts = _block_counts(matrix, row_class, column_class, (row_count, column_count, symbols))

    least = LeastBits(counts)

    def cost(high: int, wide: int) -> tuple[float, int, int]:
        return least.of(high, wide) + rows * np.log2(high) + columns * np.log2(wide), high, wide

    best = cost(1, 1)
    while True:  # uphill: twice as many classes of rows or of columns while that pays
        _, high, wide = best
        more = [(2 * high, wide)] * (high < row_count) + [(high, 2 * wide)] * (wide < column_count)
        found = min((cost(*pair) for pair in more), default=best)
        if found[0] >= best[0]:
            break
        best = found
    grid = Grid(row_class // (row_count // high), column_class // (column_count // wide), high, wide)
    tables, bits = fit_tables(merged(counts, high, wide))
    return grid, tables, bits + rows * float(np.log2(high)) + columns * float(np.log2(wide))


def counts_of(flat: Array) -> Array:
    """How often each byte occurs; in chunks, because bincount makes 8-byte integers."""
    counts = np.zeros(256, np.int64)
    for start in range(0, flat.size, 1 << 20):
        counts += np.bincount(flat[start : start + (1 << 20)], minlength=256)
    return counts


def _spread_classes(matrix: Array, row_count: int, column_count: int) -> tuple[Array, Array]:
    """Equally many rows in each class, by how far their symbols are from the commonest on average; columns alike."""
    rows, columns = matrix.shape
    if row_count == column_count == 1:
        return np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    center = int(counts_of(matrix.reshape(-1)[:: max(1, matrix.size >> 16)]).argmax())
    away = np.abs(np.arange(256) - center).astype(np.uint8)[matrix]
    # > one BLAS product each: exact, since the sums stay below 2^24
    across, down = np.zeros(rows), np.zeros(columns)
    step = max(1, (1 << 16) // max(columns, 1))
    for start in range(0, rows, step):
        part = away[start : start + step].astype(np.float32)
        across[start : start + step] = part.sum(axis=1, dtype=np.float64)
        down += part.sum(axis=0, dtype=np.float64)
    return _quantiles(across, row_count), _quantiles(down, column_count)


def _quantiles(values: Array, count: int) -> Array:
    classes = np.empty(values.size, np.int64)
    classes[np.argsort(values, kind="stable")] = np.arange(values.size) * count // max(values.size, 1)
    return classes


def _block_counts(matrix: Array, row_class: Array, column_class: Array, shape: tuple[int, int, int]) -> Array:
    """How often each symbol occurs in each pair of classes: (row classes, column classes, symbols)."""
    row_count, column_count, symbols = shape
    if row_count == column_count == 1:
        return counts_of(matrix.reshape(-1))[:symbols].reshape(shape)
    counts = np.zeros(row_count * column_count * symbols, np.int64)
    step = max(1, (1 << 18) // max(matrix.shape[1], 1))
    rows = (row_class * column_count * symbols).astype(np.int32)
    columns = (column_class * symbols).astype(np.int32)
    for start in range(0, matrix.shape[0], step):
        part = slice(start, start + step)
        keys = rows[part, np.newaxis] + columns + matrix[part]
        counts += np.bincount(keys.reshape(-1), minlength=counts.size)
    return counts.reshape(shape)


def pack_classes(classes: Array, count: int) -> bytes:
    """`classes` below `count`, a power of two, in as many bits each as that takes."""
    bits = count.bit_length() - 1
    return np.packbits((classes[:, None] >> np.arange(bits)) & 1).tobytes()


def unpack_classes(head: Reader, length: int, count: int) -> Array:
    """The `length` classes that `pack_classes` wrote."""
    bits = count.bit_length() - 1
    if not bits:
        return np.zeros(length, np.int64)
    packed = np.frombuffer(head.raw(-(-length * bits // 8)), np.uint8)
    flags = np.unpackbits(packed, count=length * bits).reshape(length, bits).astype(np.int64)
    result: Array = (flags << np.arange(bits)).sum(axis=1)
    return result
