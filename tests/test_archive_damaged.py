"""What is no archive, or a damaged or hostile one, is one line and takes no memory."""

from __future__ import annotations

import contextlib
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from archive_cases import external_model, kinds, model_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnx_compress import cli
from onnx_compress.archive import pack, unpack
from onnx_compress.archive.container import HEADER_BYTES, Header
from onnx_compress.archive.fields import Writer
from onnx_compress.archive.general import loosen, squeeze, tight
from onnx_compress.archive.pool import LARGEST, POOLS, restore
from onnx_compress.errors import CompressError, InputError, LimitError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray[Any, Any]]:
    return kinds()


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


@pytest.mark.parametrize("version", [1, 4, 6])
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
