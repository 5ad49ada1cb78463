"""Calibration and evaluation data: batches of named inputs, iterable again and again, never all in memory."""

from onnx_compress.runtime.data.batches import Data
from onnx_compress.runtime.data.open import open_data
from onnx_compress.runtime.data.synthetic import random_data

__all__ = ["Data", "open_data", "random_data"]
