"""Small models, one for each kind of thing that a model can hold and a copy could lose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

Case = onnx.ModelProto
CASES: dict[str, Callable[[], Case]] = {}


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    CASES[build.__name__] = build
    return build


def parse(
    body: str, inputs: str = "float[N] x", outputs: str = "float[N] y", *, opset: int = 21, more: str = ""
) -> Case:
    header = f'<ir_version: 10, opset_import: ["" : {opset}{more}]>'
    return onnx.parser.parse_model(f"{header} g ({inputs}) => ({outputs}) {{ {body} }}")


def relu() -> Case:
    return parse("y = Relu(x)")


def with_weight(tensor: TensorProto) -> Case:
    """A model that casts a weight of any type to float, or leaves it unused where there is no such cast."""
    model = parse("y = Relu(x)")
    model.graph.initializer.append(tensor)
    return model


def _add_types() -> None:
    """A weight of 1 KB or more, so that it leaves the skeleton, and a small one, of each type."""
    dtypes: dict[str, Any] = {
        "float16": np.float16,
        "float64": np.float64,
        "int64": np.int64,
        "uint8": np.uint8,
        "bool": np.bool_,
        "complex64": np.complex64,
        "bfloat16": ml_dtypes.bfloat16,
        "float8e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8e5m2": ml_dtypes.float8_e5m2,
        "int4": ml_dtypes.int4,
        "uint4": ml_dtypes.uint4,
        "float4e2m1": ml_dtypes.float4_e2m1fn,
    }
    for name, dtype in dtypes.items():
        for size in (3, 4097):

            def build(dtype: Any = dtype, size: int = size) -> Case:
                values: Any = (np.arange(size) % 2).astype(dtype)
                return with_weight(numpy_helper.from_array(values, "w"))

            CASES[f"{name}_{size}"] = build


_add_types()


@case
def strings() -> Case:
    words = TensorProto(name="w", data_type=TensorProto.STRING, dims=[3])
    words.string_data.extend([b"", "ä\u2028".encode(), b"x" * 3000])
    return with_weight(words)


@case
def typed_data_fields() -> Case:
    """Values in float_data and int32_data instead of raw_data."""
    model = with_weight(helper.make_tensor("w", TensorProto.FLOAT, [600], np.arange(600.0).tolist()))
    model.graph.initializer.append(helper.make_tensor("i", TensorProto.INT32, [600], list(range(600))))
    model.graph.initializer.append(helper.make_tensor("h", TensorProto.FLOAT16, [4], [1.0, 2.0, 3.0, 4.0]))
    return model


@case
def empty_weight() -> Case:
    return with_weight(numpy_helper.from_array(np.zeros((0, 5), np.float32), "w"))


@case
def scalar_weight() -> Case:
    return with_weight(numpy_helper.from_array(np.array(2.5, np.float32), "w"))


@case
def documented_everywhere() -> Case:
    model = with_weight(numpy_helper.from_array(np.zeros(600, np.float32), "w"))
    graph, node = model.graph, model.graph.node[0]
    for thing in (model, graph, node, graph.initializer[0], graph.input[0], graph.output[0]):
        thing.doc_string = f"what a {type(thing).__name__} is: ü"
        thing.metadata_props.add(key="k", value="v")
        thing.metadata_props.add(key="", value="")
    node.attribute.append(helper.make_attribute("note", 1.0, "an attribute's doc"))
    node.domain = "com.acme"
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    return model


@case
def producer_and_versions() -> Case:
    model = relu()
    model.producer_name, model.producer_version = "someone", "1.2"
    model.domain, model.model_version = "com.acme.models", 7
    return model


@case
def value_info_symbolic() -> Case:
    model = parse("h = Relu(x) y = Relu(h)", "float[batch, 3, W] x", "float[batch, 3, W] y")
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", 3, "W"]))
    model.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    model.graph.input[0].type.denotation = "TENSOR"
    return model


@case
def unused_domains() -> Case:
    return parse("y = Relu(x)", more=', "com.nobody" : 3, "ai.onnx.ml" : 3')


@case
def unused_weights() -> Case:
    return with_weight(numpy_helper.from_array(np.ones(5000, np.float32), "unused"))


@case
def tied_weights() -> Case:
    model = parse("a = MatMul(x, w) y = MatMul(a, w)", "float[N, 20] x", "float[N, 20] y")
    model.graph.initializer.append(numpy_helper.from_array(np.eye(20, dtype=np.float32), "w"))
    return model


@case
def overridable_input() -> Case:
    model = parse("y = Add(x, w)", "float[N] x, float[600] w")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(600, np.float32), "w"))
    return model


@case
def ir_version_3() -> Case:
    model = overridable_input()
    model.ir_version = 3
    model.opset_import[0].version = 8
    return model


@case
def old_opset() -> Case:
    return parse("y = Relu(x)", opset=7)


@case
def constants_of_every_form() -> Case:
    model = parse("y = Identity(x)")
    big = numpy_helper.from_array(np.ones(600, np.float32), "big")
    forms: dict[str, Any] = {
        "value": big,
        "value_float": 1.5,
        "value_int": 3,
        "value_string": "s",
        "value_floats": [1.0, 2.0],
        "value_ints": [1, 2],
        "value_strings": ["a", "b"],
    }
    for name, value in forms.items():
        model.graph.node.insert(0, helper.make_node("Constant", [], [f"c_{name}"], **{name: value}))
    return model


@case
def sparse_constant_and_initializer() -> Case:
    model = parse("y = Identity(x)")
    values = numpy_helper.from_array(np.ones(400, np.float32), "s")
    indices = numpy_helper.from_array(np.arange(400, dtype=np.int64), "s_indices")
    sparse = helper.make_sparse_tensor(values, indices, [1000])
    model.graph.sparse_initializer.append(sparse)
    other = onnx.SparseTensorProto()
    other.CopyFrom(sparse)
    other.values.name = ""
    model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], sparse_value=other))
    return model


@case
def quantization_annotations() -> Case:
    model = with_weight(numpy_helper.from_array(np.array(0.1, np.float32), "scale"))
    annotation = model.graph.quantization_annotation.add(tensor_name="x")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    return model


@case
def training_info() -> Case:
    model = relu()
    info = model.training_info.add()
    info.initialization.name = "init"
    info.algorithm.name = "step"
    info.algorithm.node.append(helper.make_node("Identity", ["x"], ["z"]))
    info.algorithm.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N"]))
    info.update_binding.add(key="w", value="z")
    return model


@case
def functions_and_overloads() -> Case:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        g (float[N] x) => (float[N] y) { a = local.f(x) y = local.f:other(a) }
        <domain: "local", opset_import: ["" : 21]> f (u) => (v) { v = Relu(u) }
        <domain: "local", overload: "other", opset_import: ["" : 21]> f (u) => (v) { v = Neg(u) }"""
    )
    model.functions[0].doc_string = "a function's words"
    model.functions[0].metadata_props.add(key="k", value="v")
    return model


