"""cluster: weights share few values, are stored small, run dense, and never ruin a model by default."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import onnx.parser
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from threadpoolctl import threadpool_limits

from onnx_compress.contract import Job, Result
from onnx_compress.model.check import check
from onnx_compress.model.codebook import Codebook, codebook_of, dense_weight, store, unfold
from onnx_compress.model.document import Model
from onnx_compress.model.surgery import Surgery
from onnx_compress.numerics.kmeans import assign, codebook, kmeans
from onnx_compress.passes.cluster import Cluster
from onnx_compress.runtime.agreement import output_error
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import Session, input_specs

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(5)
HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def model(text: str, **weights: Any) -> Model:
    proto = onnx.parser.parse_model(HEAD + text)
    for name, value in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    onnx.checker.check_model(proto)
    return Model.from_proto(proto)


def normal(*shape: int) -> Any:
    return (RNG.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def mlp(*, dead: float = 0.0) -> Model:
    """A small net of Conv, MatMul and Gemm; `dead`: share of its weights that are 0."""
    weights = {"k": normal(16, 2, 3, 3), "w": normal(576, 48), "v": normal(10, 48)}
    for weight in weights.values():
        weight[RNG.random(weight.shape) < dead] = 0
    text = """g (float[N,2,8,8] x) => (float[N,10] y) {
        a = Conv(x, k, c)
        b = Relu(a)
        f = Flatten(b)
        m = MatMul(f, w)
        r = Relu(m)
        y = Gemm<transB=1>(r, v, d)
    }"""
    return model(text, c=normal(16), d=normal(10), **weights)


def cluster(source: Model, data: Any = None, **options: Any) -> Result:
    opened = None if data is None else open_data(data, input_specs(source))
    with threadpool_limits(1, "blas"):  # as the pipeline does
        result = Cluster(**options).apply(Job(source, source, opened, 0, cast("Any", None)))
    check(result.model)
    return result


def feeds(samples: int = 64) -> dict[str, Any]:
    return {"x": np.random.default_rng(1).standard_normal((samples, 2, 8, 8)).astype(np.float32) + 0.3}


def operators(path: Path, result: Model) -> list[str]:
    """The operators of the graph that onnxruntime really runs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(result.to_proto().SerializeToString(), options, providers=["CPUExecutionProvider"])
    graphs = [onnx.load(path).graph]
    found = []
    for graph in graphs:
        for node in graph.node:
            found.append(node.op_type)
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found


def cost(points: Any, mass: Any, centres: Any) -> float:
    return float((mass * ((points[:, None] - centres) ** 2).min(1)).sum())


def best(points: Any, mass: Any, clusters: int) -> float:
    """The least cost by brute force: cells of the optimum are ranges of the sorted points."""
    found = np.inf
    for cuts in itertools.combinations(range(1, len(points)), clusters - 1):
        edges = [0, *cuts, len(points)]
        cells = [slice(*edge) for edge in itertools.pairwise(edges)]
        centres = np.array([np.average(points[cell], weights=mass[cell]) for cell in cells])
        found = min(found, cost(points, mass, centres))
    return found


@settings(deadline=None, max_examples=40)
@given(
    points=st.lists(st.integers(-50, 50), min_size=5, max_size=11, unique=True),
    clusters=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_kmeans_finds_the_optimum(points: list[int], clusters: int, seed: int) -> None:
    """Few points are their own bins, on which the search is exact; Lloyd's steps then change nothing."""
    x = np.sort(np.array(points, float))
    mass = np.random.default_rng(seed).uniform(0.1, 3, len(x))
    assert cost(x, mass, kmeans(x, mass, clusters)) <= best(x, mass, clusters) + 1e-9


def least(x: Any, clusters: int) -> float:
    """The least cost of clusters of the sorted `x`, over all range ends."""
    sums = [np.concatenate([[0], np.cumsum(x**power)]) for power in (0, 1, 2)]
    count, first, second = (s[None] - s[:, None] for s in sums)
    cells = np.where(count > 0, second - first**2 / np.maximum(count, 1), np.inf)
    found = cells[0]
    for _ in range(clusters - 1):
        found = (found[:, None] + cells).min(0)
    return float(found[-1])


@pytest.mark.parametrize("draw", ["standard_normal", "standard_cauchy"])
@pytest.mark.parametrize("clusters", [4, 32, 128])
def test_kmeans_of_many_points_is_near_the_optimum(draw: str, clusters: int) -> None:
    """Within 3 %: binned to 8 points a centre, then taken to the points themselves."""
    x = np.sort(getattr(np.random.default_rng(2), draw)(600))
    assert cost(x, np.ones(600), kmeans(x, np.ones(600), clusters)) <= 1.03 * least(x, clusters)


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=60),
    clusters=st.integers(2, 20),
    kind=st.sampled_from(["kmeans", "linear"]),
)
def test_a_codebook_is_small_keeps_zeros_and_takes_the_nearest(
    values: list[float], clusters: int, kind: str
) -> None:
    array = np.array(values, np.float32)
    book = codebook(array, clusters, kind=kind)
    chosen = book[assign(array, book)]
    assert len(book) <= clusters
    assert book.dtype == np.float32
    assert not chosen[array == 0].any()
    gaps = np.abs(array.astype(float)[:, None] - book.astype(float)).min(1)
    assert np.allclose(np.abs(array.astype(float) - chosen), gaps, rtol=1e-6, atol=0)


