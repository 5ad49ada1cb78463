"""Fitting through a clamp, and the columns it fits on."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from channel_cases import parse
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_compress.model.document import Model
from onnx_compress.numerics.through import OPEN, Fit, Piece, moved
from onnx_compress.runtime import columns
from onnx_compress.runtime.columns import Columns
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.layers import LayerInput
from onnx_compress.runtime.session import Session, input_specs
from onnx_compress.runtime.walk import Walk

CLAMPS = [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0)]


def problem(seed: int, groups: int = 2) -> tuple[list[Piece], np.ndarray, np.ndarray]:
    """Three pieces of a layer of `groups` with a shortcut beside it, and a weight and bias to start from."""
    rng = np.random.default_rng(seed)
    pieces = [
        Piece(*(rng.normal(size=(groups, 40, size)).astype(np.float32) for size in (5, 3, 3)))
        for _ in range(3)
    ]
    return pieces, rng.normal(size=(groups, 3, 5)), rng.normal(size=(groups, 3))


def loss(pieces: list[Piece], fit: Fit, clamp: tuple[float, float]) -> float:
    """Aims inside the clamp are to be met, of those outside only the side."""
    total = 0.0
    for piece in pieces:
        value = np.matmul(piece.x, fit.weight.swapaxes(1, 2)) + fit.shift[:, None]
        value += 0 if piece.added is None else piece.added
        inside = (piece.y > clamp[0]) & (piece.y < clamp[1])
        reach = np.where(
            piece.y <= clamp[0], np.maximum(value - clamp[0], 0), np.minimum(value - clamp[1], 0)
        )
        total += float(np.sum(np.where(inside, value - piece.y, reach) ** 2))
    return total


@pytest.mark.parametrize("bias", [True, False])
def test_the_plain_fit_is_least_squares(bias: bool) -> None:
    """Against numpy's own solver, group by group; without a bias to fit, the one there is stays."""
    pieces, prior, shift = problem(0)
    fit = Fit(prior, shift, bias=bias, damping=1e-12, scarcity=0.0)
    fit.plain(pieces)
    for group in range(2):
        x = np.concatenate([piece.x[group] for piece in pieces]).astype(float)
        y = np.concatenate(
            [piece.y[group] - piece.added[group] for piece in pieces if piece.added is not None]
        )
        if bias:
            expected, *_ = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)
            np.testing.assert_allclose(fit.weight[group], expected[:-1].T, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(fit.shift[group], expected[-1], rtol=1e-4, atol=1e-5)
        else:
            expected, *_ = np.linalg.lstsq(x, y - shift[group], rcond=None)
            np.testing.assert_allclose(fit.weight[group], expected.T, rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(fit.shift[group], shift[group])


@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("seed", range(5))
def test_a_round_never_raises_the_loss_through_the_clamp(seed: int, clamp: tuple[float, float]) -> None:
    """Majorize-minimize: with no ridge each round lowers what it bounds, up to the rounding of float32 products."""
    pieces, prior, shift = problem(seed)
    fit = Fit(prior, shift, bias=True, damping=1e-12, scarcity=0.0)
    fit.plain(pieces)
    losses = [loss(pieces, fit, clamp)]
    for _ in range(4):
        fit.round(pieces, clamp)
        losses.append(loss(pieces, fit, clamp))
    assert all(after <= before * (1 + 1e-5) for before, after in itertools.pairwise(losses))
    assert losses[-1] < losses[0] * (1 - 1e-3)


@settings(max_examples=50, deadline=None)
@given(st.floats(-3, 9), st.floats(-3, 9), st.sampled_from([OPEN, *CLAMPS]))
def test_a_moved_aim_stands_where_the_clamp_sees_the_same(
    aim: float, value: float, clamp: tuple[float, float]
) -> None:
    """It lets through what the aim does, and is never farther from the value than what is let through is."""
    found = moved(np.array([aim]), np.array([value]), clamp)[0]
    assert np.clip(found, *clamp) == np.clip(aim, *clamp)
    assert abs(found - value) >= abs(np.clip(aim, *clamp) - np.clip(value, *clamp))
    inside = clamp[0] < aim < clamp[1]
    assert inside or abs(found - value) <= abs(aim - value)


@pytest.mark.parametrize("kept", [True, False])
def test_columns_are_what_the_layer_multiplies(monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    """x Wᵀ + b of every column is the layer's own output there, for a grouped convolution; kept pieces are the same."""
    monkeypatch.setattr(columns, "BYTES", columns.BYTES if kept else 0)
    proto = parse("""g (float[N,3,7,7] x, float[4,3,3,3] w1, float[4,2,3,3] w2, float[4] wb) => (float[N,4,3,3] y) {
        h = Conv(x, w1)
        r = Relu(h)
        y = Conv<group=2>(r, w2, wb) }""")
    model = Model.from_proto(proto)
    x = np.random.default_rng(0).normal(size=(6, 3, 7, 7)).astype(np.float32)
    data = open_data([{"x": x}], input_specs(model), samples=6)
    walks = [Walk(model, data, {name: 3}, batch=4) for name in ("r", "y")]
    for walk in walks:
        walk.advance(3)
    layer = LayerInput("r", "conv", (3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 2)
    found = Columns(layer, "y", None, None, walks[0], walks[1])
    weight, bias = (model.array(t) for t in model.proto.graph.initializer if t.name in ("w2", "wb"))
    for _ in range(2):
        pieces = list(found)
        assert [piece.x.shape for piece in pieces] == [(2, 36, 18), (2, 18, 18)]
        for piece in pieces:
            made = np.matmul(piece.x, weight.reshape(2, 2, 18).swapaxes(1, 2)) + bias.reshape(2, 1, 2)
            np.testing.assert_allclose(made, piece.y, rtol=1e-4, atol=1e-5)
    total = np.concatenate([piece.y for piece in pieces], 1)
    np.testing.assert_allclose(
        np.sort(total.ravel()), np.sort(Session(model).run({"x": x})["y"].ravel()), rtol=1e-4
    )
