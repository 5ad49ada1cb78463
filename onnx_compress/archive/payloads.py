"""A tensor's bytes as streams of symbols: as they stand, by byte planes, by what is not zero, or by a list of its values.

plain     the bytes; int8 shifted so that neighbours in value are neighbours in symbol
planes    words rotated by one bit, so that a float's exponent is one byte; byte i of every word is plane i
sparse    where the commonest word is not, and the words there
values    the distinct words, at most 256, and the place of each in that list
taps      of a convolution's bytes, what differs from a linear prediction by the taps before it in the same kernel
digits    of small integers packed several to a byte or to a few, the integers, in one of the forms above
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from onnx_compress.archive.fields import Reader, Writer, damaged
from onnx_compress.archive.streams import (
    Part,
    decode_stream,
    encode_stream,
    order0_bits,
    repeats,
    squeeze,
    stretch,
)
from onnx_compress.model.packing import Packing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

FORMS = (
    "plain",
    "planes",
    "sparse",
    "values",
    "gaps",
    "zstd",
    "taps",
    "digits",
)  # as stored: the place is the number
CHUNK = 1 << 22  # bytes coded at once, about
_FEW = 256
_MOST_TAPS = 64
_NESTED = bytes([FORMS.index("digits")])
_MOST_DIGITS = 4 * CHUNK  # integers unpacked at once
_WIDTHS: dict[int, int] = {
    TensorProto.FLOAT: 4, TensorProto.INT32: 4, TensorProto.UINT32: 4, TensorProto.COMPLEX64: 4,
    TensorProto.DOUBLE: 8, TensorProto.INT64: 8, TensorProto.UINT64: 8, TensorProto.COMPLEX128: 8,
    TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2, TensorProto.INT16: 2, TensorProto.UINT16: 2,
}  # fmt: skip
_PACKED: dict[int, Packing] = {
    **dict.fromkeys([TensorProto.UINT4, TensorProto.INT4], Packing(16, 2, 1)),
    **dict.fromkeys([TensorProto.UINT2, TensorProto.INT2], Packing(4, 4, 1)),
}


@dataclass(frozen=True)
class Kind:
    """What is known of a payload: bytes a word, whether bytes are signed, elements a row, taps a kernel.

    packing: of small integers in it, which is not known to the reader; inner: of those, how many make a row.
    """

    width: int = 1
    signed: bool = False
    columns: int = 1
    taps: int = 1
    packing: Packing | None = None
    inner: int = 1

    @classmethod
    def of(cls, data_type: int, dims: Sequence[int], length: int) -> Kind:
        """The kind of a tensor of `length` bytes."""
        width = _WIDTHS.get(data_type, 1)
        if length % width:
            width = 1
        words = length // width
        columns = words // dims[0] if len(dims) > 1 and dims[0] > 0 and words % dims[0] == 0 else words
        taps = math.prod(dims[2:])
        packing = _PACKED.get(data_type)
        taps = taps if 1 < taps <= _MOST_TAPS and columns < words and columns % taps == 0 else 1
        inner = 1 if packing is None else max(columns, 1) * packing.group
        return cls(width, data_type == TensorProto.INT8, max(columns, 1), taps, packing, inner)

    def holding(self, packing: Packing, inner: int) -> Kind:
        """The same, of bytes that hold packed integers."""
        return replace(self, packing=packing, inner=inner) if self.width == 1 else self

    @property
    def rows_at_once(self) -> int:
        """Rows in a chunk."""
        return max(1, CHUNK // (self.columns * self.width))


def chunks(kind: Kind, length: int) -> list[tuple[int, int]]:
    """(rows, columns) of each chunk of a payload of `length` bytes; every chunk is CHUNK bytes at most, or so."""
    words = length // kind.width
    rows, columns = words // kind.columns, kind.columns
    if words == 0:
        return []
    if columns * kind.width > CHUNK or rows * columns != words:
        most = CHUNK // kind.width
        return [(1, min(most, words - start)) for start in range(0, words, most)]
    step = kind.rows_at_once
    return [(min(step, rows - start), columns) for start in range(0, rows, step)]


def encode_chunk(data: Array, kind: Kind, rows: int, coder: str) -> Part:
    """The bytes `data` (uint8) of `rows` rows in the fewest bytes."""
    found = [_tagged("zstd", _whole(data), "zstd")] if coder in ("auto", "zstd") and repeats(data) else []
    words = data.view(f"<u{kind.width}").reshape(rows, -1) if kind.width > 1 else data.reshape(rows, -1)
    if kind.width == 1:
        symbols = words ^ np.uint8(0x80) if kind.signed else words
        foretold = _taps(symbols, kind.taps) if kind.taps > 1 and coder != "zstd" else None
        gain = 0.0
        if foretold is not None:
            gain = order0_bits(symbols.reshape(-1)) / max(order0_bits(foretold[1].reshape(-1)), 1e-3)
            if gain > 0.9:
                found.append(_tagged("taps", foretold[0], encode_stream(foretold[1], coder, floor=False)))
        if gain < 1.1:  # > near 1 both: classes of rows and columns may do more for one than for the other
            found.append(_tagged("plain", encode_stream(symbols, coder, floor=False)))
        common = int(np.bincount(symbols.reshape(-1)[:: max(1, symbols.size >> 16)]).argmax())
    else:
        symbols, common = words, 0
        listed = _values(words, coder)
        if listed is not None:
            found.append(listed)
        else:
            found.append(_tagged("planes", *_planes(words, coder)))
    share = float((symbols == common).mean())
    if 0.3 < share < 1 and coder != "zstd":
        found += _sparse(symbols, common, kind.width, coder, share)
    if kind.packing is not None and kind.width == 1:
        found += _digits(data, kind.packing, kind.inner, coder)
    assert found
    return min(found, key=lambda part: part.size)


def decode_chunk(head: Reader, body: Reader, kind: Kind, rows: int, columns: int) -> bytes:
    """The bytes of `encode_chunk`. Raises InputError where the fields do not make them."""
    form = FORMS[head.number(len(FORMS) - 1)]
    if form == "zstd":
        return stretch(body.raw(head.number()), rows * columns * kind.width)
    if form == "values":
        count = head.number(_FEW)
        listed = np.frombuffer(head.raw(count * kind.width), f"<u{kind.width}")
        places = decode_stream(head, body, rows, columns)
        if count == 0 or int(places.max(initial=0)) >= count:
            raise damaged("a value is not in its list")
        return listed[places].tobytes()
    if form == "digits" and kind.width == 1:
        return _decode_digits(head, body, rows * columns)
    if form in ("sparse", "gaps"):
        words = _decode_sparse(form, head, body, kind.width, (rows, columns))
    elif form == "taps" and kind.width == 1 and kind.taps > 1:
        words = _decode_taps(head, body, kind.taps, rows, columns)
    elif form == "planes" and kind.width > 1:
        words = _decode_planes(head, body, kind.width, rows, columns)
    elif form == "plain" and kind.width == 1:
        words = decode_stream(head, body, rows, columns)
    else:
        raise damaged("a tensor has a form that its type cannot have")
    if kind.signed and kind.width == 1:
        words = words ^ np.uint8(0x80)
    return words.tobytes()


def _whole(data: Array) -> Part:
    coded = squeeze(data.tobytes())
    head = Writer()
    head.number(len(coded))
    return Part(bytes(head.buffer), coded, "zstd")


def _tagged(form: str, *parts: Part | bytes | str) -> Part:
    """Parts one behind the other; `coder` is that of the largest."""
    real = [part for part in parts if isinstance(part, Part)]
    fields = b"".join(
        part.head if isinstance(part, Part) else part for part in parts if not isinstance(part, str)
    )
    coder = max(real, key=lambda part: len(part.body) * (part.coder != "raw")).coder
    return Part(bytes([FORMS.index(form)]) + fields, b"".join(part.body for part in real), coder)


def _planes(words: Array, coder: str) -> list[Part]:
    """A part for each byte of the rotated words, the highest first."""
    width = words.dtype.itemsize
    turned = (words << 1) | (words >> (8 * width - 1))
    planes = np.ascontiguousarray(turned).view(np.uint8).reshape(*words.shape, width)
    return [encode_stream(np.ascontiguousarray(planes[..., i]), coder) for i in reversed(range(width))]


def _decode_planes(head: Reader, body: Reader, width: int, rows: int, columns: int) -> Array:
    planes = np.empty((rows, columns, width), np.uint8)
    for i in reversed(range(width)):
        planes[..., i] = decode_stream(head, body, rows, columns)
    turned: Array = planes.view(f"<u{width}")[..., 0]
    return (turned >> 1) | (turned << (8 * width - 1))


def _taps(symbols: Array, taps: int) -> tuple[bytes, Array]:
    """Every tap less what the taps before it predict by least squares; the factors, in 64ths, come first."""
    kernels = symbols.reshape(-1, taps).astype(np.int32) - 128
    sample = kernels[:: max(1, kernels.shape[0] >> 14)].astype(np.float64)
    gram = sample.T @ sample + np.eye(taps)
    rest = kernels.copy()
    head = Writer()
    for tap in range(1, taps):
        factors = np.linalg.solve(gram[:tap, :tap], gram[:tap, tap])
        whole = np.clip(np.rint(64 * factors), -128, 127).astype(np.int32)
        rest[:, tap] -= _predict(kernels, whole)
        head.raw(whole.astype(np.int8).tobytes())
    return bytes(head.buffer), (rest + 128).astype(np.uint8).reshape(symbols.shape)


def _decode_taps(head: Reader, body: Reader, taps: int, rows: int, columns: int) -> Array:
    factors = [np.frombuffer(head.raw(tap), np.int8).astype(np.int32) for tap in range(1, taps)]
    rest = decode_stream(head, body, rows, columns).reshape(-1, taps)
    kernels = rest.astype(np.int32) - 128
    for tap in range(1, taps):
        whole = kernels[:, tap] + _predict(kernels, factors[tap - 1])
        kernels[:, tap] = ((whole + 128) & 255) - 128
    return (kernels + 128).astype(np.uint8).reshape(rows, columns)


def _predict(kernels: Array, factors: Array) -> Array:
    """The next tap of each kernel, by those before it; integers throughout, so the same everywhere."""
    total = np.full(kernels.shape[0], 32, np.int32)
    for tap, factor in enumerate(factors.tolist()):
        total += factor * kernels[:, tap]
    return total >> 6


def _values(words: Array, coder: str) -> Part | None:
    """By a list of the distinct words; None where there are too many."""
    flat = words.reshape(-1)
    if np.unique(flat[:: max(1, flat.size // 2048)]).size > _FEW:
        return None
    distinct, places = np.unique(flat, return_inverse=True)
    if distinct.size > _FEW:
        return None
    head = Writer()
    head.number(distinct.size)
    head.raw(distinct.tobytes())
    part = encode_stream(places.astype(np.uint8).reshape(words.shape), coder)
    return _tagged("values", bytes(head.buffer), part)


def _sparse(words: Array, common: int, width: int, coder: str, share: float) -> list[Part]:
    """The places of what is not `common`, as flags and, where they are few, as gaps; and the words there."""
    flags = words != common
    left = words[flags].reshape(1, -1)
    value = common.to_bytes(8, "little")[:width]
    rest = _planes(left, coder) if width > 1 else [encode_stream(left, coder)]
    found = [_tagged("sparse", value, encode_stream(flags.view(np.uint8), coder), *rest)]
    if share > 0.7:
        gaps = _gaps(flags)
        head = Writer()
        head.number(gaps.size)
        found.append(
            _tagged("gaps", value, bytes(head.buffer), encode_stream(gaps.reshape(1, -1), coder), *rest)
        )
    return found


def _digits(data: Array, packing: Packing, inner: int, coder: str) -> list[Part]:
    """The integers packed in `data`, where they give it again; `inner` to a row where they come out even."""
    numbers = data.size // packing.width
    count = numbers * packing.group
    if data.size % packing.width or count > _MOST_DIGITS:
        return []
    digits = packing.unpack(data.reshape(numbers, -1), count)
    if not np.array_equal(packing.pack(digits).reshape(-1), data):
        return []
    columns = inner if count % inner == 0 else count
    head = Writer()
    for number in (packing.radix, packing.group, packing.width, columns):
        head.number(number)
    part = encode_chunk(digits, Kind(columns=columns), count // columns, coder)
    return [_tagged("digits", bytes(head.buffer), part)]


def _decode_digits(head: Reader, body: Reader, size: int) -> bytes:
    packing = Packing(head.number(_FEW), head.number(64), head.number(8))
    columns = head.number(_MOST_DIGITS)
    if not (packing.sound and size % packing.width == 0):
        raise damaged("a tensor has a packing that cannot be")
    count = size // packing.width * packing.group
    if count > _MOST_DIGITS or columns == 0 or count % columns or head.data[head.at : head.at + 1] == _NESTED:
        raise damaged("a tensor has a packing that does not fit")
    digits = decode_chunk(head, body, Kind(columns=columns), count // columns, columns)
    return packing.pack(np.frombuffer(digits, np.uint8)).tobytes()


def _gaps(flags: Array) -> Array:
    """How far each flag is behind the one before, less one; 255 stands for 255 and goes on.

    >>> _gaps(np.array([0, 1, 1, 0, 0, 1, 0], bool))
    array([1, 0, 2], dtype=uint8)
    """
    distance = np.diff(np.flatnonzero(flags), prepend=-1) - 1
    full = distance // 255
    gaps = np.full(distance.size + int(full.sum()), 255, np.uint8)
    gaps[np.arange(distance.size) + full.cumsum()] = distance % 255
    return gaps


def _decode_sparse(form: str, head: Reader, body: Reader, width: int, shape: tuple[int, int]) -> Array:
    common = int.from_bytes(head.raw(width), "little")
    size = shape[0] * shape[1]
    if form == "sparse":
        flags = decode_stream(head, body, *shape).reshape(-1)
        places = np.flatnonzero(flags)
    else:
        gaps = decode_stream(head, body, 1, head.number(2 * size)).reshape(-1)
        steps = gaps.astype(np.int64)
        ends = gaps < 255
        places = (steps.cumsum() + (ends.cumsum() - 1))[ends]
        if places.size and int(places[-1]) >= size:
            raise damaged("a place is outside its tensor")
    words = np.full(size, common, f"<u{width}" if width > 1 else np.uint8)
    if width > 1:
        words[places] = _decode_planes(head, body, width, 1, places.size)[0]
    else:
        words[places] = decode_stream(head, body, 1, places.size)[0]
    return words.reshape(shape)
