"""What is packed unpacks to the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from archive_cases import external_model, kinds, model_of, round_trip
from onnx import TensorProto, helper

from onnx_compress import cli
from onnx_compress.archive import CODERS

ROOT = Path(__file__).parents[1]
ZOO = sorted((ROOT / "models").glob("*.onnx"))
ASSETS = sorted((ROOT.parent / "shared" / "assets").glob("*/*.onnx"))
TINY = sorted((ROOT / "models" / "tiny").glob("*.onnxtxt"))
BACKEND = Path(onnx.__file__).parent / "backend" / "test" / "data"


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray[Any, Any]]:
    return kinds()


@pytest.mark.parametrize("path", ZOO, ids=lambda path: path.stem)
def test_zoo_round_trip(path: Path, tmp_path: Path) -> None:
    """Trained float weights lose about a sixth: their exponents are few."""
    assert round_trip(path, tmp_path / "f")["after"]["ratio"] > 1.15


@pytest.mark.parametrize("path", ASSETS, ids=lambda path: path.stem)
def test_assets_round_trip(path: Path, tmp_path: Path) -> None:
    round_trip(path, tmp_path / "f")


@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
def test_tiny_round_trip(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.onnx"
    source.write_bytes(onnx.parser.parse_model(path.read_text()).SerializeToString())
    round_trip(source, tmp_path / "f")


@pytest.mark.parametrize("coder", CODERS)
def test_every_coder_gives_every_kind_of_weight_back(
    coder: str, weights: dict[str, np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    source = model_of(tmp_path / "a.onnx", *weights.values())
    report = round_trip(source, tmp_path / "f", coder)
    used = {row["coder"] for row in report["tensors"]}
    assert coder in used or coder == "auto"
    assert used <= {"raw", "constant", coder} or coder == "auto"


def test_auto_is_never_larger_than_zstd(weights: dict[str, np.ndarray[Any, Any]], tmp_path: Path) -> None:
    """Of each tensor the best is kept, so only the index's own compression may tell: its header of 64 bytes."""
    for name, value in weights.items():
        source = model_of(tmp_path / "a.onnx", value)
        auto, zstd = (
            round_trip(source, tmp_path / coder, coder)["after"]["bytes"] for coder in ("auto", "zstd")
        )
        assert auto <= zstd + 64, name


@pytest.mark.parametrize("spec", ["int8", "fp16", "int4", "cluster:bits=4"])
def test_outputs_of_passes_round_trip(spec: str, tmp_path: Path) -> None:
    """Their archive is smaller than zstd's, or packing was not worth its name."""
    name = "fashion_mlp" if spec == "int4" else "fashion_lstm"
    source, data = ROOT / "models" / f"{name}.onnx", ROOT / "models" / "fashion_calib.npz"
    if not (source.exists() and data.exists()):
        pytest.skip("no zoo")
    from onnx_compress import compress

    made = compress(str(source), spec, data=str(data), samples=64, verify=False)
    made.save(tmp_path / "m.onnx")
    best = round_trip(tmp_path / "m.onnx", tmp_path / "auto")["after"]["bytes"]
    assert best < round_trip(tmp_path / "m.onnx", tmp_path / "zstd", "zstd")["after"]["bytes"]


def test_strings_four_bits_and_nothing_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(0, 16, (40, 101))
    round_trip(
        model_of(
            tmp_path / "a.onnx",
            helper.make_tensor("int4", TensorProto.INT4, [40, 101], values - 8),
            helper.make_tensor("raw4", TensorProto.UINT4, [4040], rng.bytes(2020), raw=True),
            helper.make_tensor(
                "text", TensorProto.STRING, [300], np.array([f"word {i}" for i in range(300)])
            ),
            helper.make_tensor("fields", TensorProto.FLOAT, [900], rng.normal(size=900)),
            helper.make_tensor("brain", TensorProto.BFLOAT16, [2000], rng.bytes(4000), raw=True),
            TensorProto(name="lies", data_type=1, dims=[7, -1], raw_data=rng.bytes(2001)),
            np.empty((0, 3), np.float32),
            np.empty((3, 0, 5), np.int8),
        ),
        tmp_path / "f",
    )
    round_trip(model_of(tmp_path / "a.onnx"), tmp_path / "f")


