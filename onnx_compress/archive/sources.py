"""What `pack` reads: a model file and its external data files, and where in each the weights are."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from onnx_compress.archive.container import map_file
from onnx_compress.archive.digits import Digits, typed_digits
from onnx_compress.archive.payloads import Kind
from onnx_compress.archive.pool import LARGEST, LEAST, MOST, TYPES, Small
from onnx_compress.errors import InputError
from onnx_compress.model import wire
from onnx_compress.model.document import tensors
from onnx_compress.model.external import external_place, map_external, real_folder
from onnx_compress.model.packing import packed_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Array = NDArray[Any]


@dataclass(frozen=True)
class Stretch:
    """Bytes start..start+length of a file that are the value of a tensor."""

    start: int
    length: int
    name: str
    data_type: int
    dims: tuple[int, ...]
    digits: Digits | None = None

    @property
    def kind(self) -> Kind:
        """How its bytes are to be looked at."""
        return Kind.of(self.data_type, self.dims, self.length, self.digits)


@dataclass
class File:
    """A file to pack. name: beside the model, empty for the model itself."""

    name: str
    data: Array
    stretches: list[Stretch]
    smalls: list[Small] = field(default_factory=list)


def between(item: File) -> list[bytes]:
    """The bytes of the file that are no weight."""
    edges = [
        0,
        *(edge for part in item.stretches for edge in (part.start, part.start + part.length)),
        item.data.nbytes,
    ]
    return [item.data[start:end].tobytes() for start, end in zip(edges[::2], edges[1::2], strict=True)]


def files_of(source: str) -> list[File]:
    """The model and its external data files, with the places of the weights in each."""
    try:
        if not Path(source).is_file():
            what = "is a folder, not a model" if Path(source).is_dir() else "no such file"
            raise InputError(f"{source}: {what}")
        data = map_file(source)
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror}") from error
    if not data.nbytes:
        raise InputError(f"{source}: the file is empty")
    try:
        skeleton, places = wire.split(data.data)
        proto = onnx.ModelProto.FromString(skeleton)
    except (ValueError, DecodeError) as error:
        raise InputError(f"{source}: not an ONNX file, or truncated") from error
    if not proto.HasField("graph"):
        raise InputError(f"{source}: not an ONNX model: it holds no graph")
    inside, outside = _stubs(proto, len(places), alone=wire.references(skeleton) == len(places))
    packed = {name: Digits(*how) for name, how in packed_tensors(proto).items()}
    stretches = [
        Stretch(at, length, *_described(inside.get(i), packed)) for i, (at, length) in enumerate(places)
    ]
    return [_pooled(data, stretches, proto), *_external(outside, Path(source), packed)]


def _pooled(data: Array, stretches: list[Stretch], proto: onnx.ModelProto) -> File:
    """The model file; small tensors are out of its stretches, and counted from the first byte that is in none."""
    found: list[tuple[bytes, TensorProto]] = []
    taken = set()
    for tensor in proto.graph.initializer:
        number = wire.weight_of(tensor)
        if number is None:
            found.append((tensor.raw_data, tensor))
        elif stretches[number].length < LARGEST and _is_vector(tensor):
            part = stretches[number]
            found.append((data[part.start : part.start + part.length].tobytes(), tensor))
            taken.add(number)
    kept = [part for number, part in enumerate(stretches) if number not in taken]
    if data.nbytes - sum(part.length for part in kept) > MOST:
        return File("", data, stretches)
    file = File("", data, kept)
    skeleton, at = b"".join(between(file)), 0
    for raw, tensor in found:
        # > where the same bytes stand before it, these do as well
        start = skeleton.find(raw, at) if tensor.data_type in TYPES and len(raw) >= LEAST else -1
        if start >= 0:
            file.smalls.append(Small(start, len(raw), tensor.data_type, tensor.name))
            at = start + len(raw)
    return file


def _is_vector(tensor: TensorProto) -> bool:
    """Whether a tensor may be a bias or a scale."""
    return len(tensor.dims) <= 1 and tensor.data_type in (TensorProto.FLOAT, TensorProto.INT32)


def _stubs(
    proto: onnx.ModelProto, count: int, *, alone: bool
) -> tuple[dict[int, TensorProto], list[TensorProto]]:
    """The tensors that stand for weights left out of the skeleton, by number, and those with external data.

    alone: only the first have any: where all are initializers, nothing else need be looked through.
    """
    if alone:
        numbers = ((wire.weight_of(tensor), tensor) for tensor in proto.graph.initializer)
        stubs = {number: tensor for number, tensor in numbers if number is not None}
        if len(stubs) == count:
            return stubs, []
    inside: dict[int, TensorProto] = {}
    outside = []
    for tensor in tensors(proto):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        # > stubs come in file order
        if len(inside) < count and wire.stands_for(tensor, len(inside)):
            inside[len(inside)] = tensor
        else:
            outside.append(tensor)
    return inside, outside


def _described(
    tensor: TensorProto | None, packed: Mapping[str, Digits]
) -> tuple[str, int, tuple[int, ...], Digits | None]:
    if tensor is None or any(size < 0 for size in tensor.dims) or len(tensor.dims) > 64:
        return "", int(TensorProto.UINT8), (), None
    dims = tuple(tensor.dims)
    digits = packed.get(tensor.name) or typed_digits(tensor.data_type, dims)
    return tensor.name, tensor.data_type, dims, digits


def _external(outside: list[TensorProto], source: Path, packed: Mapping[str, Digits]) -> list[File]:
    """The files with external data; what no tensor describes there is a weight of bytes where it is large."""
    found: dict[str, list[Stretch]] = {}
    maps: dict[Path, Array] = {}
    for tensor in outside:
        blob = map_external(tensor, source.parent, maps, real_folder(source))
        place = external_place(tensor)
        name = os.path.normpath(place.location).replace(os.sep, "/")
        if blob.nbytes >= wire.THRESHOLD:
            found.setdefault(name, []).append(Stretch(place.offset, blob.nbytes, *_described(tensor, packed)))
        else:
            found.setdefault(name, [])
    return [
        _outside(name, map_file(str(source.parent / name)), parts) for name, parts in sorted(found.items())
    ]


def _outside(name: str, data: Array, parts: list[Stretch]) -> File:
    """Stretches in order, none twice, and those between them."""
    stretches: list[Stretch] = []
    at = 0
    for part in [
        *sorted(parts, key=lambda part: (part.start, -part.length)),
        Stretch(data.nbytes, 0, "", 2, ()),
    ]:
        if part.start < at:  # shared, or overlapping: its bytes are there
            continue
        if part.start - at >= wire.THRESHOLD:
            stretches.append(Stretch(at, part.start - at, "", int(TensorProto.UINT8), ()))
        if part.length:
            stretches.append(part)
        at = part.start + part.length
    return File(name, data, stretches)