def test_many_values_share_bins_as_well_as_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """2^16 bins over the range are 2,000 times finer than 32 cells."""
    values = np.random.default_rng(0).standard_normal(30000).astype(np.float32)
    apart = codebook(values, 32)
    monkeypatch.setattr("onnx_compress.numerics.kmeans.EXACT", 1000)
    binned = codebook(values, 32)
    errors = [float(np.square(values - book[assign(values, book)]).sum()) for book in (apart, binned)]
    assert errors[1] <= errors[0] * 1.01


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_a_stored_codebook_reads_back(axis: int | None) -> None:
    source = model("g (float[N,3] x) => (float[N,3] y) { y = Identity(x) }")
    shape = (4, 3, 5)
    clusters = (7,) if axis is None else (shape[axis], 7)
    book = Codebook(normal(*clusters), RNG.integers(0, 7, shape).astype(np.uint8), axis)
    surgery = Surgery(source)
    nodes, tensor = store(surgery, "w", book)
    surgery.graph.nodes[0:0] = nodes
    surgery.graph.outputs.append(tensor)
    tensor.dtype = np.dtype(np.float32)
    again = codebook_of(tensor)
    assert again is not None
    assert again.axis == axis
    assert np.array_equal(again.dense(), book.dense())
    value = dense_weight(tensor)
    assert value is not None
    assert np.array_equal(value, book.dense())
    stored = surgery.commit().proto
    stored.graph.output.append(onnx.helper.make_tensor_value_info("w_clustered", 1, shape))
    ran = ReferenceEvaluator(Model(stored, source.blobs).to_proto()).run(None, {"x": normal(1, 3)})
    computed = cast("list[Any]", ran)[1]
    assert np.array_equal(computed, book.dense())


def test_no_fewer_values_than_there_are_is_the_identity() -> None:
    text = "g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }"
    source = model(text, w=RNG.integers(-3, 4, (64, 64)).astype(np.float32))
    result = cluster(source, clusters=7)
    x = {"x": normal(5, 64)}
    assert len(result.changes) == 1
    assert result.changes[0].error == 0
    assert np.array_equal(Session(result.model).run(x)["y"], Session(source).run(x)["y"])


def test_onnxruntime_folds_it_and_runs_the_dense_weights(tmp_path: Path) -> None:
    """The same numbers as the model with the same weights as plain constants, and the same operators."""
    result = cluster(mlp(), bits=4)
    surgery = Surgery(result.model)
    assert len(unfold(surgery)) == 3
    plain = surgery.commit()
    assert operators(tmp_path / "a.onnx", result.model) == operators(tmp_path / "b.onnx", plain)
    assert "Gather" not in operators(tmp_path / "c.onnx", result.model)
    assert np.array_equal(Session(result.model).run(feeds())["y"], Session(plain).run(feeds())["y"])


