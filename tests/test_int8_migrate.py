"""Factors that move between layers: the float model stays what it was, the quantized one gets better where it should."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from onnx_compress.contract import Job
from onnx_compress.model.document import Model
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.int8 import Int8
from onnx_compress.passes.int8.migrate import chains, factors, foreseen, migrated
from onnx_compress.runtime.agreement import output_error
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import Session, input_specs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]

CONVS = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 3, 12, 12] x) => (float[n, 5] y) {
  a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w1, b1)
  r = ACT
  d = Conv <kernel_shape = [3, 3], group = 8> (r, w2, b2)
  e = Relu (d)
  p = GlobalAveragePool (e)
  c = Conv (p, w3, b3)
  y = Flatten (c)
}
"""
NORM = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 6, 16] x) => (float[n, 6, 12] y, float[n, 6, 8] z) {
  a = LayerNormalization (x, gain, shift)
  y = MatMul (a, w1)
  z = MatMul (a, w2)
}
"""


PADDED = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 3, 12, 12] x) => (float[n, 5, h, w] y) {
  a = Conv (x, w1)
  r = Relu (a)
  p = Pad (r, pads, value)
  y = Conv (p, w2)
}
"""


def network(text: str, arrays: dict[str, Array]) -> Model:
    proto = onnx.parser.parse_model(text)
    for node in proto.graph.node:
        node.name = node.output[0]
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in arrays.items()
    )
    return Model.from_proto(proto)


def convolutions(act: str = "Relu (a)", spread: float = 0.0) -> tuple[Model, Data]:
    """A network whose first activation has channels of sizes that differ by exp(spread · normal)."""
    rng = np.random.default_rng(5)
    size = np.exp(spread * rng.standard_normal(8))
    arrays = {
        "w1": rng.standard_normal((8, 3, 3, 3)) * 0.3 * size[:, None, None, None],
        "b1": rng.standard_normal(8) * 0.1 * size,
        "w2": rng.standard_normal((8, 1, 3, 3)) * 0.3 / size[:, None, None, None],
        "b2": rng.standard_normal(8) * 0.1,
        "w3": rng.standard_normal((5, 8, 1, 1)),
        "b3": rng.standard_normal(5) * 0.1,
    }
    extra: dict[str, Any] = {"low": np.float32(0), "high": np.float32(1.5)} if "Clip" in act else {}
    model = network(CONVS.replace("ACT", act), {**arrays, **extra})
    x = rng.standard_normal((48, 3, 12, 12)).astype(np.float32)
    return model, open_data([{"x": x}], input_specs(model))


def normalised(spread: float) -> tuple[Model, Data]:
    """Two products after one LayerNormalization, some of whose channels are far larger than the rest."""
    rng = np.random.default_rng(6)
    size = np.exp(spread * np.abs(rng.standard_normal(16)))
    arrays = {
        "gain": size,
        "shift": rng.standard_normal(16) * 0.1,
        "w1": rng.standard_normal((16, 12)) / size[:, None],
        "w2": rng.standard_normal((16, 8)) / size[:, None],
    }
    model = network(NORM, arrays)
    x = rng.standard_normal((64, 6, 16)).astype(np.float32)
    return model, open_data([{"x": x}], input_specs(model))


def outputs(model: Model, data: Data) -> list[Array]:
    session = Session(model)
    return [
        np.concatenate(parts)
        for parts in zip(*(session.run(b).values() for b in data.batches(16)), strict=True)
    ]


@pytest.mark.parametrize("act", ["Relu (a)", "LeakyRelu <alpha = 0.1> (a)", "Clip (a, low, high)"])
def test_the_float_model_stays_what_it_was(act: str) -> None:
    """s divides what is made and multiplies what reads it, and a positive factor goes through the activation."""
    model, data = convolutions(act, spread=1.5)
    other, makers = migrated(model, data, lambda _: True)
    assert makers
    for before, after in zip(outputs(model, data), outputs(other, data), strict=True):
        # > float32: sums of some tens of terms
        assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()


@pytest.mark.parametrize(("value", "ends", "there"), [(0.0, 1, True), (0.5, 1, False), (0.0, 0, False)])
def test_zeros_around_a_picture_hide_no_reader(value: float, ends: int, there: bool) -> None:
    """Exporters of "same" padding put a Pad before each convolution; other values, or more channels, would not scale."""
    rng = np.random.default_rng(7)
    pads = np.array([0, 0, 1, 1, 0, 0, 1, 1]) if ends else np.array([0, 0, 0, 0, 0, 1, 0, 0])
    arrays = {"w1": rng.standard_normal((8, 3, 3, 3)), "w2": rng.standard_normal((5, 8 if ends else 9, 3, 3))}
    model = network(PADDED, {**arrays, "value": np.array(value)})
    model.proto.graph.initializer.append(onnx.numpy_helper.from_array(pads, "pads"))
    assert [chain.readers for chain in chains(Surgery(model).graph)] == ([("y",)] if there else [])


def test_a_channel_that_reaches_the_bound_keeps_its_size() -> None:
    model, _ = convolutions("Clip (a, low, high)", spread=1.5)
    (chain, *_) = chains(Surgery(model).graph)
    assert chain.top == 1.5
    reach = np.array([1.5, 0.01, 0.05, 1.5, 0.0, 0.1, 0.07, 0.02])
    weight = np.abs(np.random.default_rng(0).standard_normal((8, 1, 1, 9))) / np.maximum(reach, 0.01).reshape(
        -1, 1, 1, 1
    )
    scale = factors(chain, reach, reach**2 / 3, [weight])
    assert scale is not None
    assert (scale[reach == 1.5] == 1).all()
    # > nobody new comes near the bound
    assert (reach / scale)[(reach > 0) & (reach < 1.5)].max() <= 0.75 + 1e-6


def test_foreseen_is_what_uniform_rounding_errors_make() -> None:
    """The formula against the sum written out, for a grouped layer."""
    rng = np.random.default_rng(1)
    weight, reach, energy = np.abs(rng.standard_normal((2, 3, 4, 5))), rng.random(8) + 0.1, rng.random(8)
    scale = rng.random(8) + 0.5
    step = (reach / scale).max() / 255
    total = 0.0
    for group in range(2):
        for row in range(3):
            scaled = weight[group, row] * scale[4 * group : 4 * group + 4, None]
            total += step**2 * (scaled**2).sum()
            for channel in range(4):
                at = 4 * group + channel
                total += 5 * (scaled.max() / 127) ** 2 * energy[at] / scale[at] ** 2
    assert np.isclose(foreseen(scale, reach, energy, [weight]), total)


@pytest.mark.parametrize("make", [lambda: convolutions(spread=2.0), lambda: normalised(2.5)])
def test_unequal_channels_are_balanced_and_the_quantized_model_is_better(make: Any) -> None:
    model, data = make()
    job = Job(model, model, data, 0, Clock(1))
    errors = [
        output_error(
            model,
            Int8(tolerance=None, keep_if="always", equalize=wish, smooth=wish).apply(job).model,
            data,
        )
        for wish in (False, "auto")
    ]
    assert errors[1] < 0.5 * errors[0]


def test_a_tensor_that_somebody_else_reads_is_left() -> None:
    model, _ = normalised(1.0)
    proto = model.to_proto()
    proto.graph.node.append(onnx.helper.make_node("Relu", ["a"], ["seen"], name="seen"))
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info("seen", onnx.TensorProto.FLOAT, ["n", 6, 16])
    )
    other = Model.from_proto(proto)
    assert not list(chains(Surgery(other).graph))
