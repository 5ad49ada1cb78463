"""sparsify: exactly the zeros asked for, where they cost least, and they stay zero."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import onnx.parser
import pytest

from onnx_compress.contract import Job, Result
from onnx_compress.errors import UsageError
from onnx_compress.model.check import check
from onnx_compress.model.codebook import dense_weight
from onnx_compress.model.document import Model
from onnx_compress.model.surgery import Surgery
from onnx_compress.numerics.leastsquares import output_error as layer_error
from onnx_compress.numerics.leastsquares import refit
from onnx_compress.numerics.masked import refit_rows
from onnx_compress.numerics.rounding import gptq, inverse_factor, symmetric_scales
from onnx_compress.passes.cluster import Cluster
from onnx_compress.passes.sparsify import Sparsify
from onnx_compress.passes.sparsify.aim import aimed
from onnx_compress.passes.sparsify.brain import sweep
from onnx_compress.passes.sparsify.patterns import kernels, largest, largest_in_rows, parse
from onnx_compress.passes.sparsify.study import Study
from onnx_compress.runtime.agreement import output_error
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import input_specs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

MODELS = Path(__file__).parents[1] / "models"
RNG = np.random.default_rng(3)
TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,4,8,8] x) => (float[N,10] y) {
    a = Conv(x, k, c)
    b = Relu(a)
    f = Flatten(b)
    m = MatMul(f, w)
    r = Relu(m)
    y = Gemm<transB=1>(r, v, d)
}"""


def normal(*shape: int) -> Array:
    return (RNG.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def net(**changed: Array) -> Model:
    weights = {"k": normal(16, 4, 3, 3), "w": normal(576, 48), "v": normal(10, 48)}
    weights |= {"c": normal(16), "d": normal(10)} | changed
    proto = onnx.parser.parse_model(TEXT)
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}{number}"
    for name, value in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return Model.from_proto(proto)


def feeds(samples: int = 64) -> dict[str, Array]:
    mixed = np.random.default_rng(1).standard_normal((samples, 4, 8, 8))
    return {"x": (np.cumsum(mixed, axis=3) + 0.3).astype(np.float32)}


def sparsify(source: Model, data: Any = None, samples: int = 64, **options: Any) -> Result:
    opened = None if data is None else open_data(data, input_specs(source), samples=samples)
    result = Sparsify(**options).apply(Job(source, source, opened, 0, Clock(1, 0)))
    check(result.model)
    return result


def weights(model: Model) -> dict[str, Array]:
    """Weights by the name of their layer, however they are stored."""
    found = {}
    for node in Surgery(model).nodes():
        if node.op in ("Conv", "Gemm", "MatMul"):
            value = dense_weight(node.inputs[1])
            assert value is not None
            found[str(node.name)] = value
    return found


def zeros(model: Model) -> tuple[int, int]:
    values = weights(model).values()
    return sum(int((value == 0).sum()) for value in values), sum(value.size for value in values)


@pytest.mark.parametrize(
    ("criterion", "scope", "sparsity"),
    [
        ("obs", "global", 0.3),
        ("obs", "layer", 0.75),
        ("magnitude", "global", 0.75),
        ("wanda", "global", 0.75),
        ("wanda", "layer", 0.3),
    ],
)
def test_sparsity_is_exact(criterion: str, scope: str, sparsity: float) -> None:
    result = sparsify(net(), feeds(), sparsity=sparsity, criterion=criterion, scope=scope)
    found, size = zeros(result.model)
    assert found == round(sparsity * size)


@pytest.mark.parametrize("criterion", ["obs", "magnitude"])
@pytest.mark.parametrize(("keep", "of"), [(2, 4), (1, 4), (1, 2)])
def test_n_of_m_holds_in_every_block_of_input_channels(keep: int, of: int, criterion: str) -> None:
    result = sparsify(net(), feeds(), pattern=f"{keep}of{of}", tolerance=None, criterion=criterion)
    found = weights(result.model)
    lines = (
        np.moveaxis(found["Conv0"], 1, -1).reshape(-1, of),
        found["MatMul3"].T.reshape(-1, of),
        found["Gemm5"].reshape(-1, of),
    )
    for blocks in lines:
        assert (blocks != 0).sum(axis=1).max() == keep
        assert (blocks != 0).sum(axis=1).min() == keep


def test_kernel_pattern_leaves_four_entries_in_few_shapes() -> None:
    result = sparsify(net(), feeds(), pattern="kernel", tolerance=None)
    kept = weights(result.model)["Conv0"].reshape(-1, 9) != 0
    assert set(kept.sum(axis=1)) == {4}
    assert len(np.unique(kept, axis=0)) <= 8
    assert {skip.node for skip in result.skips} == {"MatMul3", "Gemm5"}


