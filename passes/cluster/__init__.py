"""Weight sharing: few values a weight, stored as a codebook and indices of one byte."""

from onnx_compress.passes.cluster.cluster import Cluster

__all__ = ["Cluster"]
