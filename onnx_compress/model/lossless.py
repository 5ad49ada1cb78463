"""A model copied without a change, its weights never in memory."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto

from onnx_compress.model import wire
from onnx_compress.model.check import check
from onnx_compress.model.document import Model, tensors
from onnx_compress.model.external import external_place
from onnx_compress.model.staging import replacing

if TYPE_CHECKING:
    from typing import BinaryIO

CHUNK = 1 << 24  # bytes
# what says that the kernel cannot copy between these two files itself
_ELSEWHERE = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY}


def copy_model(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copies the model at `source`, which is loaded and checked first, to `target`: every byte of it.

    Where `source` keeps weights in other files, those go to one fresh file beside `target`, and the copy refers to it:
    no two models ever share a data file, and `target` may be `source`.
    Raises InputError where `source` is no valid model; OSError where `target` cannot be written, which is then unchanged.
    """
    model = Model.load(source)
    check(model)
    copy_checked(model, target)


def copy_checked(model: Model, target: str | os.PathLike[str]) -> None:
    """As `copy_model`, of a model that was loaded from a file and checked."""
    assert model.source is not None
    if has_external_data(model.source):
        model.save(target, external=True)
        return
    with model.source.open("rb") as file, replacing(Path(target)) as copy:
        _copy_bytes(file, copy)


def has_external_data(path: str | os.PathLike[str]) -> bool:
    """Whether a tensor of the model at `path` is in another file."""
    proto, inline = _skeleton(path)
    outside = sum(tensor.data_location == TensorProto.EXTERNAL for tensor in tensors(proto))
    return outside > inline


def data_files(path: str | os.PathLike[str]) -> set[str]:
    """The real paths of the files that hold weights of the model at `path`, which loads."""
    folder = Path(path).parent
    outside = (t for t in tensors(_skeleton(path)[0]) if t.data_location == TensorProto.EXTERNAL)
    return {os.path.realpath(folder / external_place(tensor).location) for tensor in outside}


def _skeleton(path: str | os.PathLike[str]) -> tuple[onnx.ModelProto, int]:
    """The model at `path` without its weights, and how many of those are in the file itself."""
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        try:
            skeleton, inline = wire.split(view)
        finally:
            view.release()
    return onnx.ModelProto.FromString(skeleton), len(inline)


def _copy_bytes(file: BinaryIO, copy: BinaryIO) -> None:
    """In the kernel where it can; mapped or read pages would count as resident."""
    copied = 0
    while hasattr(os, "copy_file_range"):
        try:
            count = os.copy_file_range(file.fileno(), copy.fileno(), CHUNK)
        except OSError as error:
            if error.errno not in _ELSEWHERE:
                raise
            break
        if count == 0:
            break
        copied += count
    # what is left, which is all of it where the kernel cannot
    file.seek(copied)
    while chunk := file.read(CHUNK):
        copy.write(chunk)
