"""Streamed statistics equal numpy's over all activations at once, whatever the batch size and the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnx_compress.errors import InputError
from onnx_compress.model.document import Model
from onnx_compress.model.surgery import Surgery
from onnx_compress.runtime.layers import LayerInput, layer_input
from onnx_compress.runtime.observe import (
    CrossGram,
    Gram,
    Histogram,
    Moments,
    Observed,
    Range,
    Request,
    ZeroFraction,
    observe,
    workers,
)
from onnx_compress.runtime.runner import LIVE, abreast
from onnx_compress.runtime.session import Session
from onnx_compress.runtime.unfold import unfold

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = np.ndarray[Any, Any]
SAMPLES = 21


@dataclass
class Samples:
    """Data in memory; counts its sweeps."""

    feeds: dict[str, Array]
    sweeps: int = 0

    @property
    def samples(self) -> int:
        return len(next(iter(self.feeds.values())))

    def batches(self, size: int = 32) -> Iterator[dict[str, Array]]:
        self.sweeps += size > 1
        for at in range(0, self.samples, size):
            yield {name: value[at : at + size] for name, value in self.feeds.items()}


def network(seed: int = 0) -> Model:
    """Conv, Relu, depthwise Conv, grouped Conv, MatMul over the last axis: each kind of columns."""
    rng = np.random.default_rng(seed)
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 1, 3, 3), "w3": (6, 4, 1, 3), "w4": (5, 7)}
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu"),
        helper.make_node(
            "Conv", ["r1", "w2"], ["c2"], "depthwise", group=8, strides=[2, 1], pads=[0, 1, 1, 1]
        ),
        helper.make_node("Conv", ["c2", "w3"], ["c3"], "grouped", group=2),
        helper.make_node("MatMul", ["c3", "w4"], ["y"], "matmul"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 7, 7])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return Model.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )


TENSORS = ["x", "c1", "r1", "c2", "c3", "y"]


@pytest.fixture(scope="module")
def model() -> Model:
    return network()


@pytest.fixture
def data() -> Samples:
    x = np.random.default_rng(1).standard_normal((SAMPLES, 3, 7, 7)).astype(np.float32)
    return Samples({"x": 3 * x + 1})


def layers(model: Model) -> dict[str, LayerInput]:
    """The layers of a model, by node name."""
    found = {node.name: layer_input(node, {}) for node in Surgery(model).nodes()}
    return {name: layer for name, layer in found.items() if not isinstance(layer, str)}


def activations(model: Model, data: Samples) -> dict[str, Array]:
    """Every tensor, over all samples, in float64."""
    values = Session(model, threads=1, optimize=False, outputs=TENSORS[1:]).run(data.feeds)
    return {name: value.astype(np.float64) for name, value in (values | data.feeds).items()}


def per_channel(x: Array) -> Array:
    return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)


def every_request(model: Model) -> list[Request]:
    requests: list[Request] = [Gram(layer) for layer in layers(model).values()]
    for name in TENSORS:
        requests += [Range(name), Moments(name), Histogram(name, 64), ZeroFraction(name)]
    return [*requests, Moments("y", -1), Moments("y", None)]


def test_values_equal_numpy_over_everything(model: Model, data: Samples) -> None:
    found = observe(model, data, every_request(model), batch=4, threads=1)
    for name, x in activations(model, data).items():
        assert found[Range(name)] == pytest.approx((x.min(), x.max()), rel=1e-5)
        flat, moments = per_channel(x), found[Moments(name)]
        np.testing.assert_allclose(moments.mean, flat.mean(axis=1), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(moments.var, flat.var(axis=1), rtol=1e-5)
        assert moments.number == flat.shape[1]
        zero = (flat == 0).mean(axis=1)
        np.testing.assert_allclose(found[ZeroFraction(name)], zero, atol=1e-12)
    y = activations(model, data)["y"]
    np.testing.assert_allclose(found[Moments("y", -1)].var, y.reshape(-1, 7).var(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found[Moments("y", None)].mean, [y.mean()], rtol=1e-5)
    assert found.nonfinite == {}


def test_histogram_counts_every_value_in_its_bin(model: Model, data: Samples) -> None:
    counts, low, high = observe(model, data, [Histogram("x", 100)], batch=5)[Histogram("x", 100)]
    x = data.feeds["x"]
    assert low <= x.min() <= x.max() < high
    np.testing.assert_array_equal(counts, np.histogram(x, bins=100, range=(low, high))[0])
    assert np.count_nonzero(counts[50:]) > 0, "at least half of the bins are used"


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-3, 1e30])
def test_histogram_of_any_magnitude(model: Model, scale: float) -> None:
    """All zeros first, then values of the scale: the bins grow to hold them."""
    x = np.zeros((6, 3, 7, 7), np.float32)
    x[3:] = scale * np.linspace(-1, 1, 3 * 147, dtype=np.float32).reshape(3, 3, 7, 7)
    whole = observe(model, Samples({"x": x}), [Histogram("x", 32)], batch=6)[Histogram("x", 32)]
    parts = observe(model, Samples({"x": x}), [Histogram("x", 32)], batch=1)[Histogram("x", 32)]
    assert whole.counts.sum() == x.size
    assert whole.low <= x.min() <= x.max() < whole.high
    assert (whole.counts == parts.counts).all()
    assert whole[1:] == parts[1:]


def test_gram_equals_all_columns_at_once(model: Model, data: Samples) -> None:
    found = observe(model, data, [Gram(layer) for layer in layers(model).values()], batch=4, positions=None)
    values = activations(model, data)
    for layer in layers(model).values():
        columns = unfold(values[layer.tensor], layer)
        stat, count = found[Gram(layer)], columns.shape[2]
        assert (stat.kind, stat.count) == ("full", count)
        expected = columns @ columns.swapaxes(1, 2) / count
        np.testing.assert_allclose(stat.gram, expected, atol=1e-6 * np.abs(expected).max())
        np.testing.assert_allclose(stat.mean, columns.mean(axis=2), atol=1e-6 * np.abs(columns).max())
        assert (stat.gram == stat.gram.swapaxes(1, 2)).all()


def test_cross_gram_solves_for_the_reference_weight(model: Model, data: Samples) -> None:
    """x of the model against y of the reference: least squares on them is least squares on the activations."""
    reference = network(7)
    own, other = activations(model, data), activations(reference, data)
    targets = {"conv": ("c1", None), "depthwise": ("c2", "c2"), "grouped": ("c3", None), "matmul": ("y", "y")}
    requests = {
        name: CrossGram(layers(model)[name], target, minus) for name, (target, minus) in targets.items()
    }
    found = observe(model, data, requests.values(), reference=reference, batch=4, positions=None)
    for request in requests.values():
        stat, layer = found[request], request.layer
        x = unfold(own[layer.tensor], layer)
        y = other[request.target] - (own[request.minus] if request.minus else 0)
        flat = np.moveaxis(y, layer.output_axis, 0).reshape(layer.group, -1, x.shape[2])
        cross = x @ flat.swapaxes(1, 2) / x.shape[2]
        np.testing.assert_allclose(stat.cross, cross, atol=2e-6 * np.abs(cross).max())
        np.testing.assert_allclose(stat.mean_y, flat.mean(axis=2), atol=1e-6 * np.abs(flat).max())
        assert stat.energy == pytest.approx(flat.var(axis=2).sum(), rel=1e-5)
        gram = x @ x.swapaxes(1, 2) / x.shape[2]
        np.testing.assert_allclose(stat.gram, gram, atol=1e-6 * np.abs(gram).max())


def same(a: Observed, b: Observed) -> None:
    for request, value in a.items():
        if isinstance(request, Gram | CrossGram):
            for field in ("gram", "mean", "cross", "mean_y", "var_y")[
                : 5 if isinstance(request, CrossGram) else 2
            ]:
                one, two = getattr(value, field), getattr(b[request], field)
                np.testing.assert_allclose(one, two, atol=1e-6 * np.abs(one).max())
            assert (value.count, value.kind) == (b[request].count, b[request].kind)
        else:
            for one, two in zip(value, b[request], strict=True):
                np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(batch=st.integers(1, SAMPLES + 2), positions=st.sampled_from([3, 10, None]))
def test_no_statistic_depends_on_the_batch_size(batch: int, positions: int | None) -> None:
    model = network()
    x = np.random.default_rng(1).standard_normal((SAMPLES, 3, 7, 7)).astype(np.float32)
    # many samples are claimed so that so few positions are enough
    data = Samples({"x": np.tile(x, (6, 1, 1, 1))})
    requests = [*every_request(model), CrossGram(layers(model)["grouped"], "c3", "c3")]
    whole = observe(model, data, requests, reference=network(3), batch=32, positions=positions, threads=1)
    parts = observe(model, data, requests, reference=network(3), batch=batch, positions=positions, threads=1)
    same(whole, parts)


def test_batches_run_side_by_side_change_nothing(model: Model, data: Samples) -> None:
    """They are taken in in order, each tensor by one thread at a time: bit by bit the same."""
    requests = every_request(model)
    alone = observe(model, data, requests, threads=1)
    beside = observe(model, data, requests, threads=5)
    for request, value in alone.items():
        found = beside[request]
        pairs = [(value.gram, found.gram)] if isinstance(request, Gram) else zip(value, found, strict=True)
        for one, two in pairs:
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("cores", [1, 2, 64])
def test_runs_under_way_hold_so_much_and_no_more(cores: int) -> None:
    """But for a single sample that is more by itself; and their size is the same on any machine."""
    for live in (0, 10, 10**6, 67 * 10**6, 10**9):
        for samples in (None, 1, 24, 2000):
            number, size = abreast(live, cores, 32, samples)
            assert 1 <= number <= cores
            assert 1 <= size <= 32
            assert size == abreast(live, 3, 32, samples)[1]
            assert number == 1 or number * size * live <= LIVE


def test_a_gram_left_for_later_is_that_made_at_once(model: Model, data: Samples) -> None:
    requests = every_request(model)
    whole, later = (observe(model, data, requests, threads=2, later=wish) for wish in (False, True))
    grams = [request for request in requests if isinstance(request, Gram)]
    assert grams
    assert not later.keys() & set(grams)
    for request in grams:
        gram = whole[request].gram
        np.testing.assert_allclose(later.take(request).gram, gram, atol=1e-6 * np.abs(gram).max())
        assert whole.take(request).count
        assert request not in whole
    assert not later.open


@pytest.mark.parametrize(("scale", "kind"), [(1.0, "float32"), (1e22, "float64")])
def test_a_wide_gram_left_for_later_is_the_same_in_float32(scale: float, kind: str) -> None:
    """Or in float64, where float32 cannot hold its squares."""
    x = np.random.default_rng(0).standard_normal((40, 600)).astype(np.float32) * np.float32(scale)
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"], "matmul")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 600])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.ones((600, 1), np.float32), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    model = Model.from_proto(proto)
    request = Gram(layers(model)["matmul"])
    with workers(1):  # > two threads of BLAS add up in another order
        found = observe(model, Samples({"x": x}), [request], later=True).take(request).gram
    exact = observe(model, Samples({"x": x}), [request])[request].gram
    assert (found.dtype.name, exact.dtype.name) == (kind, "float64")
    np.testing.assert_allclose(found, exact, rtol=1e-7, atol=1e-7 * scale**2)


def test_a_small_budget_means_more_sweeps_and_the_same_answers(model: Model, data: Samples) -> None:
    requests = every_request(model)
    whole = observe(model, data, requests, threads=1)
    assert data.sweeps == 1
    parts = observe(model, data, requests, threads=1, budget=27 * 27 * 8)
    assert data.sweeps > 2
    same(whole, parts)


def test_a_gram_beyond_the_budget_becomes_blocks_then_its_diagonal() -> None:
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((4, 10, 3, 3)).astype(np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 10, 6, 6])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    proto = helper.make_model(
        helper.make_graph([node], "g", [x], [y], [weight]), opset_imports=[helper.make_opsetid("", 17)]
    )
    proto.ir_version = 8
    model = Model.from_proto(proto)
    data = Samples({"x": rng.standard_normal((9, 10, 6, 6)).astype(np.float32)})
    request = Gram(layers(model)["conv"])
    full = observe(model, data, [request], positions=None)[request]
    block = observe(model, data, [request], positions=None, budget=90 * 40 * 8)[request]
    diagonal = observe(model, data, [request], positions=None, budget=90 * 8)[request]
    assert (full.kind, block.kind, diagonal.kind) == ("full", "block", "diagonal")
    assert block.gram.shape == (1, 3, 36, 36)
    for stat in (block, diagonal):
        np.testing.assert_allclose(stat.diagonal(), full.diagonal(), rtol=1e-5)
        np.testing.assert_allclose(stat.mean, full.mean, atol=1e-6)
        covered = [index for where, _ in stat.blocks() for index in range(90)[where]]
        assert covered == list(range(90))
        for where, gram in stat.blocks():
            np.testing.assert_allclose(gram, full.gram[:, where, where], atol=1e-5)


def test_positions_are_capped_and_the_cap_is_told(model: Model, data: Samples) -> None:
    """49 positions; 20 columns for each of the 27 inputs need 26 of each of 21 samples."""
    request = Gram(layers(model)["conv"])
    stat = observe(model, data, [request], positions=4)[request]
    assert (stat.positions, stat.available, stat.count) == (26, 49, 26 * SAMPLES)
    columns = unfold(activations(model, data)["x"], request.layer)
    expected = columns @ columns.swapaxes(1, 2) / columns.shape[2]
    # half of the columns, of independent normal values: a mean of n products is off by 1/sqrt(n)
    assert np.abs(stat.gram - expected).max() < 5 * expected.max() / np.sqrt(stat.count)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_values_are_counted_and_left_out(model: Model, data: Samples, bad: float) -> None:
    clean = observe(model, data, [Range("x"), Moments("x")])
    data.feeds["x"][3, 1, 2, 2] = bad
    gram = Gram(layers(model)["conv"])
    requests: list[Request] = [Range("x"), Moments("x"), Histogram("x", 64), gram, ZeroFraction("x")]
    found = observe(model, data, requests, batch=4, positions=None)
    assert found.nonfinite["x"] >= 1
    assert found[Range("x")] == pytest.approx(clean[Range("x")])
    np.testing.assert_allclose(found[Moments("x")].mean, clean[Moments("x")].mean, atol=0.02)
    assert found[Histogram("x", 64)].counts.sum() == data.feeds["x"].size - 1
    stat = found[gram]
    assert np.isfinite(stat.gram).all()
    assert stat.count == 49 * SAMPLES - 9


def test_squares_beyond_float32_are_summed(model: Model) -> None:
    x = np.full((2, 3, 7, 7), 1e25, np.float32)
    stat = observe(model, Samples({"x": x}), [request := Gram(layers(model)["conv"])], positions=None)[
        request
    ]
    assert np.isfinite(stat.gram).all()
    assert stat.gram.max() == pytest.approx(1e50, rel=1e-6)


def test_a_tensor_that_is_not_there_is_an_error(model: Model, data: Samples) -> None:
    with pytest.raises(InputError, match="'nothing' is not in the model's main graph"):
        observe(model, data, [Range("nothing")])
    with pytest.raises(InputError, match="no samples"):
        observe(model, Samples({"x": data.feeds["x"][:0]}), [Range("x")])
    with pytest.raises(ValueError, match="not shaped as the output"):
        observe(model, data, [CrossGram(layers(model)["conv"], "c2")], reference=model)
    assert observe(model, data, []) == {}
