"""int8 in the branches of an If: quantized on what reaches them, or left with the reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnx_compress.contract import Job, Result
from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.model.edges import edges
from onnx_compress.model.prepare import prepare
from onnx_compress.passes.int8 import Int8
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import Data, open_data
from onnx_compress.runtime.session import Session, input_specs

Array = NDArray[Any]
RNG = np.random.default_rng(0)
PLAIN = Int8(keep_if="always", tolerance=None, calibrate="minmax", rounding="nearest")
FLOAT = TensorProto.FLOAT


def normal(*shape: int) -> Array:
    return (RNG.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)


def info(name: str, *shape: int | str, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def weights(**values: Array) -> list[onnx.TensorProto]:
    return [onnx.numpy_helper.from_array(value, name) for name, value in values.items()]


def branch(name: str, *, nested: bool = False) -> onnx.GraphProto:
    """Two products with names that the other branch uses too; `shared` is a weight of the graph around it."""
    nodes = [
        helper.make_node("MatMul", ["r", "shared"], [f"{name}_a"], name=f"{name}_1"),
        helper.make_node("Relu", [f"{name}_a"], [f"{name}_r"], name=f"{name}_relu"),
        helper.make_node("MatMul", [f"{name}_r", "w"], [f"{name}_out"], name=f"{name}_2"),
    ]
    if nested:
        inner = helper.make_node(
            "If",
            ["second"],
            [f"{name}_y"],
            name="inner",
            then_branch=tail("one", name),
            else_branch=tail("two", name),
        )
        nodes.append(inner)
    out = f"{name}_y" if nested else f"{name}_out"
    return helper.make_graph(nodes, name, [], [info(out, "N", 40)], weights(w=normal(48, 40)))


def tail(name: str, around: str) -> onnx.GraphProto:
    node = helper.make_node("MatMul", [f"{around}_out", "v"], [f"{name}_out"], name=f"{name}_3")
    return helper.make_graph([node], name, [], [info(f"{name}_out", "N", 40)], weights(v=normal(40, 40)))


def branching(*, nested: bool = False) -> Model:
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node(
            "If",
            ["flag"],
            ["y"],
            name="if",
            then_branch=branch("then", nested=nested),
            else_branch=branch("else"),
        ),
    ]
    inputs = [info("x", "N", 32), info("flag", kind=TensorProto.BOOL), info("second", kind=TensorProto.BOOL)]
    graph = helper.make_graph(nodes, "test", inputs, [info("y", "N", 40)], weights(shared=normal(32, 48)))
    return Model.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )


def feeds(*flags: bool) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    return [
        {
            "x": rng.normal(size=(4, 32)).astype(np.float32),
            "flag": np.array(flag),
            "second": np.array(number % 4 < 2),
        }
        for number, flag in enumerate(flags)
    ]


BOTH = feeds(*[number % 2 == 0 for number in range(32)])


def run(pass_: Int8, model: Model, given: list[dict[str, Array]]) -> Result:
    data: Data = open_data(given, input_specs(model))
    result = pass_.apply(Job(model, model, data, 0, Clock(1)))
    check(result.model)
    return result


def apart(first: Model, second: Model) -> float:
    before, after = ([Session(m).run(f)["y"] for f in BOTH] for m in (first, second))
    return float(np.square(np.subtract(before, after)).sum() / np.square(before).sum())


def quantized(result: Result) -> set[str]:
    return {change.node for change in result.changes if change.what == "quantize"}


def test_both_branches_are_quantized() -> None:
    model = branching()
    result = run(PLAIN, model, BOTH)
    assert quantized(result) == {"then_1", "then_2", "else_1", "else_2"}
    assert not result.skips
    # > 8 bits of activations and weights through two products
    assert apart(model, result.model) < 1e-3
    assert not any(tensor.data_type == FLOAT and len(tensor.dims) == 2 for tensor in every(result.model))


def every(model: Model) -> list[onnx.TensorProto]:
    waiting, found = [model.proto.graph], []
    while waiting:
        graph = waiting.pop()
        found += list(graph.initializer)
        waiting += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return found


def test_an_if_in_an_if_is_quantized_too() -> None:
    model = branching(nested=True)
    result = run(PLAIN, model, BOTH)
    assert {"one_3", "two_3"} <= quantized(result)
    assert apart(model, result.model) < 2e-3


def test_a_branch_that_no_sample_takes_stays_in_float_and_is_named() -> None:
    model = branching()
    result = run(PLAIN, model, feeds(*[True] * 16))
    assert quantized(result) >= {"then_1", "then_2"}
    reasons = {skip.node: skip.why for skip in result.skips}
    assert "no calibration sample takes the else branch" in reasons["else_1"]
    assert apart(model, result.model) < 1e-3


def of_inputs() -> onnx.ModelProto:
    """Branches that read the graph's input itself."""
    proto = branching().to_proto()
    del proto.graph.node[0]
    for attribute in proto.graph.node[0].attribute:
        attribute.g.node[0].input[0] = "x"
    return proto


