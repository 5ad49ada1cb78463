"""QDQ static quantization: activations in 8 bits, weights in int8, placed as onnxruntime's kernels fuse it."""

from onnx_compress.passes.int8.int8 import Int8

__all__ = ["Int8"]
