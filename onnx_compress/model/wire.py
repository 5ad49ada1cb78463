"""Splits a serialized ONNX message into a small skeleton and the places of its weights, and joins them again, without parsing the weights.

The protobuf wire format is a sequence of (tag, payload) fields. Every `TensorProto.raw_data` of THRESHOLD bytes or more
is left out of the skeleton and replaced by a reference in `external_data`; everything else is copied as it stands.
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import secrets
from functools import cache
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    from google.protobuf.descriptor import Descriptor
    from numpy.typing import NDArray

    Weight = NDArray[np.uint8]

THRESHOLD = 1024  # bytes: smaller tensors stay inline (shapes, scales, indices)
DEEPEST = 100  # messages inside messages: protobuf's own limit
# > not to be guessed: no tensor of a file can name the weight of another
_SECRET = secrets.token_hex(8)
_TENSOR = onnx.TensorProto.DESCRIPTOR
_RAW_DATA = _TENSOR.fields_by_name["raw_data"].number


def split(buffer: memoryview) -> tuple[bytes, list[tuple[int, int]]]:
    """The skeleton of the serialized ModelProto in `buffer`, and (offset, length) of each weight left out of it.

    The i-th weight is the tensor that `stands_for(tensor, i)`.
    Raises ValueError where the buffer is not a whole protobuf message, or one nested too deep.
    """
    places: list[tuple[int, int]] = []
    skeleton = b"".join(_copy(buffer, 0, len(buffer), onnx.ModelProto.DESCRIPTOR, places, DEEPEST))
    return skeleton, places


def stands_for(tensor: onnx.TensorProto, index: int) -> bool:
    """Whether `tensor`, of a skeleton that `split` made in this process, stands for the weight `index`."""
    return weight_of(tensor) == index


def weight_of(tensor: onnx.TensorProto) -> int | None:
    """The number of the weight that `tensor` of such a skeleton stands for, if it does."""
    if len(tensor.external_data) != 1:
        return None
    secret, _, number = tensor.external_data[0].value.partition(":")
    return int(number) if secret == _SECRET else None


def references(skeleton: bytes) -> int:
    """How many tensors of a skeleton may have external data: those that stand for weights, and others."""
    return skeleton.count(b"location")


def _location(index: int) -> str:
    return f"{_SECRET}:{index}"


def _copy(
    buffer: memoryview, start: int, end: int, kind: Descriptor, places: list[tuple[int, int]], deep: int
) -> Iterator[bytes]:
    """The fields of one message, weights left out; at most `deep` messages inside one another."""
    if not deep:
        msg = f"messages are nested more than {DEEPEST} deep"
        raise ValueError(msg)
    children = _children(kind)
    at = kept = start
    while at < end:
        field_start = at
        tag, at = _varint(buffer, at, end)
        if tag & 7 != 2:
            at = _skip(buffer, at, end, tag & 7)
            continue
        length, body = _varint(buffer, at, end)
        at = body + length
        if at > end:
            msg = f"a field at byte {field_start} claims {length} bytes, more than the file has"
            raise ValueError(msg)
        number = tag >> 3
        if length < THRESHOLD:
            continue
        if kind is _TENSOR and number == _RAW_DATA:
            yield bytes(buffer[kept:field_start])
            yield _reference(len(places))
            places.append((body, length))
            kept = at
        elif number in children:
            yield bytes(buffer[kept:field_start])
            message = b"".join(_copy(buffer, body, at, children[number], places, deep - 1))
            yield _encode(tag) + _encode(len(message)) + message
            kept = at
    yield bytes(buffer[kept:end])


@cache
def _children(kind: Descriptor) -> dict[int, Descriptor]:
    """The fields that are messages, by number."""
    return {field.number: field.message_type for field in kind.fields if field.message_type is not None}


def mark(index: int) -> bytes:
    """What stands in the raw data of a tensor for its weight, for `join`: no bytes of a model are the same."""
    return f"{_SECRET}:{index}".encode()


def join(skeleton: bytes, weights: Mapping[bytes, Weight]) -> list[bytes | Weight]:
    """The serialized ModelProto `skeleton` with the weights in the place of their marks, in pieces.

    The bytes are those that protobuf gives for the whole model, which need not be in memory for it.
    """
    if not weights:
        return [skeleton]
    return _expanded(memoryview(skeleton), 0, len(skeleton), onnx.ModelProto.DESCRIPTOR, weights)[1]


def _expanded(
    buffer: memoryview, start: int, end: int, kind: Descriptor, weights: Mapping[bytes, Weight]
) -> tuple[int, list[bytes | Weight]]:
    """One message with its weights: its length, and its pieces."""
    children = _children(kind)
    parts: list[bytes | Weight] = []
    total, at, kept = 0, start, start
    while at < end:
        field_start = at
        tag, at = _varint(buffer, at, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type != 2:
            at = _skip(buffer, at, end, wire_type)
            continue
        length, body = _varint(buffer, at, end)
        at = body + length
        inside: list[bytes | Weight] = []
        if kind is _TENSOR and number == _RAW_DATA:
            weight = weights.get(bytes(buffer[body:at])) if length < THRESHOLD else None
            inside = [] if weight is None else [weight]
            length = length if weight is None else weight.nbytes
        elif number in children:
            length, inside = _expanded(buffer, body, at, children[number], weights)
            inside = inside if any(not isinstance(part, bytes) for part in inside) else []
        if not inside:
            continue
        parts += [bytes(buffer[kept:field_start]), _encode(tag) + _encode(length), *inside]
        total += field_start - kept + len(parts[-len(inside) - 1]) + length
        kept = at
    parts.append(bytes(buffer[kept:end]))
    return total + end - kept, parts


def _reference(index: int) -> bytes:
    """The TensorProto fields that stand for the weight `index`."""
    stub = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    stub.external_data.add(key="location", value=_location(index))
    encoded: bytes = stub.SerializeToString()
    return encoded


def _varint(buffer: memoryview, at: int, end: int) -> tuple[int, int]:
    if at < end and buffer[at] < 0x80:
        return buffer[at], at + 1
    value = shift = 0
    while at < end and shift < 70:
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    msg = f"a number breaks off at byte {at}"
    raise ValueError(msg)


def _skip(buffer: memoryview, at: int, end: int, wire_type: int) -> int:
    if wire_type == 0:
        return _varint(buffer, at, end)[1]
    if wire_type in (1, 5) and at + (8 if wire_type == 1 else 4) <= end:
        return at + (8 if wire_type == 1 else 4)
    msg = f"no protobuf field at byte {at}"
    raise ValueError(msg)


def _encode(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
