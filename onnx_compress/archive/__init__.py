"""An archive of a model, entropy-coded and lossless: `unpack` restores the very bytes that `pack` was given."""

from onnx_compress.archive.packing import pack
from onnx_compress.archive.streams import CODERS
from onnx_compress.archive.unpacking import EXTERNAL, unpack

__all__ = ["CODERS", "EXTERNAL", "pack", "unpack"]
