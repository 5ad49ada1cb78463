"""svd on what is no plain convolution or matrix: tables of rows, recurrent nodes, stacks; and the ranks by variational Bayes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from svd_cases import CASES, model_of, run, svd

from onnx_compress.contract import Job
from onnx_compress.model.cost import cost
from onnx_compress.model.document import Model
from onnx_compress.model.shapes import infer
from onnx_compress.numerics.vbmf import vbmf_rank
from onnx_compress.passes.svd import Svd
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import Data, open_data
from onnx_compress.runtime.session import Session, input_specs

Array = NDArray[Any]


def of_rank(rank: int, *shape: int, seed: int = 0) -> Array:
    """A random matrix of this rank."""
    rng = np.random.default_rng(seed)
    product: Array = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1])) / np.sqrt(rank)
    return product


def table(rank: int = 4, rows: int = 60, width: int = 16) -> Model:
    """Rows of a table, looked up and added to a matrix's."""
    weights = {"table": of_rank(rank, rows, width), "w": of_rank(width, width, 8, seed=1)}
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["rows"], name="embedding"),
        helper.make_node("MatMul", ["rows", "w"], ["y"], name="head"),
    ]
    return model_of(nodes, weights, ("N", 5), rank=3, element=TensorProto.INT64)


def tokens(model: Model, rows: int = 60) -> Data:
    """Rows that are not seen equally often; negative numbers count from the end."""
    rng = np.random.default_rng(0)
    x = (rows * rng.random((64, 5)) ** 2).astype(np.int64)
    x[:, 0] -= rows
    return open_data([{"x": x}], input_specs(model))


@pytest.mark.parametrize("with_data", [False, True])
def test_a_table_of_known_rank_is_found_again(with_data: bool) -> None:
    """Its rows become narrow and a matrix widens them: the same numbers from fewer weights."""
    model = table()
    data = tokens(model)
    result = svd("svd:params=0.6:keep_if=always:round_to=1:exclude=head", model, data if with_data else None)
    assert [change.node for change in result.changes] == ["embedding"]
    assert "of its weights" in result.changes[0].after
    x = next(iter(data.batches(64)))["x"]
    expected, found = (Session(m, threads=1).run({"x": x})["y"] for m in (model, result.model))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert result.model.nbytes < 0.8 * model.nbytes


def test_a_table_is_no_work_to_save() -> None:
    """A look-up multiplies nothing; a budget of multiply-adds leaves it alone, and says so."""
    model = table()
    result = svd("svd:macs=0.5:keep_if=always:round_to=1", model, tokens(model))
    assert {skip.node for skip in result.skips} == {"embedding"}


def test_rows_that_are_looked_up_weigh_more() -> None:
    """At a rank that cannot hold all rows, the frequent ones are closer than without data."""
    rng = np.random.default_rng(2)
    weights = {"table": rng.normal(size=(60, 16)), "w": rng.normal(size=(16, 8))}
    nodes = list(table().proto.graph.node)
    model = model_of(nodes, weights, ("N", 5), rank=3, element=TensorProto.INT64)
    data = tokens(model)
    x = next(iter(data.batches(64)))["x"]
    expected = Session(model, threads=1).run({"x": x})["y"]
    errors = []
    for given in (None, data):
        result = svd("svd:params=0.75:keep_if=always:round_to=1:exclude=head", model, given)
        found = Session(result.model, threads=1).run({"x": x})["y"]
        errors.append(float(((found - expected) ** 2).mean()))
    assert errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_input_weights_of_known_rank_are_found_again(op: str, directions: int) -> None:
    """One narrow input serves all gates and both directions."""
    hidden, size, rank = 6, 20, 3
    gates = hidden * {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    weights = {
        "w": of_rank(rank, directions * gates, size).reshape(directions, gates, size) / 3,
        "r": of_rank(hidden, directions * gates, hidden, seed=1).reshape(directions, gates, hidden) / 3,
        "b": np.random.default_rng(3).normal(size=(directions, 2 * gates)),
    }
    way = "bidirectional" if directions == 2 else "forward"
    node = helper.make_node(
        op, ["t", "w", "r", "b"], ["", "y"], name="cell", hidden_size=hidden, direction=way
    )
    turn = helper.make_node("Transpose", ["x"], ["t"], name="turn", perm=[1, 0, 2])
    model = model_of([turn, node], weights, ("N", 7, size), rank=3)
    x = np.random.default_rng(4).normal(size=(32, 7, size)).astype(np.float32)
    result = svd("svd:rank=3:keep_if=always", model, None)
    assert [change.node for change in result.changes] == ["cell"]
    assert any("recurrent" in skip.why for skip in result.skips)
    expected, found = (Session(m, threads=1).run({"x": x})["y"] for m in (model, result.model))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    size_of = {"x": (1, 7, size)}
    before, after = (cost(m, infer(m, size_of)).macs for m in (model, result.model))
    assert after < before


def test_variational_bayes_finds_the_rank_of_a_noisy_matrix() -> None:
    """Where the signal stands out of the noise the rank is that of the signal, whatever the scale and the shape."""
    rng = np.random.default_rng(5)
    for rows, columns, rank in ((40, 90, 3), (90, 40, 7), (64, 64, 12), (30, 30, 0)):
        signal = of_rank(rank, rows, columns) if rank else np.zeros((rows, columns))
        for scale in (1e-3, 1.0, 1e3):
            noisy = scale * (signal + 0.05 * rng.normal(size=signal.shape))
            assert vbmf_rank(np.linalg.svd(noisy)[1], rows, columns) == rank


def test_ranks_by_variational_bayes() -> None:
    """A layer whose weight is a signal in noise gets the rank of the signal; the other is left alone."""
    rng = np.random.default_rng(6)
    weights = {
        "w": of_rank(5, 32, 48) + 0.02 * rng.normal(size=(32, 48)),
        "v": np.linalg.qr(rng.normal(size=(48, 48)))[0],
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="low"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="full"),
    ]
    model = model_of(nodes, weights, ("N", 32), rank=2)
    result = svd("svd:rank_rule=vbmf:keep_if=always:round_to=1", model, None)
    assert [(change.node, change.after.split(",")[0]) for change in result.changes] == [("low", "rank 5")]
    assert any(skip.node == "full" and "noise" in skip.why for skip in result.skips)


