"""Weights stored in half precision."""

from onnx_compress.passes.fp16.fp16 import Fp16

__all__ = ["Fp16"]
