"""cluster on every kind of layer, tied weights, biases that are shared, and weights inside bodies; what is left alone says why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs
import pytest

from onnx_compress.model.codebook import codebook_of
from onnx_compress.model.document import Model
from onnx_compress.model.surgery import Surgery
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import Session, input_specs

if TYPE_CHECKING:
    from pathlib import Path
from cluster_cases import HEAD, cluster, model, normal, operators

RNG = np.random.default_rng(5)


def test_a_corrected_bias_keeps_the_mean_of_a_gemm() -> None:
    """Exact for a Gemm: the mean of W̃x + b̃ over the fitting samples is that of Wx + b."""
    text = "g (float[N,64] x) => (float[N,32] y) { y = Gemm<transB=1, alpha=0.5>(x, w, b) }"
    source = model(text, w=normal(32, 64), b=normal(1, 32))
    x = {"x": (RNG.standard_normal((200, 64)) + 2).astype(np.float32)}
    result = cluster(source, x, bits=2)
    fit, _ = open_data(x, input_specs(source)).split()
    seen = next(fit.batches(200))
    before, after = (Session(m).run(seen)["y"].mean(0) for m in (source, result.model))
    assert np.abs(after - before).max() < 1e-5
    assert np.abs(Session(result.model).run(seen)["y"] - Session(source).run(seen)["y"]).max() > 1e-2


@pytest.mark.parametrize("value", [0.1, 0.2, 0.3])
def test_inputs_that_never_change_leave_the_outputs_alone(value: float) -> None:
    """The variance of a constant is rounding noise, of either sign; what reads it is all bias."""
    source = model(
        "g (float[N,64] x) => (float[N,32] y) { y = Gemm(x, w, b) }", w=normal(64, 32), b=normal(32)
    )
    x = {"x": np.full((200, 64), value, np.float32)}
    result = cluster(source, x, bits=2)
    assert [change.what for change in result.changes] == ["cluster"]
    np.testing.assert_allclose(Session(result.model).run(x)["y"], Session(source).run(x)["y"], atol=1e-4)


def test_a_shared_bias_is_corrected_for_each_layer_alone() -> None:
    text = """g (float[N,64] x) => (float[N,64] y, float[N,64] z) {
        y = Gemm(x, v, b)
        z = Gemm(x, w, b)
    }"""
    source = model(text, v=normal(64, 64), w=normal(64, 64, seed=1), b=normal(64))
    x = {"x": (RNG.standard_normal((200, 64)) + 2).astype(np.float32)}
    after = cluster(source, x, bits=2).model
    fit, _ = open_data(x, input_specs(source)).split()
    seen = next(fit.batches(200))
    for name in ("y", "z"):
        before = Session(source).run(seen)[name].mean(0)
        assert np.abs(Session(after).run(seen)[name].mean(0) - before).max() < 1e-5


def test_a_tied_weight_is_clustered_once() -> None:
    text = """g (int64[N] i) => (float[N,200] y) {
        e = Gather(w, i)
        t = Tanh(e)
        y = Gemm<transB=1>(t, w)
    }"""
    result = cluster(model(text, w=normal(200, 32)), bits=4)
    surgery = Surgery(result.model)
    first, last = (next(n for n in surgery.nodes() if n.op == op) for op in ("Tanh", "Gemm"))
    table = first.inputs[0].inputs[0].inputs[0]
    assert table is last.inputs[1]
    assert codebook_of(table) is not None
    assert len(result.changes) == 1


BODY = """g (float[N,32] x, bool c) => (float[N,32] y) {
    y = If (c) <
        then_branch = a () => (float[N,32] p) { p = MatMul(x, outer) },
        else_branch = b () => (float[N,32] q) { q = MatMul(x, inner) }
    >
}"""


def branched() -> Model:
    """Of two branches: one reads a weight of the main graph, one has its own."""
    proto = onnx.parser.parse_model(HEAD + BODY)
    branch = proto.graph.node[0].attribute[1].g
    branch.initializer.append(onnx.numpy_helper.from_array(normal(32, 32, seed=1), "inner"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(32, 32), "outer"))
    return Model.from_proto(proto)


def test_weights_of_bodies_are_clustered_where_they_are(tmp_path: Path) -> None:
    """`outer` belongs to the main graph although only a body reads it; `inner` to its branch."""
    source = branched()
    result = cluster(source, {"x": normal(20, 32), "c": np.array(1, bool)}, bits=8)
    main, then, other = Surgery(result.model).graphs()
    assert [node.op for node in main.nodes] == ["Cast", "Gather", "If"]
    assert [node.op for node in then.nodes] == ["MatMul"]
    assert [node.op for node in other.nodes] == ["Cast", "Gather", "MatMul"]
    assert "Gather" not in operators(tmp_path / "a.onnx", result.model)
    for choice in (True, False):
        x = {"x": normal(4, 32), "c": np.array(choice)}
        assert np.allclose(Session(result.model).run(x)["y"], Session(source).run(x)["y"], atol=0.02)


LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ConvTranspose": (
        "g (float[N,8,5,5] x) => (float[N,6,7,7] y) { y = ConvTranspose<group=2>(x, w) }",
        {"w": normal(8, 3, 3, 3)},
    ),
    "Conv": (
        "g (float[N,8,5,5] x) => (float[N,16,5,5] y) { y = Conv<group=4, pads=[1,1,1,1]>(x, w) }",
        {"w": normal(16, 2, 3, 3)},
    ),
    "LSTM": (
        "g (float[5,N,16] x) => (float[5,1,N,8] y) { y = LSTM<hidden_size=8>(x, w, r) }",
        {"w": normal(1, 32, 16), "r": normal(1, 32, 8)},
    ),
    "MatMul left": ("g (float[N,24,5] x) => (float[N,16,5] y) { y = MatMul(w, x) }", {"w": normal(16, 24)}),
    "half": (
        "g (float16[N,32] x) => (float16[N,32] y) { y = MatMul(x, w) }",
        {"w": np.float16(normal(32, 32))},
    ),
}


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_kind_of_layer(layer: str, granularity: str) -> None:
    """With 256 values a layer stays what it was to a few of its steps, about 1/256 of the range."""
    text, weights = LAYERS[layer]
    source = model(text, **weights)
    spec = input_specs(source)[0]
    shape = [6 if not isinstance(size, int) else size for size in spec.shape]
    x = {"x": np.random.default_rng(0).standard_normal(shape).astype(spec.dtype)}
    stacked = {"x": x["x"][None]} if layer == "LSTM" else x
    result = cluster(source, stacked, bits=8 if granularity == "tensor" else 4, granularity=granularity)
    assert len(result.changes) == len(weights)
    before, after = (Session(m).run(x)["y"].astype(float) for m in (source, result.model))
    assert np.square(after - before).sum() < 0.02 * np.square(before).sum()


def test_quantized_and_excluded_weights_are_left_with_a_reason() -> None:
    text = """g (float[N,64] x) => (float[N,64] y) {
        w = DequantizeLinear(q, s, z)
        [first] a = MatMul(x, w)
        [second] y = MatMul(a, v)
    }"""
    source = model(
        text,
        q=RNG.integers(-128, 127, (64, 64)).astype(np.int8),
        s=np.float32(0.01),
        z=np.int8(0),
        v=normal(64, 64),
    )
    result = cluster(source, bits=5, exclude="^second$")
    assert {(skip.node, skip.why) for skip in result.skips} >= {
        ("first", "its weight is quantized"),
        ("second", "excluded"),
    }
    assert result.model.to_proto() == source.to_proto()


def test_a_computed_weight_is_left_with_a_reason() -> None:
    text = "g (float[N,2,5,5] x, float[4,2,3,3] w) => (float[N,4,3,3] y) { [conv] y = Conv(x, w) }"
    result = cluster(model(text), bits=4)
    assert [skip.node for skip in result.skips] == ["conv"]


def test_surgery_knows_who_holds_a_weight() -> None:
    surgery = Surgery(branched())
    main, _, other = surgery.graphs()
    weights = {t.name: t for n in surgery.nodes() for t in n.inputs if isinstance(t, gs.Constant)}
    assert surgery.owner(weights["outer"]) is main
    assert surgery.owner(weights["inner"]) is other
