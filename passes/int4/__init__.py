"""Weights of 4 bits with a scale for every few inputs."""

from onnx_compress.passes.int4.int4 import Int4

__all__ = ["Int4"]
