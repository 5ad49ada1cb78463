"""Sizes given for measuring never become sizes of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from channel_cases import parse

from onnx_compress.errors import InputError
from onnx_compress.model.document import Model
from onnx_compress.passes import PASSES
from onnx_compress.pipeline import compress
from onnx_compress.preflight import preflight
from onnx_compress.runtime.session import Session

MODELS = Path(__file__).parents[1] / "models"


@pytest.mark.parametrize("name", [kind.name for kind in PASSES])
@pytest.mark.parametrize("model", ["fashion_lstm", "fashion_vit"])
def test_the_batch_stays_symbolic(name: str, model: str) -> None:
    """Measured at one sample, the result still takes five."""
    shapes = {"input": (1, 1, 28, 28)}
    found = compress(
        MODELS / f"{model}.onnx",
        name,
        data=MODELS / "fashion_calib.npz",
        samples=64,
        verify=False,
        input_shapes=shapes,
    ).model
    feeds = {"input": np.zeros((5, 1, 28, 28), np.float32)}
    assert Session(found).run(feeds)["logits"].shape == (5, 10)


def test_usual_sizes_of_pictures_are_tried() -> None:
    """A recognizer takes lines of 48 pixels and nothing else; nobody should have to look that up to try it."""
    model = Model.from_proto(
        parse("""g (float[N,3,H,W] x, float[4,3,48,1] w1) => (float[N,4,40] y) {
            h = Conv<strides=[1,8]>(x, w1)
            a = Constant<value_ints=[0,4,40]>()
            y = Reshape(h, a) }""")
    )
    found = preflight(model)
    assert found.input_shapes == {"x": (1, 3, 48, 320)}
    assert "48,320" in found.warnings[0]


def test_where_no_usual_size_is_right_it_says_what_to_do() -> None:
    model = Model.from_proto(
        parse("""g (float[N,3,H,W] x, float[4,3,47,1] w1) => (float[N,4,39] y) {
            h = Conv<strides=[1,8]>(x, w1)
            a = Constant<value_ints=[0,4,39]>()
            y = Reshape(h, a) }""")
    )
    with pytest.raises(InputError, match="--input-shapes"):
        preflight(model)
