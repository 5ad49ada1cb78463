"""AMD Quark: MODEL CALIB.npz OUT CONFIG. Run by tests/bench/peers.py with the Python of Quark's own environment."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader
from quark.onnx import ModelQuantizer
from quark.onnx.quantization.config.config import Config
from quark.onnx.quantization.config.custom_config import get_default_config

model, calib, out, name = sys.argv[1:5]
names = [value.name for value in onnx.load(model).graph.input]
arrays = np.load(calib)


class Reader(CalibrationDataReader):
    """One sample at a time."""

    def __init__(self) -> None:
        self.rewind()

    def rewind(self) -> None:
        """From the first sample again."""
        count = len(arrays[names[0]])
        self.feeds = iter([{name: arrays[name][i : i + 1] for name in names} for i in range(count)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next sample's feeds, or None."""
        return next(self.feeds, None)


start = time.perf_counter()
ModelQuantizer(Config(global_quant_config=get_default_config(name))).quantize_model(model, out, Reader())
print(json.dumps({"seconds": time.perf_counter() - start}))
