"""Removing units from the graph equals zeroing them where they are consumed, for every op of the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import pytest
from channel_cases import CASES, build, image, parse, rows

from onnx_compress.errors import InputError
from onnx_compress.model.channels import Channels, Unit
from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.model.doubled import doubled
from onnx_compress.model.prepare import prepare
from onnx_compress.model.rules import BARRIERS, RULES
from onnx_compress.model.selftest import masked
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.runtime.selftest import TOLERANCE_DOUBLE, difference, draw, prove
from onnx_compress.runtime.session import Session

MODELS = Path(__file__).parents[1] / "models"


def prepared(proto: onnx.ModelProto) -> Model:
    model = Model.from_proto(proto)
    return prepare(model, infer(model)).model


def feeds(model: Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    found = {}
    for value in model.proto.graph.input:
        shape = [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
        found[value.name] = rng.uniform(-0.9, 0.9, shape).astype(np.float32)
        if value.type.tensor_type.elem_type == onnx.TensorProto.BOOL:
            found[value.name] = np.ones(shape, bool)
    return found


def run(model: Model, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs in onnxruntime, or of ops that it does not have yet in onnx's reference."""
    try:
        return Session(model, optimize=False).run(data)
    except InputError:
        return reference(model, data)


def assert_removed_equals_masked(model: Model, share: float = 0.5) -> int:
    """Removes a share of every kind of unit; returns how many units the model has."""
    shapes = infer(model)
    surgery = Surgery(model)
    channels = Channels(surgery, shapes)
    units, _ = channels.units()
    rng = np.random.default_rng(0)
    kinds: dict[frozenset[tuple[str, int]], list[Unit]] = {}
    for unit in units:
        kinds.setdefault(unit.kind, []).append(unit)
    chosen = []
    for members in kinds.values():
        count = max(1, int(len(members) * share)) if len(members) > 1 else 0
        chosen += [members[i] for i in rng.permutation(len(members))[:count]]
    expected_model = masked(model, shapes, channels.remove(chosen))
    pruned = surgery.commit()
    check(pruned)
    data = feeds(model)
    actual, expected = run(pruned, data), run(expected_model, data)
    for name, value in expected.items():
        assert actual[name].shape == value.shape
        # float32 sums in another order: a few units in the last place of the largest term
        np.testing.assert_allclose(
            actual[name], value, rtol=2e-4, atol=2e-5 * max(1.0, float(np.nanmax(np.abs(value))))
        )
    return len(units)


def test_every_rule_has_a_case() -> None:
    assert RULES.keys() == CASES.keys()


def test_every_standard_op_has_a_rule_or_a_reason() -> None:
    """Every op of every opset: silence about one would be a bug."""
    ops = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    assert ops <= RULES.keys() | BARRIERS.keys()
    assert not RULES.keys() & BARRIERS.keys()
    assert all(BARRIERS.values())


@pytest.mark.parametrize("op", sorted(CASES))
def test_removed_equals_masked(op: str) -> None:
    """The op's own case: its units are as many as they should be, and removing half of them is sound."""
    with np.errstate(all="ignore"):
        assert assert_removed_equals_masked(prepared(build(op))) == CASES[op][1]


# onnx's reference has no float64 form of these, nor of what is onnxruntime's own
SINGLE = {
    *(
        "BitCast",
        "DequantizeLinear",
        "QuantizeLinear",
        "GlobalLpPool",
        "MaxRoiPool",
        "MeanVarianceNormalization",
        "Scatter",
    ),
    *(op for op in CASES if op.startswith("com.microsoft.")),
}


@pytest.mark.parametrize("op", sorted(CASES.keys() - SINGLE))
def test_removed_equals_masked_to_float64_rounding(op: str) -> None:
    """In onnx's reference, since onnxruntime lacks most float64 kernels: what is left is the order of sums of 2^-53."""
    model = prepared(build(op))
    shapes = infer(model)
    surgery = Surgery(model)
    channels = Channels(surgery, shapes)
    units, _ = channels.units()
    chosen = channels.remove(draw(units, 0.5, np.random.default_rng(0)))
    if not chosen:
        assert CASES[op][1] == 0
        return
    wide = doubled(model)
    models = [wide, masked(wide, shapes, chosen, np.float64), doubled(surgery.commit())]
    data = {
        name: value.astype(np.float64) if value.dtype == np.float32 else value
        for name, value in feeds(model).items()
    }
    with np.errstate(all="ignore"):
        original, expected, actual = (reference(m, data) for m in models)
    # the scale of Attention is an attribute, and those are float32
    assert difference(expected, actual, original) <= (1e-7 if op == "Attention" else TOLERANCE_DOUBLE)


