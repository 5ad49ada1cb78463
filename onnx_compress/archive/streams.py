"""A matrix of byte symbols in as few bytes as one of the ways below gives: raw, zstd, or entropy-coded by blocks.

Rows and columns of a weight differ in how far its values spread: each is put into one of up to eight classes, and every pair of
classes is a block with its own frequency table. Classes cost three bits a row or column at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zstandard

from onnx_compress.archive import coders
from onnx_compress.archive.fields import Reader, Writer, damaged
from onnx_compress.archive.tables import Tables, fit_tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Array = NDArray[Any]

CODERS = ("auto", "ans", "range", "huffman", "zstd")
WAYS = ("raw", "zstd", "ans", "range", "huffman", "constant")  # as stored: the place is the number
_CLASSES = 8
_SAMPLE = 1 << 16  # symbols that tell whether a stream can be coded at all
_HOPELESS = 7.97  # bits a symbol of the sample from which on it is stored raw
_ZSTD_LEVEL = 9


@dataclass(frozen=True)
class Part:
    """A coded stream: small fields and bulk; `coder` is the way that did most of it."""

    head: bytes
    body: bytes
    coder: str

    @property
    def size(self) -> int:
        """Bytes, the small fields before zstd."""
        return len(self.head) + len(self.body)


def encode_stream(matrix: Array, coder: str, *, floor: bool = True) -> Part:
    """`matrix` (rows, columns) uint8, coded. floor: also try zstd where `coder` is auto."""
    flat = matrix.reshape(-1)
    if flat.size and (flat == flat[0]).all():
        return _part("constant", int(flat[0]), b"")
    if not flat.size or _hopeless(flat):
        return _part("raw", None, flat.tobytes())
    found: list[Part] = []
    if coder == "zstd" or (coder == "auto" and floor):
        found.append(_part("zstd", None, squeeze(flat)))
    if coder != "zstd":
        small = flat.size < _SAMPLE  # > where the coder's own few bytes count
        found += _entropy(matrix, (("ans", "range") if small else ("ans",)) if coder == "auto" else (coder,))
    best = min(found, key=lambda part: part.size)
    return best if len(best.body) < flat.nbytes else _part("raw", None, flat.tobytes())


def decode_stream(head: Reader, body: Reader, rows: int, columns: int) -> Array:
    """The matrix of `encode_stream`, uint8. Raises InputError where the fields do not make one."""
    way = WAYS[head.number(len(WAYS) - 1)]
    size = rows * columns
    if way == "constant":
        return np.full((rows, columns), head.number(255), np.uint8)
    data = body.raw(head.number())
    if way in {"raw", "zstd"}:
        flat = np.frombuffer(data if way == "raw" else stretch(data, size), np.uint8)
        if flat.size != size:
            raise damaged("a stream has the wrong length")
        return flat.reshape(rows, columns)
    low, symbols = head.number(255), head.number(256)
    if low + symbols > 256 or symbols < 2:
        raise damaged("a stream has no symbols")
    grid = _Grid.read(head, rows, columns)
    tables = Tables.read(head, grid.blocks, symbols)
    runs = coders.decode(way, data, grid.lengths, tables.levels)
    return grid.join(runs) + np.uint8(low)


def squeeze(data: Array | bytes, level: int = _ZSTD_LEVEL) -> bytes:
    """`data` by zstd."""
    return zstandard.ZstdCompressor(level=level, write_content_size=True).compress(bytes(data))


def stretch(data: bytes | memoryview, size: int) -> bytes:
    """What `squeeze` was given, if it is `size` bytes. Raises InputError where it is not; takes no more memory."""
    try:
        if zstandard.frame_content_size(bytes(data[:32])) != size:
            raise damaged("a size does not fit what it counts")
        return zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(
            bytes(data), max_output_size=size
        )
    except zstandard.ZstdError as error:
        raise damaged("a compressed part cannot be read") from error


def order0_bits(flat: Array) -> float:
    """Bits a symbol when each is coded by its frequency alone."""
    counts = _counts(flat)
    shares = counts[counts > 0] / flat.size
    return float(-(shares * np.log2(shares)).sum())


def _counts(flat: Array) -> Array:
    """How often each byte occurs; in chunks, because bincount makes 8-byte integers."""
    counts = np.zeros(256, np.int64)
    for start in range(0, flat.size, 1 << 20):
        counts += np.bincount(flat[start : start + (1 << 20)], minlength=256)
    return counts


def _hopeless(flat: Array) -> bool:
    """Whether a sample has so many bits a symbol that no coder is worth its time."""
    if flat.size < _SAMPLE:
        return False
    step = flat.size // _SAMPLE
    sample = flat[: step * _SAMPLE : step] if step > 1 else flat[:_SAMPLE]
    # > a pattern with an even histogram is for zstd
    return order0_bits(sample) > _HOPELESS and not repeats(flat)


def repeats(data: Array) -> bool:
    """Whether zstd finds anything in the first bytes of `data`, or there are few."""
    if data.size < _SAMPLE:
        return True
    return len(zstandard.ZstdCompressor(level=1).compress(data[:_SAMPLE].tobytes())) < 0.98 * _SAMPLE


def _part(way: str, value: int | None, body: bytes) -> Part:
    head = Writer()
    head.number(WAYS.index(way))
    head.number(len(body) if value is None else value)
    return Part(bytes(head.buffer), body, way)


def _entropy(matrix: Array, names: tuple[str, ...]) -> Iterator[Part]:
    """`matrix` coded with each coder of `names`, by the cheapest blocks."""
    low = int(matrix.min())
    symbols = int(matrix.max()) - low + 1
    matrix = matrix - np.uint8(low)
    grid, tables = _best_grid(matrix, symbols)
    fields = Writer()
    fields.number(low)
    fields.number(symbols)
    grid.write(fields)
    tables.write(fields)
    runs = grid.cut(matrix)
    for name in names:
        body = coders.encode(name, runs, tables.levels)
        part = _part(name, None, body)
        yield Part(part.head + fields.buffer, body, name)


@dataclass(frozen=True)
class _Grid:
    """Classes of rows and of columns: the blocks of a matrix. row_class: (rows,), below row_classes; columns alike."""

    row_class: Array
    column_class: Array
    row_classes: int
    column_classes: int

    @property
    def blocks(self) -> int:
        return self.row_classes * self.column_classes

    @property
    def lengths(self) -> list[int]:
        heights = np.bincount(self.row_class, minlength=self.row_classes)
        widths = np.bincount(self.column_class, minlength=self.column_classes)
        return [int(length) for length in np.outer(heights, widths).reshape(-1)]

    def write(self, head: Writer) -> None:
        for count, classes in ((self.row_classes, self.row_class), (self.column_classes, self.column_class)):
            head.number(count)
            if count > 1:
                head.raw(_pack(classes, count))

    @classmethod
    def read(cls, head: Reader, rows: int, columns: int) -> _Grid:
        found: list[Any] = []
        for length in (rows, columns):
            count = head.number(_CLASSES)
            if count not in (1, 2, 4, 8):
                raise damaged("a stream has an odd number of classes")
            found += [_unpack(head, length, count), count]
        return cls(found[0], found[2], found[1], found[3])

    def cut(self, matrix: Array) -> list[Array]:
        """The blocks, each flat."""
        if self.row_classes > 1:
            matrix = matrix[np.argsort(self.row_class, kind="stable")]
        if self.column_classes > 1:
            matrix = matrix[:, np.argsort(self.column_class, kind="stable")]
        return [matrix[top:bottom, left:right].reshape(-1) for top, bottom, left, right in self._edges()]

    def join(self, runs: list[Array]) -> Array:
        """The matrix of `cut`."""
        rows, columns = self.row_class.size, self.column_class.size
        if len(runs) == 1:
            return runs[0].reshape(rows, columns)
        sorted_ = np.empty((rows, columns), np.uint8)
        for run, (top, bottom, left, right) in zip(runs, self._edges(), strict=True):
            sorted_[top:bottom, left:right] = run.reshape(bottom - top, right - left)
        if self.column_classes > 1:
            sorted_ = sorted_[:, np.argsort(np.argsort(self.column_class, kind="stable"))]
        if self.row_classes > 1:
            sorted_ = sorted_[np.argsort(np.argsort(self.row_class, kind="stable"))]
        return sorted_

    def _edges(self) -> Iterator[tuple[int, int, int, int]]:
        rows = np.bincount(self.row_class, minlength=self.row_classes).cumsum().tolist()
        columns = np.bincount(self.column_class, minlength=self.column_classes).cumsum().tolist()
        for top, bottom in zip([0, *rows], rows, strict=False):
            for left, right in zip([0, *columns], columns, strict=False):
                yield top, bottom, left, right


def _best_grid(matrix: Array, symbols: int) -> tuple[_Grid, Tables]:
    """The classes whose tables and symbols take the fewest bits."""
    rows, columns = matrix.shape
    row_count = _CLASSES if rows >= 16 and columns >= 16 else 1
    column_count = _CLASSES if columns >= 16 and rows >= 16 else 1
    row_class, column_class = _spread_classes(matrix, row_count, column_count)
    counts = _block_counts(matrix, row_class, column_class, (row_count, column_count, symbols))

    def cost(high: int, wide: int) -> tuple[float, int, int, Tables]:
        merged = counts.reshape(high, row_count // high, wide, column_count // wide, symbols)
        tables, bits = fit_tables(merged.sum(axis=(1, 3)).reshape(high * wide, symbols))
        return bits + rows * np.log2(high) + columns * np.log2(wide), high, wide, tables

    best = cost(1, 1)
    while True:  # uphill: twice as many classes of rows or of columns while that pays
        _, high, wide, _ = best
        more = [(2 * high, wide)] * (high < row_count) + [(high, 2 * wide)] * (wide < column_count)
        found = min((cost(*pair) for pair in more), default=best, key=lambda item: item[0])
        if found[0] >= best[0]:
            break
        best = found
    _, high, wide, tables = best
    grid = _Grid(row_class // (row_count // high), column_class // (column_count // wide), high, wide)
    return grid, tables


def _spread_classes(matrix: Array, row_count: int, column_count: int) -> tuple[Array, Array]:
    """Equally many rows in each class, by how far their symbols are from the commonest on average; columns alike."""
    rows, columns = matrix.shape
    if row_count == column_count == 1:
        return np.zeros(rows, np.int64), np.zeros(columns, np.int64)
    center = int(_counts(matrix.reshape(-1)).argmax())
    away = np.abs(np.arange(256) - center).astype(np.uint8)[matrix]
    across = away.sum(axis=1, dtype=np.int64)
    down = away.sum(axis=0, dtype=np.int64)
    return _quantiles(across, row_count), _quantiles(down, column_count)


def _quantiles(values: Array, count: int) -> Array:
    classes = np.empty(values.size, np.int64)
    classes[np.argsort(values, kind="stable")] = np.arange(values.size) * count // max(values.size, 1)
    return classes


def _block_counts(matrix: Array, row_class: Array, column_class: Array, shape: tuple[int, int, int]) -> Array:
    """How often each symbol occurs in each pair of classes: (row classes, column classes, symbols)."""
    row_count, column_count, symbols = shape
    counts = np.zeros(row_count * column_count * symbols, np.int64)
    step = max(1, (1 << 20) // max(matrix.shape[1], 1))
    for start in range(0, matrix.shape[0], step):
        part = slice(start, start + step)
        if matrix.shape[0] == 1:  # one long row
            counts += _counts(matrix.reshape(-1))[:symbols]
            break
        block = row_class[part, None] * column_count + column_class[None]
        keys = block * symbols + matrix[part]
        counts += np.bincount(keys.reshape(-1), minlength=counts.size)
    return counts.reshape(shape)


def _pack(classes: Array, count: int) -> bytes:
    bits = count.bit_length() - 1
    return np.packbits((classes[:, None] >> np.arange(bits)) & 1).tobytes()


def _unpack(head: Reader, length: int, count: int) -> Array:
    bits = count.bit_length() - 1
    if not bits:
        return np.zeros(length, np.int64)
    packed = np.frombuffer(head.raw(-(-length * bits // 8)), np.uint8)
    flags = np.unpackbits(packed, count=length * bits).reshape(length, bits).astype(np.int64)
    result: Array = (flags << np.arange(bits)).sum(axis=1)
    return result
