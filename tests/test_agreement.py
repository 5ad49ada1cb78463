"""Agreement: each number against its formula, computed at once on all samples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_compress.errors import InputError
from onnx_compress.model.document import Model
from onnx_compress.runtime import agreement
from onnx_compress.runtime.agreement import LIMIT_DB, Reference, output_error
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import Session, input_specs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]

RNG = np.random.default_rng(0)
X = RNG.standard_normal((70, 4)).astype(np.float32)


def model(body: str, inputs: str = "float[N, 4] x", outputs: str = "float[N, 4] y") -> Model:
    text = (
        f'<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]> g ({inputs}) => ({outputs}) {{ {body} }}'
    )
    return Model.from_proto(onnx.parser.parse_model(text))


def data(of: Model, x: Array = X) -> Data:
    return open_data([{"x": x}], input_specs(of))


SAME = model("y = Identity(x)")
DOUBLED = model("y = Add(x, x)")
SHIFTED = model("c = Constant<value = float {0.25}>() y = Add(x, c)")


def test_error_is_noise_over_spread() -> None:
    spread = ((X - X.mean(0)) ** 2).sum()
    assert output_error(SAME, DOUBLED, data(SAME)) == pytest.approx((X**2).sum() / spread, rel=1e-6)
    assert output_error(SAME, SHIFTED, data(SAME)) == pytest.approx(X.size * 0.25**2 / spread, rel=1e-6)


def test_a_model_has_no_error_against_itself() -> None:
    assert output_error(SAME, SAME, data(SAME)) == 0
    (row,) = Reference(SAME, data(SAME)).agreements(SAME)
    assert (row.sqnr_db, row.max_abs, row.argmax, row.samples) == (LIMIT_DB, 0, 1, 70)
    assert row.cosine == pytest.approx(1)


@settings(max_examples=50, deadline=None)
@given(level=st.floats(-1e3, 1e3), width=st.integers(1, 5), rows=st.integers(2, 90), batch=st.integers(1, 40))
def test_streamed_spread_is_that_of_all_samples(level: float, width: int, rows: int, batch: int) -> None:
    values = np.random.default_rng(rows).standard_normal((rows, width)) + level
    spread = agreement._Spread()
    for at in range(0, rows, batch):
        part = values[at : at + batch]
        spread.add(part, len(part))
    assert spread.total() == pytest.approx(((values - values.mean(0)) ** 2).sum(), rel=1e-6)


def test_numbers_are_those_of_their_formulas() -> None:
    (row,) = Reference(SAME, data(SAME), batch=32).agreements(SHIFTED)
    shifted = X.astype(np.float64) + 0.25
    assert row.sqnr_db == pytest.approx(10 * math.log10((X**2).sum() / (X.size * 0.25**2)), abs=1e-4)
    assert row.max_abs == pytest.approx(0.25, abs=1e-6)
    assert row.cosine == pytest.approx((X * shifted).sum() / np.sqrt((X**2).sum() * (shifted**2).sum()))
    assert row.argmax == 1  # a shift changes no winner
    (row,) = Reference(SAME, data(SAME)).agreements(model("y = Neg(x)"))
    assert row.argmax == (X.argmax(1) == (-X).argmax(1)).mean()
    assert row.cosine == pytest.approx(-1)


def test_a_tie_has_several_winners() -> None:
    tied = np.array([[1, 1, 0, 0]], np.float32)
    other = model("c = Constant<value = float[4] {0., 1., 0., 0.}>() y = Add(x, c)")
    (row,) = Reference(SAME, data(SAME, tied)).agreements(other)
    assert row.argmax == 1


def test_axis_of_samples_may_be_another() -> None:
    turned = "y = Transpose<perm = [1, 0]>(x)"
    reference = model(turned, outputs="float[4, N] y")
    candidate = model(f"{turned.replace('y', 't', 1)} y = Add(t, t)", outputs="float[4, N] y")
    expected = output_error(SAME, DOUBLED, data(SAME))
    assert output_error(reference, candidate, data(SAME)) == pytest.approx(expected, rel=1e-6)


def test_worst_output_counts_and_integers_do_not() -> None:
    outputs = "float[N, 4] y, float[N, 4] z, int64[N] top"
    rest = "top = ArgMax<axis = 1, keepdims = 0>(x)"
    reference = model(f"y = Identity(x) z = Neg(x) {rest}", outputs=outputs)
    candidate = model(
        f"y = Identity(x) z = Identity(x) {rest.replace('(x)', '(n)')} n = Neg(x)".replace(
            "top = ArgMax<axis = 1, keepdims = 0>(n) n = Neg(x)",
            "n = Neg(x) top = ArgMax<axis = 1, keepdims = 0>(n)",
        ),
        outputs=outputs,
    )
    errors = Reference(reference, data(reference)).errors(candidate)
    assert errors["y"] == 0
    assert errors.keys() == {"y", "z"}
    assert output_error(reference, candidate, data(reference)) == errors["z"] > 3
    rows = {row.output: row for row in Reference(reference, data(reference)).agreements(candidate)}
    assert rows["top"].argmax == (X.argmax(1) == X.argmin(1)).mean()
    assert rows["top"].sqnr_db is None


def test_without_float_outputs_the_error_is_the_share_of_unequal_values() -> None:
    of = model("y = ArgMax<axis = 1, keepdims = 0>(x)", outputs="int64[N] y")
    other = model("y = ArgMin<axis = 1, keepdims = 0>(x)", outputs="int64[N] y")
    assert output_error(of, of, data(of)) == 0
    assert output_error(of, other, data(of)) == pytest.approx(1 - (X.argmax(1) == X.argmin(1)).mean())


def test_strings_and_sequences_are_compared_for_equality() -> None:
    words = "l = ArgMax<axis = 1, keepdims = 0>(x) y = ai.onnx.ml.LabelEncoder<keys_int64s = [0, 1, 2, 3], values_strings = {}>(l)"
    of = model(words.format('["a", "b", "c", "d"]'), outputs="string[N] y")
    other = model(words.format('["a", "b", "c", "c"]'), outputs="string[N] y")
    (row,) = Reference(of, data(of)).agreements(other)
    assert row.argmax == (X.argmax(1) != 3).mean()
    of = model("y = SequenceConstruct(x, x)", outputs="seq(float[N, 4]) y")
    other = model("n = Neg(x) y = SequenceConstruct(x, n)", outputs="seq(float[N, 4]) y")
    (row,) = Reference(of, data(of)).agreements(other)
    assert row.argmax == 0.5


def test_equal_infinities_agree_and_others_do_not() -> None:
    log, root = model("y = Log(x)"), model("y = Sqrt(x)")
    x = np.array([[0, 1, -1, 4]] * 3, np.float32)  # -inf, 0, nan, 1.4
    (row,) = Reference(log, data(log, x)).agreements(log)
    assert (row.max_abs, row.sqnr_db, row.argmax) == (0, LIMIT_DB, 1)
    assert output_error(log, log, data(log, x)) == 0
    (row,) = Reference(log, data(log, x)).agreements(root)
    assert (row.max_abs, row.sqnr_db) == (math.inf, -LIMIT_DB)
    assert output_error(log, root, data(log, x)) == math.inf


def test_an_output_equal_for_all_samples_is_measured_against_its_energy() -> None:
    x = np.full((40, 4), 3, np.float32)
    assert output_error(SAME, SHIFTED, data(SAME, x)) == pytest.approx(0.25**2 / 9)
    zeros = np.zeros((40, 4), np.float32)
    assert output_error(SAME, SHIFTED, data(SAME, zeros)) == math.inf
    assert output_error(SAME, SAME, data(SAME, zeros)) == 0


def test_another_shape_agrees_nowhere() -> None:
    of = model("y = Identity(x)", outputs="float[N, M] y")
    other = model("y = Concat<axis = 1>(x, x)", outputs="float[N, M] y")
    assert output_error(of, other, data(of)) == math.inf


def test_lengths_that_vary_share_one_mean() -> None:
    of = model("y = Identity(x)", "float[N, T] x", "float[N, T] y")
    pieces = [{"x": X[:8, :3]}, {"x": X[8:16]}]
    double = model("y = Add(x, x)", "float[N, T] x", "float[N, T] y")
    values = np.concatenate([piece["x"].ravel() for piece in pieces])
    error = output_error(of, double, open_data(pieces, input_specs(of)))
    assert error == pytest.approx((values**2).sum() / ((values - values.mean()) ** 2).sum(), rel=1e-5)


def test_reference_runs_once_while_its_outputs_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Model] = []

    class Counting(Session):
        def __init__(self, of: Model, **options: Any) -> None:
            loaded.append(of)
            super().__init__(of, **options)

    monkeypatch.setattr(agreement, "Session", Counting)
    expected = output_error(SAME, DOUBLED, data(SAME))
    kept, recomputed = Reference(SAME, data(SAME)), Reference(SAME, data(SAME), keep=100)
    loaded.clear()
    assert [kept.error(DOUBLED) for _ in range(3)] == [expected] * 3
    assert loaded.count(SAME) == 1
    loaded.clear()
    assert [recomputed.error(DOUBLED) for _ in range(3)] == [expected] * 3
    assert loaded.count(SAME) == 3


def test_outputs_match_by_name_else_by_position_else_not_at_all() -> None:
    renamed = model("z = Add(x, x)", outputs="float[N, 4] z")
    assert output_error(SAME, renamed, data(SAME)) == output_error(SAME, DOUBLED, data(SAME))
    two = model("y = Identity(x) z = Identity(x)", outputs="float[N, 4] y, float[N, 4] z")
    assert output_error(SAME, two, data(SAME)) == 0
    with pytest.raises(InputError, match="no output 'z'"):
        output_error(two, SAME, data(SAME))


def test_half_precision_is_a_float() -> None:
    of = model("y = Cast<to = 10>(x)", outputs="float16[N, 4] y")
    (row,) = Reference(of, data(of)).agreements(of)
    assert row.sqnr_db == LIMIT_DB