def reference(model: Model, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    evaluator = onnx.reference.ReferenceEvaluator(model.to_proto())
    return dict(zip(evaluator.output_names, evaluator.run(None, data), strict=True))


@pytest.mark.parametrize("path", sorted(MODELS.glob("fashion_*.onnx")), ids=lambda path: path.stem)
def test_zoo_removed_equals_masked(path: Path) -> None:
    model = Model.load(path)
    assert assert_removed_equals_masked(prepare(model, infer(model)).model, 0.4) > 0


def test_unknown_op_pins() -> None:
    """An op of another domain could do anything with its channels."""
    proto = parse("""g (float[N,4] x, float[4,6] w1, float[6,3] w2) => (float[N,3] y) {
        h = MatMul(x, w1)
        g = FusedThing(h)
        y = MatMul(g, w2) }""")
    proto.graph.node[1].domain = "made.up"
    proto.opset_import.add(domain="made.up", version=1)
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("g", 1, ["N", 6]))
    model = Model.from_proto(proto)
    units, pinned = Channels(Surgery(model), infer(model)).units()
    assert units == []
    assert pinned["w1[1]"] == "no rule for FusedThing"


def test_attention_from_plain_ops_is_found_by_grids() -> None:
    """Whole heads, and the width of a head: of query with key, of value with the output projection."""
    model = prepared(
        parse("""
        g (float[N,5,8] x, float[8,12] wq, float[8,12] wk, float[8,12] wv0, float[12,8] wo, float[8,2] wy)
            => (float[N,5,2] y) {
            s = Constant<value_ints=[0,5,3,4]>()
            q0 = MatMul(x, wq)
            q1 = Reshape(q0, s)
            q = Transpose<perm=[0,2,1,3]>(q1)
            k0 = MatMul(x, wk)
            k1 = Reshape(k0, s)
            k = Transpose<perm=[0,2,3,1]>(k1)
            v0 = MatMul(x, wv0)
            v1 = Reshape(v0, s)
            v = Transpose<perm=[0,2,1,3]>(v1)
            a0 = MatMul(q, k)
            a = Softmax<axis=-1>(a0)
            c0 = MatMul(a, v)
            c1 = Transpose<perm=[0,2,1,3]>(c0)
            t = Constant<value_ints=[0,5,12]>()
            c = Reshape(c1, t)
            o = MatMul(c, wo)
            y = MatMul(o, wy)
        }""")
    )
    units, _ = Channels(Surgery(model), infer(model)).units()
    kinds = sorted((len({n for n, _ in u.places}), len(next(iter(u.places.values())))) for u in units)
    heads = [u for u in units if {n for n, _ in u.places} == {"wq", "wk", "wv0", "wo"}]
    query_key = [u for u in units if {n for n, _ in u.places} == {"wq", "wk"}]
    value = [u for u in units if {n for n, _ in u.places} == {"wv0", "wo"}]
    assert (len(heads), len(query_key), len(value), len(units)) == (3, 4, 4, 19), kinds
    assert all(len(indices) == 4 for unit in heads for indices in unit.places.values())
    assert_removed_equals_masked(model)


def test_units_never_empty_an_axis_of_grouped_channels() -> None:
    """A shuffled pair of groups loses the same place in both, so that both stay the same size."""
    model = prepared(
        parse("""
        g (float[N,4,3,3] x, float[8,4,1,1] w1, float[8,4,1,1] wg, float[3,8,1,1] w2) => (float[N,3,3,3] y) {
            h = Conv(x, w1)
            s = Constant<value_ints=[0,2,4,3,3]>()
            r = Reshape(h, s)
            t = Transpose<perm=[0,2,1,3,4]>(r)
            b = Constant<value_ints=[0,8,3,3]>()
            g0 = Reshape(t, b)
            g = Conv<group=2>(g0, wg)
            y = Conv(g, w2)
        }""")
    )
    assert assert_removed_equals_masked(model) > 0


