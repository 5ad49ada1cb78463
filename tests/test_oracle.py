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
