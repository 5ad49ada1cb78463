"""What the other files leave out: escape sequences, links, old formats, numbers without end, and data in odd places."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from typing import TYPE_CHECKING

import numpy as np
from onnx import AttributeProto, ModelProto, TensorProto, helper

from hostile.archives import UNPACK, archive_of, named
from hostile.case import RUN, Case, constant, good, graph, node, of, raw, spoilt
from hostile.data import GOOD, ROWS, arrays, data
from hostile.external import BYTES, body_weight, place

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NONE = "in.onnx out.onnx --passes none"
INT8 = RUN + "int8 --data d.npz -q"
ESCAPES = "\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202e"  # clears the screen, names the window, turns text round
DIGITS = "9" * 5000


def _unknown_fields(model: ModelProto) -> bytes:
    """Fields that no version of the format has, in the model and in its graph."""
    strange = b"\xfa\x3e\x03abc"  # field 1007
    inside = model.graph.SerializeToString() + strange
    model.ClearField("graph")
    size, length = len(inside), b""
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return model.SerializeToString() + b"\x3a" + length + bytes([size]) + inside + strange


def _old(opset: int) -> ModelProto:
    """Conv, Relu and Gemm as the opset has them; every weight is an input, as version 3 of the format wants it."""
    model = good()
    model.ir_version, model.opset_import[0].version = 3, opset
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    if opset < 7:
        model.graph.node[4].attribute.append(helper.make_attribute("broadcast", 1))
    return model


def _bare_weights(model: ModelProto) -> None:
    model.ir_version = 3


def _dims(*dims: int) -> Callable[[ModelProto], object]:
    """The first weight has these, and no values."""

    def change(model: ModelProto) -> None:
        tensor = model.graph.initializer[0]
        del tensor.dims[:]
        tensor.dims.extend(dims)
        tensor.ClearField("raw_data")

    return change


def _attribute(index: int, attribute: AttributeProto) -> Callable[[ModelProto], object]:
    return lambda m: m.graph.node[index].attribute.append(attribute)


def _rename(old: str, new: str) -> Callable[[ModelProto], object]:
    """A tensor by another name, everywhere."""

    def change(model: ModelProto) -> None:
        for number, one in enumerate(model.graph.node):
            one.name = f"{new}{number}"
            for names in (one.input, one.output):
                for at, name in enumerate(names):
                    names[at] = new if name == old else name
        for value in (*model.graph.initializer, *model.graph.input, *model.graph.output):
            value.name = new if value.name == old else value.name

    return change


def _two_inputs(model: ModelProto) -> None:
    model.graph.input.append(model.graph.input[0])


def _no_else() -> ModelProto:
    body = helper.make_graph(
        [node("Neg", "x", "a")], "t", [], [helper.make_tensor_value_info("a", 1, [2, 4])]
    )
    return graph([constant("c", True, np.bool_), helper.make_node("If", ["c"], ["y"], then_branch=body)])


def _typed(kind: int) -> ModelProto:
    """A weight of a narrow type, cast to float."""
    weight = helper.make_tensor("w", kind, [4, 4], np.ones(16))
    made = graph(
        [node("Cast", "w", "f", to=TensorProto.FLOAT), node("MatMul", "x f")], weights=[weight], opset=21
    )
    made.ir_version = 10
    return made


def _linked(name: str, target: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        data(GOOD)(folder)
        (folder / name).symlink_to(target)

    return make


def _over_data(folder: Path) -> None:
    (folder / "w.bin").write_bytes(BYTES)


def _linked_data(folder: Path) -> None:
    _over_data(folder)
    (folder / "out.onnx").symlink_to("w.bin")


def _into_model(folder: Path) -> None:
    """Weights that are said to lie in the model's own file."""
    place(None, location="in.onnx", offset="0")(folder)


def _shared(folder: Path) -> None:
    """Two weights at one place of a data file."""
    model = good()
    for tensor in (model.graph.initializer[0], model.graph.initializer[2]):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("length", str(4 * int(np.prod(tensor.dims))))):
            tensor.external_data.add(key=key, value=value)
    (folder / "w.bin").write_bytes(BYTES)
    of(model)(folder)


def _stolen_set(folder: Path) -> None:
    """A calibration tensor that names a file as its value."""
    tensor = TensorProto(name="x", data_type=TensorProto.FLOAT, dims=[1, 3, 8, 8])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    (folder / "secret.bin").write_bytes(bytes(768))
    data(tensor.SerializeToString(), "test_data_set_0/input_0.pb")(folder)


def _row() -> bytes:
    out = io.BytesIO()
    np.save(out, ROWS)
    return out.getvalue()


ROW = _row()


