"""NNCF: MODEL CALIB.npz OUT. Run by tests/bench/peers.py with the Python of NNCF's own environment."""

from __future__ import annotations

import json
import sys
import time

import nncf
import numpy as np
import onnx

model, calib, out = sys.argv[1:4]
start = time.perf_counter()
proto = onnx.load(model)
names = [value.name for value in proto.graph.input]
arrays = np.load(calib)
count = len(arrays[names[0]])
samples = [{name: arrays[name][i : i + 1] for name in names} for i in range(count)]
made = nncf.quantize(proto, nncf.Dataset(samples), subset_size=count)
onnx.save(made, out)
print(json.dumps({"seconds": time.perf_counter() - start}))