def test_connectivity_takes_whole_kernels() -> None:
    result = sparsify(net(), feeds(), pattern="connectivity", sparsity=0.5)
    kept = (weights(result.model)["Conv0"].reshape(-1, 9) != 0).sum(axis=1)
    assert set(kept) == {0, 9}
    assert (kept == 0).mean() == 0.5


def test_no_sparsity_is_the_identity() -> None:
    model = net()
    result = sparsify(model, feeds(), sparsity=0.0)
    assert result.model.to_proto() == model.to_proto()
    assert not result.changes


def test_zeros_stay_zero_and_count() -> None:
    weight = normal(576, 48)
    weight[RNG.random(weight.shape) < 0.5] = 0
    result = sparsify(net(w=weight), feeds(), sparsity=0.6)
    assert not weights(result.model)["MatMul3"][weight == 0].any()
    found, size = zeros(result.model)
    assert found == round(0.6 * size)


def test_the_same_again() -> None:
    first, second = (
        sparsify(net_(), feeds()).model.to_proto().SerializeToString() for net_ in [fixed, fixed]
    )
    assert first == second


def fixed() -> Model:
    global RNG  # noqa: PLW0603 - the same weights again
    RNG = np.random.default_rng(3)
    return net()


def problem(rows: int = 2, inputs: int = 6) -> tuple[Array, Array]:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((inputs, inputs)) @ rng.standard_normal((inputs, 200))
    return rng.standard_normal((rows, inputs)), x @ x.T / 200


def best_masked(weight: Array, gram: Array, keep: Array) -> Array:
    """Least squares over the entries kept, by brute force on the normal equations."""
    found = np.zeros_like(weight)
    for row, (w, mask) in enumerate(zip(weight, keep, strict=True)):
        found[row, mask] = np.linalg.solve(gram[np.ix_(mask, mask)], gram[mask] @ w)
    return found


def test_sweep_leaves_the_least_squares_weight_of_the_last_columns() -> None:
    """With the first columns removed, all others come after them: the update is the exact optimum of the mask."""
    weight, gram = problem()
    upper = np.stack([inverse_factor(gram, 1e-12)])
    mask = np.array([[False, False, True, True, True, True]] * 2)
    for block in (1, 4, 64):
        found, keep = sweep(weight[None], upper, lambda _, a, b: mask[None, :, a:b], block)
        assert np.array_equal(keep[0], mask)
        assert np.allclose(found[0], best_masked(weight, gram, mask), atol=1e-6)


def test_first_removed_is_the_one_that_brute_force_finds() -> None:
    """w²/[H⁻¹]_qq is the error that removing entry q leaves after the best update of the others."""
    weight, gram = problem(1)
    losses = []
    for at in range(6):
        keep = np.delete(np.arange(6), at)
        change = weight.copy()
        change[:, keep] -= refit(weight, gram, keep, 0.0)
        losses.append(layer_error(change, gram))
    inverse = np.linalg.inv(gram)
    assert np.allclose(weight[0] ** 2 / np.diagonal(inverse), losses)


def test_refitted_rows_are_the_least_squares_of_each_mask() -> None:
    weight, gram = problem(4)
    keep = np.random.default_rng(2).random((4, 6)) < 0.6
    keep[3] = keep[0]
    found = refit_rows(weight[None], keep[None], gram[None] + 0)
    # > damped by a thousandth of the mean energy: as near as that
    assert np.allclose(found[0], best_masked(weight, gram, keep), atol=0.1)
    for other in itertools.product((0.99, 1.01), repeat=2):
        moved = found[0] * np.resize(other, weight.shape)
        assert layer_error(found[0] - weight, gram) <= layer_error(moved - weight, gram) + 1e-9


def test_masks_have_the_counts_asked_for() -> None:
    scores = RNG.random((1, 7, 18))
    for count in (0, 5, 50, 126):
        assert (~largest(scores, count)).sum() == count
        rows = (~largest_in_rows(scores, count)).sum(axis=2)
        assert rows.sum() == count
        assert np.ptp(rows) <= 1
    assert set(kernels(scores, 9).reshape(-1, 9).sum(axis=1)) == {4}


