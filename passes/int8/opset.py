"""The opsets that scales need, and raising a model to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_compress.runtime import opset as converter

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx_compress.model.document import Model

OPSET = 13  # DequantizeLinear with an axis
OPSET_16 = 21  # ... and with 16 bits


def raised(model: Model, judge: Callable[[Model], float], needed: int = OPSET) -> Model | str:
    """`model` in opset `needed` at least, by onnx's own converter, or why that cannot be.

    judge: the output error of a model against this one: a conversion that changes the outputs is not taken.
    """
    lacks = "16-bit codes" if converter.opset(model) >= OPSET else "per-channel scales"
    return converter.raised(model, needed, lacks, judge)
