"""External data that is not where it may be, or not what it should be."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from hostile.case import RUN, Case, good, graph, node

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NONE = "in.onnx out.onnx --passes none"
CACHED = "snapshots/rev/onnx/model.onnx out.onnx --passes "
ROWS = 216  # floats of the weight `w`, 864 bytes
BYTES = np.ones(ROWS, np.float32).tobytes()


def _refer(tensor: TensorProto, **words: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in words.items():
        tensor.external_data.add(key=key, value=value)


def _model(**words: str) -> ModelProto:
    proto = good()
    _refer(proto.graph.initializer[0], **words)
    return proto


def place(make: Callable[[Path], object] | None = None, **words: str) -> Callable[[Path], object]:
    """The good model, one weight at the place that `words` say; `make` makes the place."""

    def write(folder: Path) -> None:
        if make is not None:
            make(folder)
        (folder / "in.onnx").write_bytes(_model(**{"location": "w.bin", **words}).SerializeToString())

    return write


def _data(folder: Path) -> None:
    (folder / "w.bin").write_bytes(BYTES)


def _outside(folder: Path) -> Path:
    """A file that the user can read and the model must not: beside the folder, not in it."""
    secret = folder.parent / "outside.bin"
    secret.write_bytes(BYTES)
    return secret


def _link(folder: Path) -> None:
    (folder / "w.bin").symlink_to(_outside(folder))


def _link_folder(folder: Path) -> None:
    _outside(folder)
    (folder / "sub").symlink_to(folder.parent)


def _hard_link(folder: Path) -> None:
    (folder / "w.bin").hardlink_to(_outside(folder))


def _short(folder: Path) -> None:
    (folder / "w.bin").write_bytes(BYTES[:-1])


def _empty(folder: Path) -> None:
    (folder / "w.bin").touch()


def _roundabout(folder: Path) -> None:
    _outside(folder)
    (folder / "a").mkdir()


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "w.bin")


def _device(folder: Path) -> None:
    (folder / "w.bin").symlink_to("/dev/zero")


def _loop(folder: Path) -> None:
    (folder / "w.bin").symlink_to("w.bin")


def _folder(folder: Path) -> None:
    (folder / "w.bin").mkdir()


def _sub(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "w.bin").write_bytes(BYTES)


def _cache(folder: Path) -> None:
    """As Hugging Face keeps a repository: model and data are links into one folder of blobs."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "rev" / "onnx"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "a1").write_bytes(_model(location="model.onnx_data").SerializeToString())
    (blobs / "b2").write_bytes(BYTES)
    (snapshot / "model.onnx").symlink_to("../../../blobs/a1")
    (snapshot / "model.onnx_data").symlink_to("../../../blobs/b2")


def _stolen(folder: Path) -> None:
    """As above, but the data's link leads out of the folder of blobs."""
    _cache(folder)
    link = folder / "snapshots" / "rev" / "onnx" / "model.onnx_data"
    link.unlink()
    link.symlink_to(_outside(folder))


def body_weight(location: str, *, present: bool = False) -> Callable[[Path], object]:
    """The place is named in a Constant inside an If body, where a reader of initializers does not look."""
    tensor = numpy_helper.from_array(np.ones((2, 4), np.float32), "t")
    _refer(tensor, location=location)
    body = helper.make_graph(
        [helper.make_node("Constant", [], ["o"], value=tensor)], "b", [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [2, 4])],
    )  # fmt: skip
    yes = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True), "c"))
    made = graph([yes, helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)])

    def write(folder: Path) -> None:
        if present:
            (folder / location).write_bytes(BYTES[:32])
        _outside(folder)
        (folder / "in.onnx").write_bytes(made.SerializeToString())

    return write


def _training(folder: Path) -> None:
    """The place is named in what trains the model."""
    _outside(folder)
    proto = good()
    tensor = numpy_helper.from_array(np.ones((2, 4), np.float32), "t")
    _refer(tensor, location="../outside.bin")
    proto.training_info.add().initialization.initializer.append(tensor)
    (folder / "in.onnx").write_bytes(proto.SerializeToString())