def test_a_branch_that_reads_inputs_only() -> None:
    """Then nothing of the graph around it has to be recorded."""
    model = Model.from_proto(of_inputs())
    result = run(PLAIN, model, BOTH)
    assert quantized(result) == {"then_1", "then_2", "else_1", "else_2"}
    assert apart(model, result.model) < 1e-3


@pytest.mark.parametrize("outside", [False, True])
def test_codes_at_the_input_are_those_of_the_main_graph(outside: bool) -> None:
    """A branch rounds the input by a scale that stands in the branch: no code of the graph around it may mean that."""
    proto = of_inputs()
    if outside:
        proto.graph.node.append(helper.make_node("MatMul", ["x", "shared"], ["z"], name="beside"))
        proto.graph.output.append(info("z", "N", 48))
    model = Model.from_proto(proto)
    result = run(replace(PLAIN, io="int8"), model, BOTH)
    assert ("x" in edges(result.model)) == outside
    assert apart(model, result.model) < 1e-3


@pytest.mark.parametrize("opset", [11, 12])
def test_a_branch_of_an_old_opset_is_raised_with_the_whole_model(opset: int) -> None:
    """Scales of channels need opset 13, and a body has the opset of the model it stands in."""
    proto = branching().to_proto()
    proto.opset_import[0].version = opset
    result = run(PLAIN, Model.from_proto(proto), BOTH)
    assert quantized(result) == {"then_1", "then_2", "else_1", "else_2"}
    assert result.model.proto.opset_import[0].version >= 13
    untouched = run(replace(PLAIN, tolerance=0.0), Model.from_proto(proto), BOTH)
    assert untouched.model.to_proto() == proto


def test_a_branch_over_the_tolerance_stays_as_it_was() -> None:
    model = branching()
    result = run(replace(PLAIN, tolerance=0.0), model, BOTH)
    assert result.model.to_proto() == model.to_proto()
    assert not result.changes
    assert {skip.node for skip in result.skips} >= {"then_1", "then_2", "else_1", "else_2"}


def test_the_same_input_gives_the_same_bytes() -> None:
    model = branching(nested=True)
    first, second = (run(PLAIN, model, BOTH).model.to_proto().SerializeToString() for _ in range(2))
    assert first == second


