"""int4: blocks against plain NumPy, GPTQ against nearest, every form against the weight it holds, and the pass on trained models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.model.surgery import Surgery
from onnx_compress.numerics.blocks import Blocks, block_near, compensate, grid, refitted, row_errors
from onnx_compress.passes.int4.bias import add_to_bias
from onnx_compress.passes.int4.study import Study
from onnx_compress.pipeline import compress
from onnx_compress.runtime.opset import raised
from onnx_compress.runtime.session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

MODELS = Path(__file__).parents[1] / "models"
CALIB = MODELS / "fashion_calib.npz"


def gram_of(rng: np.random.Generator, inputs: int) -> Array:
    x = rng.standard_normal((4 * inputs, inputs)) @ rng.standard_normal((inputs, inputs))
    return np.asarray(x.T @ x / len(x))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 5), inputs=st.integers(1, 70), block=st.sampled_from([4, 16, 32]),
    bits=st.sampled_from([4, 8]), symmetric=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_blocks_are_codes_less_zeros_times_scales(
    rows: int, inputs: int, block: int, bits: int, symmetric: bool, seed: int
) -> None:
    """Against a loop over every value; an unclipped value is at most half a step away."""
    weight = np.random.default_rng(seed).standard_normal((rows, inputs)).astype(np.float32)
    blocks = grid(weight, bits, block, symmetric=symmetric)
    dense = blocks.dense()
    top = 2**bits - 1
    for n in range(rows):
        for k in range(inputs):
            scale = blocks.scales[n, k // block]
            zero = 2 ** (bits - 1) if blocks.zeros is None else int(blocks.zeros[n, k // block])
            code = int(blocks.codes[n, k])
            assert 0 <= code <= top
            assert dense[n, k] == np.float32(code - zero) * scale
            if 0 < code < top:
                assert abs(dense[n, k] - weight[n, k]) <= scale / 2 * (1 + 1e-5)


def test_zero_stays_zero_and_a_weight_on_the_grid_stays() -> None:
    rng = np.random.default_rng(0)
    steps = rng.integers(-8, 8, (6, 64))
    steps[:, ::32] = -8
    weight = (steps * 0.25).astype(np.float32)
    blocks = grid(weight, 4, 32, symmetric=True)
    found = compensate(weight, blocks, gram_of(rng, 64))
    assert (found.dense()[weight == 0] == 0).all()
    exact = Blocks((steps + 8).astype(np.uint8), np.full((6, 2), 0.25, np.float32), None, 4, 32)
    np.testing.assert_array_equal(compensate(weight, exact, gram_of(rng, 64)).dense(), weight)


@pytest.mark.parametrize("symmetric", [True, False])
def test_no_row_is_worse_after_gptq(symmetric: bool) -> None:
    """On the Gram matrix it is fitted on; and the sum is much better where inputs are correlated."""
    rng = np.random.default_rng(1)
    weight, gram = rng.standard_normal((40, 96)).astype(np.float32), gram_of(rng, 96)
    near = grid(weight, 4, 32, symmetric=symmetric, energy=np.diagonal(gram))
    found = compensate(weight, near, gram)
    before, after = row_errors(weight, near, gram), row_errors(weight, found, gram)
    assert (after <= before * (1 + 1e-9)).all()
    assert after.sum() < 0.6 * before.sum()


def test_refitted_scales_are_the_least_squares_solution() -> None:
    rng = np.random.default_rng(2)
    weight, gram = rng.standard_normal((3, 20)).astype(np.float32), gram_of(rng, 20)
    near = grid(weight, 4, 8, symmetric=False)
    found = refitted(weight, near, gram)
    root = np.linalg.cholesky(gram)
    assert near.zeros is not None
    for row in range(3):
        steps = near.codes[row].astype(float) - np.repeat(near.zeros[row], 8)[:20]
        columns = np.zeros((20, 3))
        columns[np.arange(20), np.arange(20) // 8] = steps
        best = np.linalg.lstsq(root.T @ columns, root.T @ weight[row], rcond=None)[0]
        sound = (best > near.scales[row] / 2) & (best < 2 * near.scales[row])
        np.testing.assert_allclose(found.scales[row][sound], best[sound], rtol=1e-3)


def test_asked_for_blocks_divide_the_inputs() -> None:
    for inputs in range(1, 700):
        assert inputs % block_near(inputs, 32) == 0


def product(op: str, opset: int, shape: tuple[int, int], **attributes: Any) -> Model:
    """x @ w + b as a Gemm or a MatMul, then Relu."""
    rng = np.random.default_rng(3)
    weight = rng.standard_normal(shape[::-1] if attributes.get("transB") else shape).astype(np.float32)
    bias = rng.standard_normal(shape[1]).astype(np.float32)
    inputs = ["x", "w", "b"] if op == "Gemm" else ["x", "w"]
    nodes = [
        helper.make_node(op, inputs, ["y"], "layer", **attributes),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    tensors = [onnx.numpy_helper.from_array(weight, "w")]
    if op == "Gemm":
        tensors.append(onnx.numpy_helper.from_array(bias, "b"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", shape[0]])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", shape[1]])
    graph = helper.make_graph(nodes, "g", [x], [z], tensors)
    return Model.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    )


def dense_twin(study: Study, bits: int) -> Model:
    """The model with the same rounded weights as plain constants."""
    surgery = Surgery(study.model)
    weights, _ = study._find(surgery)
    for number, weight in enumerate(weights):
        coded = study.coded(number, bits)
        weight.tensor.values = weight.stored(coded.blocks.dense().reshape(weight.rows().shape))
    return surgery.commit()


CASES = [
    ("MatMul", 21, (96, 40), {}), ("MatMul", 17, (100, 40), {}), ("Gemm", 21, (96, 40), {}),
    ("Gemm", 13, (70, 40), {"transB": 1}), ("Gemm", 13, (70, 40), {"alpha": 0.5}),
    ("Gemm", 11, (67, 41), {"alpha": 0.5, "transB": 1}),
]  # fmt: skip


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("op", "opset", "shape", "attributes"), CASES)
def test_every_form_of_a_product_is_its_weight(
    op: str, opset: int, shape: tuple[int, int], attributes: dict[str, Any], bits: int
) -> None:
    """MatMulNBits rounds inputs to 8 bits (two decimal places), what is unfolded does not round at all."""
    model = product(op, opset, shape, **attributes)
    x = {"x": np.random.default_rng(4).standard_normal((5, shape[0])).astype(np.float32)}
    for slow in (set(), {"standard"}, {"standard", "contrib"}):
        study = Study(model, 32, None)
        study.slow = slow  # type: ignore[assignment]
        stored = study.stored([bits])
        check(stored)
        expected = Session(dense_twin(study, bits)).run(x)["z"]
        found = Session(stored).run(x)["z"]
        exact = study.form(0) == "unfolded"
        np.testing.assert_allclose(
            found, expected, rtol=0, atol=1e-5 if exact else 0.02 * np.abs(expected).max()
        )


def test_a_standard_product_stays_packed_when_onnxruntime_loads_it(tmp_path: Path) -> None:
    model = product("MatMul", 21, (96, 40))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(Study(model, 32, None).stored([4]).to_proto().SerializeToString(), options)
    ops = [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]
    assert ops == ["MatMulNBits", "Relu"]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", [64, 50, 33])
@pytest.mark.parametrize("opset", [21, 13])
def test_a_table_gives_its_rows(width: int, opset: int, bits: int) -> None:
    """From the front and from the end; a row of odd width is unfolded."""
    table = np.random.default_rng(5).standard_normal((60, width)).astype(np.float32)
    node = helper.make_node("Gather", ["t", "i"], ["y"], "look up")
    i = helper.make_tensor_value_info("i", TensorProto.INT64, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])
    graph = helper.make_graph([node], "g", [i], [y], [onnx.numpy_helper.from_array(table, "t")])
    imports = [helper.make_opsetid("", opset)]
    study = Study(Model.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8)), 32, None)
    stored = study.stored([bits])
    assert study.form(0) == ("unfolded" if width % 2 else "table")
    rows = np.array([0, 59, -1, -60, 7])
    expected = study.coded(0, bits).blocks.dense()[rows]
    np.testing.assert_allclose(Session(stored).run({"i": rows})["y"], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("opset", [21, 13])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_convolution_reads_its_weight(op: str, opset: int, bits: int) -> None:
    """Grouped, with a kernel whose inputs are no multiple of the block."""
    shape = (12, 10, 3, 3) if op == "Conv" else (20, 6, 3, 3)
    weight = np.random.default_rng(6).standard_normal(shape).astype(np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 20, 7, 7])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], "layer", group=2)], "g", [x], [y],
        [onnx.numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    imports = [helper.make_opsetid("", opset)]
    study = Study(Model.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8)), 32, None)
    feeds = {"x": np.random.default_rng(7).standard_normal((1, 20, 7, 7)).astype(np.float32)}
    found, expected = (Session(m).run(feeds)["y"] for m in (study.stored([bits]), dense_twin(study, bits)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_shared_weight_is_stored_once() -> None:
    weight = np.random.default_rng(8).standard_normal((64, 64)).astype(np.float32)
    nodes = [helper.make_node("MatMul", [a, "w"], [b], b) for a, b in (("x", "h"), ("h", "y"))]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [onnx.numpy_helper.from_array(weight, "w")])
    imports = [helper.make_opsetid("", 21)]
    study = Study(Model.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10)), 32, None)
    stored = study.stored([4])
    assert [node.op_type for node in stored.proto.graph.node] == ["MatMulNBits", "MatMulNBits"]
    assert stored.nbytes < study.coded(0, 4).blocks.nbytes + 1000
    feeds = {"x": np.ones((2, 64), np.float32)}
    expected = Session(dense_twin(study, 4)).run(feeds)["y"]
    np.testing.assert_allclose(Session(stored).run(feeds)["y"], expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("op", ["Gemm", "MatMul", "Conv"])
def test_the_bias_moves_what_the_layer_gives(op: str) -> None:
    shift = np.arange(8, dtype=np.float32)
    x, w = (
        gs.Variable("x", np.float32),
        gs.Constant("w", np.ones((8, 8, 1, 1) if op == "Conv" else (8, 8), np.float32)),
    )
    model = Model.load(MODELS / "fashion_mlp.onnx")
    surgery = Surgery(model)
    bias = gs.Constant("b", np.full(8, 2.0, np.float32))
    node = gs.Node(op, "layer", inputs=[x, w], outputs=[gs.Variable("y")])
    if op == "MatMul":
        add = gs.Node("Add", "add", inputs=[node.outputs[0], bias], outputs=[gs.Variable("z")])
        assert add_to_bias(surgery, node, shift)
        np.testing.assert_array_equal(add.inputs[1].values, shift + 2)
    else:
        node.inputs.append(bias)
        assert add_to_bias(surgery, node, shift)
        np.testing.assert_array_equal(node.inputs[2].values, shift + 2)


def run(name: str, spec: str, **words: Any) -> Any:
    return compress(MODELS / f"{name}.onnx", spec, data=CALIB, samples=64, verify=False, **words)


def test_a_trained_model_shrinks_to_what_the_codes_take() -> None:
    """fashion_mlp: 4 bits a weight, 36 more for the scale and zero of each block of 32, and the rest as it was."""
    result = run("fashion_mlp", "int4:tolerance=none")
    before = Model.load(MODELS / "fashion_mlp.onnx")
    weights = [t for t in before.proto.graph.initializer if len(t.dims) == 2]
    codes = sum(int(np.prod(t.dims)) for t in weights) * (4 + 36 / 32) / 8
    rest = before.nbytes - sum(4 * int(np.prod(t.dims)) for t in weights)
    assert result.model.nbytes < codes * 1.02 + rest + 2000
    assert result.report["passes"][1]["changes"]


def test_the_tolerance_is_kept_and_the_worst_get_more_bits() -> None:
    strict = run("fashion_lstm", "int4:tolerance=1e-4").report["passes"][1]
    loose = run("fashion_lstm", "int4:tolerance=none").report["passes"][1]
    kinds = [change["after"].split()[0] for change in strict["changes"]]
    assert "int8" in kinds or strict["skips"]
    assert {change["after"].split()[0] for change in loose["changes"]} == {"int4"}


def test_gptq_is_nearer_to_the_original_than_nearest() -> None:
    from onnx_compress.runtime.agreement import output_error
    from onnx_compress.runtime.data import open_data
    from onnx_compress.runtime.session import input_specs

    original = Model.load(MODELS / "fashion_resnet.onnx")
    unseen = open_data(MODELS / "fashion_eval.npz", input_specs(original), samples=128)
    errors = [
        output_error(original, run("fashion_resnet", f"int4:tolerance=none:rounding={how}").model, unseen)
        for how in ("gptq", "nearest")
    ]
    assert errors[0] < errors[1] / 2


def test_excluded_layers_stay_and_a_second_run_finds_nothing() -> None:
    step = run("fashion_mlp", "int4:exclude='^/1/'").report["passes"][1]
    assert {"node": "/1/Gemm", "why": "excluded"} in step["skips"]
    again = run("fashion_mlp", "int4,int4").report["passes"][2]
    assert not again["changes"]
    assert all("already" in skip["why"] or "small" in skip["why"] for skip in again["skips"])


def test_the_same_decisions_give_the_same_bytes(tmp_path: Path) -> None:
    first = run("fashion_lstm", "int4")
    (tmp_path / "report.json").write_text(json.dumps(first.report))
    second = run("fashion_lstm", "int4", decisions=tmp_path / "report.json")
    assert first.model.to_proto().SerializeToString() == second.model.to_proto().SerializeToString()


def test_a_model_is_raised_only_where_that_changes_nothing() -> None:
    model = product("MatMul", 17, (32, 40))
    lifted = raised(model, 21, "4-bit types", lambda _: 0.0)
    assert isinstance(lifted, Model)
    assert lifted.proto.opset_import[0].version == 21
    assert "differ" in str(raised(model, 21, "4-bit types", lambda _: 0.5))
    assert raised(lifted, 21, "4-bit types", lambda _: 0.5) is lifted