@case
def weights_in_functions() -> Case:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        g (float[600] x) => (float[600] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 21]> f (u) => (v) { v = Add(u, c) }"""
    )
    weight = numpy_helper.from_array(np.ones(600, np.float32))
    model.functions[0].node.insert(0, helper.make_node("Constant", [], ["c"], value=weight))
    return model


@case
def if_branches_that_reuse_a_name() -> Case:
    model = parse(
        """y = If (c) <
            then_branch = t () => (float[M] r) <float[600] w> { r = Add(x, w) },
            else_branch = e () => (float[M] r) <float[600] w> { r = Sub(x, w) }>""",
        "bool c, float[600] x",
        "float[M] y",
    )
    for attribute, value in zip(model.graph.node[0].attribute, (1, 2), strict=True):
        attribute.g.initializer.append(numpy_helper.from_array(np.full(600, value, np.float32), "w"))
    return model


@case
def loop() -> Case:
    return parse(
        """n = Constant<value = int64 {2}>() t = Constant<value = bool {1}>()
        y = Loop (n, t, x) <body = b (int64 i, bool c, float[K] u) => (bool d, float[K] v) {
            d = Identity(c) v = Add(u, u) }>"""
    )


@case
def scan() -> Case:
    return parse(
        """s, y = Scan <num_scan_inputs = 1, body = b (float a, float u) => (float d, float v) {
            d = Add(a, u) v = Identity(d) }> (z, x)""",
        "float z, float[N] x",
        "float s, float[N] y",
    )


@case
def sequence_and_optional_types() -> Case:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])]
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["N"])
    outputs = [
        helper.make_value_info("y", helper.make_sequence_type_proto(tensor)),
        helper.make_value_info("o", helper.make_optional_type_proto(tensor)),
    ]
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["y"]),
        helper.make_node("Optional", ["x"], ["o"]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@case
def custom_operator() -> Case:
    return parse('y = com.acme.Foo <words = ["a", "b"], t = float[2] {1., 2.}> (x)', more=', "com.acme" : 1')


@case
def unicode_and_empty_names() -> Case:
    model = parse("h = Relu(x) y = Clip(h)")
    node = model.graph.node[1]
    node.input.extend(["", "größt"])
    node.name, model.graph.node[0].name = "", "узел/\U0001f600 name"
    model.graph.initializer.append(numpy_helper.from_array(np.array(6, np.float32), "größt"))
    return model


@case
def bytes_that_are_no_text() -> Case:
    model = parse("y = com.acme.Foo(x)", more=', "com.acme" : 1')
    model.graph.node[0].attribute.append(helper.make_attribute("blob", b"\xff\xfe\x00" * 1000))
    return model


@case
def float_that_is_not_a_number() -> Case:
    values = np.array([np.nan, np.inf, -np.inf, -0.0] * 300, np.float32)
    values.view(np.uint32)[0] = 0x7FC00123  # a payload
    return with_weight(numpy_helper.from_array(values, "w"))


@case
def unused_outputs_and_duplicate_names() -> Case:
    return parse("a, b = Split <axis = 0, num_outputs = 2> (x) y = Identity(a)", outputs="float[M] y")


@case
def graph_attributes_in_a_list() -> Case:
    model = parse("y = com.acme.Foo(x)", more=', "com.acme" : 1')
    graphs = [relu().graph, relu().graph]
    graphs[0].initializer.append(numpy_helper.from_array(np.ones(700, np.float32), "w"))
    model.graph.node[0].attribute.append(helper.make_attribute("bodies", graphs))
    tensors = [numpy_helper.from_array(np.ones(700, np.float32), f"t{i}") for i in range(2)]
    model.graph.node[0].attribute.append(helper.make_attribute("tensors", tensors))
    return model


@case
def segment_and_empty_graph_name() -> Case:
    model = relu()
    model.graph.name = " "
    return model


@case
def fields_that_no_version_knows() -> Case:
    """A field number of a future onnx survives, since nothing is parsed and written again."""
    return onnx.ModelProto.FromString(relu().SerializeToString() + b"\xfa\x3f\x05hello")


@case
def multi_device() -> Case:
    model = relu()
    model.configuration.add(name="two", num_devices=2)
    return model