def test_obs_beats_magnitude_on_a_trained_net() -> None:
    path = MODELS / "fashion_mobilenet.onnx"
    model = Model.load(path)
    unseen = open_data(MODELS / "fashion_eval.npz", input_specs(model), samples=128)
    errors = {}
    for criterion, repair in [
        ("obs", "least-squares"),
        ("magnitude", "least-squares"),
        ("magnitude", "none"),
    ]:
        result = sparsify(
            model,
            MODELS / "fashion_calib.npz",
            64,
            sparsity=0.6,
            criterion=criterion,
            repair=repair,
            scope="layer",
        )
        errors[criterion, repair] = output_error(model, result.model, unseen)
    assert errors["obs", "least-squares"] < errors["magnitude", "least-squares"]
    assert errors["obs", "least-squares"] < 0.5 * errors["magnitude", "none"]


def test_what_the_outputs_never_see_goes_first() -> None:
    """Filters whose only reader multiplies them by zero move no output: noise on them shows that."""
    reader = normal(576, 48)
    reader[: 576 // 2] = 0  # the last layers read filters 8..15 alone
    result = sparsify(net(w=reader), feeds(), sparsity=0.5, exclude="Gemm|MatMul")
    kept = weights(result.model)["Conv0"].reshape(16, -1) != 0
    assert kept[8:].mean() > 5 * kept[:8].mean()


def test_aimed_layers_correct_what_those_before_them_do() -> None:
    """Each on what it is now fed, towards the original: less error on unseen samples than each on its own."""
    path = MODELS / "fashion_resnet.onnx"
    model = Model.load(path)
    specs = input_specs(model)
    data = open_data(MODELS / "fashion_calib.npz", specs, samples=128)
    unseen = open_data(MODELS / "fashion_eval.npz", specs, samples=128)
    job = Job(model, model, data, 0, Clock(1, 0))
    study = Study(model, parse("unstructured"), data, criterion="obs", repair=True, exclude=None, threads=1)
    zeros = {number: int(0.8 * layer.size) for number, layer in enumerate(study.layers)}
    alone = output_error(model, study.sparse(zeros, lambda *_: None), unseen)
    together, found = aimed(study, zeros, job, data)
    assert {n: sparse.zeros for n, sparse in found.items()} == zeros
    assert output_error(model, together, unseen) < 0.8 * alone


def test_default_keeps_its_tolerance_on_held_out_data() -> None:
    model = net()
    result = sparsify(model, feeds(256), 256)
    held = open_data(feeds(256), input_specs(model)).split(0.25, 0)[1]
    assert output_error(model, result.model, held) <= 0.01
    assert zeros(result.model)[0] > 0
    assert any("not time" in warning for warning in result.warnings)


def test_without_data_only_magnitude_to_a_sparsity() -> None:
    result = sparsify(net(), sparsity=0.5, criterion="magnitude")
    found, size = zeros(result.model)
    assert found == round(0.5 * size)
    assert any("repairs nothing" in warning for warning in result.warnings)
    for options in ({"sparsity": 0.5}, {"criterion": "magnitude"}, {}):
        with pytest.raises(UsageError, match="needs --data"):
            sparsify(net(), **options)


def test_words_that_make_no_sense_are_refused() -> None:
    for options in ({"pattern": "4of2"}, {"pattern": "half"}, {"tolerance": None}, {"exclude": "("}):
        with pytest.raises(ValueError, match=r"pattern|exclude"):
            Sparsify(**cast("Any", options))


def test_what_is_left_alone_is_named() -> None:
    weight = normal(10, 48)
    weight[0, 0] = np.nan
    result = sparsify(net(v=weight), feeds(), sparsity=0.5, exclude="Conv")
    assert {skip.node: skip.why for skip in result.skips} == {
        "Conv0": "excluded",
        "Gemm5": "its weight holds NaN or infinite values",
    }


def test_zeros_survive_cluster_and_clustered_weights_are_skipped() -> None:
    model = net()
    sparse = sparsify(model, feeds(), sparsity=0.6).model
    data = open_data(feeds(), input_specs(model))
    stored = Cluster(bits=4).apply(Job(sparse, model, data, 0, Clock(1, 0))).model
    before, after = weights(sparse), weights(stored)
    for name, value in before.items():
        assert not after[name][value == 0].any()
    again = sparsify(stored, feeds(), sparsity=0.8)
    assert not again.changes
    assert all("clustered" in skip.why for skip in again.skips if skip.node in before)


def test_zeros_survive_int8_rounding() -> None:
    """Error feedback moves every other weight; a zero is one that something before took out."""
    weight, gram = problem(8, 32)
    weight[RNG.random(weight.shape) < 0.5] = 0
    for act_order in (False, True):
        codes = gptq(weight, gram, symmetric_scales(weight), act_order=act_order)
        assert not codes[weight == 0].any()
