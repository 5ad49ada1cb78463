"""Protobuf that parses and is no valid model, or one that nobody can run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from hostile.case import RUN, Case, constant, graph, node, of, spoilt, text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WEIGHT = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")


def _first(model: ModelProto) -> TensorProto:
    return model.graph.initializer[0]


def _put(name: str, value: object) -> Callable[[ModelProto], object]:
    return lambda m: setattr(m, name, value)


def _dims(*dims: int) -> Callable[[ModelProto], object]:
    def change(model: ModelProto) -> None:
        del _first(model).dims[:]
        _first(model).dims.extend(dims)

    return change


def _typed(kind: int) -> Callable[[ModelProto], object]:
    return lambda m: setattr(_first(m), "data_type", kind)


def _opset(version: int) -> Callable[[ModelProto], object]:
    return lambda m: setattr(m.opset_import[0], "version", version)


def _both_values(model: ModelProto) -> None:
    _first(model).float_data.extend([1.0] * 216)


def _too_few_floats(model: ModelProto) -> None:
    _first(model).ClearField("raw_data")
    _first(model).float_data.extend([1.0] * 7)


def _strings_in_raw(model: ModelProto) -> None:
    _first(model).data_type = TensorProto.STRING


def _without(name: str) -> Callable[[ModelProto], object]:
    def change(model: ModelProto) -> None:
        kept = [t for t in model.graph.initializer if t.name != name]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)

    return change


def _twice(model: ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def _node(index: int, **fields: object) -> Callable[[ModelProto], object]:
    def change(model: ModelProto) -> None:
        for name, value in fields.items():
            if isinstance(value, list):
                del getattr(model.graph.node[index], name)[:]
                getattr(model.graph.node[index], name).extend(value)
            else:
                setattr(model.graph.node[index], name, value)

    return change


def _attribute(kind: int, **fields: object) -> Callable[[ModelProto], object]:
    """kernel_shape of the Conv becomes an attribute of another kind."""

    def change(model: ModelProto) -> None:
        attribute = model.graph.node[0].attribute[0]
        attribute.Clear()
        attribute.name, attribute.type = "kernel_shape", kind
        for name, value in fields.items():
            getattr(attribute, name).extend(value) if isinstance(value, list) else setattr(
                attribute, name, value
            )

    return change


def _kernel(*sizes: int) -> Callable[[ModelProto], object]:
    return _attribute(AttributeProto.INTS, ints=list(sizes))


def _clear(where: str) -> Callable[[ModelProto], object]:
    def change(model: ModelProto) -> None:
        head, _, tail = where.rpartition(".")
        target = model.graph if head else model
        target.ClearField(tail)

    return change


def _untyped(model: ModelProto) -> None:
    model.graph.input[0].ClearField("type")


def _element_type(field: str, kind: int) -> Callable[[ModelProto], object]:
    return lambda m: setattr(getattr(m.graph, field)[0].type.tensor_type, "elem_type", kind)


def _few_sizes(model: ModelProto) -> None:
    """Of a Reshape, in the field for typed values, which onnx's checker does not count."""
    model.graph.node.insert(3, node("Reshape", "p s", "q"))
    model.graph.node[4].input[0] = "q"
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.INT64, [2], [0, -1]))
    model.graph.initializer[-1].dims[0] = 4


def _contradiction(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7


def _missing_output(model: ModelProto) -> None:
    model.graph.output[0].name = "nowhere"


def _ifs(depth: int) -> ModelProto:
    """If bodies inside If bodies."""
    inner = helper.make_graph([node("Identity", "x", "o0")], "b0", [], [_float("o0")])
    for level in range(1, depth + 1):
        body = [helper.make_node("If", ["c"], [f"o{level}"], then_branch=inner, else_branch=_leaf(level))]
        inner = helper.make_graph(body, f"b{level}", [], [_float(f"o{level}")])
    return graph([constant("c", True, np.bool_), *inner.node], outputs={f"o{depth}": 2})


def _leaf(level: int) -> GraphProto:
    return helper.make_graph([node("Neg", "x", f"n{level}")], f"e{level}", [], [_float(f"n{level}")])


def _float(name: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4])


