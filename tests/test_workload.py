"""What a run costs at the sizes that samples have, and what stands in where there are none."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_compress.model.document import Model
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import input_specs
from onnx_compress.runtime.workload import affordable, first_feeds, macs_of_sample


def picture() -> Model:
    """A 3x3 convolution of pictures of any size."""
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,3,H,W] x) => (float[N,4,H,W] y) '
        "{ y = Conv<pads=[1,1,1,1]>(x, w) }"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w"))
    return Model.from_proto(proto)


@pytest.mark.parametrize("batch", [1, 2])
def test_symbolic_sizes_count_as_the_samples_have_them(batch: int) -> None:
    """Counted as 1, a picture of 5x7 would seem 35 times cheaper than it is."""
    feeds = {"x": np.zeros((batch, 3, 5, 7), np.float32)}
    assert macs_of_sample(picture(), feeds) == 5 * 7 * 4 * 27


def test_work_bounds_the_samples_but_for_the_least() -> None:
    assert [affordable(16, macs, 100.0, 3) for macs in (0.0, 5.0, 20.0, 1e9)] == [16, 16, 5, 3]


def test_the_first_feeds_are_the_datas_or_of_the_sizes_given() -> None:
    model = picture()
    data = open_data([{"x": np.ones((6, 3, 5, 7), np.float32)}], input_specs(model))
    for sizes in ({}, {"x": (1, 3, 4, 4)}):
        assert first_feeds(model, sizes, data, batch=2)["x"].tolist() == np.ones((2, 3, 5, 7)).tolist()
    made = first_feeds(model, {"x": (1, 3, 4, 4)}, None, seed=3, batch=2)["x"]
    assert made.shape == (2, 3, 4, 4)
    assert made.std() > 0
