"""Factor Gemm, MatMul and Conv into two thinner layers."""

from onnx_compress.passes.svd.svd import Svd

__all__ = ["Svd"]
