"""Small tensors, taken out of the bytes around them: those of one kind are coded together, as one weight.

Biases, scales and codebooks have few bytes each: one by one, what a coder costs to start is more than it saves, and between the
names of nodes their mantissas spoil what a general method finds there. A tensor that is another one times a number, bit by bit, is
stored as that number: so are the scales of integer biases, those of the weights times that of the input.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from onnx_compress.archive.fields import Reader, Writer, damaged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

_FLOAT = struct.Struct("<f")
LEAST = 12  # bytes of a small tensor at least
LARGEST = 1 << 16  # bytes of one at most
MOST = 1 << 22  # bytes of all pools, and of the skeleton they are taken from, at most
POOLS = 16
_NO_DIGITS = str.maketrans("", "", "0123456789")
_BACK = 8  # tensors that may be the factor of another
TYPES = (
    TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.INT8, TensorProto.FLOAT16,
)  # fmt: skip


@dataclass(frozen=True)
class Small:
    """A small tensor: where its bytes are in the skeleton, and what they are."""

    start: int
    length: int
    data_type: int
    name: str

    @property
    def kind(self) -> tuple[int, str]:
        """Tensors alike have the type, and the name but for the numbers in it."""
        return self.data_type, self.name.rsplit("/", 1)[-1].translate(_NO_DIGITS)


@dataclass(frozen=True)
class Pool:
    """The bytes of tensors of one type."""

    data_type: int
    data: bytes


def extract(skeleton: bytes, smalls: Sequence[Small]) -> tuple[bytes, list[Pool]]:
    """The skeleton without its small tensors, led by where they were; and what they held."""
    if not smalls or len(skeleton) > MOST:
        return skeleton, []
    kinds: dict[tuple[int, str], int] = {}
    for small in smalls:
        kinds.setdefault(small.kind, len(kinds))
    if len(kinds) > POOLS:
        types = sorted({small.data_type for small in smalls})
        kinds = {small.kind: types.index(small.data_type) for small in smalls}
    numbers = sorted(set(kinds.values()))
    types_of = {kinds[small.kind]: small.data_type for small in smalls}
    pools = {number: bytearray() for number in numbers}
    recent: deque[bytes] = deque(maxlen=_BACK)
    head, rest = Writer(), bytearray()
    head.number(len(smalls))
    at = 0
    for small in smalls:
        data = skeleton[small.start : small.start + small.length]
        rest += skeleton[at : small.start]
        head.number(small.start - at)
        head.number(small.length)
        at = small.start + small.length
        product = _product(data, recent) if small.data_type == TensorProto.FLOAT else None
        if product is None:
            head.number(kinds[small.kind])
            pools[kinds[small.kind]] += data
        else:
            head.number(POOLS + product[0])
            head.raw(product[1])
        if small.data_type == TensorProto.FLOAT:
            recent.appendleft(data)
    rest += skeleton[at:]
    return bytes(head.buffer) + bytes(rest), [
        Pool(types_of[number], bytes(pools[number])) for number in numbers
    ]


def restore(structure: bytes, pools: Sequence[tuple[int, bytes]]) -> bytes:
    """What `extract` was given, from the structure and the pools' (type, bytes). Raises InputError where they do not fit."""
    head = Reader(structure)
    places = []
    recent: deque[bytes] = deque(maxlen=_BACK)
    ends, total = [0] * len(pools), 0
    for _ in range(head.number(MOST)):
        before, length, way = head.number(MOST), head.number(LARGEST), head.number(POOLS + _BACK - 1)
        total += length
        if length < LEAST or total > MOST:
            raise damaged("small tensors are not those it says")
        if way < POOLS:
            if way >= len(pools) or ends[way] + length > len(pools[way][1]):
                raise damaged("small tensors are not those it says")
            data_type, pool = pools[way]
            data = pool[ends[way] : ends[way] + length]
            ends[way] += length
        else:
            factor = np.frombuffer(head.raw(4), "<f4")
            if way - POOLS >= len(recent) or len(recent[way - POOLS]) != length:
                raise damaged("a small tensor has no factor")
            data_type, data = TensorProto.FLOAT, _times(recent[way - POOLS], factor)
        places.append((before, data))
        if data_type == TensorProto.FLOAT:
            recent.appendleft(data)
    if ends != [len(pool) for _, pool in pools]:
        raise damaged("small tensors are not those it says")
    found = bytearray()
    for before, data in places:
        found += head.raw(before)
        found += data
    return bytes(found) + bytes(head.data[head.at :])


def _times(data: bytes, factor: Array) -> bytes:
    with np.errstate(all="ignore"):
        return (np.frombuffer(data, "<f4") * factor).astype("<f4").tobytes()


def _ends(data: bytes) -> tuple[float, float]:
    """The first and the last number."""
    return *_FLOAT.unpack_from(data), *_FLOAT.unpack_from(data, len(data) - 4)


def _product(data: bytes, recent: deque[bytes]) -> tuple[int, bytes] | None:
    """Which of the recent tensors times which number is `data`, bit by bit; the number has the bits of a float32."""
    if len(data) < 16 or len(data) % 4:
        return None
    begin, end = _ends(data)
    for back, other in enumerate(recent):
        if len(other) != len(data):
            continue
        left, right = _ends(other)
        if abs(begin * right - end * left) > 1e-5 * abs(begin * right):
            continue
        whole, old = (np.frombuffer(part, "<f4").astype(np.float64) for part in (data, other))
        if not np.isfinite(whole).all():  # > what a NaN carries on is the machine's own
            return None
        with np.errstate(all="ignore"):
            ratio = whole / old
            fine = np.isfinite(ratio)
            if not fine.any() or np.ptp(ratio[fine]) > 1e-5 * abs(float(ratio[fine][0])):
                continue
            first = np.float32(ratio[fine][0])  # > rounded twice: at most one step off
            near = [first, np.nextafter(first, np.float32(np.inf)), np.nextafter(first, np.float32(-np.inf))]
        for factor in near:
            if _times(other, factor) == data:
                return back, factor.astype("<f4").tobytes()
    return None
