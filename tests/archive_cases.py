"""What the tests of archives share: weights of every kind, models of them, and the way there and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper

from onnx_compress.archive import pack, unpack

if TYPE_CHECKING:
    from pathlib import Path


def round_trip(source: Path, folder: Path, coder: str = "auto") -> dict[str, Any]:
    """The report of packing; asserts that the bytes come back."""
    folder.mkdir(exist_ok=True)
    report = pack(source=str(source), target=str(folder / "a.ocz"), coder=coder)
    found = unpack(source=str(folder / "a.ocz"), target=str(folder / "b.onnx"))
    assert (folder / "b.onnx").read_bytes() == source.read_bytes()
    assert report["after"]["bytes"] == (folder / "a.ocz").stat().st_size
    assert found["after"]["bytes"] == report["before"]["bytes"]
    return report


def model_of(path: Path, *values: np.ndarray[Any, Any] | onnx.TensorProto) -> Path:
    """A file with these initializers; no node needs to use them."""
    tensors = [
        value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value, f"w{i}")
        for i, value in enumerate(values)
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:], tensors)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def kinds() -> dict[str, np.ndarray[Any, Any]]:
    """One of every kind that has a way of its own."""
    rng = np.random.default_rng(0)
    kernel = np.cumsum(rng.normal(0, 9, (32, 32, 3, 3)), axis=-1)  # neighbours alike
    rows = rng.normal(0, 1, (96, 128)) * np.geomspace(0.1, 1, 96)[:, None]
    sparse = np.where(rng.random((96, 128)) < 0.85, 0, rows)
    return {
        "float": rows.astype(np.float32),
        "half": rows.astype(np.float16),
        "double": rows,
        "sparse": sparse.astype(np.float32),
        "few values": np.round(rows, 1).astype(np.float32),
        "kernel": np.clip(np.rint(kernel), -127, 127).astype(np.int8),
        "sparse int8": np.clip(np.rint(sparse * 40), -127, 127).astype(np.int8),
        "sparse kernel": np.where(np.abs(kernel) < 14, 0, np.rint(kernel / 4))
        .clip(-127, 127)
        .astype(np.int8),
        "places": rng.binomial(31, 0.5, (64, 100)).astype(np.uint8),
        "counting": np.arange(4000, dtype=np.int64),
        "random": rng.integers(0, 256, 70_000).astype(np.uint8),
        "constant": np.full((40, 50), 3.5, np.float32),
        "two values": (rng.random(5000) < 0.1).astype(np.uint8),
        "bool": rng.random((50, 50)) < 0.5,
        "rare": np.where(np.arange(9000) % 1000, 0, 1).astype(np.int8),
        "odd": rng.integers(-2, 3, (7, 3, 5, 11)).astype(np.int8),
    }


def external_model(folder: Path) -> Path:
    """Two tensors in a file of a folder, bytes that no tensor has before, between and behind them."""
    folder.mkdir()
    (folder / "data").mkdir()
    rng = np.random.default_rng(3)
    value = rng.normal(size=(40, 50)).astype(np.float32)
    blob = bytes(100) + value.tobytes() + bytes(3000) + value.tobytes() + b"end"
    (folder / "data" / "w.bin").write_bytes(blob)
    tensors = [
        TensorProto(name=f"e{i}", data_type=1, dims=[40, 50], data_location=TensorProto.EXTERNAL)
        for i in range(2)
    ]
    for i, tensor in enumerate(tensors):
        words = {"location": "data/w.bin", "offset": str(100 + 11000 * i), "length": "8000"}
        for key, text in words.items():
            tensor.external_data.add(key=key, value=text)
    return model_of(folder / "a.onnx", *tensors)
