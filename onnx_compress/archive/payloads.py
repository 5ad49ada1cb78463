"""A tensor's bytes as streams of symbols: as they stand, by byte planes, by what is not zero, or by a list of its values.

plain     the bytes; int8 shifted so that neighbours in value are neighbours in symbol
planes    words rotated by one bit, so that a float's exponent is one byte; byte i of every word is plane i
sparse    where the commonest word is not, and the words there
gaps      the same, the places as gaps between them
values    the distinct words, at most 256, and the place of each in that list
taps      of a convolution's bytes, what differs from a linear prediction by the taps before it in the same kernel
digits    of several to a byte each one, as one of the forms above
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from onnx_compress.archive.digits import Digits
from onnx_compress.archive.fields import Reader, Writer, damaged
from onnx_compress.archive.streams import (
    MOST_SYMBOLS,
    Batch,
    Stream,
    order0_bits,
    plan_stream,
    raw_stream,
    read_stream,
    repeats,
    squeeze,
    stretch,
)
from onnx_compress.model.packing import Packing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

FORMS = ("plain", "planes", "sparse", "values", "gaps", "zstd", "taps", "digits")  # the place is the number
CHUNK = 1 << 21  # bytes coded at once, about
_FEW = 256
_MOST_TAPS = 64
_SMALL = 1 << 18  # digits up to which each is a symbol of its own in any case
_SHORT = 2048  # bytes of a plane that is stored raw where it looks like noise
_FEW_LEFT = 0.05  # share of words that are left, below which gaps may be shorter than flags
_DENSE = 0.4  # share of the commonest digit up to which whole bytes of digits are symbols: half as many
_PLAIN = 32  # symbols up to which one table for zeros and others is as short as two
_WIDTHS: dict[int, int] = {
    TensorProto.FLOAT: 4, TensorProto.INT32: 4, TensorProto.UINT32: 4, TensorProto.COMPLEX64: 4,
    TensorProto.DOUBLE: 8, TensorProto.INT64: 8, TensorProto.UINT64: 8, TensorProto.COMPLEX128: 8,
    TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2, TensorProto.INT16: 2, TensorProto.UINT16: 2,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What is known of a payload: bytes a word, whether bytes are signed, elements a row, taps a kernel, digits in its bytes.

    What is read from an archive has no digits here: they are in its fields.
    """

    width: int = 1
    signed: bool = False
    columns: int = 1
    taps: int = 1
    digits: Digits | None = None

    @classmethod
    def of(cls, data_type: int, dims: Sequence[int], length: int, digits: Digits | None = None) -> Kind:
        """The kind of a tensor of `length` bytes."""
        width = _WIDTHS.get(data_type, 1)
        if length % width:
            width = 1
        words = length // width
        columns = words // dims[0] if len(dims) > 1 and dims[0] > 0 and words % dims[0] == 0 else words
        taps = math.prod(dims[2:])
        taps = taps if 1 < taps <= _MOST_TAPS and columns < words and columns % taps == 0 else 1
        return cls(width, data_type == TensorProto.INT8, max(columns, 1), taps, digits)

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


@dataclass(frozen=True)
class Form:
    """A chunk as it is to be stored: small fields and streams, in the order in which they are read."""

    parts: tuple[bytes | Stream, ...]

    @property
    def size(self) -> float:
        """Bytes, about."""
        return sum(len(part) if isinstance(part, bytes) else part.size for part in self.parts)

    @property
    def way(self) -> str:
        """How most of it is stored."""
        streams = [part for part in self.parts if isinstance(part, Stream)]
        return max(streams, key=lambda part: part.size * (part.way != "raw")).way

    def write(self, index: Writer, bulk: Callable[[bytes], None], batch: Batch) -> None:
        """Fields to the index, bytes to the bulk, symbols to the batch."""
        for part in self.parts:
            index.raw(part if isinstance(part, bytes) else part.head)
            if isinstance(part, Stream):
                bulk(part.body)
                batch.add(part)