def test_a_scale_that_is_another_times_a_number_is_stored_as_that_number(tmp_path: Path) -> None:
    """As int8 has them: the scales of a bias are those of the weights times the input's. Four bytes, and where they are."""
    rng = np.random.default_rng(0)
    scales = [rng.random(500).astype(np.float32) for _ in range(8)]
    alone = round_trip(model_of(tmp_path / "a.onnx", *scales), tmp_path / "f")["after"]["bytes"]
    products = [scale * np.float32(factor) for scale, factor in zip(scales, rng.random(8), strict=True)]
    both = [value for pair in zip(scales, products, strict=True) for value in pair]
    assert round_trip(model_of(tmp_path / "b.onnx", *both), tmp_path / "g")["after"]["bytes"] < alone + 8 * 20
    both[3][7] = np.nextafter(both[3][7], np.float32(9))  # no product any more
    round_trip(model_of(tmp_path / "c.onnx", *both, np.full(9, np.nan, np.float32)), tmp_path / "h")


def test_chunks_meet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A weight longer than a chunk, in rows, in rows longer than a chunk, and without rows."""
    from onnx_compress.archive import packing, payloads, unpacking

    monkeypatch.setattr(payloads, "CHUNK", 1000)
    for module in (packing, unpacking):
        monkeypatch.setattr(module, "MOST_BYTES", 2000)
    rng = np.random.default_rng(2)
    shapes = [(33, 100), (3, 700), (4111,)]
    values = [np.rint(rng.normal(0, 9, shape)).astype(kind) for shape in shapes for kind in (np.int8, "f4")]
    round_trip(model_of(tmp_path / "a.onnx", *values), tmp_path / "f")


def test_data_files_come_back_beside_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twice, too: the same bytes may be there; others are never overwritten."""
    source = external_model(tmp_path / "in")
    archive, out = tmp_path / "a.ocz", tmp_path / "out"
    out.mkdir()
    assert cli.main(["pack", str(source), str(archive), "-q"]) == 0
    for _ in range(2):
        assert cli.main(["unpack", str(archive), str(out / "b.onnx"), "-q"]) == 0
        assert (out / "b.onnx").read_bytes() == source.read_bytes()
        assert (out / "data" / "w.bin").read_bytes() == (source.parent / "data" / "w.bin").read_bytes()
    (out / "data" / "w.bin").write_bytes(b"mine")
    (out / "b.onnx").unlink()
    assert cli.main(["unpack", str(archive), str(out / "b.onnx"), "-q"]) == 2
    assert "exists and is another file" in capsys.readouterr().err
    assert sorted(path.name for path in out.rglob("*")) == ["data", "w.bin"]


def test_the_report_has_every_column(tmp_path: Path) -> None:
    import json

    source = model_of(tmp_path / "a.onnx", np.random.default_rng(0).normal(size=(30, 40)).astype("f4"))
    words = [
        "pack",
        str(source),
        str(tmp_path / "a.ocz"),
        "--coder",
        "range",
        "--report",
        str(tmp_path / "r.json"),
    ]
    assert cli.main(words) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    (row,) = report["tensors"]
    assert row["raw"] == 4800
    assert {"zip", "entropy_bits", "coded", "coder", "coded_bits"} <= row.keys()
    assert report["coder"] == "range"


def backend_models(kind: str) -> list[Path]:
    return sorted((BACKEND / kind).glob("*/model.onnx"))


@pytest.mark.parametrize("path", backend_models("simple"), ids=lambda path: path.parent.name)
def test_backend_models_round_trip(path: Path, tmp_path: Path) -> None:
    round_trip(path, tmp_path / "f")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_all_backend_models_round_trip(tmp_path: Path) -> None:
    """Those that onnx makes, one a node test, and those it brings."""
    from onnx.backend.test.case.node import collect_testcases

    source = tmp_path / "a.onnx"
    cases = collect_testcases(None)
    assert len(cases) > 1000
    for case in cases:
        assert case.model is not None
        source.write_bytes(case.model.SerializeToString())
        round_trip(source, tmp_path / "f")
    for path in sorted(BACKEND.glob("**/*.onnx")):
        round_trip(path, tmp_path / "f")
