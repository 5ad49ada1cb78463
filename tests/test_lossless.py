"""`none` is a lossless copy: of every kind of thing, of every model of onnx's own tests, and of what does not fit in memory."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import pytest
from lossless_cases import CASES
from onnx import TensorProto, helper, numpy_helper

from onnx_compress import compress
from onnx_compress.errors import InputError
from onnx_compress.model import lossless
from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.model.lossless import copy_model

DATA = Path(onnx.backend.test.__file__).parent / "data"


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    # thousands of small files: the disk need not see each
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.parametrize("name", CASES)
def test_a_copy_has_every_byte(name: str, tmp_path: Path) -> None:
    serialized = CASES[name]().SerializeToString()
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    source.write_bytes(serialized)
    made = compress(source, "none")
    made.save(target)
    assert target.read_bytes() == serialized
    assert made.report["before"] == made.report["after"]


@pytest.mark.parametrize("name", CASES)
def test_from_memory_no_field_is_lost(name: str, tmp_path: Path) -> None:
    proto = CASES[name]()
    untouched = proto.SerializeToString(deterministic=True)
    compress(proto, "none").save(tmp_path / "out.onnx")
    copy = onnx.ModelProto.FromString((tmp_path / "out.onnx").read_bytes())
    assert copy.SerializeToString(deterministic=True) == untouched
    assert proto.SerializeToString(deterministic=True) == untouched


@pytest.mark.parametrize("name", CASES)
def test_external_data_is_copied_to_a_file_of_its_own(name: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    source, target = tmp_path / "a" / "in.onnx", tmp_path / "b" / "out.onnx"
    Model.from_proto(CASES[name]()).save(source, external=True)
    copy_model(source, target)
    for file in (tmp_path / "a").iterdir():
        file.unlink()
    copy = Model.load(target)
    copied, original = copy.to_proto(), Model.from_proto(CASES[name]()).to_proto()
    assert copied.SerializeToString(deterministic=True) == original.SerializeToString(deterministic=True)


def test_every_model_of_onnx_s_own_tests_is_copied(tmp_path: Path) -> None:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    copied = 0
    for case in cases:
        assert case.model is not None
        with contextlib.suppress(onnx.checker.ValidationError):
            onnx.checker.check_model(case.model)
            source.write_bytes(case.model.SerializeToString())
            copy_model(source, target)
            assert target.read_bytes() == source.read_bytes(), case.name
            copied += 1
    assert copied > 1800


def test_every_model_in_onnx_s_wheel_is_copied(tmp_path: Path) -> None:
    files = sorted(DATA.rglob("*.onnx"))
    assert len(files) > 140
    for file in files:
        with contextlib.suppress(onnx.checker.ValidationError):
            onnx.checker.check_model(str(file))
            copy_model(file, tmp_path / "out.onnx")
            assert (tmp_path / "out.onnx").read_bytes() == file.read_bytes(), file


def external(folder: Path) -> Path:
    """A model of two layers whose weights are in another file."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]> g (float[N, 32] x) => (float[N, 32] y)
        { a = MatMul(x, v) y = MatMul(a, w) }"""
    )
    for name, value in (("v", 1), ("w", 2)):
        model.graph.initializer.append(numpy_helper.from_array(np.full((32, 32), value, np.float32), name))
    onnx.save(model, folder / "in.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    return folder / "in.onnx"


def value(path: Path) -> float:
    model = Model.load(path)
    return float(model.array(model.proto.graph.initializer[1])[0, 0])


@pytest.mark.parametrize("same", [False, True])
def test_a_copy_shares_no_data_file_with_its_source(same: bool, tmp_path: Path) -> None:
    source = external(tmp_path)
    target = source if same else tmp_path / "out.onnx"
    copy_model(source, target)
    (tmp_path / "weights").unlink()
    assert value(target) == 2


def test_a_file_that_the_copy_does_not_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    other = external(tmp_path / "b")
    before = (tmp_path / "b" / "weights").read_bytes()
    copy_model(external(tmp_path / "a"), tmp_path / "b" / "out.onnx")
    assert (tmp_path / "b" / "weights").read_bytes() == before
    assert value(other) == value(tmp_path / "b" / "out.onnx") == 2


def test_in_may_be_out(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(CASES["float64_4097"]().SerializeToString())
    before = path.read_bytes()
    copy_model(path, path)
    compress(path, "none").save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_without_the_kernel_s_help_the_copy_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> int:
        raise OSError(18, "between two file systems")

    monkeypatch.setattr(os, "copy_file_range", refuses, raising=False)
    monkeypatch.setattr(lossless, "CHUNK", 1000)
    source = tmp_path / "in.onnx"
    source.write_bytes(CASES["float64_4097"]().SerializeToString())
    copy_model(source, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()


def test_what_is_no_model_is_not_copied(tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    whole = CASES["float64_4097"]().SerializeToString()
    for broken in (b"", b"hello, this is text\n", whole[: len(whole) // 2]):
        source.write_bytes(broken)
        with pytest.raises(InputError):
            copy_model(source, tmp_path / "out.onnx")
    source.write_bytes(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y) { y = Nope(x) }'
        ).SerializeToString()
    )
    with pytest.raises(InputError):
        copy_model(source, tmp_path / "out.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["in.onnx"]


def big(folder: Path, size: int) -> Path:
    """A model with `size` bytes of external weights, a hole in its file."""
    rows = size // 4 // 1024
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1024])],
    )
    weight = graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[rows, 1024])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "in.onnx").write_bytes(model.SerializeToString())
    with (folder / "weights").open("wb") as file:
        file.write(b"\x01" * 4096)
        file.truncate(rows * 4096)
    return folder / "in.onnx"


def peak_of_copy(source: Path, target: Path) -> int:
    """Bytes resident at most while a process of its own copies."""
    code = (
        "import sys; from onnx_compress import compress; from onnx_compress.runtime.machine import peak_resident;"
        "compress(sys.argv[1], 'none').save(sys.argv[2]);"
        "print(peak_resident())"
    )
    root = str(Path(lossless.__file__).parents[2])
    found = subprocess.run(
        [sys.executable, "-c", code, str(source), str(target)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    return int(found.stdout)


def check_copy_of(size: int, tmp_path: Path) -> None:
    small = peak_of_copy(big(tmp_path, 4096), tmp_path / "small.onnx")
    peak = peak_of_copy(big(tmp_path, size), tmp_path / "out.onnx")
    # the weights pass through chunks of 16 MB, which may be counted twice
    assert peak < small + 100e6
    assert peak < 0.6e9
    copy = Model.load(tmp_path / "out.onnx")
    check(copy)
    weight = copy.array(copy.proto.graph.initializer[0])
    assert weight.nbytes == size // 4096 * 4096
    assert (weight[0].view(np.uint8) == 1).all()
    assert not weight[-1].any()


def test_memory_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    check_copy_of(250_000_000, tmp_path)


@pytest.mark.slow
def test_2_3_gb_are_copied_in_less_than_0_6_gb(tmp_path: Path) -> None:
    assert resource.getpagesize() <= 65536
    check_copy_of(2_300_000_000, tmp_path)