def plan_chunk(data: Array, kind: Kind, rows: int, coder: str) -> Form:
    """The bytes `data` (uint8) of `rows` rows in the fewest bytes."""
    found: list[Form] = []
    if coder == "zstd" or (coder == "auto" and repeats(data)):
        coded = squeeze(data.tobytes())
        found.append(_form("zstd", Stream("zstd", _number(len(coded)), coded, len(coded) + 4)))
    if coder == "zstd" and kind.width == 1:
        return found[0]
    if kind.width > 1:
        words = data.view(f"<u{kind.width}").reshape(rows, -1)
        listed = _values(words, coder)
        found.append(listed or _form("planes", *_planes(words, coder)))
        found += _sparse(words, 0, kind.width, coder)
        return min(found, key=lambda form: form.size)
    digits = None if kind.digits is None else _digits(data, kind.digits, coder)
    if digits is None:
        symbols = data.reshape(rows, -1) ^ np.uint8(0x80) if kind.signed else data.reshape(rows, -1)
        found += _byte_forms(symbols, kind.taps, coder)
    else:
        found.append(digits)
    return min(found, key=lambda form: form.size)


def read_chunk(
    head: Reader, body: Reader, kind: Kind, shape: tuple[int, int], batch: Batch
) -> Callable[[], bytes]:
    """What gives the bytes of a planned chunk once `batch` is decoded. Raises InputError where the fields make none."""
    form = FORMS[head.number(len(FORMS) - 1)]
    size = shape[0] * shape[1] * kind.width
    if form == "zstd":
        data = body.raw(head.number())
        return lambda: stretch(data, size)
    if form == "digits":
        return _read_digits(head, body, size, batch)
    words = _read_words(form, head, body, kind, shape, batch)
    flip = np.uint8(0x80 if kind.signed and kind.width == 1 else 0)

    def found() -> bytes:
        return (words() ^ flip if flip else words()).tobytes()

    return found


def _read_words(
    form: str, head: Reader, body: Reader, kind: Kind, shape: tuple[int, int], batch: Batch
) -> Callable[[], Array]:
    if form == "values":
        return _read_values(head, body, kind.width, shape, batch)
    if form in ("sparse", "gaps"):
        return _read_sparse(form, head, body, kind.width, shape, batch)
    if form == "taps" and kind.width == 1 and kind.taps > 1:
        return _read_taps(head, body, kind.taps, shape, batch)
    if form == "planes" and kind.width > 1:
        return _read_planes(head, body, kind.width, shape, batch)
    if form == "plain" and kind.width == 1:
        return read_stream(head, body, *shape, batch)
    raise damaged("a tensor has a form that its type cannot have")


def _form(name: str, *parts: bytes | Stream) -> Form:
    return Form((bytes([FORMS.index(name)]), *parts))


def _number(value: int) -> bytes:
    field = Writer()
    field.number(value)
    return bytes(field.buffer)


def _byte_forms(symbols: Array, taps: int, coder: str) -> list[Form]:
    """The forms of bytes that may be the best."""
    found = []
    gain = 0.0
    foretold = _taps(symbols, taps) if taps > 1 else None
    if foretold is not None:
        bits = order0_bits(foretold[1].reshape(-1)) * symbols.size + 8 * len(foretold[0])
        gain = order0_bits(symbols.reshape(-1)) * symbols.size / max(bits, 1.0)
        if gain > 0.9:
            found.append(_form("taps", foretold[0], plan_stream(foretold[1], coder, floor=False)))
    low, high = int(symbols.min(initial=255)), int(symbols.max(initial=0))
    if gain < 1.1:  # > near 1 both: classes of rows and columns may do more for one than for the other
        found.append(_form("plain", plan_stream(symbols, coder, floor=False)))
    common, share = _commonest(symbols)
    if high - low < _PLAIN and share < 1 - _FEW_LEFT and coder != "huffman":
        return found
    return found + _sparse(symbols, common, 1, coder)


def _commonest(symbols: Array) -> tuple[int, float]:
    """The commonest symbol and its share, of a sample."""
    counts = np.bincount(symbols.reshape(-1)[:: max(1, symbols.size >> 16)], minlength=1)
    common = int(counts.argmax())
    return common, float(counts[common] / max(counts.sum(), 1))


