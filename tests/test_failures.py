"""The command as real processes: whole runs, a full disk, signals. (`test_hostile` has what is wrong with words and files.)"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hostile.case import good

from onnx_compress import cli, supervise

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS = np.random.default_rng(1).standard_normal((16, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a good model and good data; afterwards the temporary folder is empty."""
    scratch = tmp_path / "scratch"
    work = tmp_path / "work"
    scratch.mkdir()
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("TMPDIR", str(scratch))
    (work / "m.onnx").write_bytes(good().SerializeToString())
    np.savez(work / "d.npz", x=ROWS, label=np.zeros(16, np.int64))
    yield work
    assert list(scratch.iterdir()) == []
    with contextlib.suppress(ChildProcessError):
        raise AssertionError(f"a child is left: {os.waitpid(-1, os.WNOHANG)}")


LITTLE_ROOM = "import resource, signal; signal.signal(25, 1); resource.setrlimit(1, (1000, 1000)); "
WHOLE = good().SerializeToString()
RUN = "m.onnx out.onnx --passes int8 --data "


def test_command_runs_end_to_end(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The result loads, its report is complete, and the input is untouched."""
    words = "m.onnx out.onnx --passes int8:keep_if=always --data d.npz --eval d.npz --json --report r.md"
    assert cli.main(words.split()) == 0
    out, err = capfd.readouterr()
    report = json.loads(out)
    assert err == ""
    assert (report["input"], report["output"], report["recipe"]) == (
        "m.onnx",
        "out.onnx",
        "int8:keep_if=always",
    )
    assert report["metric"]["samples"] == 16
    assert sorted(path.name for path in folder.iterdir()) == ["d.npz", "m.onnx", "out.onnx", "r.md"]
    onnx.checker.check_model("out.onnx")
    assert Path("m.onnx").read_bytes() == WHOLE


def test_full_disk_is_one_line_and_leaves_the_old_file(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file may grow beyond 1 kB: writing fails with an error of the system, in the child, at the end."""
    (folder / "out.onnx").write_bytes(b"old")
    monkeypatch.setattr(supervise, "_START", LITTLE_ROOM + supervise._START)
    assert cli.main(["m.onnx", "out.onnx", "--passes", "none"]) == 4
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("onnx-compress: the disk is full")
    assert err.count("\n") == 1
    assert (folder / "out.onnx").read_bytes() == b"old"
    assert sorted(path.name for path in folder.iterdir()) == ["d.npz", "m.onnx", "out.onnx"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_command_leaves_nothing(folder: Path, number: int) -> None:
    """As Ctrl-C does it: to the command, while its child works."""
    command = [sys.executable, "-m", "onnx_compress", *(RUN + "d.npz").split()]
    pipe, root = subprocess.PIPE, str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": root}

    def caught_again() -> None:
        signal.signal(number, signal.SIG_DFL)  # a runner in the background ignores some, and its children too

    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=env, preexec_fn=caught_again
    ) as process:
        scratch = Path(tempfile.gettempdir())
        while not list(scratch.iterdir()) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode == 130
    assert (out, err) == ("", "onnx-compress: interrupted; nothing was written\n")
    assert sorted(path.name for path in folder.iterdir()) == ["d.npz", "m.onnx"]
