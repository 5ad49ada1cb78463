"""int8: the codes of weights, biases and ranges, with errors that are derived."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from int8_cases import (
    PLAIN,
    RNG,
    build,
    normal,
    run,
)
from numpy.typing import NDArray

from onnx_compress.passes.int8.ranges import INT8, METHODS, UINT8, affine, choose, seen, squared_errors
from onnx_compress.passes.int8.weights import nearest, weight_scale
from onnx_compress.runtime.session import Session

Array = NDArray[Any]


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=40),
    st.sampled_from([63, 127]),
    st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_an_unclipped_weight_is_off_by_half_a_step_at_most(
    values: list[float], limit: int, per_channel: bool
) -> None:
    weight = np.array(values[: len(values) // 2 * 2], np.float32).reshape(2, -1)
    scale = weight_scale(weight, 0, limit=limit, per_channel=per_channel, bias=None, source=1.0)
    codes = nearest(weight, scale, 0, limit)
    step = np.broadcast_to(scale.reshape(-1, 1), (2, 1)).astype(np.float64)
    # > (1 + 1e-6): the scale itself is rounded to float32
    assert np.all(np.abs(weight - codes * step) <= step / 2 * (1 + 1e-4))
    assert np.abs(codes).max() <= limit


def test_a_bias_too_large_for_int32_gets_coarser_weights() -> None:
    weights = {
        "w": np.full((2, 3, 1, 1), 1e-9, np.float32),
        "b": np.array([5.0, -5.0], np.float32),
        "u": normal(4, 2, 1, 1),
    }
    model = build("a = Conv(x, w, b) y = Conv(a, u)", weights)
    assert np.abs(Session(run(PLAIN, model).model).run({"x": normal(2, 3, 8, 8)})["y"]).max() < 100


@given(st.floats(-1000, 1000, width=32), st.floats(-1000, 1000, width=32), st.booleans())
@settings(max_examples=100, deadline=None)
def test_zero_is_a_code(low: float, high: float, signed: bool) -> None:
    scale = affine(min(low, high), max(low, high), INT8 if signed else UINT8)
    assert scale.quantize(np.zeros(1))[0] == scale.zero
    assert np.iinfo(scale.dtype).min <= scale.zero <= np.iinfo(scale.dtype).max


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_a_chosen_range_is_inside_what_was_seen(method: str, shift: float) -> None:
    values = RNG.standard_t(3, 20000) + shift
    counts, edges = np.histogram(values, 2048)
    points = seen([(counts, float(edges[0]), float(edges[-1]))])
    scale = choose(points, method)
    low, high = -scale.zero * scale.scale, (255 - scale.zero) * scale.scale
    assert min(edges[0], 0) - scale.scale <= low <= 0 <= high <= max(edges[-1], 0) + scale.scale
    if method == "mse":
        chosen, whole = squared_errors(points, [(low, high), (points.low, points.high)])
        assert chosen <= whole