def _digits(data: Array, digits: Digits, coder: str) -> Form | None:
    """Every digit a symbol, in rows as the weight has them; None where the bytes hold no such digits."""
    if digits.packing.group * data.size // digits.packing.width > MOST_SYMBOLS // 2:
        return None
    flat = digits.unpack(data)
    if flat is None:
        return None
    columns = min(digits.columns, flat.size)
    rows = flat.size // columns
    packing = digits.packing
    head = Writer()
    for number in (packing.radix, packing.group, packing.width, int(digits.signed), rows, columns):
        head.number(number)
    forms = _byte_forms(flat[: rows * columns].reshape(rows, columns), 1, coder)
    best = min(forms, key=lambda form: form.size)
    tail = plan_stream(flat[rows * columns :].reshape(1, -1), coder, floor=False)
    return _form("digits", bytes(head.buffer), *best.parts, tail)


def _whole_bytes(matrix: Array, coder: str) -> Form:
    """Bytes of several digits each as they are, in the rows of the weight."""
    head = Writer()
    for number in (256, 1, 1, 0, *matrix.shape):
        head.number(number)
    forms = _byte_forms(matrix, 1, coder)
    tail = plan_stream(np.empty((1, 0), np.uint8), coder)
    return _form("digits", bytes(head.buffer), *min(forms, key=lambda form: form.size).parts, tail)


def _read_digits(head: Reader, body: Reader, size: int, batch: Batch) -> Callable[[], bytes]:
    radix, group, width = head.number(256), head.number(64), head.number(7)
    signed, rows, columns = bool(head.number(1)), head.number(MOST_SYMBOLS), head.number(MOST_SYMBOLS)
    if radix < 2 or not group or not width or radix**group > 256**width or size % width:
        raise damaged("digits do not fit their bytes")
    count = size // width * group
    if count > MOST_SYMBOLS or rows * columns > count:
        raise damaged("there are more digits than bytes for them")
    form = FORMS[head.number(len(FORMS) - 1)]
    matrix = _read_words(form, head, body, Kind(), (rows, columns), batch)
    tail = read_stream(head, body, 1, count - rows * columns, batch)
    digits = Digits(Packing(radix, group, width), columns, signed)

    def found() -> bytes:
        flat = np.concatenate([matrix().reshape(-1), tail().reshape(-1)])
        if int(flat.max(initial=0)) >= radix:
            raise damaged("a digit is too large")
        return digits.pack(flat).tobytes()

    return found


def _planes(words: Array, coder: str) -> list[Stream]:
    """A stream for each byte of the rotated words, the highest first."""
    width = words.dtype.itemsize
    turned = (words << 1) | (words >> (8 * width - 1))
    planes = np.ascontiguousarray(turned).view(np.uint8).reshape(*words.shape, width)
    streams = [plan_stream(np.ascontiguousarray(planes[..., width - 1]), coder)]
    for i in reversed(range(width - 1)):
        plane = np.ascontiguousarray(planes[..., i])
        # > a few bytes, most of them different: a table would be as long
        noise = plane.size < _SHORT and np.count_nonzero(np.bincount(plane.reshape(-1))) > plane.size / 3
        streams.append(raw_stream(plane) if noise else plan_stream(plane, coder))
    return streams


def _read_planes(
    head: Reader, body: Reader, width: int, shape: tuple[int, int], batch: Batch
) -> Callable[[], Array]:
    streams = [read_stream(head, body, *shape, batch) for _ in range(width)]

    def found() -> Array:
        planes = np.empty((*shape, width), np.uint8)
        for i, stream in zip(reversed(range(width)), streams, strict=True):
            planes[..., i] = stream()
        turned: Array = planes.view(f"<u{width}")[..., 0]
        return (turned >> 1) | (turned << (8 * width - 1))

    return found


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


