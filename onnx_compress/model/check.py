"""Whether a model is valid: what onnx's own checker says, and what it does not look at."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from onnx_compress.errors import InputError
from onnx_compress.model.document import ALIGNMENT, LEAVES, Model, clear_reference, tensors
from onnx_compress.model.inline_functions import refuse_endless
from onnx_compress.model.sound import refuse_unsound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import TensorProto


def check(model: Model) -> None:
    """Raises InputError, with onnx's own words, where the onnx checker does not accept the model, or it is unsound.

    Raises LimitError where its functions would expand without reasonable end.
    """
    refuse_endless(model.proto)
    with tempfile.TemporaryDirectory(prefix="onnx-compress-") as folder:
        proto, pieces = model.referring("weights")
        for place, tensor in zip(_sparse_indices(proto), _sparse_indices(model.proto), strict=True):
            blob = model.blob(tensor)
            if blob is not None:  # the checker reads them
                clear_reference(place)
                place.raw_data = blob.tobytes()
        size = sum(-(-piece.nbytes // ALIGNMENT) * ALIGNMENT for piece in pieces)
        with (Path(folder) / "weights").open("wb") as file:
            file.truncate(size)  # a hole: the checker asks only whether the file is there
        target = Path(folder) / "model.onnx"
        target.write_bytes(proto.SerializeToString())
        try:
            onnx.checker.check_model(str(target))
        except (
            onnx.checker.ValidationError,
            onnx.shape_inference.InferenceError,
            UnicodeDecodeError,
            RuntimeError,
        ) as error:
            words = " ".join(str(error).split())
            raise InputError(f"not a valid ONNX model: {words}") from error
    refuse_unsound(model.proto, tensors(model.proto))


def _sparse_indices(message: Any) -> Iterator[TensorProto]:
    """The indices of every sparse tensor inside `message`, in file order."""
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.name in LEAVES | {"TensorProto"}:
            continue
        for item in value if field.is_repeated else [value]:
            if isinstance(item, onnx.SparseTensorProto):
                yield item.indices
            else:
                yield from _sparse_indices(item)
