"""What a walk holds is the same in memory and in files, and its files go with it."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from channel_cases import parse
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_compress.model.document import Model
from onnx_compress.runtime import held as module
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.held import Held, Shelf
from onnx_compress.runtime.session import input_specs
from onnx_compress.runtime.walk import Walk

if TYPE_CHECKING:
    import pytest

STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.booleans()), max_size=20)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(0, 60))
def test_it_is_a_dict_whatever_its_limit(steps: list[tuple[str, int, bool]], limit: int) -> None:
    """Set, replaced and deleted as a dict is; what is left of the limit is what the arrays in memory do not take."""
    shelf = Shelf(limit)
    held, plain = Held(shelf), dict[str, Any]()
    for name, size, gone in steps:
        if gone and name in plain:
            del held[name], plain[name]
        else:
            held[name] = plain[name] = np.arange(size, dtype=np.float32)
        assert set(held) == set(plain)
        assert all(np.array_equal(held[key], plain[key]) for key in plain)
        assert 0 <= shelf.left <= limit
    for name in list(plain):
        del held[name]
    assert shelf.left == limit


def test_files_go_with_the_shelf() -> None:
    shelf = Shelf(0)
    held = Held(shelf)
    held["a"], held["b"] = np.ones(3), np.array(["text"], object)
    path = next(value for value in held._values.values() if isinstance(value, Path))
    assert path.exists()
    assert held["b"][0] == "text"
    held["a"] = np.zeros(2)
    assert not path.exists()
    folder = path.parent
    del held, shelf
    gc.collect()
    assert not folder.exists()


def test_a_walk_is_the_same_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.from_proto(
        parse("""g (float[N,4] x, float[4,6] w1, float[6,5] w2) => (float[N,5] y) {
        h = MatMul(x, w1)
        r = Relu(h)
        y = MatMul(r, w2) }""")
    )
    x = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    data = open_data([{"x": x}], input_specs(model), samples=10)

    def walked() -> list[dict[str, Any]]:
        walk = Walk(model, data, {"r": 2, "y": 3}, batch=4)
        walk.advance(2)
        first = [{name: held[name] for name in held} for held in walk.batches]
        walk.advance(3)
        return first + [{name: held[name] for name in held} for held in walk.batches]

    expected = walked()
    monkeypatch.setattr(module.Shelf.__init__, "__defaults__", (0,))
    for actual, wanted in zip(walked(), expected, strict=True):
        assert actual.keys() == wanted.keys()
        for name, value in wanted.items():
            np.testing.assert_array_equal(actual[name], value)
