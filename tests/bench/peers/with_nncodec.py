"""NNCodec: MODEL CALIB.npz OUT QP. Run by tests/bench/peers.py with the Python of NNCodec's own environment.

OUT gets the weights as they come out of the bitstream; `bytes`: of the bitstream, and of the model without its weights.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from unittest.mock import MagicMock

import numpy as np
import onnx

try:
    import torchvision  # noqa: F401 - only tried
except (
    ImportError,
    RuntimeError,
):  # one built for another torch; NNCodec reads data sets with it, and weights without
    for module in ("", ".datasets", ".models", ".transforms", ".transforms.functional", ".datasets.vision"):
        sys.modules[f"torchvision{module}"] = MagicMock()

from nncodec import nn

model, _, out, qp = sys.argv[1:5]
start = time.perf_counter()
proto = onnx.load(model)
floats = {t.name: t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims)}
# > it keeps names, and slashes in them would be folders
weights = {f"w{i}": np.array(onnx.numpy_helper.to_array(t)) for i, t in enumerate(floats.values())}
with tempfile.TemporaryDirectory() as folder:
    stream = nn.encode(weights, {"results": folder, "qp": int(qp), "verbose": False})
    seconds = time.perf_counter() - start
    found = nn.decode(stream)
for (key, value), tensor in zip(weights.items(), floats.values(), strict=True):
    array = np.asarray(found[key], np.float32).reshape(value.shape)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
onnx.save(proto, out)
for tensor in floats.values():
    tensor.ClearField("raw_data")
print(json.dumps({"seconds": seconds, "bytes": len(stream) + proto.ByteSize()}))