def test_the_file_is_a_quarter() -> None:
    """A byte for four: 3.9 where codebooks and nodes are small against the weights."""
    source = model("g (float[N,256] x) => (float[N,256] y) { y = MatMul(x, w) }", w=normal(256, 256))
    assert source.nbytes / cluster(source, bits=5).model.nbytes > 3.9


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_zeros_stay_zero(granularity: str) -> None:
    source = mlp(dead=0.6)
    result = cluster(source, bits=3, granularity=granularity)
    before = {
        node.name or node.op: node.inputs[1] for node in Surgery(source).nodes() if len(node.inputs) > 1
    }
    seen = 0
    for node in Surgery(result.model).nodes():
        book = codebook_of(node.inputs[1]) if len(node.inputs) > 1 else None
        if book is not None:
            seen += 1
            assert not book.dense()[before[node.name or node.op].values == 0].any()
    assert seen == 3


def test_clustering_a_clustered_model_changes_nothing() -> None:
    once = cluster(mlp(), feeds(), bits=4).model
    twice = cluster(once, feeds(), bits=4)
    assert not twice.changes
    assert [skip.why for skip in twice.skips if "too small" not in skip.why] == [
        "already clustered to 16 values"
    ] * 3
    assert twice.model.to_proto() == once.to_proto()


def test_a_clustered_model_takes_fewer_values() -> None:
    twice = cluster(cluster(mlp(), bits=6).model, bits=3)
    assert {change.before for change in twice.changes} == {"64 values"}
    ops = [node.op for node in Surgery(twice.model).nodes()]
    assert ops.count("Gather") == 3  # the old codebooks are gone


@pytest.mark.parametrize("tolerance", ["auto", 1e-3, 1e-5])
def test_the_outputs_keep_to_the_tolerance(tolerance: Any) -> None:
    source = mlp()
    result = cluster(source, feeds(), tolerance=tolerance)
    _, held = open_data(feeds(), input_specs(source)).split()
    assert output_error(source, result.model, held) <= (0.01 if tolerance == "auto" else tolerance)
    assert result.changes or result.skips


def test_a_tolerance_out_of_reach_leaves_the_weights_and_says_why() -> None:
    source = mlp()
    result = cluster(source, feeds(), tolerance=0.0)
    assert not result.changes
    assert sum("to keep within the tolerance of 0" in skip.why for skip in result.skips) == 3
    assert result.model.to_proto() == source.to_proto()


def test_without_data_the_weights_keep_to_a_bound() -> None:
    changes = cluster(mlp()).changes
    assert len(changes) == 3
    assert all(change.error is not None and change.error <= 1e-4 for change in changes)


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
    source = model(text, v=normal(64, 64), w=normal(64, 64), b=normal(64))
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
        else_branch = b () => (float[N,32] q) <float[32,32] inner> { q = MatMul(x, inner) }
    >
}"""


def test_weights_of_bodies_are_clustered_where_they_are(tmp_path: Path) -> None:
    """`outer` belongs to the main graph although only a body reads it; `inner` to its branch."""
    proto = onnx.parser.parse_model(HEAD + BODY.replace(" <float[32,32] inner> {", " {"))
    branch = proto.graph.node[0].attribute[1].g
    branch.initializer.append(onnx.numpy_helper.from_array(normal(32, 32), "inner"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(32, 32), "outer"))
    source = Model.from_proto(proto)
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


def test_the_same_input_gives_the_same_bytes() -> None:
    source = mlp()
    runs = [cluster(source, feeds(), tolerance=1e-4).model.to_proto().SerializeToString() for _ in range(2)]
    assert runs[0] == runs[1]


def test_the_input_is_not_changed() -> None:
    source = mlp()
    before = source.to_proto()
    cluster(source, feeds(), bits=2)
    assert source.to_proto() == before


@pytest.mark.parametrize(
    "options", [{"bits": 3, "clusters": 8}, {"clusters": 8, "tolerance": 0.1}, {"exclude": "("}]
)
def test_options_that_exclude_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"exclude|number"):
        Cluster(**options)


def test_surgery_knows_who_holds_a_weight() -> None:
    proto = onnx.parser.parse_model(HEAD + BODY.replace(" <float[32,32] inner> {", " {"))
    branch = proto.graph.node[0].attribute[1].g
    branch.initializer.append(onnx.numpy_helper.from_array(normal(32, 32), "inner"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(normal(32, 32), "outer"))
    surgery = Surgery(Model.from_proto(proto))
    main, _, other = surgery.graphs()
    weights = {t.name: t for n in surgery.nodes() for t in n.inputs if isinstance(t, gs.Constant)}
    assert surgery.owner(weights["outer"]) is main
    assert surgery.owner(weights["inner"]) is other
