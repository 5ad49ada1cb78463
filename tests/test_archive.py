"""What is packed unpacks to the same bytes; what is no archive is one line."""

from __future__ import annotations

import contextlib
import lzma
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnx_compress import cli
from onnx_compress.archive import CODERS, huffman, lanes, pack, unpack
from onnx_compress.archive.container import HEADER_BYTES, Header
from onnx_compress.archive.digits import Digits
from onnx_compress.archive.fields import Writer
from onnx_compress.archive.forms import _gaps
from onnx_compress.archive.general import loosen, squeeze, tight
from onnx_compress.archive.pool import LARGEST, POOLS, restore
from onnx_compress.errors import CompressError, InputError, LimitError
from onnx_compress.model.packing import Packing

ROOT = Path(__file__).parents[1]
ZOO = sorted((ROOT / "models").glob("*.onnx"))
ASSETS = sorted((ROOT.parent / "shared" / "assets").glob("*/*.onnx"))
TINY = sorted((ROOT / "models" / "tiny").glob("*.onnxtxt"))
BACKEND = Path(onnx.__file__).parent / "backend" / "test" / "data"


def round_trip(source: Path, folder: Path, coder: str = "auto") -> dict[str, Any]:
    """The report of packing; asserts that the bytes come back."""
    folder.mkdir(exist_ok=True)
    report = pack(source=str(source), target=str(folder / "a.ocz"), coder=coder)
    found = unpack(source=str(folder / "a.ocz"), target=str(folder / "b.onnx"))
    assert (folder / "b.onnx").read_bytes() == source.read_bytes()
    assert report["after"]["bytes"] == (folder / "a.ocz").stat().st_size
    assert found["after"]["bytes"] == report["before"]["bytes"]
    return report


def model_of(path: Path, *values: np.ndarray[Any, Any] | onnx.TensorProto) -> Path:
    """A file with these initializers; no node needs to use them."""
    tensors = [
        value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value, f"w{i}")
        for i, value in enumerate(values)
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:], tensors)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray[Any, Any]]:
    """One of every kind that has a way of its own."""
    rng = np.random.default_rng(0)
    kernel = np.cumsum(rng.normal(0, 9, (32, 32, 3, 3)), axis=-1)  # neighbours alike
    rows = rng.normal(0, 1, (96, 128)) * np.geomspace(0.1, 1, 96)[:, None]
    sparse = np.where(rng.random((96, 128)) < 0.85, 0, rows)
    return {
        "float": rows.astype(np.float32),
        "half": rows.astype(np.float16),
        "double": rows,
        "sparse": sparse.astype(np.float32),
        "few values": np.round(rows, 1).astype(np.float32),
        "kernel": np.clip(np.rint(kernel), -127, 127).astype(np.int8),
        "sparse int8": np.clip(np.rint(sparse * 40), -127, 127).astype(np.int8),
        "sparse kernel": np.where(np.abs(kernel) < 14, 0, np.rint(kernel / 4))
        .clip(-127, 127)
        .astype(np.int8),
        "places": rng.binomial(31, 0.5, (64, 100)).astype(np.uint8),
        "counting": np.arange(4000, dtype=np.int64),
        "random": rng.integers(0, 256, 70_000).astype(np.uint8),
        "constant": np.full((40, 50), 3.5, np.float32),
        "two values": (rng.random(5000) < 0.1).astype(np.uint8),
        "bool": rng.random((50, 50)) < 0.5,
        "rare": np.where(np.arange(9000) % 1000, 0, 1).astype(np.int8),
        "odd": rng.integers(-2, 3, (7, 3, 5, 11)).astype(np.int8),
    }


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


