"""onnxsim's pruning: MODEL CALIB.npz OUT SPARSITY. Run by tests/bench/peers.py with the Python of onnxsim's own environment."""

from __future__ import annotations

import json
import sys
import time

import onnx
import onnxsim

model, _, out, sparsity = sys.argv[1:5]
start = time.perf_counter()
onnx.save(onnxsim.apply_structured_pruning(onnx.load(model), float(sparsity)), out)
print(json.dumps({"seconds": time.perf_counter() - start}))
