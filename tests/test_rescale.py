"""What cannot be refitted as a layer is scaled channel by channel: exactly where that is all that is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from channel_cases import parse
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_compress.contract import Job
from onnx_compress.model.document import Model
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.prune import Prune
from onnx_compress.passes.prune.consumers import consumers
from onnx_compress.passes.prune.rescale import regression, scale_of
from onnx_compress.runtime.agreement import output_error
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import Data, open_data
from onnx_compress.runtime.session import input_specs
from onnx_compress.runtime.walk import Walk

NORM = """g (float[N,6] x, float[6,8] w1, float[8] wb, float[8] wg, float[8] ws, float[8,3] w2) => (float[N,8] y, float[N,3] z) {
    h = Gemm(x, w1, wb)
    y = LayerNormalization<axis=-1>(h, wg, ws)
    z = MatMul(y, w2) }"""
UP = """g (float[N,2,5,5] x, float[6,2,3,3] w1, float[6,4,2,2] w2, float[4] wb, float[3,4,1,1] w3)
    => (float[N,3,6,6] y) {
    h = Conv(x, w1)
    r = Relu(h)
    u = ConvTranspose<strides=[2,2]>(r, w2, wb)
    y = Conv(u, w3) }"""


def loaded(text: str, size: tuple[int, ...]) -> tuple[Model, Data]:
    model = Model.from_proto(parse(text))
    x = np.random.default_rng(0).normal(size=size).astype(np.float32)
    return model, open_data([{"x": x}], input_specs(model), samples=size[0])


def with_values(model: Model, **factors: np.ndarray) -> Model:
    """The model with some of its weights multiplied."""
    edited = model.copy()
    for tensor in edited.proto.graph.initializer:
        if tensor.name in factors:
            value = edited.array(tensor) * factors[tensor.name]
            edited.set_array(tensor, np.ascontiguousarray(value, np.float32))
    return edited


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_the_regression_is_least_squares(seed: int, centred: bool) -> None:
    """Against numpy's solver, one channel at a time; the shrinking moves it towards 1 by less than a hundredth of the way."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(50, 3)) + 0.5
    wanted = y * rng.uniform(0.5, 2, 3) + rng.normal(size=3) + 0.1 * rng.normal(size=y.shape)
    sums = np.array([np.full(3, 50.0), y.sum(0), wanted.sum(0), (y**2).sum(0), (y * wanted).sum(0)])
    factor, shift = regression(sums, centred=centred)
    for channel in range(3):
        columns = [y[:, channel], np.ones(50)] if centred else [y[:, channel]]
        expected, *_ = np.linalg.lstsq(np.stack(columns, 1), wanted[:, channel], rcond=None)
        np.testing.assert_allclose(factor[channel], expected[0], atol=1e-2 * abs(1 - expected[0]))
        np.testing.assert_allclose(shift[channel], expected[1] if centred else 0.0, atol=2e-2)


@pytest.mark.parametrize(
    ("text", "size", "factors"),
    [
        (NORM, (64, 6), {"wg": np.linspace(0.8, 1.2, 8), "ws": np.linspace(0.5, 1.5, 8)}),
        (UP, (32, 2, 5, 5), {"w2": np.linspace(0.8, 1.2, 4).reshape(1, 4, 1, 1)}),
    ],
)
def test_a_wrong_scale_of_each_channel_is_undone(
    text: str, size: tuple[int, ...], factors: dict[str, np.ndarray]
) -> None:
    """The model to mend differs in the parameters of one node only, so that mending those mends all of it."""
    model, data = loaded(text, size)
    wrong = with_values(model, **factors)
    surgery = Surgery(wrong)
    places = {id(node): place for place, node in enumerate(surgery.graph.nodes)}
    node = next(n for n in surgery.graph.nodes if n.op in ("LayerNormalization", "ConvTranspose"))
    reader = next((r for r in consumers(surgery, infer(wrong)) if r.node is node), None)
    sizes = {tensor.name: list(tensor.dims) for tensor in model.proto.graph.initializer}
    scale = scale_of(node, reader, places, [], sizes)
    assert scale is not None
    walks = [Walk(m, data, {scale.target: scale.place + 1}) for m in (wrong, model)]
    for walk in walks:
        walk.advance(scale.place + 1)
    scale.apply(walks[0], walks[1])
    for held, wanted in zip(walks[0].batches, walks[1].batches, strict=True):
        np.testing.assert_allclose(held[scale.target], wanted[scale.target], atol=0.02)
    # the shrinking, a thousandth of the mean variance, is all that is left
    assert output_error(model, surgery.commit(), data) < 1e-4 < output_error(model, wrong, data)


def test_pruning_before_a_normalisation_is_better_with_than_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """LayerNorm over the channels that stay has other statistics; its scale and shift can take up some of that."""
    text = NORM.replace("float[N,8] y, ", "")
    model, data = loaded(text, (256, 6))

    def error() -> float:
        result = Prune(channels=0.5, round_to=1).apply(Job(model, model, data, 0, Clock(1, 0)))
        assert result.changes
        return output_error(model, result.model, data)

    mended = error()
    monkeypatch.setattr("onnx_compress.passes.prune.refit.scale_of", lambda *_: None)
    assert mended <= error() * 1.02
