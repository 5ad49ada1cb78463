"""Models on which a pass once failed stay right in every respect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import SAMPLES
from oracle import judge

TINY = Path(__file__).parents[1] / "models" / "tiny"


def test_prune_of_a_transposed_convolution_whose_kernel_reaches_several_pixels(tmp_path: Path) -> None:
    """No one bias makes up for a channel that each pixel sees through its own part of the kernel."""
    path = tmp_path / "unet.onnx"
    onnx.save(onnx.load(TINY / "unet.onnxtxt"), path)
    rng = np.random.default_rng(0)
    feeds = [{"input": rng.standard_normal((1, 2, 8, 8)).astype(np.float32)} for _ in range(SAMPLES)]
    found = judge(path, "prune", feeds)
    assert found.kind == "valid", found


@pytest.mark.parametrize("spec", ["none", "prune", "int8"])
def test_tensors_without_values(tmp_path: Path, spec: str) -> None:
    path = tmp_path / "in.onnx"
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[0, 3, 4] x) => (float[3, 4, 0] y) <int64[3] s = {3, 4, 0}>'
    onnx.save(onnx.parser.parse_model(f"{text} {{ y = Reshape<allowzero = 1>(x, s) }}"), path)
    found = judge(path, spec, [{"x": np.ones((0, 3, 4), np.float32)}])
    assert found.kind == "valid", found


@pytest.mark.parametrize("group", [1, 2, 4])
def test_prune_of_what_a_grouped_transposed_convolution_reads(tmp_path: Path, group: int) -> None:
    """Its weight has the inputs of all groups on one axis; with as many groups as channels, a group goes whole."""
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "t": (4, 8 // group, 2, 2), "v": (5, 8, 1, 1)}
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 8, 8] x) => (float[N, 5, 7, 7] y) '
        f"{{ a = Conv(x, w) b = Relu(a) c = ConvTranspose<group = {group}>(b, t) d = Relu(c) y = Conv(d, v) }}"
    )
    for name, shape in shapes.items():
        value = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    path = tmp_path / "in.onnx"
    onnx.save(proto, path)
    feeds = [{"x": rng.standard_normal((1, 3, 8, 8)).astype(np.float32)} for _ in range(SAMPLES)]
    found = judge(path, "prune:tolerance=0.5", feeds)
    assert (found.kind, found.changed) == ("valid", True), found
