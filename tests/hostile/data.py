"""Calibration data, pictures, recipes and reports of earlier runs that are not what they should be."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import numpy_helper

from hostile.case import RUN, Case, good, of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RUN_DATA = RUN + "int8 --data d.npz"
ROWS = np.random.default_rng(1).standard_normal((8, 3, 8, 8)).astype(np.float32)
PICTURES = RUN + "int8 --data pictures --preprocess size=8:crop=8"


def _model(folder: Path) -> None:
    of(good())(folder)


def data(content: bytes, name: str = "d.npz") -> Callable[[Path], object]:
    """The good model and a file of these bytes."""

    def make(folder: Path) -> None:
        _model(folder)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return make


def arrays(**values: Any) -> bytes:
    """An npz file."""
    out = io.BytesIO()
    np.savez(out, **values)
    return out.getvalue()


def _member(header: bytes, body: bytes = b"", name: str = "x.npy", method: int = zipfile.ZIP_STORED) -> bytes:
    """An npz file whose one array has this header."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr(name, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body)
    return out.getvalue()


def _header(shape: str, kind: str = "<f4", order: str = "False") -> bytes:
    return f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}".encode().ljust(117) + b"\n"


def _objects() -> bytes:
    return arrays(x=np.array([object, None], object))


def _nan(value: float) -> bytes:
    rows = ROWS.copy()
    rows[3, 1, 2, 2] = value
    return arrays(x=rows)


def _zip_bomb() -> bytes:
    """Two gigabytes of zeros in two megabytes."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w", force_zip64=True) as file,
    ):
        rows = 1300
        header = _header(f"({2000 * rows}, 3, 8, 8)")
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        for _ in range(2000):
            file.write(bytes(rows * 768))
    return out.getvalue()


def _bomb(folder: Path) -> None:
    data(_zip_bomb())(folder)


def _patched(at: int, value: bytes) -> bytes:
    """A good npz file with its central directory changed: flags at 8, method at 10, sizes at 20 and 24."""
    whole = bytearray(arrays(x=ROWS))
    start = whole.rindex(b"PK\x01\x02")
    whole[start + at : start + at + len(value)] = value
    return bytes(whole)


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def _folder(folder: Path) -> None:
    _model(folder)
    (folder / "d.npz").mkdir()


def _fifo(folder: Path) -> None:
    _model(folder)
    os.mkfifo(folder / "d.npz")


def _loop(folder: Path) -> None:
    _model(folder)
    (folder / "d.npz").symlink_to("d.npz")


def _set(content: bytes) -> Callable[[Path], object]:
    return data(content, "test_data_set_0/input_0.pb")


def _metric(body: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        data(arrays(x=ROWS, label=np.zeros(8, np.int64)))(folder)
        (folder / "scores.py").write_text(f"import os, sys\ndef score(outputs, data):\n    {body}\n")

    return make


GOOD = arrays(x=ROWS)
SETS = RUN + "int8 --data test_data_set_0"
SCORE = "in.onnx out.onnx --passes int8 --eval d.npz --metric scores:score"
FILES: dict[str, bytes] = {
    "empty": b"",
    "text": b"Lorem ipsum" * 50,
    "truncated": GOOD[:-200],
    "cut in the middle": GOOD[: len(GOOD) // 2],
    "pickled objects": _objects(),
    "no array": arrays(),
    "another input": arrays(z=ROWS),
    "a wrong shape": arrays(x=ROWS[:, :2]),
    "a wrong rank": arrays(x=ROWS[0, 0]),
    "no samples": arrays(x=ROWS[:0]),
    "words": arrays(x=np.full(8, "word")),
    "complex numbers": arrays(x=ROWS.astype(np.complex64)),
    "dates": arrays(x=np.full((8, 3, 8, 8), "2020-01-01", "M8[D]")),
    "records": arrays(x=np.zeros(8, [("a", "f4"), ("b", "i4")])),
    "NaN": _nan(np.nan),
    "infinity": _nan(-np.inf),
    "a header of 2^60 values": _member(_header("(1152921504606846976, 3, 8, 8)")),
    "a header beyond 64 bits": _member(_header(f"({2**70}, 3, 8, 8)")),
    "a header of 10 GB, packed": _member(
        _header("(13000000, 3, 8, 8)"), bytes(999), method=zipfile.ZIP_DEFLATED
    ),
    "a negative shape": _member(_header("(-8, 3, 8, 8)"), bytes(6144)),
    "a shape that is code": _member(b"__import__('os').system('touch code_was_run')".ljust(117) + b"\n"),
    "a header nested 5000 deep": _member(b"(" * 5000 + b"\n"),
    "a type that is not known": _member(_header("(8,)", "<q9")),
    "no header": _member(b""),
    "fewer values than it says": _member(_header("(8, 3, 8, 8)"), bytes(100)),
    "encrypted": _patched(8, b"\x01\x00"),
    "packed in an unknown way": _patched(10, b"\x63\x00"),
    "sizes that are wrong": _patched(20, b"\xff\xff\xff\x7f\xff\xff\xff\x7f"),
    "sizes of 0": _patched(20, bytes(8)),
}
CASES: dict[str, Case] = {name: Case(data(content), RUN_DATA) for name, content in FILES.items()}
CASES |= {
    "a zip bomb": Case(_bomb, RUN_DATA),
    "absent": Case(_model, RUN_DATA),
    "an empty folder": Case(_folder, RUN_DATA),
    "a FIFO": Case(_fifo, RUN_DATA),
    "a link to itself": Case(_loop, RUN_DATA),
    "a bare array": Case(data(b"\x93NUMPY", "d.npy"), RUN + "int8 --data d.npy"),
    "a test set of text": Case(_set(b"text" * 99), SETS),
    "an empty test set": Case(_set(b""), SETS),
    "a test set of another shape": Case(
        _set(numpy_helper.from_array(ROWS[:, :1], "x").SerializeToString()), SETS
    ),
    "a picture of text": Case(data(b"text" * 99, "pictures/a.png"), PICTURES),
    "an empty picture": Case(data(b"", "pictures/a.jpg"), PICTURES),
    "a picture of 10^10 pixels": Case(data(_png(100_000, 100_000), "pictures/a.png"), PICTURES),
    "a picture that ends early": Case(data(_png(64, 64), "pictures/a.png"), PICTURES),
    "pictures without --preprocess": Case(data(_png(8, 8), "pictures/a.png"), RUN + "int8 --data pictures"),
    "a metric that raises": Case(_metric("raise KeyError('x')"), SCORE),
    "a metric that is no number": Case(_metric("return 'high'"), SCORE),
    "a metric that is NaN": Case(_metric("return float('nan')"), SCORE + " -q"),
    "a metric that ends the process": Case(_metric("sys.exit(0)"), SCORE),
    "a metric that crashes": Case(_metric("os.abort()"), SCORE),
    "a metric that never ends": Case(_metric("while True: pass"), SCORE + " --time-limit 5"),
    "a metric that is not there": Case(_metric("return 0"), SCORE + "s"),
    "an evaluation without labels": Case(data(GOOD), "in.onnx out.onnx --passes int8 --eval d.npz"),
}
