"""A model of 700 MB in less than a gigabyte: it is done, or it is exit code 4, never a kill of the system."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import numpy as np
import pytest
from command import Command
from onnx import TensorProto, helper

from onnx_compress.model.document import Model
from onnx_compress.passes import PASSES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LAYERS, WIDTH = 7, 5000  # 7 · 5000² floats are 700 MB


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A chain of MatMuls, written without ever being in memory."""
    folder = tmp_path_factory.mktemp("large")
    nodes = [helper.make_node("MatMul", [f"h{at}", f"w{at}"], [f"h{at + 1}"]) for at in range(LAYERS)]
    shape: list[str | int | None] = ["N", WIDTH]
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"h{LAYERS}", TensorProto.FLOAT, shape)],
    )
    rng = np.random.default_rng(0)
    with (folder / "w.bin").open("wb") as file:
        for at in range(LAYERS):
            tensor = TensorProto(name=f"w{at}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
            tensor.data_location = TensorProto.EXTERNAL
            words = {"location": "w.bin", "offset": str(at * 4 * WIDTH**2), "length": str(4 * WIDTH**2)}
            for key, value in words.items():
                tensor.external_data.add(key=key, value=value)
            made.initializer.append(tensor)
            file.write((0.01 * rng.standard_normal((WIDTH, WIDTH), np.float32)).tobytes())
    proto = helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    (folder / "in.onnx").write_bytes(proto.SerializeToString())
    yield folder
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["none", *(kind.name for kind in PASSES)])
def test_one_gigabyte_is_kept_to(large: Path, tmp_path: Path, spec: str) -> None:
    """The whole resident size, mapped pages of the model among it, may be a little more: the limit is of what is not mapped."""
    words = ["in.onnx", "out.onnx", "--passes", spec, "--memory-limit", "1", "--time-limit", "240", "-q"]
    with Command() as command:
        found = command.run(words, large, tmp_path, 300)
    out = large / "out.onnx"
    size = out.stat().st_size if out.exists() else 0
    out.unlink(missing_ok=True)
    assert found.code in (0, 2, 4), found  # 2: a pass that needs --data
    assert found.err.count("\n") == (1 if found.code else 0)
    assert (size > 0) == (found.code == 0)
    assert os.listdir(tmp_path) == []
    assert found.peak < 1_750_000_000


@pytest.mark.slow
def test_a_model_is_saved_without_being_in_memory(large: Path, tmp_path: Path) -> None:
    """In one file, from mapped external data: the peak is that of the process, not of the model."""
    pid = os.fork()
    if not pid:
        Model.load(large / "in.onnx").save(tmp_path / "one.onnx")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        os._exit(0 if peak < 500_000_000 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert (tmp_path / "one.onnx").stat().st_size > 700_000_000