def _function(folder: Path) -> None:
    _outside(folder)
    tensor = numpy_helper.from_array(np.ones((2, 4), np.float32), "t")
    _refer(tensor, location="../outside.bin")
    body = [helper.make_node("Constant", [], ["b"], value=tensor)]
    function = helper.make_function("f", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    made = graph([helper.make_node("F", ["x"], ["y"], domain="f")])
    made.functions.append(function)
    made.opset_import.add(domain="f", version=1)
    (folder / "in.onnx").write_bytes(made.SerializeToString())


def _sparse(folder: Path) -> None:
    _outside(folder)
    values = numpy_helper.from_array(np.ones(3, np.float32), "s")
    _refer(values, location="../outside.bin")
    indices = numpy_helper.from_array(np.arange(3), "i")
    made = graph([node("Add", "x s")])
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 4]))
    (folder / "in.onnx").write_bytes(made.SerializeToString())


def _bare(folder: Path) -> None:
    proto = good()
    _refer(proto.graph.initializer[0])
    (folder / "in.onnx").write_bytes(proto.SerializeToString())


def _stub_names(folder: Path) -> None:
    """Places named as our own references to weights might be."""
    proto = good()
    big = numpy_helper.from_array(np.ones((20, 8, 2), np.float32), "big")
    proto.graph.initializer.append(big)
    _refer(proto.graph.initializer[0], location="0")
    (folder / "in.onnx").write_bytes(proto.SerializeToString())


CASES: dict[str, Case] = {
    "is missing": Case(place(), NONE),
    "is truncated": Case(place(_short), NONE),
    "is truncated, the length said": Case(place(_short, length="864"), NONE),
    "is empty": Case(place(_empty), NONE),
    "begins beyond its end": Case(place(_data, offset="999999"), NONE),
    "begins before it": Case(place(_data, offset="-1"), NONE),
    "begins beyond 64 bits": Case(place(_data, offset="9" * 30), NONE),
    "begins at a number of 10,000 digits": Case(place(_data, offset="9" * 10_000), NONE),
    "begins at no number": Case(place(_data, offset="x"), NONE),
    "has a negative length": Case(place(_data, length="-5"), NONE),
    "has an endless length": Case(place(_data, length="9" * 30), NONE),
    "has another length": Case(place(_data, length="860"), NONE),
    "lies above": Case(place(_outside, location="../outside.bin"), NONE),
    "lies above, in a roundabout way": Case(
        place(_roundabout, location="a/../../outside.bin"),
        NONE,
    ),
    "is absolute": Case(place(location="/etc/hostname"), NONE),
    "is a link that leads out": Case(place(_link), NONE),
    "is below a link that leads out": Case(place(_link_folder, location="sub/outside.bin"), RUN + "svd"),
    "is a hard link": Case(place(_hard_link), RUN + "svd"),
    "is a FIFO": Case(place(_fifo), NONE),
    "is a device": Case(place(_device), NONE),
    "is a link to itself": Case(place(_loop), NONE),
    "is a folder": Case(place(_folder), NONE),
    "is the model's folder": Case(place(location="."), NONE),
    "is a process's memory": Case(place(location="/proc/self/mem"), NONE),
    "has a name with NUL": Case(place(location="a\0b"), NONE),
    "has a name of 100,000 letters": Case(place(location="a" * 100_000), NONE),
    "has no name": Case(place(location=""), NONE),
    "is nowhere": Case(_bare, NONE),
    "is inside a body, above": Case(body_weight("../outside.bin"), NONE),
    "is of the training, above": Case(_training, NONE),
    "is of a function, above": Case(_function, NONE),
    "is of a sparse weight, above": Case(_sparse, NONE),
    "is named like a reference": Case(_stub_names, NONE),
    "of a cache leads out of it": Case(_stolen, CACHED + "none"),
    "of a cache is right": Case(_cache, CACHED + "none -q"),
    "of a cache is right, compressed": Case(_cache, CACHED + "svd -q"),
    "lies in a folder below": Case(place(_sub, location="sub/w.bin"), NONE + " -q"),
    "is right": Case(place(_data), RUN + "int8 -q"),
}