def _members(count: int, name: str = "x{}.npy") -> bytes:
    """An npz file of many members, the good one twice among them."""
    out = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(out, "w") as archive:
        for number in range(count):
            archive.writestr(name.format(number), ROW)
    return out.getvalue()


def _recipe(content: str) -> Case:
    return Case(data(content.encode(), "r.toml"), "in.onnx out.onnx --recipe r.toml -q")


def _words(words: str) -> Case:
    return Case(data(GOOD), words)


def _hard_linked(folder: Path) -> None:
    data(GOOD)(folder)
    (folder / "r.json").hardlink_to(folder / "in.onnx")


def _closed(folder: Path) -> None:
    """A folder that cannot be entered, but by root."""
    data(GOOD)(folder)
    (folder / "f").mkdir()
    os.mkfifo(folder / "f" / "x.npz")


CASES: dict[str, Case] = {
    "escapes in the name of a missing weight": Case(
        spoilt(lambda m: (_rename("v", f"v{ESCAPES}")(m), m.graph.initializer.pop(2))), RUN + "svd"
    ),
    "escapes in every name": Case(spoilt(_rename("r", f"r{ESCAPES}")), RUN + "svd"),
    "escapes in every name, inspected": Case(spoilt(_rename("r", f"r{ESCAPES}")), "inspect in.onnx"),
    "escapes in an operator": Case(
        spoilt(lambda m: setattr(m.graph.node[1], "op_type", f"R{ESCAPES}")), RUN + "svd"
    ),
    "escapes in the place of the data": Case(place(location=f"w{ESCAPES}.bin"), NONE),
    "escapes in the name of the output": _words(f"in.onnx no{ESCAPES}/out.onnx --passes none"),
    "escapes in the name of a pass": _words(f"in.onnx out.onnx --passes p{ESCAPES}"),
    "escapes in the producer, inspected": Case(
        spoilt(lambda m: setattr(m, "producer_name", ESCAPES)), "inspect in.onnx"
    ),
    "fields that no version has": Case(raw(_unknown_fields(good())), RUN + "svd -q"),
    **{f"opset {n} of version 3": Case(of(_old(n)), f"{RUN}{('int8', 'cluster', 'svd')[n % 3]} -q") for n in (6, 7, 8)},
    "version 3, weights that are no inputs": Case(spoilt(_bare_weights), RUN + "svd -q"),
    "a shape that wraps round to 0": Case(spoilt(_dims(2**32, 2**32, 3, 3)), RUN + "svd"),
    "a shape that wraps round to its size": Case(spoilt(_dims(2**33 + 1, 2**33, 2**33)), RUN + "svd"),
    "a size below 32 bits": Case(spoilt(_dims(-(2**31), 3, 3, 3)), RUN + "svd"),
    "a shape of 10,000 axes": Case(spoilt(_dims(*[1] * 10_000)), RUN + "svd"),
    "an attribute of 10^6 numbers": Case(
        spoilt(_attribute(0, helper.make_attribute("pads", [1] * 10**6))), RUN + "svd"
    ),
    "an attribute twice": Case(
        spoilt(_attribute(0, helper.make_attribute("kernel_shape", [3, 3]))), RUN + "svd"
    ),
    "an attribute that refers to a function's": Case(
        spoilt(_attribute(0, AttributeProto(name="group", ref_attr_name="g", type=AttributeProto.INT))), RUN + "svd"
    ),
    "10^5 entries of metadata": Case(
        spoilt(lambda m: [m.metadata_props.add(key=str(n), value="v") for n in range(10**5)]), RUN + "svd -q"
    ),
    "a key of the metadata twice": Case(
        spoilt(lambda m: [m.metadata_props.add(key="k", value="v") for _ in range(2)]), RUN + "svd"
    ),
    "words of 5 MB": Case(spoilt(lambda m: setattr(m, "doc_string", "w" * 5_000_000)), RUN + "svd -q"),
    "an input twice": Case(spoilt(_two_inputs), RUN + "svd"),
    "an If without an else": Case(of(_no_else()), RUN + "svd"),
    "a Loop without a body": Case(of(graph([node("Loop", "- - x")])), RUN + "svd"),
    "weights of 4 bits": Case(of(_typed(TensorProto.INT4)), RUN + "svd -q"),
    "weights of bfloat16": Case(of(_typed(TensorProto.BFLOAT16)), RUN + "cluster -q"),
    "weights of float8": Case(of(_typed(TensorProto.FLOAT8E4M3FN)), RUN + "int8 -q"),
    "data inside a body": Case(body_weight("w.bin", present=True), RUN + "svd -q"),
    "data inside a body, gone": Case(body_weight("w.bin"), RUN + "svd"),
    "data in the model's own file": Case(_into_model, RUN + "svd"),
    "data that two weights share": Case(_shared, RUN + "cluster -q"),
    "out is the model's data": Case(place(_over_data), "in.onnx w.bin --passes none"),
    "out is a link to the model's data": Case(
        place(_linked_data), NONE
    ),
    "out is a link to nothing": Case(_linked("out.onnx", "new.onnx"), NONE + " -q"),
    "out is a link into no folder": Case(_linked("out.onnx", "no/new.onnx"), NONE),
    "out is a device": _words("in.onnx /dev/null --passes none"),
    "out is a full device": _words("in.onnx /dev/full --passes none"),
    "a report is a link to the model": Case(_linked("r.json", "in.onnx"), f"{NONE} --report r.json"),
    "a report is the model by another name": Case(_hard_linked, f"{NONE} --report r.json"),
    "a report is a link to the output": Case(_linked("r.json", "out.onnx"), f"{NONE} --report r.json"),
    "a report is a link to the data": Case(_linked("r.json", "d.npz"), f"{INT8} --report r.json"),
    "a report is in no folder": _words(f"{NONE} --report no/r.json"),
    "a report is a folder": Case(data(b"", "r.json/x"), f"{NONE} --report r.json"),
    "calibration of 10^4 other arrays": Case(data(_members(10**4)), INT8),
    "calibration with a name twice": Case(data(_members(3, "x.npy")), INT8),
    "calibration with names that lead up": Case(data(_members(3, "../../x{}.npy")), INT8),
    "calibration of large-endian numbers": Case(data(arrays(x=ROWS.astype(">f4"))), INT8),
    "calibration in columns": Case(data(arrays(x=np.asfortranarray(ROWS))), INT8),
    "calibration of truths": Case(data(arrays(x=ROWS > 0)), INT8),
    "calibration of 10^40": Case(data(arrays(x=np.full((8, 3, 8, 8), 1e40))), INT8),
    "calibration of the largest numbers": Case(data(arrays(x=np.full((8, 3, 8, 8), 3e38, np.float32))), INT8),
    "calibration of nothing but zeros": Case(data(arrays(x=0 * ROWS)), INT8),
    "a test set that names a file": Case(_stolen_set, RUN + "int8 --data test_data_set_0"),
    "a folder with a FIFO": Case(_closed, RUN + "int8 --data f"),
    "a recipe of a number of 5000 digits": _recipe(f"[[pass]]\nname = 'svd'\nrank = {DIGITS}"),
    "a recipe of NaN": _recipe("[[pass]]\nname = 'svd'\ntolerance = nan"),
    "a recipe of infinity": _recipe("[[pass]]\nname = 'svd'\ntolerance = -inf"),
    "a recipe of a date": _recipe("[[pass]]\nname = 'svd'\ntolerance = 2020-01-01"),
    "a recipe of 10^5 passes": _recipe("[[pass]]\nname = 'nope'\n" * 10**5),
    "a recipe with a name of 10^6 letters": _recipe(f"[[pass]]\nname = '{'n' * 10**6}'"),
    "a recipe with a key twice": _recipe("[[pass]]\nname = 'svd'\nname = 'int8'"),
    "a SPEC of a number of 5000 digits": _words(f"{RUN}svd:rank={DIGITS}"),
    "a SPEC of NaN": _words(f"{RUN}int8:tolerance=nan"),
    "a SPEC of 1e400": _words(f"{RUN}int8:tolerance=1e400"),
    "a SPEC of digits of another script": _words(f"{RUN}svd:rank=\u0967"),
    "sizes of 5000 digits": _words(f"{RUN}svd --input-shapes x:{DIGITS},3,8,8"),
    "samples of 5000 digits": _words(f"{RUN}svd --samples {DIGITS}"),
    "decisions of 5000 digits": Case(
        data(f'{{"passes": {DIGITS}}}'.encode(), "r.json"), RUN + "int8 --decisions r.json"
    ),
    "decisions of NaN": Case(
        data(b'{"passes": [{"name": "int8", "decisions": [{"node": "a", "what": "keep", "value": NaN, "kept": true}]}]}',
             "r.json"), RUN + "int8 -q --decisions r.json"
    ),
    "a model named like an option": _words("--no-such out.onnx --passes none"),
    "a model named -": _words("- out.onnx --passes none"),
    "an archive whose data is the output": Case(archive_of(named(b"out.onnx")), UNPACK),
    "two models that cannot be compared": Case(
        lambda f: (of(good())(f), (f / "b.onnx").write_bytes(graph([node("Neg", "x")]).SerializeToString())),
        "verify in.onnx b.onnx",
    ),
}  # fmt: skip
