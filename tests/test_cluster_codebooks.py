"""Ternary, binary and shared codebooks, and the fit to a layer's output: each against brute force or plain least squares."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from onnx_compress.contract import Job, Result
from onnx_compress.errors import InputError
from onnx_compress.model.check import check
from onnx_compress.model.codebook import Codebook, codebook_of
from onnx_compress.model.document import Model
from onnx_compress.model.prepare import prepare
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.numerics.codebooks import (
    Books,
    binary_books,
    fitted,
    kmeans_books,
    nearest,
    refit_values,
    ternary_books,
)
from onnx_compress.numerics.leastsquares import output_error
from onnx_compress.passes.cluster import Cluster
from onnx_compress.passes.cluster.aims import Ahead
from onnx_compress.runtime.agreement import Reference
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import Session, input_specs

MODELS = Path(__file__).parents[1] / "models"
ONE = np.zeros(1, np.int64)


def correlated(inputs: int, columns: int = 400, seed: int = 0) -> Any:
    """Columns of inputs that go together, as those of a picture do."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((inputs, inputs)) * 0.7 ** np.abs(
        np.subtract.outer(range(inputs), range(inputs))
    )
    return mixed @ rng.standard_normal((inputs, columns)) + 0.3


def gram(x: Any) -> Any:
    return x @ x.T / x.shape[1]


@settings(deadline=None, max_examples=60)
@given(weights=st.lists(st.integers(-40, 40), min_size=2, max_size=9), seed=st.integers(0, 99))
def test_ternary_is_the_best_of_all_patterns(weights: list[int], seed: int) -> None:
    """Of 3^n patterns, each with its best scale; so it is never worse than the threshold 0.7 E|w| of the paper."""
    weight = np.array([weights], float)
    if not weight.any():
        return
    mass = np.random.default_rng(seed).uniform(0.5, 2, weight.shape)
    share = np.where(
        mass > 0, 1.0, 0.0
    )  # > the pattern is searched by size alone, which is exact for equal mass
    books = ternary_books(weight, None, ONE)
    found = weight - books.dense(nearest(weight, books))
    signs = np.array(list(itertools.product((-1, 0, 1), repeat=weight.size)), float)
    scales = (signs @ weight[0]) / np.maximum(np.square(signs).sum(axis=1), 1)
    best = float(np.square(weight[0] - scales[:, np.newaxis] * signs).sum(axis=1).min())
    assert float((share * found**2).sum()) <= best + 1e-9


def test_one_binary_base_is_the_mean_size() -> None:
    """XNOR-Net's closed form, a row each; zeros have a value of their own and no part in the mean."""
    weight = np.random.default_rng(0).standard_normal((5, 40))
    books = binary_books(weight, None, np.arange(5), 1)
    means = np.abs(weight).mean(1)
    assert np.allclose(books.values, np.stack([-means, means], 1))
    weight[:, ::2] = 0
    books = binary_books(weight, None, np.arange(5), 1)
    means = np.abs(weight[:, 1::2]).mean(1)
    assert np.allclose(books.values, np.stack([-means, 0 * means, means], 1))


def test_every_further_binary_base_lowers_the_error() -> None:
    weight = np.random.default_rng(1).standard_normal((8, 200))
    errors = []
    for bases in range(1, 7):
        books = binary_books(weight, None, np.arange(8), bases)
        assert books.values.shape == (8, 2**bases)
        errors.append(float(np.square(weight - books.dense(nearest(weight, books))).sum()))
    assert all(after < before for before, after in itertools.pairwise(errors))


@pytest.mark.parametrize("kind", ["kmeans", "linear", "ternary", "binary"])
@pytest.mark.parametrize("shared", [True, False])
def test_refitted_values_are_those_of_least_squares(kind: str, *, shared: bool) -> None:
    """Against lstsq on the columns themselves, the outputs stacked and each value's part in them a column."""
    x, weight = correlated(12), np.random.default_rng(2).standard_normal((1, 6, 12))
    of = np.zeros(6, np.int64) if shared else np.arange(6)
    books = _books(kind, weight[0], of)
    indices = nearest(weight[0], books)
    after = refit_values(weight, gram(x)[None], books, indices)
    for book in range(len(books.values)):
        rows = np.flatnonzero(of == book)
        free = books.basis.shape[0] == books.basis.shape[1]
        basis = books.basis * ((books.values[book] != 0) if free else np.ones(len(books.basis)))[:, None]
        design = np.concatenate([np.einsum("kp,km->mp", basis[indices[row]], x) for row in rows])
        aim = np.concatenate([x.T @ weight[0, row] for row in rows])
        theta = np.linalg.lstsq(design, aim, rcond=None)[0]
        lost = np.square(design @ theta - aim).sum()
        mine = sum(np.square(x.T @ (weight[0, r] - after.dense(indices)[r])).sum() for r in rows)
        assert mine <= lost * (1 + 1e-4) + 1e-9


