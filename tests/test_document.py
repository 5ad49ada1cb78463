"""A model is loaded, looked into and saved without losing a byte that nobody changed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from onnx_compress.errors import InputError
from onnx_compress.model.check import check
from onnx_compress.model.document import Model, tensors

if TYPE_CHECKING:
    from pathlib import Path


def big(name: str = "w", dtype: type = np.float32) -> np.ndarray:
    del name
    return np.arange(4096).reshape(64, 64).astype(dtype)


def model_of(array: np.ndarray) -> onnx.ModelProto:
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="m", doc_string="kept")
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])],
        [onnx.numpy_helper.from_array(array, "w")],
    )
    return onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 21)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "in.onnx"
    path.write_bytes(model_of(big()).SerializeToString())
    return path


def test_weights_are_left_in_the_file(path: Path) -> None:
    """The skeleton holds a reference in place of each weight of 1 KB or more."""
    model = Model.load(path)
    assert model.proto.ByteSize() < 1024
    assert np.array_equal(model.array(model.proto.graph.initializer[0]), big())


def test_save_gives_back_the_bytes(path: Path, tmp_path: Path) -> None:
    Model.load(path).save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()


def test_weights_cannot_be_written_in_place(path: Path) -> None:
    model = Model.load(path)
    with pytest.raises(ValueError, match="read-only"):
        model.array(model.proto.graph.initializer[0])[0, 0] = 1


def test_a_copy_does_not_see_an_edit(path: Path) -> None:
    model = Model.load(path)
    copy = model.copy()
    copy.set_array(copy.proto.graph.initializer[0], np.zeros((64, 64), np.float32))
    assert model.array(model.proto.graph.initializer[0]).any()
    assert not copy.array(copy.proto.graph.initializer[0]).any()


def test_saving_over_the_input_works(path: Path) -> None:
    """The old file stays mapped until the new one has its name."""
    model = Model.load(path)
    model.set_array(model.proto.graph.initializer[0], big() + 1)
    model.save(path)
    assert np.array_equal(onnx.numpy_helper.to_array(onnx.load(path).graph.initializer[0]), big() + 1)
    assert os.listdir(path.parent) == ["in.onnx"]


def test_external_data_out_and_in(path: Path, tmp_path: Path) -> None:
    Model.load(path).save(tmp_path / "out.onnx", external=True)
    assert (tmp_path / "out.onnx").stat().st_size < 1024
    again = Model.load(tmp_path / "out.onnx")
    assert np.array_equal(again.array(again.proto.graph.initializer[0]), big())
    assert np.array_equal(
        onnx.numpy_helper.to_array(onnx.load(tmp_path / "out.onnx").graph.initializer[0]), big()
    )


def test_an_old_model_stays_whole_beside_new_external_data(path: Path, tmp_path: Path) -> None:
    """The data file gets a fresh name: overwriting the one that an old model uses would break it before the rename."""
    out = tmp_path / "out.onnx"
    Model.load(path).save(out, external=True)
    first = set(os.listdir(tmp_path))
    Model.load(path).save(out, external=True)
    assert first < set(os.listdir(tmp_path))


def test_a_failed_save_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.load(path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        model.save(path.parent / "out.onnx")
    assert os.listdir(path.parent) == ["in.onnx"]


@pytest.mark.parametrize(
    "dtype",
    [
        "float16",
        "bfloat16",
        "float64",
        "float8_e4m3fn",
        "float8_e5m2",
        "int4",
        "uint4",
        "int8",
        "bool",
        "complex64",
    ],
)
def test_every_type_is_carried(dtype: str) -> None:
    import ml_dtypes

    kind = getattr(ml_dtypes, dtype, None) or np.dtype(dtype)
    array = (np.arange(4096) % 7).reshape(64, 64).astype(kind)
    proto = model_of(array)
    model = Model.from_proto(proto)
    assert np.array_equal(model.array(model.proto.graph.initializer[0]), array)
    assert model.to_proto().SerializeToString() == proto.SerializeToString()
    model.set_array(model.proto.graph.initializer[0], array[::-1])
    assert np.array_equal(onnx.numpy_helper.to_array(model.to_proto().graph.initializer[0]), array[::-1])


def test_a_weight_in_a_constant_node_and_in_a_body_is_found() -> None:
    inner = onnx.helper.make_graph(
        [onnx.helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(big(), "c"))],
        "then", [], [onnx.helper.make_tensor_value_info("c", TensorProto.FLOAT, [64, 64])],
    )  # fmt: skip
    node = onnx.helper.make_node("If", ["b"], ["y"], then_branch=inner, else_branch=inner)
    graph = onnx.helper.make_graph(
        [node], "g", [onnx.helper.make_tensor_value_info("b", TensorProto.BOOL, [])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 64])],
    )  # fmt: skip
    proto = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 21)])
    model = Model.from_proto(proto)
    assert model.proto.ByteSize() < 2048
    assert [np.array_equal(model.array(t), big()) for t in tensors(model.proto)] == [True, True]
    check(model)


def bad_files() -> dict[str, bytes]:
    whole = model_of(big()).SerializeToString()
    missing = model_of(big())
    missing.graph.initializer[0].ClearField("raw_data")
    missing.graph.initializer[0].data_location = TensorProto.EXTERNAL
    missing.graph.initializer[0].external_data.add(key="location", value="gone.bin")
    outside = onnx.ModelProto.FromString(missing.SerializeToString())
    outside.graph.initializer[0].external_data[0].value = "../gone.bin"
    short = model_of(big())
    short.graph.initializer[0].dims[0] = 65
    return {
        "empty": b"",
        "text": b"this is no model\n" * 40,
        "truncated": whole[: len(whole) // 2],
        "no graph": onnx.ModelProto(ir_version=8).SerializeToString(),
        "missing external data": missing.SerializeToString(),
        "outside the folder": outside.SerializeToString(),
        "wrong size": short.SerializeToString(),
    }


@pytest.mark.parametrize("kind", bad_files())
def test_a_bad_file_is_one_line(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(bad_files()[kind])
    with pytest.raises(InputError) as caught:
        Model.load(path)
    assert "\n" not in str(caught.value)


def test_a_folder_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder"):
        Model.load(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        Model.load(tmp_path / "gone.onnx")


def test_a_tensor_that_says_it_is_not_external_is_read(tmp_path: Path) -> None:
    """AMD Quark writes data_location even where it is the default; it comes after the weight in the file."""
    value = np.arange(1000, dtype=np.float32)
    tensor = onnx.numpy_helper.from_array(value, "w")
    tensor.data_location = onnx.TensorProto.DEFAULT
    assert tensor.HasField("data_location")
    node = onnx.helper.make_node("Identity", ["w"], ["y"])
    info = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1000])
    proto = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [info], [tensor]))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    model = Model.load(path)
    np.testing.assert_array_equal(model.array(model.proto.graph.initializer[0]), value)
    assert onnx.numpy_helper.to_array(model.to_proto().graph.initializer[0]).tolist() == value.tolist()
