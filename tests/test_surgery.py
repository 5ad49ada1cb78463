"""An edit changes what it names, and every byte beside it stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.model.surgery import Surgery
from onnx_compress.runtime.session import Session

TEXT = """
<ir_version: 10, opset_import: ["" : 21, "unused" : 3], producer_name: "someone", doc_string: "kept",
 metadata_props: ["key" : "value"]>
g (float[N,4] x) => (float[N,4] y)
<float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}, float[4] b = {1,2,3,4}, float[2] unread = {7,8}>
{
    h = MatMul(x, w)
    r = Relu(h)
    y = Add(r, b)
}
"""


@pytest.fixture
def proto() -> onnx.ModelProto:
    model = onnx.parser.parse_model(TEXT)
    model.graph.node[0].doc_string = "the product"
    model.graph.node[1].metadata_props.add(key="from", value="elsewhere")
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("h", 1, ["N", 4]))
    model.graph.quantization_annotation.add(tensor_name="h")
    return model


def test_commit_without_an_edit_is_the_same_bytes(proto: onnx.ModelProto) -> None:
    assert (
        Surgery(Model.from_proto(proto)).commit().to_proto().SerializeToString() == proto.SerializeToString()
    )


def test_a_changed_weight_changes_only_itself(proto: onnx.ModelProto) -> None:
    surgery = Surgery(Model.from_proto(proto))
    weight = surgery.graph.nodes[0].inputs[1]
    weight.values = weight.values * 2
    edited = surgery.commit().to_proto()
    assert np.array_equal(onnx.numpy_helper.to_array(edited.graph.initializer[0]), 2 * np.eye(4))
    edited.graph.initializer[0].CopyFrom(proto.graph.initializer[0])
    assert edited.SerializeToString() == proto.SerializeToString()


def test_a_replaced_node_keeps_its_neighbours(proto: onnx.ModelProto) -> None:
    surgery = Surgery(Model.from_proto(proto))
    relu = surgery.graph.nodes[1]
    first = surgery.node("Neg", "first", [relu.inputs[0]])
    second = surgery.node("Neg", "second", [first.outputs[0]])
    surgery.replace(surgery.graph, relu, [first, second])
    model = surgery.commit()
    check(model)
    nodes = model.proto.graph.node
    assert [node.op_type for node in nodes] == ["MatMul", "Neg", "Neg", "Add"]
    assert nodes[0] == proto.graph.node[0]
    assert nodes[3] == proto.graph.node[2]
    x = np.ones((1, 4), np.float32)
    assert np.array_equal(Session(model).run({"x": x})["y"], [[2, 3, 4, 5]])


def test_a_weight_whose_last_reader_went_goes_too_but_an_unread_one_stays(proto: onnx.ModelProto) -> None:
    surgery = Surgery(Model.from_proto(proto))
    add = surgery.graph.nodes[2]
    same = surgery.node("Identity", "same", [add.inputs[0]])
    surgery.replace(surgery.graph, add, [same])
    names = [tensor.name for tensor in surgery.commit().proto.graph.initializer]
    assert names == ["w", "unread"]


def test_an_attribute_edit_leaves_doc_and_metadata(proto: onnx.ModelProto) -> None:
    surgery = Surgery(Model.from_proto(proto))
    surgery.graph.nodes[1].op = "LeakyRelu"
    surgery.graph.nodes[1].attrs["alpha"] = 0.5
    node = surgery.commit().proto.graph.node[1]
    assert (node.op_type, node.attribute[0].f, node.metadata_props[0].value) == (
        "LeakyRelu",
        0.5,
        "elsewhere",
    )


def test_a_weight_inside_a_body_is_edited_in_its_branch_only() -> None:
    """Two branches may use one name for two weights."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (bool c, float[2] x) => (float[2] y) {
            y = If (c) <
                then_branch = t () => (float[2] z) { w = Constant<value = float[2] {1, 2}>() z = Mul(x, w) },
                else_branch = e () => (float[2] z) { w = Constant<value = float[2] {3, 4}>() z = Mul(x, w) }
            >
        }""")
    surgery = Surgery(Model.from_proto(model))
    body = surgery.graph.nodes[0].attrs["then_branch"]
    body.nodes[0].attrs["value"].values = np.array([10, 20], np.float32)
    edited = surgery.commit()
    x = np.ones(2, np.float32)
    run = Session(edited).run
    assert np.array_equal(run({"c": np.array(True), "x": x})["y"], [10, 20])
    assert np.array_equal(run({"c": np.array(False), "x": x})["y"], [3, 4])


def test_an_overridable_input_is_no_weight() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { y = Mul(x, w) }""")
    surgery = Surgery(Model.from_proto(model))
    assert type(surgery.graph.nodes[0].inputs[1]).__name__ == "Variable"
    assert surgery.commit().to_proto().SerializeToString() == model.SerializeToString()


def test_non_utf8_attributes_survive() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21, "own" : 1]>
        g (float[2] x) => (float[2] y) { y = own.Thing<s = "abc">(x) }""")
    model.graph.node[0].attribute[0].s = b"\xff\xfe"
    surgery = Surgery(Model.from_proto(model))
    surgery.graph.nodes[0].name = "named"
    node = surgery.commit().proto.graph.node[0]
    assert (node.name, node.attribute[0].s) == ("named", b"\xff\xfe")
