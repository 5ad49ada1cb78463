"""int8's ranges: the same whatever the batches were, and no hostage to one value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from onnx_compress.contract import Job, Result
from onnx_compress.model.document import Model
from onnx_compress.passes.int8 import Int8
from onnx_compress.passes.int8.ranges import METHODS, affine, choose, divergence, seen, squared_errors
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import input_specs

Array = NDArray[Any]
RNG = np.random.default_rng(0)
PLAIN = Int8(keep_if="always", tolerance=None, rounding="nearest", bias_correction=False)
NODES = (
    "a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(a) c = Conv<pads=[1,1,1,1]>(r, v) s = Sigmoid(c) y = Conv(s, u)"
)


def normal(*shape: int) -> Array:
    return (RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def model_of(nodes: str = NODES) -> Model:
    weights = {
        "w": normal(8, 3, 3, 3),
        "v": normal(8, 8, 3, 3),
        "u": normal(4, 8, 1, 1),
        "t": normal(4, 16, 1, 1),
    }
    weights = {name: value for name, value in weights.items() if f", {name})" in nodes}
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> test (float[N,3,H,W] x) => (float[N,4,I,J] y) {{ {nodes} }}'
    )
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in weights.items())
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}{number}"
    return Model.from_proto(proto)


def run(pass_: Int8, model: Model, feeds: list[dict[str, Array]]) -> Result:
    return pass_.apply(Job(model, model, open_data(feeds, input_specs(model)), 0, Clock(1)))


def cut(*sizes: int) -> list[dict[str, Array]]:
    """The same 37 samples in pieces of these sizes."""
    x = np.random.default_rng(3).standard_t(4, size=(37, 3, 12, 12)).astype(np.float32)
    ends = np.cumsum(sizes)[:-1]
    return [{"x": part} for part in np.split(x, ends)]


@pytest.mark.parametrize("method", METHODS)
def test_batches_do_not_matter(method: str) -> None:
    """37 samples as one piece (batches of 32 and 5), one by one, and in uneven pieces: the same bytes."""
    model = model_of()
    (pass_,) = (replace(PLAIN, calibrate=method),)  # type: ignore[arg-type]
    whole, single, uneven = (
        run(pass_, model, cut(*sizes)).model.to_proto().SerializeToString()
        for sizes in ([37], [1] * 37, [3, 30, 4])
    )
    assert whole == single == uneven


@pytest.mark.parametrize("method", METHODS)
def test_samples_of_different_sizes_are_all_seen(method: str) -> None:
    """The bright pictures are of another size than the rest: a range that misses them would lose them altogether."""
    model = model_of()
    feeds = [{"x": 0.1 * RNG.normal(size=(1, 3, 8 + n % 3, 8)).astype(np.float32)} for n in range(12)]
    feeds += [{"x": np.full((1, 3, 5, 9), 7.0, np.float32)} for _ in range(6)]
    result = run(replace(PLAIN, calibrate=method), model, feeds)  # type: ignore[arg-type]
    arrays = {tensor.name: result.model.array(tensor) for tensor in result.model.proto.graph.initializer}
    first = next(node for node in result.model.proto.graph.node if node.op_type == "QuantizeLinear")
    scale, zero = arrays[first.input[1]], arrays[first.input[2]]
    reach = (255 - int(zero)) * scale
    # > entropy looks at the shape of the distribution only, and may clip a peak
    assert reach == pytest.approx(7.0, rel=0.02) or (method == "entropy" and reach > 1)


def points(values: Array) -> Any:
    counts, edges = np.histogram(values, 2048)
    return seen([(counts, float(edges[0]), float(edges[-1]))])


def test_one_value_far_out_is_clipped_only_where_that_pays() -> None:
    """A single value 20 times the rest costs its own square when it is clipped, and everybody's steps when it is not."""
    few = points(np.append(RNG.normal(size=2_000_000), 60.0))
    many = points(np.append(RNG.normal(size=2_000), 60.0))
    assert choose(few, "mse").scale < 0.5 * choose(few, "minmax").scale
    assert choose(many, "mse").scale > 0.9 * choose(many, "minmax").scale


def test_mse_finds_what_a_fine_grid_finds() -> None:
    """Against every pair of ends on a grid of 60 by 60: the search misses at most 1 % of the least error."""
    drawn = points(np.concatenate([RNG.laplace(size=20_000), RNG.normal(2, 0.1, 5_000)]))
    found = choose(drawn, "mse")
    low, high = -found.zero * found.scale, (255 - found.zero) * found.scale
    shares = np.linspace(0.02, 1, 60)
    best = min(squared_errors(drawn, [(drawn.low * a, drawn.high * b) for a in shares for b in shares]))
    assert squared_errors(drawn, [(low, high)])[0] <= 1.01 * best


def test_entropy_is_the_divergence_of_the_codes() -> None:
    """Against Σ p log(p/q) by its definition, value by value, with q flat over the values of each code."""
    drawn = points(RNG.laplace(size=5_000))
    low, high = 0.5 * drawn.low, 0.6 * drawn.high
    there = (drawn.values >= low) & (drawn.values <= high) & (drawn.values != 0)
    mass = np.where(there, drawn.counts, 0.0)
    first, last = np.flatnonzero(there)[[0, -1]]
    inside, p = mass[there], mass.copy()
    nonzero = drawn.values != 0
    p[first] += drawn.counts[nonzero & (np.arange(len(p)) < first)].sum()
    p[last] += drawn.counts[nonzero & (np.arange(len(p)) > last)].sum()
    p = p[there] / p.sum()
    scale = affine(low, high)
    codes = scale.quantize(drawn.values[there]).astype(int)
    q = np.array([inside[codes == code].mean() for code in codes])
    q /= q.sum()
    assert divergence(drawn, low, high) == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-6)


def test_a_known_range_that_shares_a_scale_is_seen_with_the_rest() -> None:
    """Sigmoid's range is known, but beside a convolution in a Concat it has that one's scale too."""
    model = model_of("a = Conv(x, w) s = Sigmoid(a) b = Concat<axis=1>(s, a) y = Conv(b, t)")
    job = Job(model, model, open_data(cut(37), input_specs(model)), 0, Clock(1))
    graph = PLAIN.preview(job).proto.graph
    assert [node.op_type for node in graph.node].count("QuantizeLinear") == 5  # x, a, s, b, y


@pytest.mark.parametrize("saturates", [True, False])
def test_weights_have_seven_bits_where_products_saturate(
    saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnx_compress.passes.int8.int8.products_saturate", lambda: saturates)
    result = run(PLAIN, model_of(), cut(37))
    arrays = [result.model.array(tensor) for tensor in result.model.proto.graph.initializer]
    largest = max(int(np.abs(array).max()) for array in arrays if array.dtype == np.int8 and array.ndim == 4)
    assert largest == (63 if saturates else 127)
    assert any("7 bits" in warning for warning in result.warnings) == saturates
