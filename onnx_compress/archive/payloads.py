"""What is known of a tensor's bytes, how they are cut into chunks, and the form that takes the fewest bytes of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from onnx_compress.archive.batches import Stream
from onnx_compress.archive.digits import Digits, digit_form, read_digits
from onnx_compress.archive.families import BYTES, PLANES, VALUES
from onnx_compress.archive.forms import (
    FORMS,
    Form,
    byte_form,
    form_of,
    number_field,
    plane_streams,
    read_words,
    sparse_forms,
    value_form,
)
from onnx_compress.archive.general import squeeze, stretch
from onnx_compress.archive.streams import repeats

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from onnx_compress.archive.fields import Reader
    from onnx_compress.archive.promises import Pending

    Array = NDArray[Any]

CHUNK = 1 << 21  # bytes coded at once, about
_MOST_TAPS = 64
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


def plan_chunk(data: Array, kind: Kind, rows: int, coder: str) -> Form:
    """The bytes `data` (uint8) of `rows` rows in the fewest bytes."""
    found: list[Form] = []
    if coder == "zstd" or (coder == "auto" and repeats(data)):
        coded = squeeze(data.tobytes())
        found.append(form_of("zstd", Stream("zstd", number_field(len(coded)), coded, len(coded) + 4)))
    if coder == "zstd" and kind.width == 1:
        return found[0]
    if kind.width > 1:
        words = data.view(f"<u{kind.width}").reshape(rows, -1)
        listed = value_form(words, coder, VALUES)
        found.append(listed or form_of("planes", *plane_streams(words, coder, PLANES + 8 * kind.width)))
        found += sparse_forms(words, 0, kind.width, coder)
        return min(found, key=lambda form: form.size)
    digits = None if kind.digits is None else digit_form(data, kind.digits, coder)
    if digits is None:
        symbols = data.reshape(rows, -1) ^ np.uint8(0x80) if kind.signed else data.reshape(rows, -1)
        found.append(byte_form(symbols, kind.taps, coder, BYTES))
    else:
        found.append(digits)
    return min(found, key=lambda form: form.size)


def read_chunk(
    head: Reader, body: Reader, kind: Kind, shape: tuple[int, int], batch: Pending
) -> Callable[[], bytes]:
    """What gives the bytes of a planned chunk once `batch` is decoded. Raises InputError where the fields make none."""
    form = FORMS[head.number(len(FORMS) - 1)]
    size = shape[0] * shape[1] * kind.width
    if form == "zstd":
        data = body.raw(head.number())
        return lambda: stretch(data, size)
    if form == "digits":
        return read_digits(head, body, size, batch)
    words = read_words(form, head, body, kind.width, kind.taps, shape, batch)
    flip = np.uint8(0x80 if kind.signed and kind.width == 1 else 0)

    def found() -> bytes:
        return (words() ^ flip if flip else words()).tobytes()

    return found
