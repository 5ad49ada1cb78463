"""A model as a skeleton and its weights: load, look into, copy and save, with weights mapped from the file.

The skeleton is a ModelProto in which every tensor of 1 KB or more, wherever it sits (initializer, Constant node, If or
Loop body, function, sparse tensor), holds a reference instead of its bytes. So a copy of a model costs its skeleton only,
and a node moved or copied into another graph keeps its weight.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from onnx_compress.errors import InputError
from onnx_compress.model import wire
from onnx_compress.model.external import map_external, open_regular, real_folder
from onnx_compress.model.sound import PACKED
from onnx_compress.model.staging import replacing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Bytes = NDArray[np.uint8]

CHUNK = 1 << 24  # bytes written at a time
LIMIT = 2**31 - 2**20  # bytes: protobuf's limit for one message, less room for the skeleton's own growth
_ids = itertools.count()


class Model:
    """An ONNX model: `proto`, a skeleton ModelProto, and the bytes of its weights, mapped or in memory.

    Weights are read with `array`, replaced with `set_array`; the arrays are shared between copies and read-only.
    """

    def __init__(self, proto: onnx.ModelProto, blobs: dict[str, Bytes], source: Path | None = None) -> None:
        self.proto = proto
        self.blobs = blobs
        self.source = source

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """The model at `path`, its weights mapped.

        Raises InputError where there is no such file, it is no ONNX model, or its external data is missing or outside
        the model's folder.
        """
        path = Path(path)
        skeleton, pieces = _read(path)
        proto = _parse(skeleton, path)
        blobs = _adopt(proto, pieces, path.parent, real_folder(path))
        return cls(proto, blobs, path)

    @classmethod
    def from_proto(cls, proto: onnx.ModelProto, folder: Path | None = None) -> Model:
        """A model of a ModelProto in memory, which is copied and not changed. `folder`: of its external data."""
        skeleton, pieces = _split(memoryview(proto.SerializeToString()))
        copy = onnx.ModelProto.FromString(skeleton)
        return cls(copy, _adopt(copy, pieces, folder))

    def copy(self) -> Model:
        """A copy that shares the weights."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        return Model(proto, dict(self.blobs), self.source)

    def blob(self, tensor: TensorProto) -> Bytes | None:
        """The raw bytes behind a reference, or None where the tensor holds its own."""
        key = _reference(tensor)
        return None if key is None else self.blobs[key]

    def array(self, tensor: TensorProto) -> Array:
        """The value of `tensor`, read-only; types without a numpy type of their own come as ml_dtypes."""
        blob = self.blob(tensor)
        if blob is None:
            value: Array = onnx.numpy_helper.to_array(tensor)
            value.flags.writeable = False
            return value
        if tensor.data_type in _PACKED:
            whole = TensorProto(data_type=tensor.data_type, dims=tensor.dims, raw_data=blob.tobytes())
            return onnx.numpy_helper.to_array(whole)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return blob.view(dtype).reshape(tuple(tensor.dims))

    def set_array(self, tensor: TensorProto, value: Array) -> None:
        """Replaces the value of `tensor`, a tensor of this model's skeleton; type and shape are those of `value`."""
        name, doc = tensor.name, tensor.doc_string
        metadata = list(tensor.metadata_props)
        tensor.CopyFrom(self.tensor(value, name))
        if doc:
            tensor.doc_string = doc
        tensor.metadata_props.extend(metadata)

    def tensor(self, value: Array, name: str = "") -> TensorProto:
        """A new TensorProto of this model that holds `value` (by reference from 1 KB on)."""
        value = np.asarray(value)
        data_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        if value.nbytes < wire.THRESHOLD or data_type in _PACKED or data_type == TensorProto.STRING:
            tensor = onnx.numpy_helper.from_array(value, name)
            _externalize(tensor, self.blobs)
            return tensor
        tensor = TensorProto(data_type=data_type, dims=value.shape, name=name)
        data = np.array(value, order="C", copy=True).reshape(-1).view(np.uint8)
        _refer(tensor, self.blobs, data)
        return tensor

    def collect(self) -> None:
        """Forgets the weights that no tensor refers to any more."""
        used = {_reference(tensor) for tensor in tensors(self.proto)}
        self.blobs = {key: blob for key, blob in self.blobs.items() if key in used}

    @property
    def payload(self) -> int:
        """Bytes of all referenced weights."""
        return sum(
            self.blobs[key].nbytes for key in {_reference(t) for t in tensors(self.proto)} if key is not None
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the model when it is written in one file, to a few bytes."""
        size = int(self.proto.ByteSize())
        for tensor in tensors(self.proto):
            blob = self.blob(tensor)
            if blob is not None:
                size += _prefixed(blob.nbytes) - _REFERENCE - tensor.external_data[0].ByteSize()
                # > the tensor's own length takes more bytes, too
                size += _prefixed(blob.nbytes) - blob.nbytes - 2
        return size

    def to_proto(self) -> onnx.ModelProto:
        """A self-contained ModelProto with all weights inline.

        Raises InputError where it would pass protobuf's limit of 2 GB.
        """
        if self.nbytes > LIMIT:
            raise InputError("the model is over 2 GB: it can only be saved with external data")
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        for tensor in tensors(proto):
            blob = self.blob(tensor)
            if blob is not None:
                clear_reference(tensor)
                tensor.raw_data = blob.tobytes()
        return proto

    def _marked(self) -> tuple[bytes, dict[bytes, Bytes]]:
        """The skeleton, serialized, with a mark in the place of each weight, and the weights by mark."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        weights: dict[bytes, Bytes] = {}
        for tensor in tensors(proto):
            blob = self.blob(tensor)
            if blob is not None:
                clear_reference(tensor)
                tensor.raw_data = wire.mark(len(weights))
                weights[tensor.raw_data] = blob
        return proto.SerializeToString(), weights

    def referring(self, data_name: str) -> tuple[onnx.ModelProto, list[Bytes]]:
        """The skeleton with every reference naming a place in the file `data_name`, and the pieces of that file.

        Pieces are in order and each is to start at a multiple of ALIGNMENT.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        offsets: dict[str, int] = {}
        pieces: list[Bytes] = []
        at = 0
        for tensor in tensors(proto):
            key = _reference(tensor)
            if key is None:
                continue
            blob = self.blobs[key]
            if key not in offsets:
                offsets[key] = at
                pieces.append(blob)
                at += -(-blob.nbytes // ALIGNMENT) * ALIGNMENT
            clear_reference(tensor)
            tensor.data_location = TensorProto.EXTERNAL
            for word, value in (("location", data_name), ("offset", offsets[key]), ("length", blob.nbytes)):
                tensor.external_data.add(key=word, value=str(value))
        return proto, pieces

    def save(self, path: str | os.PathLike[str], *, external: bool = False) -> None:
        """Writes the model to `path`: beside it first, synced, then renamed; over 2 GB with one external data file.

        Raises OSError where the disk is full or the folder cannot be written; then nothing is left behind.
        """
        path = Path(path)
        if external or self.nbytes > LIMIT:
            _save_external(self, path)
            return
        with replacing(path) as file:
            for piece in wire.join(*self._marked()):
                _write(file, piece)


ALIGNMENT = 64  # bytes: of each tensor in an external data file
_PACKED = {TensorProto.STRING} | PACKED
_REFERENCE = 4  # bytes of a reference beside its entry: the entry's tag and length, and the data location
_PREFIX = "onnx-compress:"  # no file can be meant: a reference never leaves this process


def tensors(message: Any) -> Iterator[TensorProto]:
    """Every TensorProto inside `message`, at any depth, in file order."""
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.name in LEAVES:
            continue
        for item in value if field.is_repeated else [value]:
            if isinstance(item, TensorProto):
                yield item
            else:
                yield from tensors(item)


LEAVES = {"ValueInfoProto", "StringStringEntryProto", "OperatorSetIdProto", "TensorAnnotation"}


def _prefixed(length: int) -> int:
    """Bytes of a protobuf field of `length` bytes with its tag and length."""
    return length + 1 + max(1, -(-length.bit_length() // 7))


def _read(path: Path) -> tuple[bytes, list[Bytes]]:
    """Skeleton bytes and mapped pieces of the file at `path`."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a folder, not a model")
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise InputError(f"{path}: the file is empty")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return _split(memoryview(mapped))
    except ValueError as error:
        raise InputError(f"{path}: not an ONNX file, or truncated: {error}") from error


