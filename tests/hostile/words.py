"""Places that cannot be written, words that make no sense, and recipes and reports that are none."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hostile.case import RUN, Case, good, of
from hostile.data import GOOD, data

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NONE = "--passes none"


def _model(folder: Path) -> None:
    of(good())(folder)


def _with(name: str, content: bytes = b"") -> Callable[[Path], object]:
    return data(content, name)


def _out_folder(folder: Path) -> None:
    _model(folder)
    (folder / "out.onnx").mkdir()


def _out_fifo(folder: Path) -> None:
    _model(folder)
    os.mkfifo(folder / "out.onnx")


def _out_link(target: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        _model(folder)
        (folder / "out.onnx").symlink_to(target)

    return make


def _recipe(content: bytes) -> Case:
    return Case(_with("r.toml", content), "in.onnx out.onnx --recipe r.toml")


def _decisions(content: bytes) -> Case:
    return Case(_with("r.json", content), RUN + "int8 --decisions r.json")


def _words(words: str) -> Case:
    return Case(_with("d.npz", GOOD), words)


CASES: dict[str, Case] = {
    "out is a folder": Case(_out_folder, f"in.onnx out.onnx {NONE}"),
    "out is a FIFO": Case(_out_fifo, f"in.onnx out.onnx {NONE}"),
    "out is a link to a device": Case(_out_link("/dev/null"), f"in.onnx out.onnx {NONE}"),
    "out is a link to itself": Case(_out_link("out.onnx"), f"in.onnx out.onnx {NONE}"),
    "out is in no folder": _words(f"in.onnx no/out.onnx {NONE}"),
    "out is below a file": _words(f"in.onnx in.onnx/out.onnx {NONE}"),
    "out has a name of 300 letters": _words(f"in.onnx {'o' * 300} {NONE}"),
    "out is the data": _words(RUN.replace("out.onnx", "d.npz") + "int8 --data d.npz"),
    "out is where nothing can be": _words(f"in.onnx /proc/out.onnx {NONE}"),
    "out is empty": Case(_model, f"in.onnx ./ {NONE}"),
    "a report is the output": _words(f"in.onnx out.json {NONE} --report out.json"),
    "a report is the model": Case(_with("in.json"), f"in.json out.onnx {NONE} --report in.json"),
    "a report without an ending": _words(f"in.onnx out.onnx {NONE} --report r"),
    "sizes of nothing": _words(RUN + "svd --input-shapes x"),
    "negative sizes": _words(RUN + "svd --input-shapes x:-1,3,8,8"),
    "sizes that do not fit": _words(RUN + "svd --input-shapes x:1,4,8,8"),
    "sizes of 10^12 samples": _words(RUN + "svd --input-shapes x:1000000000000,3,8,8"),
    "batches of 10^12 samples": _words(RUN + "int8 --batch 1000000000000"),
    "no samples": _words(RUN + "int8 --data d.npz --samples 0"),
    "a negative seed": _words(RUN + "int8 --seed -1"),
    "a seed beyond 64 bits": _words(RUN + f"int8 --seed {10**30}"),
    "no time": _words(RUN + "int8 --time-limit 0"),
    "negative time": _words(RUN + "int8 --time-limit -3"),
    "time that is NaN": _words(RUN + "int8 --time-limit nan"),
    "memory that is NaN": _words(RUN + "int8 --memory-limit nan"),
    "memory without end": _words(RUN + "int8 --memory-limit inf"),
    "no memory": _words(RUN + "int8 --memory-limit 0.000001"),
    "no threads": _words(RUN + "int8 --threads 0"),
    "10^9 threads": _words(RUN + "int8 --threads 1000000000"),
    "a SPEC of quotes": _words("in.onnx out.onnx --passes '''"),
    "a SPEC of 10^5 commas": _words("in.onnx out.onnx --passes " + "," * 100_000),
    "an expression that takes for ever": _words(RUN + "prune:exclude=(a+)+$:channels=0.9 --data d.npz"),
    "an expression that is none": _words(RUN + "prune:exclude=(((:channels=0.9 --data d.npz"),
    "a recipe of bytes": _recipe(b"\xff\xfe\x00" * 99),
    "a recipe of text": _recipe(b"Lorem ipsum"),
    "an empty recipe": _recipe(b""),
    "a recipe of a number": _recipe(b"pass = 3"),
    "a recipe of passes without a name": _recipe(b"[[pass]]\nmacs = 0.5"),
    "a recipe nested 5000 deep": _recipe(b"a = " + b"[" * 5000),
    "a recipe of an unknown pass": _recipe(b"[[pass]]\nname = 'prun'"),
    "a recipe of a table for an option": _recipe(b"[[pass]]\nname = 'int8'\n[pass.tolerance]\na = 1"),
    "a recipe that is a folder": Case(_with("r.toml/x"), "in.onnx out.onnx --recipe r.toml"),
    "decisions of text": _decisions(b"Lorem"),
    "decisions of bytes": _decisions(b"\xff\xfe"),
    "decisions of another shape": _decisions(b'{"passes": {"a": 1}}'),
    "decisions nested 100,000 deep": _decisions(b"[" * 100_000),
    "decisions without nodes": _decisions(b'{"passes": [{"name": "int8", "decisions": [{"what": 1}]}]}'),
    "decisions of a number beyond range": _decisions(
        b'{"passes": [{"name": "int8", "decisions": [{"node": 1, "what": 2, "value": "x", "kept": 0}]}]}'
    ),
}
