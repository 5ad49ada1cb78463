"""Raises a model to the opset that a pass needs, by onnx's own converter, where that changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx.version_converter

from onnx_compress.errors import CompressError
from onnx_compress.model.check import check
from onnx_compress.model.document import LIMIT, Model
from onnx_compress.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

AGREES = 1e-6  # relative output error up to which a converted model is the same


def opset(model: Model) -> int:
    """The version of the standard domain, 0 where the model imports none."""
    return next((entry.version for entry in model.proto.opset_import if entry.domain in ("", "ai.onnx")), 0)


def raised(model: Model, needed: int, lacks: str, judge: Callable[[Model], float]) -> Model | str:
    """`model` in opset `needed` at least, or why that cannot be. lacks: what its own opset does not have, in words.

    judge: the output error of a model against this one: a conversion that changes the outputs is not taken.
    """
    version = opset(model)
    if version >= needed:
        return model
    what = f"opset {version} has no {lacks}, and raising it to {needed} failed"
    if version == 0 or model.nbytes > LIMIT:
        return what
    try:
        converted = Model.from_proto(onnx.version_converter.convert_version(model.to_proto(), needed))
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        return f"{what}: {' '.join(str(error).split())[:200]}"
    try:
        check(converted)
        Session(converted)
        drift = judge(converted)
    except CompressError as error:
        return f"{what}: {error}"
    if not drift <= AGREES:
        return f"{what}: the converted model's outputs differ by {drift:.2g}"
    return converted
