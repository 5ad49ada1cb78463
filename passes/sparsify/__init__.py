"""Zeros inside weights, and what remains refitted on calibration data."""

from onnx_compress.passes.sparsify.sparsify import Sparsify

__all__ = ["Sparsify"]
