"""Files that are no model at all, or not a whole one."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import onnx

from hostile.case import RUN, Case, good, raw

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WHOLE = good().SerializeToString()
NONE = "in.onnx out.onnx --passes none"


def _varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _nested(depth: int, kinds: tuple[int, ...], inside: bytes) -> bytes:
    """Messages inside messages: the fields `kinds` in turn, `depth` times."""
    for level in range(depth):
        inside = _field(kinds[level % len(kinds)], inside)
    return inside


def _graphs(depth: int) -> bytes:
    """If bodies inside If bodies: graph.node.attribute.g, and so on."""
    filling = _field(2, b"x" * 2000)  # > a body of 1 KB or more is looked into
    return _field(8, b"\x08\x08") + _field(7, _nested(3 * depth, (6, 5, 1), filling))


def _zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("model.onnx", WHOLE)
    return out.getvalue()


class _Boom:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pickle_was_run",)


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "in.onnx")


def _link(target: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "in.onnx").symlink_to(target)


RANDOM = np.random.default_rng(7).bytes(5000)
MODELS: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"\x08",
    "text": b"Lorem ipsum dolor sit amet, " * 99,
    "random bytes": RANDOM,
    "zeros": bytes(4096),
    "all ones": b"\xff" * 4096,
    "a zip": _zipped(),
    "gzip of a model": gzip.compress(WHOLE),
    "a pickle": pickle.dumps(_Boom()),
    "a picture": b"\x89PNG\r\n\x1a\n" + RANDOM,
    "a tensor, not a model": good().graph.initializer[0].SerializeToString(),
    "a graph, not a model": good().graph.SerializeToString(),
    "no graph": onnx.ModelProto(ir_version=8).SerializeToString(),
    "a length beyond the file": WHOLE[:50] + b"\x3a\xff\xff\xff\xff\x0f" + WHOLE[50:],
    "a length beyond 64 bits": b"\x3a" + b"\xff" * 9 + b"\x7f" + WHOLE,
    "a number that never ends": b"\x08" + b"\x80" * 5000,
    "a group": b"\x0b" * 3000,
    "field number 0": b"\x02\x04abcd" + WHOLE,
    "the model twice": WHOLE * 2,
    "garbage behind it": WHOLE + RANDOM,
    "a graph inside a graph, 40 deep": _graphs(40),
    "a graph inside a graph, 400 deep": _graphs(400),
    "a graph inside a graph, 4000 deep": _graphs(4000),
    "types inside types, 5000 deep": _field(8, b"\x08\x08")
    + _field(7, _field(11, _nested(10000, (4, 1), b"x" * 2000))),
    "half a tensor in text format": onnx.printer.to_text(good())[:500].encode(),
    "a million empty nodes": b"\x08\x08" + _field(7, _field(1, b"") * 1_000_000),
}
CASES: dict[str, Case] = {
    name: Case(raw(content), NONE if number % 2 else RUN + "svd")
    for number, (name, content) in enumerate(MODELS.items())
}
CASES |= {
    f"cut after {share} %": Case(raw(WHOLE[: len(WHOLE) * share // 100]), NONE)
    for share in (1, 5, 20, 40, 60, 80, 90, 99)
}
CASES |= {
    "a field of a wrong wire type": Case(raw(b"\x08\x08\x38\x05" + WHOLE), NONE + " -q"),
    "a name that is no text": Case(raw(WHOLE.replace(b"net", b"n\xff\x80")), RUN + "svd"),
    "a name that is no text, copied": Case(raw(WHOLE.replace(b"net", b"n\xff\x80")), NONE),
    "absent": Case(lambda _: None, NONE),
    "a folder": Case(lambda folder: (folder / "in.onnx").mkdir(), NONE),
    "a FIFO": Case(_fifo, NONE),
    "a device": Case(_link("/dev/zero"), NONE),
    "a link to nothing": Case(_link("nothing"), NONE),
    "a link to itself": Case(_link("in.onnx"), NONE),
    "a name of 5000 letters": Case(lambda _: None, f"{'m' * 5000} out.onnx --passes none"),
    "a process's memory": Case(_link("/proc/self/mem"), NONE),
}
