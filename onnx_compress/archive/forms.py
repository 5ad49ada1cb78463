"""The forms in which words or bytes become streams of symbols, and back.

plain     the bytes
planes    words rotated by one bit, so that a float's exponent is one byte; byte i of every word is plane i
sparse    where the commonest word is not, and the words there
gaps      the same, the places as gaps between them
values    the distinct words, at most 256, and the place of each in that list
taps      of a convolution's bytes, what differs from a linear prediction by the taps before it in the same kernel
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.archive.batches import Batch, Stream
from onnx_compress.archive.factors import pack_factors, regression, unpack_factors
from onnx_compress.archive.families import FLAGS, GAPS, LEFT, PLANES, RESTS
from onnx_compress.archive.fields import Reader, Writer, damaged
from onnx_compress.archive.streams import counts_of, entropy, plan_stream, plan_taps, raw_stream, read_stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from onnx_compress.archive.promises import Pending

    Array = NDArray[Any]

FORMS = ("plain", "planes", "sparse", "values", "gaps", "zstd", "taps", "digits")  # the place is the number
_FEW = 256
_SHORT = 2048  # bytes of a plane that is stored raw where it looks like noise
_FEW_LEFT = 0.05  # share of words that are left, below which gaps may be shorter than flags
_CONTEXT_CODERS = ("auto", "ans", "range")
_CONTEXT_SHARE = 0.15  # of the commonest symbol, from which on contexts do more for taps than differences
_FEW_CONTEXT_SHARE = 0.08  # of few symbols
_MOST_SHARED = 32  # taps up to which what they are foretold by takes few bytes
_PER_FACTOR = 32  # symbols of a tensor with more taps for each factor of that
_RARE_SHARE = 0.998  # of the commonest symbol, from which on gaps are as short as flags in classes
_HUFFMAN_SHARE = 0.3  # of the commonest symbol, from which on a code of whole bits does better by gaps
_PLAIN = 32  # symbols up to which one table for zeros and others is as short as two


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


def read_words(
    form: str, head: Reader, body: Reader, width: int, taps: int, shape: tuple[int, int], batch: Pending
) -> Callable[[], Array]:
    """What gives the words of a form, of `shape` and `width` bytes each, once `batch` is decoded."""
    if form == "values":
        return _read_values(head, body, width, shape, batch)
    if form in ("sparse", "gaps"):
        return _read_sparse(form, head, body, width, shape, batch)
    if form == "taps" and width == 1 and taps > 1:
        return _read_taps(head, body, taps, shape, batch)
    if form == "planes" and width > 1:
        return _read_planes(head, body, width, shape, batch)
    if form == "plain" and width == 1:
        return read_stream(head, body, *shape, batch)
    raise damaged("a tensor has a form that its type cannot have")


def form_of(name: str, *parts: bytes | Stream) -> Form:
    """The form of this name, of these fields and streams."""
    return Form((bytes([FORMS.index(name)]), *parts))


def number_field(value: int) -> bytes:
    """A number as `Reader.number` reads it."""
    field = Writer()
    field.number(value)
    return bytes(field.buffer)


def byte_form(symbols: Array, taps: int, coder: str, family: int) -> Form:
    """The form of bytes that promises the fewest."""
    counts = counts_of(symbols.reshape(-1))
    common = int(counts.argmax())
    share = int(counts[common]) / max(symbols.size, 1)
    used = np.flatnonzero(counts)
    few = int(np.ptp(used)) < _PLAIN
    if share == 1:
        return form_of("plain", plan_stream(symbols, coder, family, floor=False, counts=counts))
    known = coder in _CONTEXT_CODERS and (taps <= _MOST_SHARED or symbols.size > _PER_FACTOR * taps * taps)
    if taps > 1 and known and share > (_FEW_CONTEXT_SHARE if few else _CONTEXT_SHARE):
        return form_of("plain", plan_taps(symbols, taps, family, counts))
    if share > (_HUFFMAN_SHARE if coder == "huffman" else _RARE_SHARE):
        found = sparse_forms(symbols, common, 1, coder)
        if found:
            return min(found, key=lambda form: form.size)
    if taps > 1 and not few:
        factors, rest = _taps(symbols, taps)
        others = counts_of(rest.reshape(-1))
        if entropy(others) + len(factors) < entropy(counts):
            stream = plan_stream(rest, coder, RESTS, taps=taps, floor=False, counts=others)
            return form_of("taps", factors, stream)
    if few:  # > where zero has another place among few values, others are beside it
        family += common
    return form_of("plain", plan_stream(symbols, coder, family, taps=taps, floor=False, counts=counts))


def plain_form(symbols: Array, coder: str, family: int) -> Form:
    """Bytes as they are."""
    return form_of("plain", plan_stream(symbols, coder, family, floor=False))


def commonest(symbols: Array) -> tuple[int, float]:
    """The commonest symbol and its share, of a sample."""
    counts = np.bincount(symbols.reshape(-1)[:: max(1, symbols.size >> 16)], minlength=1)
    common = int(counts.argmax())
    return common, float(counts[common] / max(counts.sum(), 1))


def plane_streams(words: Array, coder: str, family: int) -> list[Stream]:
    """A stream for each byte of the rotated words, the highest first."""
    width = words.dtype.itemsize
    turned = (words << 1) | (words >> (8 * width - 1))
    planes = np.ascontiguousarray(turned).view(np.uint8).reshape(*words.shape, width)
    streams = [plan_stream(np.ascontiguousarray(planes[..., width - 1]), coder, family + width - 1)]
    for i in reversed(range(width - 1)):
        plane = np.ascontiguousarray(planes[..., i])
        # > a few bytes, most of them different: a table would be as long
        noise = plane.size < _SHORT and np.count_nonzero(np.bincount(plane.reshape(-1))) > plane.size / 3
        streams.append(raw_stream(plane) if noise else plan_stream(plane, coder, family + i))
    return streams


def _read_planes(
    head: Reader, body: Reader, width: int, shape: tuple[int, int], batch: Pending
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
    kernels = symbols.reshape(-1, taps).astype(np.float32)
    kernels -= np.float32(128)
    whole = regression(kernels[:: max(1, len(kernels) >> 12)].T, 1e-5)
    # > sums of products of small integers: exact in float32, in whatever order
    foretold = kernels @ whole.T.astype(np.float32)
    foretold += np.float32(32)
    foretold *= np.float32(1 / 64)
    np.floor(foretold, foretold)
    kernels -= foretold
    kernels += np.float32(128)
    rest = kernels.astype(np.int32).astype(np.uint8).reshape(symbols.shape)
    return pack_factors(whole, 0), rest


def _read_taps(
    head: Reader, body: Reader, taps: int, shape: tuple[int, int], batch: Pending
) -> Callable[[], Array]:
    packed = unpack_factors(head, taps, 0).astype(np.float32)
    factors = [np.concatenate([[np.float32(1)], packed[tap, :tap]]) for tap in range(1, taps)]
    stream = read_stream(head, body, *shape, batch)

    def found() -> Array:
        rest = np.bitwise_xor(stream().reshape(-1, taps).T, np.uint8(128), order="C")
        kernels = np.empty((1 + taps, rest.shape[1]), np.float32)
        kernels[0] = 32  # > a half, in 64ths
        kernels[1] = rest[0].view(np.int8)
        for tap, factor in enumerate(factors, 1):
            foretold = (factor @ kernels[: 1 + tap]).astype(np.int32)
            foretold >>= 6
            rest[tap] += foretold.astype(np.uint8)  # > modulo 256
            kernels[1 + tap] = rest[tap].view(np.int8)
        return np.bitwise_xor(rest.T, np.uint8(128), order="C").reshape(shape)

    return found


def value_form(words: Array, coder: str, family: int) -> Form | None:
    """By a list of the distinct words; None where there are too many."""
    flat = words.reshape(-1)
    sample = flat[:: max(1, flat.size // 2048)]
    seen = np.unique(sample).size
    if seen > _FEW or 2 * seen > sample.size:
        return None
    distinct, places = np.unique(flat, return_inverse=True)
    if distinct.size > _FEW:
        return None
    stream = plan_stream(places.astype(np.uint8).reshape(words.shape), coder, family)
    return form_of("values", number_field(distinct.size), distinct.tobytes(), stream)


def _read_values(
    head: Reader, body: Reader, width: int, shape: tuple[int, int], batch: Pending
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


def sparse_forms(words: Array, common: int, width: int, coder: str) -> list[Form]:
    """The places of what is not `common`, as flags and, where they are few, as gaps; and the words there."""
    if coder == "zstd" or not 0.2 < float((words[:: max(1, len(words) >> 8)] == common).mean()) <= 1:
        return []
    flags = words != common
    left = words[flags].reshape(1, -1)
    if not left.size or left.size > 0.7 * words.size:
        return []
    front = common.to_bytes(8, "little")[:width] + number_field(left.size)
    rest = plane_streams(left, coder, PLANES + 8 * width) if width > 1 else [plan_stream(left, coder, LEFT)]
    found = [form_of("sparse", front, plan_stream(flags.view(np.uint8), coder, FLAGS), *rest)]
    if left.size < (0.4 if coder == "huffman" else _FEW_LEFT) * words.size:
        gaps = _gaps(flags)
        found.append(
            form_of(
                "gaps", front, number_field(gaps.size), plan_stream(gaps.reshape(1, -1), coder, GAPS), *rest
            )
        )
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
    form: str, head: Reader, body: Reader, width: int, shape: tuple[int, int], batch: Pending
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