def _books(kind: str, weight: Any, of: Any) -> Books:
    if kind == "ternary":
        return ternary_books(weight, None, of)
    if kind == "binary":
        return binary_books(weight, None, of, 2)
    return kmeans_books(weight, None, of, 4, kind=kind)


@pytest.mark.parametrize("kind", ["kmeans", "linear", "ternary", "binary"])
def test_feedback_gives_less_error_than_the_nearest_values(kind: str) -> None:
    """Inputs go together, so one weight can make up for another; zeros stay zero, and groups have their own inputs."""
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((2, 16, 24))
    weight[:, :, ::5] = 0
    grams = np.stack([gram(correlated(24, seed=seed)) for seed in (0, 1)])
    flat = weight.reshape(32, 24)
    books = _books(kind, flat, np.arange(32) if kind in ("ternary", "binary") else np.zeros(32, np.int64))
    plain = (flat - books.dense(nearest(flat, books))).reshape(weight.shape)
    before = sum(output_error(part, each) for part, each in zip(plain, grams, strict=True))
    better, indices, error = fitted(weight, grams, books, weight == 0)
    dense = better.dense(indices.reshape(32, 24)).reshape(weight.shape)
    change = weight - dense
    assert error == pytest.approx(sum(output_error(d, g) for d, g in zip(change, grams, strict=True)))
    assert error < 0.9 * before
    assert not dense[weight == 0].any()


def test_uncorrelated_inputs_leave_the_nearest_values() -> None:
    """Nothing can be made up for: the indices are those of the nearest values, which are their means already."""
    weight = np.random.default_rng(5).standard_normal((1, 8, 30))
    books = kmeans_books(weight[0], None, np.zeros(8, np.int64), 4, kind="kmeans")
    after, indices, _ = fitted(weight, np.eye(30)[None], books, weight == 0)
    assert np.array_equal(indices[0], nearest(weight[0], books))
    assert np.allclose(after.values, books.values, atol=1e-5)


def trained(name: str) -> Model:
    source = Model.load(MODELS / f"{name}.onnx")
    return prepare(source, infer(source)).model


def run(source: Model, samples: int = 96, **options: Any) -> Result:
    data = open_data(str(MODELS / "fashion_calib.npz"), input_specs(source), samples=samples)
    with threadpool_limits(1, "blas"):  # as the pipeline does
        result = Cluster(**options).apply(Job(source, source, data, 0, cast("Any", None)))
    check(result.model)
    return result


def error_on_others(source: Model, result: Result) -> float:
    """On pictures that no codebook was fitted to."""
    data = open_data(str(MODELS / "fashion_eval.npz"), input_specs(source), samples=200)
    return Reference(source, data).error(result.model)


def books_of(model: Model) -> list[Codebook]:
    found = []
    for node in Surgery(model).nodes():
        book = codebook_of(node.inputs[1]) if len(node.inputs) > 1 and node.op != "Add" else None
        if book is not None:
            found.append(book)
    return found


def test_aimed_codebooks_keep_a_trained_network_better() -> None:
    """Half the output error of the nearest values at least, on other pictures; the file is as small."""
    source = trained("fashion_resnet")
    plain, aimed = (run(source, 64, bits=3, rounding=rounding) for rounding in ("nearest", "gptq"))
    assert error_on_others(source, aimed) < 0.5 * error_on_others(source, plain)
    assert aimed.model.nbytes < 1.01 * plain.model.nbytes


@pytest.mark.parametrize("kind", ["ternary", "binary"])
def test_channels_have_one_scale_each(kind: str) -> None:
    """Stored once a channel beside a pattern of two or three values; the file is 14 times smaller at least."""
    source = trained("fashion_mlp")
    options: dict[str, Any] = {"tolerance": None} if kind == "ternary" else {"bits": 1}
    result = run(source, codebook=kind, **options)
    books = books_of(result.model)
    assert len(books) == len(result.changes) > 0
    pattern = [-1.0, 0.0, 1.0] if kind == "ternary" else [-1.0, 1.0]
    for book in books:
        assert book.scales is not None
        assert book.values.tolist() == pattern
        assert len(book.scales) == book.indices.shape[book.axis or 0]
    assert source.nbytes / result.model.nbytes > 14


