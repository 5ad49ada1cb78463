"""cluster: weights share few values, are stored small, run dense, and never ruin a model by default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from onnx_compress.model.codebook import codebook_of, unfold
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.cluster import Cluster
from onnx_compress.runtime.agreement import output_error
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import Session, input_specs

if TYPE_CHECKING:
    from pathlib import Path
from cluster_cases import cluster, feeds, mlp, model, normal, operators

RNG = np.random.default_rng(5)


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
