"""Whose an operator is: ONNX's own, or one of another domain that may share its name."""

from __future__ import annotations

from typing import Any


def is_standard(node: Any) -> bool:
    """Whether `node` (of a graph or of a surgery view) is an operator of ONNX itself, not of a runtime or a user."""
    return node.domain in (None, "", "ai.onnx")