def test_taps_that_are_alike_and_rows_of_unlike_spread_beat_their_entropy(
    weights: dict[str, np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    """Order-0 entropy is what a coder reaches that knows no neighbours and one table."""
    rng = np.random.default_rng(4)
    spread = rng.normal(0, 1, (300, 500)) * np.geomspace(2, 40, 300)[:, None]
    spread[rng.random(spread.shape) < np.linspace(0.3, 0.95, 500)] = 0  # density differs by column
    source = model_of(tmp_path / "a.onnx", weights["kernel"], np.rint(spread).clip(-127, 127).astype(np.int8))
    report = pack(source=str(source), target=str(tmp_path / "a.ocz"), details=True)
    for row in report["tensors"]:
        assert row["coded"] < row["entropy_bytes"] < row["zip"]


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


def test_small_tensors_that_multiply_take_no_memory() -> None:
    """Seven bytes say that a tensor of 64 KB is another one times a number; all together stay below the largest skeleton."""
    factor = np.float32(1).tobytes()
    head = Writer()
    head.number(60_000)
    for number in range(60_000):
        for field in (0, LARGEST, POOLS if number else 0):
            head.number(field)
        head.raw(factor if number else b"")
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="small tensors"):
            restore(bytes(head.buffer), [(TensorProto.FLOAT, bytes(LARGEST))])
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_chunks_meet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A weight longer than a chunk, in rows, in rows longer than a chunk, and without rows."""
    from onnx_compress.archive import payloads

    monkeypatch.setattr(payloads, "CHUNK", 1000)
    rng = np.random.default_rng(2)
    shapes = [(33, 100), (3, 700), (4111,)]
    values = [np.rint(rng.normal(0, 9, shape)).astype(kind) for shape in shapes for kind in (np.int8, "f4")]
    round_trip(model_of(tmp_path / "a.onnx", *values), tmp_path / "f")


def external_model(folder: Path) -> Path:
    """Two tensors in a file of a folder, bytes that no tensor has before, between and behind them."""
    folder.mkdir()
    (folder / "data").mkdir()
    rng = np.random.default_rng(3)
    value = rng.normal(size=(40, 50)).astype(np.float32)
    blob = bytes(100) + value.tobytes() + bytes(3000) + value.tobytes() + b"end"
    (folder / "data" / "w.bin").write_bytes(blob)
    tensors = [
        TensorProto(name=f"e{i}", data_type=1, dims=[40, 50], data_location=TensorProto.EXTERNAL)
        for i in range(2)
    ]
    for i, tensor in enumerate(tensors):
        words = {"location": "data/w.bin", "offset": str(100 + 11000 * i), "length": "8000"}
        for key, text in words.items():
            tensor.external_data.add(key=key, value=text)
    return model_of(folder / "a.onnx", *tensors)


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


@pytest.fixture(scope="module")
def archive(weights: dict[str, np.ndarray[Any, Any]], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("archive")
    source = model_of(
        folder / "a.onnx",
        *(
            weights[name]
            for name in ("float", "sparse", "few values", "kernel", "sparse int8", "sparse kernel", "places")
        ),
        helper.make_tensor("four", TensorProto.UINT4, [40, 100], np.arange(4000) % 7 % 5),
    )
    pack(source=str(source), target=str(folder / "a.ocz"))
    return (folder / "a.ocz").read_bytes()


def refuse(data: bytes, folder: Path, memory: int | None = None) -> CompressError:
    """The error of unpacking `data`, which must be one of ours, on one line."""
    (folder / "bad.ocz").write_bytes(data)
    with pytest.raises((InputError, LimitError)) as caught:
        unpack(source=str(folder / "bad.ocz"), target=str(folder / "out.onnx"), memory=memory)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bits_and_missing_ends_are_refused(seed: int, archive: bytes, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    flipped = bytearray(archive)
    flipped[rng.integers(len(archive))] ^= 1 << int(rng.integers(8))
    assert refuse(bytes(flipped), tmp_path).exit_code == 3
    assert refuse(archive[: rng.integers(len(archive))], tmp_path).exit_code == 3


def parts(archive: bytes) -> tuple[Header, bytes, bytes]:
    """Header, body, and index unpacked."""
    header = Header.read(archive[:HEADER_BYTES], "")
    body = archive[HEADER_BYTES : HEADER_BYTES + header.body]
    return header, body, loosen(archive[HEADER_BYTES + header.body :], header.index_raw)


def forged(body: bytes, index: bytes, restored: int, index_raw: int | None = None) -> bytes:
    """An archive with right checksums, whatever it says."""
    packed = tight(index)
    raw = len(index) if index_raw is None else index_raw
    header = Header(len(body), len(packed), raw, restored, zlib.crc32(body), zlib.crc32(packed))
    return header.pack() + body + packed


@pytest.mark.parametrize("seed", range(40))
def test_lies_with_right_checksums_are_refused(seed: int, archive: bytes, tmp_path: Path) -> None:
    """Past the first checksums every field is read with doubt; the checksums of the tensors are the last word."""
    rng = np.random.default_rng(seed)
    header, body, index = parts(archive)
    lie_body, lie_index = bytearray(body), bytearray(index)
    if seed % 4 == 0:
        lie_body[rng.integers(len(body))] ^= 1 << int(rng.integers(8))
    else:
        for _ in range(seed % 4):
            lie_index[rng.integers(len(index) if seed % 2 else 120)] = int(rng.integers(256))
    if bytes(lie_index) == index and bytes(lie_body) == body:
        return
    assert refuse(forged(bytes(lie_body), bytes(lie_index), header.restored), tmp_path).exit_code in (3, 4)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(draw=st.data())
def test_archives_made_of_pieces_of_archives_are_refused(
    draw: st.DataObject, archive: bytes, tmp_path: Path
) -> None:
    """Fields set, stretches cut out, doubled or filled anew, all checksums of the container right."""
    header, body, index = parts(archive)
    lies = [bytearray(body), bytearray(index)]
    for _ in range(draw.draw(st.integers(1, 3))):
        lie = lies[draw.draw(st.sampled_from([0, 1, 1, 1]))]
        at = draw.draw(st.integers(0, max(len(lie) - 1, 0)))
        size = draw.draw(st.sampled_from([1, 1, 2, 5, 40]))
        what = draw.draw(st.sampled_from(["set", "cut", "double", "fill"]))
        piece = {
            "set": draw.draw(st.binary(min_size=size, max_size=size)),
            "cut": b"",
            "double": bytes(lie[at : at + size]) * 2,
            "fill": b"\xff" * size,
        }[what]
        lie[at : at + size] = piece
    if [bytes(lie) for lie in lies] == [body, index]:
        return
    (tmp_path / "bad.ocz").write_bytes(forged(bytes(lies[0]), bytes(lies[1]), header.restored))
    # > a field may change nothing, such as the table of a block without symbols
    with contextlib.suppress(InputError, LimitError):
        unpack(source=str(tmp_path / "bad.ocz"), target=str(tmp_path / "out.onnx"), memory=1 << 29)
        assert (tmp_path / "out.onnx").stat().st_size == header.restored


def test_sizes_that_lie_take_no_memory(archive: bytes, tmp_path: Path) -> None:
    header, body, index = parts(archive)
    bomb = b"\0" + squeeze(bytes(200_000_000), 3)
    huge = Header(0, len(bomb), 200_000_000, 10, 0, zlib.crc32(bomb)).pack() + bomb
    tracemalloc.start()
    try:
        assert refuse(huge, tmp_path, memory=400_000_000).exit_code == 4
        assert refuse(forged(body, index, 1 << 60), tmp_path).exit_code == 4
        assert refuse(forged(body, index, header.restored, 1 << 40), tmp_path, 1 << 30).exit_code == 4
        assert refuse(forged(body, index, header.restored, len(index) + 1), tmp_path).exit_code == 3
        assert refuse(forged(body, index, header.restored - 1), tmp_path).exit_code == 3
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a\\b", "a//b", "."])
def test_names_that_lead_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    source = external_model(tmp_path / "in")
    pack(source=str(source), target=str(tmp_path / "a.ocz"))
    header, body, index = parts((tmp_path / "a.ocz").read_bytes())
    old = b"\x0adata/w.bin"
    assert index.count(old) == 1
    lie = index.replace(old, bytes([len(name)]) + name.encode())
    assert "leads out" in str(refuse(forged(body, lie, header.restored), tmp_path))


@pytest.mark.parametrize("version", [1, 3, 5])
def test_another_format_version_is_one_line(version: int, archive: bytes, tmp_path: Path) -> None:
    header = bytearray(archive[: HEADER_BYTES - 4])
    header[4] = version
    data = bytes(header) + zlib.crc32(header).to_bytes(4, "little") + archive[HEADER_BYTES:]
    assert f"format version {version}" in str(refuse(data, tmp_path))


def test_what_is_no_archive_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, data in enumerate((b"", b"PK\x03\x04", b"\x89OCZ", b"\x89OCZ" + bytes(60))):
        (tmp_path / "bad.ocz").write_bytes(data)
        assert cli.main(["unpack", str(tmp_path / "bad.ocz"), str(tmp_path / "out.onnx")]) == 3, number
        assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.ocz"]


@pytest.mark.parametrize("radix", [2, 3, 4, 5, 8, 15, 16, 17, 32, 50, 64, 128, 200])
def test_packed_digits_come_back_each_its_own_symbol(radix: int) -> None:
    """Of every packing that cluster uses, the number of digits filling no whole number; bytes that hold none are told."""
    rng = np.random.default_rng(radix)
    packing = Packing.of(radix)
    places = rng.integers(0, radix, 60 * packing.group + 1).astype(np.uint8)
    data = packing.pack(places).reshape(-1)
    for signed in (False, True) if radix % 2 == 0 and radix & (radix - 1) == 0 else (False,):
        digits = Digits(packing, 7, signed=signed)
        found = digits.unpack(data)
        assert found is not None
        assert np.array_equal(found[: places.size] ^ (radix // 2 if signed else 0), places)
        assert np.array_equal(digits.pack(found), data)
    if radix**packing.group < 256**packing.width:
        assert Digits(packing, 7).unpack(np.full(packing.width, 255, np.uint8)) is None


def clustered(places: np.ndarray[Any, Any], radix: int, path: Path) -> Path:
    """A model whose weight is stored as `cluster` stores it at opset 17."""
    import onnx_graphsurgeon as gs

    from onnx_compress.model.codebook import Codebook, store
    from onnx_compress.model.document import Model
    from onnx_compress.model.surgery import Surgery

    text = (
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 96] x) => (float[N, 128] y) { y = MatMul(x, w) }'
    )
    if places.ndim > 2:
        text = '<ir_version: 8, opset_import: ["": 17]> g (float[N, 48, 9, 9] x) => (float[N, 64, 7, 7] y) { y = Conv(x, w) }'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(places.shape, np.float32), "w"))
    surgery = Surgery(Model.from_proto(proto))
    (node,) = surgery.graph.nodes
    nodes, tensor = store(surgery, "w", Codebook(np.linspace(-1, 1, radix, dtype=np.float32), places))
    assert isinstance(tensor, gs.Variable)
    node.inputs[1] = tensor
    surgery.graph.nodes[0:0] = nodes
    surgery.commit().save(path)
    return path


@pytest.mark.parametrize("radix", [16, 32])
def test_indices_are_coded_as_the_weight_has_them_however_they_are_packed(radix: int, tmp_path: Path) -> None:
    """Rows of unlike spread take fewer bits than one table for all would: the packed bytes have no such rows."""
    rng = np.random.default_rng(0)
    spread = np.geomspace(0.3, radix / 5, 96)[:, np.newaxis] * rng.normal(size=(96, 128))
    places = np.clip(np.rint(spread + radix // 2), 0, radix - 1).astype(np.uint8)
    report = round_trip(clustered(places, radix, tmp_path / "a.onnx"), tmp_path / "f")
    row = max(report["tensors"], key=lambda row: row["raw"])
    shares = np.bincount(places.reshape(-1)) / places.size
    entropy = -float((shares[shares > 0] * np.log2(shares[shares > 0])).sum()) * places.size / 8
    assert row["coded"] < 0.95 * entropy


@pytest.mark.parametrize("radix", [0, 16])
def test_sparse_kernels_are_smaller_than_by_xz(radix: int, tmp_path: Path) -> None:
    """Zeros come in rows, channels and kernels, and neighbours are alike: contexts know it, xz and one table do not."""
    rng = np.random.default_rng(5)
    spread = np.exp(rng.normal(0, 0.4, (64, 1, 1, 1)) + rng.normal(0, 0.4, (1, 48, 1, 1)))
    kernel = spread * (rng.normal(0, 1, (64, 48, 1, 1)) + rng.normal(0, 0.7, (64, 48, 3, 3)))
    kernel[np.abs(kernel) < np.quantile(np.abs(kernel), 0.6)] = 0
    if radix:
        places = np.clip(np.rint(kernel * 2 + radix // 2), 0, radix - 1).astype(np.uint8)
        source = clustered(places, radix, tmp_path / "a.onnx")
    else:
        source = model_of(tmp_path / "a.onnx", np.rint(kernel * 20).clip(-127, 127).astype(np.int8))
    size = round_trip(source, tmp_path / "f")["after"]["bytes"]
    assert size < 0.95 * len(lzma.compress(source.read_bytes(), preset=9))


@pytest.mark.parametrize("tables", [1, 5])
def test_lanes_come_near_the_bits_that_frequencies_promise(tables: int) -> None:
    """A lane costs its state, four bytes of which it uses one on average; nothing else is lost."""
    rng = np.random.default_rng(tables)
    weights = rng.integers(0, 1000, (tables, 40)) ** 2
    freq = lanes.frequencies(weights)
    assert (freq.sum(axis=1) == lanes.SLOTS).all()
    assert ((freq > 0) == (weights > 0)).all()
    slots = lanes.lookup(freq)
    which = rng.integers(0, tables, 15_001).astype(np.uint16)
    symbols = np.empty(which.size, np.uint8)
    for table in range(tables):
        at = which == table
        symbols[at] = rng.choice(40, at.sum(), p=weights[table] / weights[table].sum())
    ideal = -np.log2(freq[which, symbols] / lanes.SLOTS).sum() / 8
    for count in (4, 64, 256):
        state = lanes.start(count)
        pieces = []
        for _ in range(2):  # a chain: the second is decoded first
            data, state = lanes.encode(symbols, which, freq, state)
            pieces.append(data)
        assert ideal * 2 < len(pieces[0]) + len(pieces[1]) + 4 * count < 2.002 * ideal + 4.5 * count + 4
        for data in reversed(pieces):
            assert np.array_equal(lanes.decode(memoryview(data), which, slots, state), symbols)
        assert np.array_equal(state, lanes.start(count))
        with pytest.raises(InputError):
            lanes.decode(memoryview(data[:-2]), which, slots, state)


def test_huffman_codes_are_prefix_free_and_as_short_as_huffmans() -> None:
    """Kraft's sum is 1, and the mean length is within what Huffman's theorem allows: entropy to entropy + 1."""
    rng = np.random.default_rng(0)
    for skew in (1, 3, 40):
        weights = (rng.random(200) ** skew * 1e6).astype(np.int64)
        bits = huffman.lengths(weights).astype(int)
        assert ((bits > 0) == (weights > 0)).all()
        assert bits.max() <= huffman.LONGEST
        used = bits[bits > 0]
        assert (0.5**used).sum() <= 1
        shares = weights[weights > 0] / weights.sum()
        entropy = -(shares * np.log2(shares)).sum()
        assert entropy <= (shares * used).sum() <= entropy + 1
        words = {f"{code:0{n}b}" for code, n in zip(huffman.codes(bits)[bits > 0], used, strict=True)}
        assert not any(a != b and b.startswith(a) for a in words for b in words)


def test_gaps_longer_than_a_byte() -> None:
    flags = np.zeros(2000, bool)
    flags[[3, 258, 514, 1700]] = True
    gaps = _gaps(flags)
    places = np.cumsum(gaps.astype(int) + (gaps < 255))[gaps < 255] - 1
    assert places.tolist() == [3, 258, 514, 1700]


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