def looping(op: str) -> Model:
    """Three turns of a state through a product, beside what the graph around gives; each turn's state is returned, too."""
    made = [
        helper.make_node("MatMul", ["state", "w"], ["a"], name="in_body"),
        helper.make_node("Add", ["a", "r"], ["b"], name="sum"),
        helper.make_node("Relu", ["b"], ["next"], name="relu_in_body"),
        helper.make_node("Identity", ["next"], ["each"], name="each_turn"),
    ]
    state, out = info("state", "N", 32), [info("next", "N", 32), info("each", "N", 32)]
    own = weights(w=normal(32, 32))
    around = [helper.make_node("Relu", ["x"], ["r"], name="relu")]
    if op == "Loop":
        flag = [info(name, kind=TensorProto.BOOL) for name in ("go", "on")]
        made.append(helper.make_node("Identity", ["go"], ["on"], name="go_on"))
        inputs = [info("turn", kind=TensorProto.INT64), flag[0], state]
        body = helper.make_graph(made, "body", inputs, [flag[1], *out], own)
        loop = helper.make_node("Loop", ["count", "", "r"], ["last", "all"], name="loop", body=body)
        extra = [onnx.numpy_helper.from_array(np.array(3), "count")]
    else:
        made[1].input[1] = "slice"
        body = helper.make_graph(made, "body", [state, info("slice", "N", 32)], out, own)
        around.append(helper.make_node("Concat", ["rows", "rows", "rows"], ["three"], name="three", axis=0))
        around.append(helper.make_node("Unsqueeze", ["x", "axis"], ["rows"], name="rows"))
        around[1:] = around[:0:-1]
        loop = helper.make_node(
            "Scan", ["r", "three"], ["last", "all"], name="loop", body=body, num_scan_inputs=1
        )
        extra = weights(axis=np.array([0]))
    ends = [helper.make_node("Add", ["last", "last"], ["y"], name="end")]
    graph = helper.make_graph(
        [*around, loop, *ends],
        "test",
        [info("x", "N", 32)],
        [info("y", "N", 32), info("all", 3, "N", 32)],
        extra,
    )
    opset = [helper.make_opsetid("", 17)]
    return Model.from_proto(helper.make_model(graph, opset_imports=opset, ir_version=8))


@pytest.mark.parametrize("op", ["Loop", "Scan"])
def test_the_body_of_a_loop_is_quantized_on_what_reaches_it_in_each_turn(op: str) -> None:
    model = looping(op)
    given = [{"x": feed["x"]} for feed in BOTH]
    result = run(PLAIN, model, given)
    assert quantized(result) == {"in_body"}
    assert not [skip for skip in result.skips if skip.node == "in_body"]
    for feed in given[:4]:
        before, after = (Session(m).run(feed) for m in (model, result.model))
        for name in ("y", "all"):
            error = np.square(before[name] - after[name]).sum() / np.square(before[name]).sum()
            assert 0 < error < 1e-3  # > 8 bits, three times


def test_a_loop_that_runs_no_turn_gets_its_scales_at_run_time() -> None:
    """Nothing is known of what reaches its body, so no range can be chosen for it."""
    model = looping("Loop")
    count = next(tensor for tensor in model.proto.graph.initializer if tensor.name == "count")
    count.CopyFrom(onnx.numpy_helper.from_array(np.array(0), "count"))
    result = run(PLAIN, Model.from_proto(model.to_proto()), [{"x": feed["x"]} for feed in BOTH])
    assert [change.after for change in result.changes if change.node == "in_body"] == [
        "32x32 int8, activations at run time"
    ]


@pytest.mark.parametrize("options", [PLAIN, Int8(keep_if="always", tolerance=0.5)])
@pytest.mark.parametrize("name", ["loop_body", "scan_body"])
def test_bodies_of_exported_forms_are_recorded(name: str, options: Int8) -> None:
    """Optional outputs that are absent, and axes of the scan's outputs: what is returned beside them fits in.

    With a tolerance the body is run by itself, on all that was recorded, a scalar of booleans among it.
    """
    path = Path(__file__).parents[1] / "models" / "tiny" / f"{name}.onnxtxt"
    model = prepare(Model.from_proto(onnx.parser.parse_model(path.read_text())), None).model
    shape = (2, 5, 4) if name == "scan_body" else (2, 4)
    given = [{"input": normal(*shape)} for _ in range(16)]
    result = run(options, model, given)
    assert len(quantized(result)) == 3  # > all products, those of the body among them
    before, after = (Session(m).run(given[0])["output"] for m in (model, result.model))
    assert 0 < np.square(before - after).sum() < 1e-2 * np.square(before).sum()