def _split(buffer: memoryview) -> tuple[bytes, list[Bytes]]:
    skeleton, places = wire.split(buffer)
    whole = np.frombuffer(buffer, np.uint8)
    return skeleton, [whole[at : at + length] for at, length in places]


def _parse(skeleton: bytes, path: Path) -> onnx.ModelProto:
    try:
        proto = onnx.ModelProto.FromString(skeleton)
    except DecodeError as error:
        raise InputError(f"{path}: not an ONNX file, or truncated") from error
    if not proto.HasField("graph") or not (proto.ir_version or proto.opset_import):
        raise InputError(f"{path}: not an ONNX model: it holds no graph")
    return proto


def _adopt(
    proto: onnx.ModelProto, pieces: list[Bytes], folder: Path | None, home: Path | None = None
) -> dict[str, Bytes]:
    """Gives every reference in `proto` a key of this process, and maps the model's own external data.

    folder: of the model; home: the folder that the model itself lies in where its path is a link.
    """
    blobs: dict[str, Bytes] = {}
    maps: dict[Path, Bytes] = {}
    waiting = iter(range(len(pieces)))
    expected = next(waiting, None)
    for tensor in tensors(proto):
        # stubs come in file order; a file that says "not external" in so many words says so after the stub, too
        if expected is not None and wire.stands_for(tensor, expected):
            blob = pieces[expected]
            expected = next(waiting, None)
        elif tensor.data_location != TensorProto.EXTERNAL:
            continue
        else:
            if folder is None:
                raise InputError(f"tensor {tensor.name!r} has external data, but the model has no folder")
            blob = map_external(tensor, folder, maps, home)
        _check_size(tensor, blob)
        clear_reference(tensor)
        _refer(tensor, blobs, blob)
    return blobs