def _calls(functions: int, calls: int) -> str:
    """Functions that each call the next one `calls` times: calls ** functions nodes."""
    words = []
    for level in range(functions):
        body = " ".join(f"t{i + 1} = f.F{level + 1} (t{i})" for i in range(calls))
        words.append(
            f'<domain: "f", opset_import: ["" : 21, "f" : 1]> F{level} (t0) => (t{calls}) {{ {body} }}'
        )
    words.append(f'<domain: "f", opset_import: ["" : 21]> F{functions} (t0) => (u) {{ u = Neg (t0) }}')
    return "\n".join(words)


def _recursive(names: str) -> str:
    pairs = zip(names, names[1:] + names[0], strict=True)
    return "\n".join(
        f'<domain: "f", opset_import: ["" : 21, "f" : 1]> {a} (a) => (b) {{ b = f.{b} (a) }}'
        for a, b in pairs
    )


def _many_inputs(folder: Path) -> None:
    of(graph([node("Neg", "x0")], {f"x{i}": [1] for i in range(100_000)}, {"y": 1}))(folder)


CHANGES: dict[str, Callable[[ModelProto], object]] = {
    "no version of the format": _clear("ir_version"),
    "version 1 of the format": _put("ir_version", 1),
    "version 2 of the format": _put("ir_version", 2),
    "version 99999 of the format": _put("ir_version", 99999),
    "no opset": _clear("opset_import"),
    "opset -1": _opset(-1),
    "opset 0": _opset(0),
    "opset 30000": _opset(30000),
    "no nodes, an output": _clear("graph.node"),
    "no outputs": _clear("graph.output"),
    "a weight that is not there": _without("v"),
    "a weight twice": _twice,
    "fewer bytes than the shape": _dims(8, 3, 3, 4),
    "more bytes than the shape": _dims(8, 3, 3, 2),
    "a negative size": _dims(8, 3, -3, -3),
    "a shape beyond 64 bits": _dims(2**62, 2**62, 8, 3),
    "a type that is not known": _typed(99),
    "no type": _typed(0),
    "a negative type": _typed(-1),
    "floats said to be doubles": _typed(TensorProto.DOUBLE),
    "values in two fields": _both_values,
    "too few values": _too_few_floats,
    "strings in raw bytes": _strings_in_raw,
    "an operator that is not known": _node(1, op_type="NoSuchOperator"),
    "an operator without a name": _node(1, op_type=""),
    "an operator with too few inputs": _node(0, input=["x"]),
    "an operator with too many inputs": _node(1, input=["h"] * 50),
    "a node without outputs": _node(4, output=[]),
    "a name for two outputs": _node(1, output=["h"]),
    "a node that reads its own output": _node(1, input=["r"]),
    "a cycle of two": _node(0, input=["p", "w", "b"]),
    "an input of another domain's operator": _node(1, domain="ai.onnx.ml"),
    "a kernel of size 0": _kernel(0, 0),
    "a kernel of negative size": _kernel(-3, -3),
    "a kernel of another size": _kernel(5, 5),
    "a kernel of 3 axes": _kernel(3, 3, 3),
    "a kernel that is text": _attribute(AttributeProto.STRING, s=b"3x3"),
    "a kernel that is a graph": _attribute(AttributeProto.GRAPH),
    "a kernel of no type": _attribute(0, ints=[3, 3]),
    "an input without a type": _untyped,
    "an output that nobody makes": _missing_output,
    "an input of an unknown type": _element_type("input", 2**31 - 1),
    "an input of a negative type": _element_type("input", -5),
    "an input of no type": _element_type("input", 0),
    "an output of an unknown type": _element_type("output", 77),
    "sizes fewer than their shape": _few_sizes,
}
CASES: dict[str, Case] = {
    name: Case(spoilt(change), RUN + ("int8", "svd", "cluster")[at % 3])
    for at, (name, change) in enumerate(CHANGES.items())
}
CASES |= {
    "a function that calls itself": Case(text("y = f.A (x)", functions=_recursive("A"))),
    "functions that call each other": Case(text("y = f.A (x)", functions=_recursive("ABC"))),
    "recursive, and not called": Case(text("y = Neg (x)", functions=_recursive("AB"))),
    "functions of 2^30 nodes": Case(text("y = f.F0 (x)", functions=_calls(30, 2))),
    "functions of 10^9 nodes": Case(text("y = f.F0 (x)", functions=_calls(9, 10))),
    "functions of 2^9 nodes": Case(text("y = f.F0 (x)", functions=_calls(9, 2)), RUN + "int8 -q"),
    "functions of 2^19 nodes": Case(text("y = f.F0 (x)", functions=_calls(19, 2))),
    "functions 300 deep": Case(text("y = f.F0 (x)", functions=_calls(300, 1))),
    "functions 3000 deep": Case(text("y = f.F0 (x)", functions=_calls(3000, 1))),
    "Ifs 10 deep": Case(of(_ifs(10))),
    "Ifs 30 deep": Case(of(_ifs(30))),
    "an output of another shape": Case(spoilt(_contradiction), RUN + "int8 -q"),
    "a body with other outputs": Case(
        text(
            "c = Constant<value = bool {1}>() y = If (c) <then_branch = t () => (float[2, 4] a) { a = Neg(x) }, "
            "else_branch = e () => (float[2, 4] a, float[2, 4] b) { a = Neg(x) b = Neg(x) }>"
        ),
    ),
    "a body that reads what comes later": Case(
        text(
            "c = Constant<value = bool {1}>() y = If (c) <then_branch = t () => (float[2, 4] a) { a = Neg(z) }, "
            "else_branch = e () => (float[2, 4] b) { b = Neg(x) }> z = Neg(x)"
        ),
    ),
    "a division by zero": Case(
        text("z = Constant<value = int64 {0}>() s = Shape(x) d = Div(s, z) y = Reshape(x, d)")
    ),
    "a group that does not divide": Case(
        of(
            graph(
                [node("Conv", "x w", group=3)],
                {"x": [1, 4, 5, 5]},
                {"y": 4},
                weights=[numpy_helper.from_array(np.ones((6, 2, 3, 3), np.float32), "w")],
            )
        ),
    ),
    "group 0": Case(
        of(
            graph(
                [node("Conv", "x w", group=0)],
                {"x": [1, 4, 5, 5]},
                {"y": 4},
                weights=[numpy_helper.from_array(np.ones((6, 2, 3, 3), np.float32), "w")],
            )
        ),
    ),
    "blocks of size 0": Case(
        of(graph([node("DepthToSpace", "x", blocksize=0)], {"x": [1, 4, 5, 5]}, {"y": 4}))
    ),
    "strides of size 0": Case(
        of(graph([node("MaxPool", "x", kernel_shape=[2, 2], strides=[0, 0])], {"x": [1, 4, 5, 5]}, {"y": 4})),
    ),
    "matrices that do not fit": Case(of(graph([node("MatMul", "x w")], {"x": [2, 3]}, weights=[WEIGHT]))),
    "a Gather out of range": Case(of(graph([constant("i", [7]), node("Gather", "w i")], weights=[WEIGHT]))),
    "a NUL in every name": Case(of(graph([node("Neg", "x\0", "y\0")], {"x\0": [2, 4]}, {"y\0": 2}))),
    "names of 100,000 letters": Case(
        of(graph([node("Neg", "x" * 100_000, "y" * 100_000)], {"x" * 100_000: [2, 4]}, {"y" * 100_000: 2})),
    ),
    "a newline in a name, missing": Case(of(graph([node("Add", "x a\nb")]))),
    "a graph without a name": Case(spoilt(lambda m: m.graph.ClearField("name"))),
    "100,000 inputs": Case(
        _many_inputs,
    ),
}
