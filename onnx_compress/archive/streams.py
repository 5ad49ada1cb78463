"""A matrix of byte symbols in as few bytes as one of these ways gives: raw, zstd, one value, or coded in a batch."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.archive.batches import Stream
from onnx_compress.archive.classes import Classes, odds, spreads
from onnx_compress.archive.contexts import MOST_TAPS
from onnx_compress.archive.families import BYTES, CENTER, DIGITS, OWN
from onnx_compress.archive.fields import Reader, Writer, damaged
from onnx_compress.archive.general import squeeze, stretch
from onnx_compress.archive.promises import Pending, Promise
from onnx_compress.archive.tables import is_rough

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[Any]

CODERS = ("auto", "ans", "range", "huffman", "zstd")
WAYS = ("raw", "zstd", "constant", "coded", "peaked", "taps")  # as stored: the place is the number
_OWN_DIGITS = 1 << 15  # symbols from which on digits are a family of their own
_OWN = 1 << 12  # and what is like no other
_PEAK = 0.25  # share of the commonest symbol from which on it has classes of its own
_FEW = 4  # symbols up to which it has not
_SAMPLE = 1 << 16  # symbols that tell whether a stream can be coded at all
_HOPELESS = 7.97  # bits a symbol of the sample from which on it is stored raw
_PAIRS = 1 << 17  # symbols from which on they are counted two at a time
_PROBE = 1 << 15  # bytes on which zstd is tried first
_MATCHED = 0.9  # of the sample's bytes, above which matches alone do not bring it
_NEAR = 1.25  # times the entropy's bytes, above which matches alone leave too much
_GAIN = 0.9  # of the entropy's bytes that zstd must undercut on a sample to be tried on all


def plan_stream(
    matrix: Array, coder: str, family: int, *, taps: int = 1, floor: bool = True, counts: Array | None = None
) -> Stream:
    """How `matrix` (rows, columns) uint8 is best stored. family: whose tables it shares; taps: of a kernel in its rows.

    floor: also by zstd where `coder` is auto and that promises more. counts: of its symbols, where they are known.
    """
    flat = matrix.reshape(-1)
    if not flat.size or (counts is None and _hopeless(flat)):
        return raw_stream(flat)
    counts = counts_of(flat) if counts is None else counts
    if int(counts.max()) == flat.size:
        return _stored("constant", int(flat[0]), b"")
    size = entropy(counts)
    if size > _HOPELESS / 8 * flat.size and flat.size >= _SAMPLE and not repeats(flat):
        return raw_stream(flat)
    if coder == "zstd" or (coder == "auto" and floor and repeats(flat)):
        found = _stored("zstd", None, squeeze(flat))
        if coder == "zstd" or found.size < size:
            return found if found.size < flat.nbytes else raw_stream(flat)
    return _coded(matrix, family, taps, counts, size)


def raw_stream(matrix: Array) -> Stream:
    """`matrix` as it stands."""
    return _stored("raw", None, matrix.tobytes())


def _stored(way: str, value: int | None, body: bytes) -> Stream:
    head = _head(way, len(body) if value is None else value)
    return Stream(way, bytes(head.buffer), body, len(head.buffer) + len(body))


def _coded(matrix: Array, family: int, taps: int, counts: Array, size: float) -> Stream:
    center = int(counts.argmax())
    peaked = int(counts[center]) > _PEAK * matrix.size and int(np.count_nonzero(counts)) > _FEW
    # > what is like no other shares no tables; nor do many places of values that a tensor has for itself
    digits = DIGITS <= family < BYTES
    if matrix.size > (_OWN_DIGITS if digits else _OWN) and (digits or is_rough(counts)):
        family = OWN + (zlib.crc32(counts.tobytes()) & 0xFFFF)
    classes = odds(matrix, center, taps) if peaked else (spreads(matrix, center, taps),)
    head = _head("peaked" if peaked else "coded", family, center, classes[0].taps.size)
    for one in classes:
        one.write(head)
    symbols = (matrix - np.uint8((center - CENTER) & 0xFF)).reshape(-1)
    key = family, len(classes), 0
    return Stream("coded", bytes(head.buffer), b"", size, key, symbols, classes, matrix.shape)


def _head(way: str, *numbers: int) -> Writer:
    head = Writer()
    head.number(WAYS.index(way))
    for number in numbers:
        head.number(number)
    return head


def plan_taps(matrix: Array, taps: int, family: int, counts: Array) -> Stream:
    """`matrix` (rows, channels · taps) uint8, each tap in the context of those before it. counts: of its symbols."""
    center = int(counts.argmax())
    head = _head("taps", family, center, taps)
    by_tap = np.ascontiguousarray((matrix - np.uint8((center - CENTER) & 0xFF)).reshape(-1, taps).T)
    shape = len(matrix), matrix.shape[1] // taps
    return Stream("taps", bytes(head.buffer), b"", entropy(counts), (family, 0, taps), by_tap, (), shape)


def read_stream(head: Reader, body: Reader, rows: int, columns: int, batch: Pending) -> Callable[[], Array]:
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
    family, center, taps = head.number(2 * OWN - 1), head.number(255), head.number(MOST_TAPS)
    if not taps or columns % taps or not size:
        raise damaged("kernels do not fill their rows")
    kinds = ("taps", "coded", "peaked").index(way)
    classes = tuple(Classes.read(head, rows, columns // taps, taps) for _ in range(kinds))
    promise = Promise((rows, columns), center, classes)
    batch.expect((family, kinds, 0 if kinds else taps), promise)
    return promise.matrix


def order0_bits(flat: Array) -> float:
    """Bits a symbol when each is coded by its frequency alone."""
    return 8 * entropy(counts_of(flat)) / max(flat.size, 1)


def entropy(counts: Array) -> float:
    """Bytes of symbols that occur so often when each is coded by its frequency alone."""
    used = counts[counts > 0].astype(np.float64)
    total = float(used.sum())
    return (total * float(np.log2(max(total, 1.0))) - float(used @ np.log2(used))) / 8


def counts_of(flat: Array) -> Array:
    """How often each byte occurs; of many two at a time, and in chunks, because bincount makes 8-byte integers."""
    if flat.size < _PAIRS:
        return np.bincount(flat, minlength=256)
    pairs = np.zeros(1 << 16, np.int64)
    whole = np.ascontiguousarray(flat[: flat.size & ~1]).view(np.uint16)
    for start in range(0, whole.size, _PAIRS):
        pairs += np.bincount(whole[start : start + _PAIRS], minlength=1 << 16)
    square = pairs.reshape(256, 256)
    counts: Array = square.sum(axis=0) + square.sum(axis=1)
    if flat.size & 1:
        counts[flat[-1]] += 1
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
    """Whether zstd finds more in the first bytes of `data` than how often each of them occurs."""
    sample = data[:_PROBE]
    matched = len(squeeze(sample, -1))  # > nothing but matches: in a tenth of the time
    if matched > _MATCHED * sample.size:
        return False
    known = order0_bits(sample) / 8 * sample.size
    # > of zeros that stand together it makes matches, too, but is far from what frequencies give
    return matched < _NEAR * known + 64 and len(squeeze(sample, 1)) < _GAIN * known + 64
