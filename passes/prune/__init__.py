"""prune: removes whole channels, heads and hidden units."""

from onnx_compress.passes.prune.prune import Prune

__all__ = ["Prune"]