def test_removing_every_unit_leaves_no_axis_empty() -> None:
    """Half of the channels go through a branch of their own: its last one stays, though others of its kind do not."""
    model = prepared(
        parse("""
        g (float[N,4] x, float[4,6] w1, float[6,3] w2) => (float[N,3] y) {
            h = MatMul(x, w1)
            s = Constant<value_ints=[2,4]>()
            a, b = Split<axis=1>(h, s)
            r = Relu(a)
            c = Concat<axis=1>(r, b)
            y = MatMul(c, w2) }""")
    )
    shapes = infer(model)
    surgery = Surgery(model)
    channels = Channels(surgery, shapes)
    units, _ = channels.units()
    removed = channels.remove(units)
    assert len(units) == 6
    assert len(removed) == 4
    pruned = surgery.commit()
    check(pruned)
    data = feeds(model)
    expected = run(masked(model, shapes, removed), data)["y"]
    np.testing.assert_allclose(run(pruned, data)["y"], expected, rtol=1e-5)


IF = """g (float[N,4] x, float[4,6] w1, float[6,3] w2, bool[1] c) => (float[N,3] y) {
        h = MatMul(x, w1)
        g = If (c) <
            then_branch = t () => (float[N,6] a) { a = Relu(h) },
            else_branch = e () => (float[N,6] b) { b = NEG }
        >
        y = MatMul(g, w2) }"""


@pytest.mark.parametrize("taken", [True, False])
def test_both_branches_lose_what_is_removed(taken: bool) -> None:
    model = Model.from_proto(parse(IF.replace("NEG", "Neg(h)")))
    shapes = infer(model)
    surgery = Surgery(model)
    channels = Channels(surgery, shapes)
    units, _ = channels.units()
    assert len(units) == 6
    expected = masked(model, shapes, channels.remove(units[:3]))
    data = feeds(model) | {"c": np.array([taken])}
    np.testing.assert_allclose(run(surgery.commit(), data)["y"], run(expected, data)["y"], rtol=1e-5)


def test_what_depends_on_data_in_a_body_pins_what_it_reads() -> None:
    model = Model.from_proto(parse(IF.replace("NEG", "RandomUniformLike(h)")))
    units, pinned = Channels(Surgery(model), infer(model)).units()
    assert units == []
    assert pinned["w1[1]"] == "RandomUniformLike: each draw depends on how many are drawn"


def test_a_name_that_two_bodies_use_pins() -> None:
    """Labels go by name: that of one tensor would be that of the other."""
    proto = parse(IF.replace("NEG", "Neg(h)"))
    branch = next(a.g for a in proto.graph.node[1].attribute if a.name == "else_branch")
    branch.node[0].output[0] = branch.output[0].name = "a"
    model = Model.from_proto(proto)
    units, pinned = Channels(Surgery(model), infer(model)).units()
    assert units == []
    assert pinned["w1[1]"] == "If: its bodies use names that others use too"


def test_a_weight_inside_a_body_is_cut_there() -> None:
    """Silero keeps its weights so."""
    proto = parse(IF.replace("NEG", "Neg(h)").replace("a = Relu(h)", "a = MatMul(h, w3)"))
    body = next(a.g for a in proto.graph.node[1].attribute if a.name == "then_branch")
    square = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    body.initializer.append(onnx.numpy_helper.from_array(square, "w3"))
    assert_removed_equals_masked(Model.from_proto(proto))
    surgery = Surgery(Model.from_proto(proto))
    channels = Channels(surgery, infer(surgery.model))
    units, _ = channels.units()
    channels.remove(units[:2])
    pruned = surgery.commit()
    body = next(a.g for a in pruned.proto.graph.node[1].attribute if a.name == "then_branch")
    assert list(body.initializer[0].dims) == [4, 4]


def test_the_self_test_says_in_what_precision_it_ran() -> None:
    """float64 where onnxruntime can; a Conv only in float32."""
    for body, precision in (("g = Relu(h)", "float64"), ("g = Softmax<axis=0>(h)", "float64")):
        model = prepared(parse(rows(body)))
        proof = prove(model, infer(model), feeds(model), 0)
        assert proof.precision == precision
        assert proof.sound
        assert proof.units
    model = prepared(parse(image("g = Relu(h)")))
    proof = prove(model, infer(model), feeds(model), 0)
    assert (proof.precision, proof.sound) == ("float32", True)


def test_a_normalization_of_small_values_is_exact_in_float64() -> None:
    """There its epsilon, which is float32 in onnxruntime, counts as much as the variance."""
    model = prepared(parse(rows("g = LayerNormalization(h, ws, wt)", ", float[6] ws, float[6] wt")))
    small = {name: np.float32(1e-3) * value for name, value in feeds(model).items()}
    proof = prove(model, infer(model), small, 0)
    assert proof.precision == "float64"
    assert proof.difference < 1e-13
