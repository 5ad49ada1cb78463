"""Raises a model to the opset that per-channel scales need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnx.version_converter

from onnx_compress.errors import CompressError
from onnx_compress.model.document import LIMIT, Model, check
from onnx_compress.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

OPSET = 13  # DequantizeLinear with an axis
OPSET_16 = 21  # ... and with 16 bits
AGREES = 1e-6  # relative output error up to which a converted model is the same


def opset(model: Model) -> int:
    """The version of the standard domain, 0 where the model imports none."""
    return next((entry.version for entry in model.proto.opset_import if entry.domain in ("", "ai.onnx")), 0)


def raised(model: Model, judge: Callable[[Model], float], needed: int = OPSET) -> Model | str:
    """`model` in opset `needed` at least, by onnx's own converter, or why that cannot be.

    judge: the output error of a model against this one: a conversion that changes the outputs is not taken.
    """
    version = opset(model)
    if version >= needed:
        return model
    lacks = "16-bit codes" if version >= OPSET else "per-channel scales"
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
