"""A matrix of byte symbols in as few bytes as one of these ways gives: raw, zstd, one value, or coded in a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.archive.batches import Batch, Promise, Stream
from onnx_compress.archive.contexts import Contexts, find_contexts
from onnx_compress.archive.fields import Reader, Writer, damaged
from onnx_compress.archive.general import squeeze, stretch
from onnx_compress.archive.grids import Grid, best_grid, counts_of
from onnx_compress.archive.tables import Tables
from onnx_compress.archive.tilts import Tilts

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[Any]

CODERS = ("auto", "ans", "range", "huffman", "zstd")
WAYS = ("raw", "zstd", "constant", "coded", "taps")  # as stored: the place is the number
_SAMPLE = 1 << 16  # symbols that tell whether a stream can be coded at all
_HOPELESS = 7.97  # bits a symbol of the sample from which on it is stored raw
_PROBE = 1 << 15  # bytes on which zstd is tried first
_GAIN = 0.9  # of the entropy's bytes that zstd must undercut on a sample to be tried on all


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
    promise = Promise(finder, rows, columns)
    batch.expect(levels, promise)

    def found() -> Array:
        matrix = promise.matrix()
        return matrix + np.uint8(low) if low else matrix

    return found


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
