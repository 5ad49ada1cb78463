"""onnxruntime's own quantizers: MODEL CALIB.npz OUT minmax|percentile|dynamic. Run by tests/bench/peers.py."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """One sample at a time."""

    def __init__(self, model: str, path: str) -> None:
        names = [value.name for value in ort.InferenceSession(model).get_inputs()]
        arrays = np.load(path)
        self.feeds = iter(
            [{name: arrays[name][i : i + 1] for name in names} for i in range(len(arrays[names[0]]))]
        )

    def get_next(self) -> dict[str, Any] | None:
        """The next sample's feeds, or None."""
        return next(self.feeds, None)


def main() -> None:
    """Quantizes and says how long that took."""
    model, calib, out, how = sys.argv[1:5]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        ready = str(Path(folder) / "ready.onnx")
        quant_pre_process(model, ready, skip_symbolic_shape=True)
        if how == "dynamic":
            quantize_dynamic(ready, out, per_channel=True, weight_type=QuantType.QInt8)
        else:
            method = CalibrationMethod.MinMax if how == "minmax" else CalibrationMethod.Percentile
            quantize_static(
                ready, out, Reader(ready, calib), QuantFormat.QDQ, per_channel=True, calibrate_method=method,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
    print(json.dumps({"seconds": time.perf_counter() - start}))


main()