def test_binary_takes_bases_until_the_tolerance_holds() -> None:
    source = trained("fashion_mlp")
    result = run(source, codebook="binary", tolerance=0.01)
    data = open_data(str(MODELS / "fashion_calib.npz"), input_specs(source), samples=96)
    _, held = data.split(seed=0)
    assert Reference(source, held).error(result.model) <= 0.01
    assert any(book.clusters > 2 for book in books_of(result.model))


def test_a_size_is_kept_to_and_bits_go_where_they_matter() -> None:
    """The file is no larger than asked for, and errs less than one of equal bits that is no smaller."""
    source = trained("fashion_mlp")
    result = run(source, size=0.1)
    assert 0.09 * source.nbytes < result.model.nbytes <= 0.1 * source.nbytes
    even = run(source, bits=3)
    assert even.model.nbytes <= result.model.nbytes
    assert len({change.after for change in result.changes}) > 1
    assert error_on_others(source, result) < error_on_others(source, even)


def test_a_size_out_of_reach_is_a_warning() -> None:
    result = run(trained("fashion_mlp"), 32, size=0.001)
    assert any("cannot be reached" in warning for warning in result.warnings)


def test_channels_of_like_spread_share_a_block() -> None:
    source = trained("fashion_resnet")
    books = [
        book
        for book in books_of(run(source, 32, bits=4, granularity="block").model)
        if book.books is not None
    ]
    assert books
    for book in books:
        assert book.axis is not None
        assert book.books is not None
        moved = np.moveaxis(book.dense(), book.axis, 0).reshape(len(book.books), -1)
        spread = np.square(moved).mean(1)
        means = [spread[book.books == number].mean() for number in range(len(book.values))]
        assert means == sorted(means)


def test_values_that_are_few_already_are_kept_to_the_bit() -> None:
    """With data too: no layer is refitted that loses nothing."""
    source = trained("fashion_mlp")
    once = run(source, bits=4).model
    surgery = Surgery(once)
    from onnx_compress.model.codebook import unfold

    unfold(surgery)
    plain = surgery.commit()
    again = run(plain, bits=4)
    assert all(change.error == 0 for change in again.changes)
    data = open_data(str(MODELS / "fashion_eval.npz"), input_specs(source), samples=20)
    for batch in data.batches(20):
        assert np.array_equal(*(next(iter(Session(m).run(batch).values())) for m in (plain, again.model)))


def test_zeros_stay_zero_while_the_rest_is_refitted() -> None:
    source = trained("fashion_mlp")
    surgery = Surgery(source)
    rng = np.random.default_rng(0)
    for node in surgery.nodes():
        if node.op in ("Gemm", "MatMul"):
            node.inputs[1].values = np.where(rng.random(node.inputs[1].shape) < 0.7, 0, node.inputs[1].values)
    sparse = surgery.commit()
    before = {
        node.name: node.inputs[1].values for node in Surgery(sparse).nodes() if node.op in ("Gemm", "MatMul")
    }
    result = run(sparse, 48, bits=3)
    for node in Surgery(result.model).nodes():
        book = codebook_of(node.inputs[1]) if node.name in before else None
        if book is not None:
            assert not book.dense()[before[node.name] == 0].any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0.2, "bits": 4}, "size excludes"),
        ({"codebook": "ternary", "bits": 2}, "three values"),
        ({"codebook": "binary", "clusters": 4}, "number of its bases"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Cluster(**options)


def test_a_walk_that_stops_leaves_the_rest_at_their_nearest_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a tensor to be held is a sequence: the layers before it stay aimed, and a warning says where it stopped."""
    source = trained("fashion_mlp")
    real, seen = Ahead.wanted, []

    def wanted(self: Ahead, *given: Any) -> Any:
        seen.append(given)
        if len(seen) > 1:
            raise InputError("tensor 's' is no array, so a walk cannot hold it")
        return real(self, *given)

    monkeypatch.setattr(Ahead, "wanted", wanted)
    data = open_data(str(MODELS / "fashion_calib.npz"), input_specs(source), samples=32)
    job = Job(source, source, data, 0, cast("Any", None))
    result = Cluster(bits=4).apply(job)
    check(result.model)
    assert len(result.changes) == 3
    assert any("not aimed" in warning for warning in job.warnings)