def test_sensitivity_grows_with_what_goes() -> None:
    """Each layer by itself: the less of it is left, the further the outputs move."""
    weights = {"w": np.random.default_rng(7).normal(size=(32, 48)), "v": of_rank(24, 48, 24, seed=1)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="one"),
        helper.make_node("Relu", ["h"], ["a"], name="relu"),
        helper.make_node("MatMul", ["a", "v"], ["y"], name="two"),
    ]
    model = model_of(nodes, weights, ("N", 32), rank=2)
    x = np.random.default_rng(8).normal(size=(128, 32)).astype(np.float32)
    job = Job(model, model, open_data([{"x": x}], input_specs(model)), 0, Clock(1))
    rows = Svd().sensitivity(job)
    for name in ("one", "two"):
        errors = [row["error"] for row in rows if row["where"] == name]
        assert len(errors) == 3
        assert errors == sorted(errors)
        assert 0 < errors[0] < errors[-1] < 2


FED = [
    "gemm",
    "gemm alpha beta transB",
    "gemm transA",
    "gemm, weight left",
    "matmul",
    "batched matmul",
    "matmul, weight left",
    "stack of matrices",
    "stack of matrices, left",
    "conv transpose",
    "conv transpose grouped",
    "conv grouped",
    "conv 1-D",
    "conv 3-D",
    "conv same upper",
]


@pytest.mark.parametrize("name", FED)
def test_data_serves_every_form(name: str) -> None:
    """At one rank the factors that know the inputs are closer to the layer's output than those that know the weights.

    So are those that know the outputs alone.
    """
    model, shape = CASES[name]
    rng = np.random.default_rng(9)
    (spec,) = input_specs(model)
    batches = 40
    channel = {"conv": 1, "gemm": 0 if "transA" in name or "left" in name else 1}.get(
        name.split(",", maxsplit=1)[0].split(maxsplit=1)[0]
    )
    channel = channel if channel is not None else len(shape) - (2 if "left" in name else 1)
    # inputs along few directions, others faint
    mix = rng.normal(size=(shape[channel],) * 2) * np.exp(-np.arange(shape[channel]))
    x = rng.normal(size=(batches * shape[0], *shape[1:])) if channel else rng.normal(size=(batches, *shape))
    if channel:
        x = np.moveaxis(np.tensordot(x, mix, (channel, 1)), -1, channel)
        feeds = [x[at : at + shape[0]] for at in range(0, len(x), shape[0])]
    else:
        feeds = [mix @ part for part in x]
    feeds = [feed.astype(np.float32) for feed in feeds]
    data = open_data([{spec.name: feed} for feed in feeds], [spec])
    errors = []
    for given, extra in ((None, ""), (data, ""), (data, ":effort=quick")):
        result = svd(f"svd:rank=2:keep_if=always:method=svd{extra}", model, given)
        assert [change.what for change in result.changes] == ["svd"]
        pairs = [(run(model, feed), run(result.model, feed)) for feed in feeds[:8]]
        errors.append(sum(float(((found - wanted) ** 2).sum()) for wanted, found in pairs))
    assert max(errors[1:]) < 0.9 * errors[0]


@pytest.mark.parametrize("opset", [9, 10, 11])
def test_a_gemm_of_an_old_opset_stays_valid(opset: int) -> None:
    """Before opset 11 a Gemm must add something, the first of two thin ones too."""
    weights = {"w": of_rank(3, 24, 16), "b": np.ones(16)}
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="gemm")
    proto = model_of([node], weights, ("N", 24), rank=2).to_proto()
    proto.opset_import[0].version = opset
    model = Model.from_proto(proto)
    result = svd("svd:rank=3:keep_if=always:round_to=1", model, None)
    assert [change.what for change in result.changes] == ["svd"]
    x = np.random.default_rng(2).normal(size=(5, 24)).astype(np.float32)
    np.testing.assert_allclose(run(result.model, x), run(model, x), rtol=1e-4, atol=1e-4)
