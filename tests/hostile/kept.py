"""Odd models that are valid: what they hold is kept or refused, never dropped (`test_hostile` looks into the result)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from hostile.case import RUN, Case, graph, node, of, spoilt, text

if TYPE_CHECKING:
    from collections.abc import Callable


def _weight(value: float) -> Callable[[ModelProto], object]:
    def change(model: ModelProto) -> None:
        array = numpy_helper.to_array(model.graph.initializer[0]).copy()
        array.flat[3] = value
        model.graph.initializer[0].raw_data = array.tobytes()

    return change


def _zeros(model: ModelProto) -> None:
    for tensor in model.graph.initializer:
        tensor.raw_data = bytes(len(tensor.raw_data))


def _metadata(model: ModelProto) -> None:
    model.metadata_props.add(key="labels", value="a,b")
    model.graph.node[0].metadata_props.add(key="k", value="v")
    model.graph.initializer[0].doc_string = "kept"
    model.doc_string, model.producer_name, model.domain = "words", "someone", "org.example"


def _bytes(model: ModelProto) -> None:
    """An attribute of a custom operator that is no UTF-8."""
    model.opset_import.add(domain="com.acme", version=1)
    model.graph.node[1].domain, model.graph.node[1].op_type = "com.acme", "Odd"
    model.graph.node[1].attribute.add(name="blob", type=onnx.AttributeProto.STRING, s=b"\xff\xfe\x00")


def _devices(model: ModelProto) -> None:
    model.ir_version = 11
    model.configuration.add(name="two", num_devices=2)


def _training(model: ModelProto) -> None:
    model.training_info.add().algorithm.CopyFrom(
        helper.make_graph([node("Neg", "a", "b")], "step", [], [helper.make_tensor_value_info("b", 1, [1])])
    )
    model.training_info[0].algorithm.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "a"))


def _overridable(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [8, 3, 3, 3]))


def _annotation(model: ModelProto) -> None:
    model.graph.quantization_annotation.add(tensor_name="r").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="c"
    )


def _unused(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.ones(5, np.float32), "unused"))


def _typed(field: str, kind: str) -> Callable[[ModelProto], object]:
    def change(model: ModelProto) -> None:
        value = getattr(model.graph, field)[0]
        value.type.Clear()
        tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [2, 4])
        value.type.CopyFrom(
            helper.make_sequence_type_proto(tensor)
            if kind == "seq"
            else helper.make_optional_type_proto(tensor)
        )

    return change


def _sequence_out() -> ModelProto:
    made = graph([node("SequenceConstruct", "x x")])
    _typed("output", "seq")(made)
    return made


def _sequence_in() -> ModelProto:
    made = graph([helper.make_node("ConcatFromSequence", ["x"], ["y"], axis=0)])
    _typed("input", "seq")(made)
    return made


def _optional_in() -> ModelProto:
    made = graph([node("OptionalGetElement", "x")], opset=18)
    _typed("input", "optional")(made)
    return made


def _sparse(model: ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(3, np.float32), "v")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0, 9, 33]), "i"), [20, 8])
    kept = [t for t in model.graph.initializer if t.name != "v"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.sparse_initializer.append(sparse)


def _strings() -> ModelProto:
    tensor = helper.make_tensor("s", TensorProto.STRING, [2], [b"a\xff", b"b"])  # type: ignore[list-item]
    made = graph([node("Identity", "s"), node("Neg", "x", "z")], outputs={"z": 2}, weights=[tensor])
    made.graph.output.append(helper.make_tensor_value_info("y", TensorProto.STRING, [2]))
    return made


def _batch_norm() -> ModelProto:
    names = ("s", "o", "m", "v")
    weights = [numpy_helper.from_array(np.full(3, 1.5, np.float32), name) for name in names]
    body = helper.make_node("BatchNormalization", ["x", *names], ["y", "m2", "v2"], training_mode=1)
    return graph([body], {"x": [4, 3, 5, 5]}, {"y": 4, "m2": 1, "v2": 1}, weights)


def _empty_weight() -> ModelProto:
    weights = [numpy_helper.from_array(np.ones((0, 4), np.float32), "w")]
    return graph([helper.make_node("Concat", ["x", "w"], ["y"], axis=0)], weights=weights)


def _scalar() -> ModelProto:
    return graph(
        [node("Mul", "x w")],
        {"x": []},
        {"y": 0},
        weights=[numpy_helper.from_array(np.array(3.0, np.float32), "w")],
    )


def _nothing_in() -> ModelProto:
    return graph([node("Neg", "w")], {}, weights=[numpy_helper.from_array(np.ones((4, 4), np.float32), "w")])


def _unsorted(model: ModelProto) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))


CHANGES: dict[str, Callable[[ModelProto], object]] = {
    "NaN in a weight": _weight(np.nan),
    "infinity in a weight": _weight(np.inf),
    "weights of zeros": _zeros,
    "metadata": _metadata,
    "a custom operator with bytes": _bytes,
    "device configurations": _devices,
    "how to train it": _training,
    "a weight that is an input": _overridable,
    "quantization annotations": _annotation,
    "a weight that nobody uses": _unused,
    "a sparse weight": _sparse,
    "unsorted nodes": _unsorted,
}
MODELS: dict[str, Callable[[], ModelProto]] = {
    "a sequence out": _sequence_out,
    "a sequence in": _sequence_in,
    "an optional in": _optional_in,
    "a normalization in training": _batch_norm,
    "a weight without values": _empty_weight,
    "tensors without axes": _scalar,
    "no inputs": _nothing_in,
}
PASSES = ("int8", "svd", "cluster")
CASES: dict[str, Case] = {
    **{
        f"{name}, {spec}": Case(spoilt(change), f"{RUN}{spec} -q")
        for name, change in CHANGES.items()
        for spec in PASSES
    },
    **{
        f"{name}, {PASSES[at % 3]}": Case(of(make()), f"{RUN}{PASSES[at % 3]} -q")
        for at, (name, make) in enumerate(MODELS.items())
    },
    "strings that are no UTF-8": Case(of(_strings()), RUN + "int8 -q"),
    "a custom domain": Case(text("y = com.acme.Foo (x)"), RUN + "svd -q"),
    "an operator that onnxruntime lacks": Case(
        of(
            graph(
                [node("Conv", "x x")],
                {"x": [1, 1, 1, 1]},
                {"y": 4},
                kinds=(TensorProto.DOUBLE, TensorProto.DOUBLE),
            )
        ),
        RUN + "int8 -q",
    ),
}
