"""Small integers that stand several to a byte, or to a few, each as a symbol of its own; and back.

So are the indices of clustered weights stored (see `model.packing`), and ONNX's own types of 4 and 2 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from onnx_compress.archive.batches import MOST_SYMBOLS
from onnx_compress.archive.contexts import MOST_TAPS
from onnx_compress.archive.families import BYTES, DIGITS
from onnx_compress.archive.fields import Reader, Writer, damaged
from onnx_compress.archive.forms import (
    FORMS,
    Form,
    byte_form,
    commonest,
    form_of,
    plain_form,
    read_words,
)
from onnx_compress.archive.streams import plan_stream, read_stream
from onnx_compress.model.packing import Packing

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from onnx_compress.archive.promises import Pending

    Array = NDArray[Any]

_MANY = 1 << 13  # bytes from which on whole bytes may be symbols: their tables are long
_EVEN = 1 / 32  # share of the commonest byte up to which they are
_SMALL: dict[int, tuple[int, bool]] = {  # type: bits, signed
    TensorProto.UINT4: (4, False), TensorProto.INT4: (4, True),
    TensorProto.UINT2: (2, False), TensorProto.INT2: (2, True),
}  # fmt: skip


@dataclass(frozen=True)
class Digits:
    """How a tensor's bytes hold digits. columns: digits in a row of the weight; taps: in a kernel; signed: the upper half is negative."""

    packing: Packing
    columns: int
    taps: int = 1
    signed: bool = False

    def unpack(self, data: Array) -> Array | None:
        """The digits of `data` (n,) uint8, flat; None where they do not give `data` back."""
        packing = self.packing
        bits = _whole_bits(packing)
        if data.size % packing.width:
            return None
        if bits:
            number = np.zeros((data.size // packing.width, _room(packing.width)), np.uint8)
            number[:, : packing.width] = data.reshape(-1, packing.width)
            word = number.view(f"<u{number.shape[1]}")[:, 0]
            rows = np.empty((word.size, packing.group), np.uint8)
            for place in range(packing.group):
                shifted = word >> word.dtype.type(bits * place)
                np.bitwise_and(shifted.astype(np.uint8), np.uint8(packing.radix - 1), out=rows[:, place])
            found = rows.reshape(-1)
        elif packing.width == 1:
            if int(data.max(initial=0)) >= packing.radix**packing.group:
                return None
            every = np.arange(256)[:, np.newaxis] // packing.powers() % packing.radix
            found = every.astype(np.uint8)[data].reshape(-1)
        else:
            rows = data.reshape(-1, packing.width)
            found = packing.unpack(rows, len(rows) * packing.group)
            if not np.array_equal(packing.pack(found), rows):
                return None
        return found ^ np.uint8(packing.radix // 2) if self.signed else found

    def pack(self, digits: Array) -> Array:
        """The bytes of `digits`, of which there are whole numbers."""
        packing = self.packing
        if self.signed:
            digits = digits ^ np.uint8(packing.radix // 2)
        bits = _whole_bits(packing)
        if bits:
            rows = digits.reshape(-1, packing.group)
            word = np.zeros(len(rows), f"<u{_room(packing.width)}")
            for place in range(packing.group):
                word |= rows[:, place].astype(word.dtype) << word.dtype.type(bits * place)
            return word.view(np.uint8).reshape(len(rows), -1)[:, : packing.width].reshape(-1)
        if packing.width == 1:
            number = np.zeros(digits.size // packing.group, np.uint8)
            for place, power in enumerate(packing.powers().tolist()):
                number += digits[place :: packing.group] * np.uint8(power)
            return number
        return packing.pack(digits).reshape(-1)


def digit_form(data: Array, digits: Digits, coder: str) -> Form | None:
    """Every digit a symbol, in rows as the weight has them; None where the bytes hold no such digits."""
    if digits.packing.group * data.size // digits.packing.width > MOST_SYMBOLS // 2:
        return None
    if _even(data, digits):
        return _whole_bytes(data.reshape(-1, digits.columns // digits.packing.group), coder)
    flat = digits.unpack(data)
    if flat is None:
        return None
    columns = min(digits.columns, flat.size)
    rows = flat.size // columns
    taps = digits.taps if 1 < digits.taps <= MOST_TAPS and columns % digits.taps == 0 else 1
    packing = digits.packing
    head = Writer()
    for number in (packing.radix, packing.group, packing.width, int(digits.signed), rows, columns):
        head.number(number)
    head.number(taps)
    family = DIGITS + 256 * packing.radix
    best = byte_form(flat[: rows * columns].reshape(rows, columns), taps, coder, family)
    tail = plan_stream(flat[rows * columns :].reshape(1, -1), coder, family, floor=False)
    return form_of("digits", bytes(head.buffer), *best.parts, tail)


def _even(data: Array, digits: Digits) -> bool:
    """Whether whole bytes of digits take hardly more bits as symbols than digits do, at half the time."""
    packing = digits.packing
    fits = packing.width == 1 and packing.radix**packing.group == 256 and digits.columns % packing.group == 0
    if not fits or data.size < _MANY or data.size % (digits.columns // packing.group) or digits.taps > 1:
        return False
    return commonest(data.reshape(1, -1))[1] < _EVEN


def _whole_bytes(matrix: Array, coder: str) -> Form:
    """Bytes of several digits each as they are, in the rows of the weight."""
    head = Writer()
    for number in (256, 1, 1, 0, *matrix.shape, 1):
        head.number(number)
    tail = plan_stream(np.empty((1, 0), np.uint8), coder, BYTES)
    return form_of("digits", bytes(head.buffer), *plain_form(matrix, coder, DIGITS).parts, tail)


def read_digits(head: Reader, body: Reader, size: int, batch: Pending) -> Callable[[], bytes]:
    """What gives the `size` bytes of a digit form once `batch` is decoded. Raises InputError where the fields make none."""
    radix, group, width = head.number(256), head.number(64), head.number(7)
    signed, rows, columns = bool(head.number(1)), head.number(MOST_SYMBOLS), head.number(MOST_SYMBOLS)
    if radix < 2 or not group or not width or radix**group > 256**width or size % width:
        raise damaged("digits do not fit their bytes")
    count = size // width * group
    if count > MOST_SYMBOLS or rows * columns > count:
        raise damaged("there are more digits than bytes for them")
    taps = head.number(MOST_TAPS)
    if not taps or columns % taps:
        raise damaged("kernels do not fill their rows")
    form = FORMS[head.number(len(FORMS) - 1)]
    matrix = read_words(form, head, body, 1, taps, (rows, columns), batch)
    tail = read_stream(head, body, 1, count - rows * columns, batch)
    digits = Digits(Packing(radix, group, width), columns, taps, signed)

    def found() -> bytes:
        flat = np.concatenate([matrix().reshape(-1), tail().reshape(-1)])
        if int(flat.max(initial=0)) >= radix:
            raise damaged("a digit is too large")
        return digits.pack(flat).tobytes()

    return found


def typed_digits(data_type: int, dims: tuple[int, ...]) -> Digits | None:
    """The digits of a tensor of a type of less than a byte."""
    if data_type not in _SMALL:
        return None
    bits, signed = _SMALL[data_type]
    count = int(np.prod(dims, dtype=np.int64))
    columns = count // dims[0] if len(dims) > 1 and dims[0] > 0 else count
    return Digits(Packing(1 << bits, 8 // bits, 1), max(columns, 1), signed=signed)


def _whole_bits(packing: Packing) -> int:
    """The bits of a digit where it has whole ones that fill its bytes; else 0."""
    bits = packing.radix.bit_length() - 1
    fits = packing.radix == 1 << bits and bits * packing.group == 8 * packing.width
    return bits if fits else 0


def _room(width: int) -> int:
    """Bytes of the machine's number that holds `width` bytes."""
    return next(size for size in (1, 2, 4, 8) if size >= width)