def _check_size(tensor: TensorProto, blob: Bytes) -> None:
    if tensor.data_type in _PACKED or tensor.data_type == TensorProto.UNDEFINED:
        return
    try:
        itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except KeyError as error:
        raise InputError(f"tensor {tensor.name!r} has an unknown type {tensor.data_type}") from error
    expected = math.prod(tensor.dims) * itemsize
    if expected != blob.nbytes:
        raise InputError(f"tensor {tensor.name!r} needs {expected} bytes but has {blob.nbytes}")


def _refer(tensor: TensorProto, blobs: dict[str, Bytes], data: Bytes) -> None:
    key = f"{_PREFIX}{next(_ids)}"
    data = data.view()
    data.flags.writeable = False
    blobs[key] = data
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=key)


def _externalize(tensor: TensorProto, blobs: dict[str, Bytes]) -> None:
    if len(tensor.raw_data) >= wire.THRESHOLD:
        data = np.frombuffer(tensor.raw_data, np.uint8)
        tensor.ClearField("raw_data")
        _refer(tensor, blobs, data)


def _reference(tensor: TensorProto) -> str | None:
    if tensor.data_location != TensorProto.EXTERNAL or len(tensor.external_data) != 1:
        return None
    key = tensor.external_data[0].value
    return key if key.startswith(_PREFIX) else None


def clear_reference(tensor: TensorProto) -> None:
    """Makes `tensor` one that refers to nothing."""
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def _save_external(model: Model, path: Path) -> None:
    """Model and one data file of a fresh name, so that an old model at `path` stays whole until the rename."""
    target = Path(os.path.realpath(path))
    number = next(n for n in itertools.count() if not (target.parent / f"{target.name}.{n}.data").exists())
    data = target.parent / f"{target.name}.{number}.data"
    proto, pieces = model.referring(data.name)
    try:
        with replacing(data) as file:
            write_aligned(file, pieces)
        with replacing(path) as file:
            file.write(proto.SerializeToString())
    except BaseException:
        data.unlink(missing_ok=True)
        raise


def write_aligned(file: Any, pieces: Iterable[Bytes]) -> None:
    """The pieces of a data file, each followed by zeros up to a multiple of ALIGNMENT."""
    for piece in pieces:
        _write(file, piece)
        file.write(bytes(-piece.nbytes % ALIGNMENT))


def _write(file: Any, piece: Bytes | bytes) -> None:
    """In chunks, each forgotten once written: mapped pages count as resident."""
    if isinstance(piece, bytes):
        file.write(piece)
        return
    for start in range(0, piece.nbytes, CHUNK):
        file.write(piece[start : start + CHUNK].data)
        _forget(piece)


def _forget(piece: Bytes) -> None:
    base: Any = piece
    while isinstance(base, np.ndarray):
        base = base.base
    owner = base.obj if isinstance(base, memoryview) else base
    if isinstance(owner, mmap.mmap):
        owner.madvise(mmap.MADV_DONTNEED)