def _read_taps(
    head: Reader, body: Reader, taps: int, shape: tuple[int, int], batch: Batch
) -> Callable[[], Array]:
    factors = [np.frombuffer(head.raw(tap), np.int8).astype(np.int32) for tap in range(1, taps)]
    stream = read_stream(head, body, *shape, batch)

    def found() -> Array:
        kernels = stream().reshape(-1, taps).astype(np.int32) - 128
        for tap in range(1, taps):
            whole = kernels[:, tap] + _predict(kernels, factors[tap - 1])
            kernels[:, tap] = ((whole + 128) & 255) - 128
        return (kernels + 128).astype(np.uint8).reshape(shape)

    return found


def _predict(kernels: Array, factors: Array) -> Array:
    """The next tap of each kernel, by those before it; integers throughout, so the same everywhere."""
    total = np.full(kernels.shape[0], 32, np.int32)
    for tap, factor in enumerate(factors.tolist()):
        total += factor * kernels[:, tap]
    return total >> 6


def _values(words: Array, coder: str) -> Form | None:
    """By a list of the distinct words; None where there are too many."""
    flat = words.reshape(-1)
    if np.unique(flat[:: max(1, flat.size // 2048)]).size > _FEW:
        return None
    distinct, places = np.unique(flat, return_inverse=True)
    if distinct.size > _FEW:
        return None
    stream = plan_stream(places.astype(np.uint8).reshape(words.shape), coder)
    return _form("values", _number(distinct.size), distinct.tobytes(), stream)


def _read_values(
    head: Reader, body: Reader, width: int, shape: tuple[int, int], batch: Batch
) -> Callable[[], Array]:
    count = head.number(_FEW)
    listed = np.frombuffer(head.raw(count * width), f"<u{width}")
    stream = read_stream(head, body, *shape, batch)

    def found() -> Array:
        places = stream()
        if count == 0 or int(places.max(initial=0)) >= count:
            raise damaged("a value is not in its list")
        result: Array = listed[places]
        return result

    return found


def _sparse(words: Array, common: int, width: int, coder: str) -> list[Form]:
    """The places of what is not `common`, as flags and, where they are few, as gaps; and the words there."""
    if coder == "zstd" or not 0.2 < float((words[:: max(1, len(words) >> 8)] == common).mean()) <= 1:
        return []
    flags = words != common
    left = words[flags].reshape(1, -1)
    if not left.size or left.size > 0.7 * words.size:
        return []
    front = common.to_bytes(8, "little")[:width] + _number(left.size)
    rest = _planes(left, coder) if width > 1 else [plan_stream(left, coder)]
    found = [_form("sparse", front, plan_stream(flags.view(np.uint8), coder), *rest)]
    if left.size < (0.4 if coder == "huffman" else _FEW_LEFT) * words.size:
        gaps = _gaps(flags)
        found.append(_form("gaps", front, _number(gaps.size), plan_stream(gaps.reshape(1, -1), coder), *rest))
    return found


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


def _read_sparse(
    form: str, head: Reader, body: Reader, width: int, shape: tuple[int, int], batch: Batch
) -> Callable[[], Array]:
    common = int.from_bytes(head.raw(width), "little")
    size = shape[0] * shape[1]
    left = head.number(size)
    counted = head.number(2 * size) if form == "gaps" else 0
    where = read_stream(head, body, *((1, counted) if form == "gaps" else shape), batch)
    if width > 1:
        rest = _read_planes(head, body, width, (1, left), batch)
    else:
        rest = read_stream(head, body, 1, left, batch)

    def found() -> Array:
        places = _places(where().reshape(-1)) if form == "gaps" else np.flatnonzero(where())
        if places.size != left or (left and int(places[-1]) >= size):
            raise damaged("a place is outside its tensor")
        words = np.full(size, common, f"<u{width}" if width > 1 else np.uint8)
        words[places] = rest()[0]
        return words.reshape(shape)

    return found


def _places(gaps: Array) -> Array:
    """What `_gaps` was given, as places."""
    ends = gaps < 255
    found: Array = (gaps.astype(np.int64).cumsum() + (ends.cumsum() - 1))[ends]
    return found
