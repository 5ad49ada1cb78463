"""What the system does to a run: signals at any moment, a full disk, files that change, two runs at once."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from command import ROOT, Command, Outcome
from hostile.case import good

from onnx_compress.errors import InputError
from onnx_compress.model.document import Model
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import input_specs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WORDS = ["in.onnx", "out.onnx", "--passes", "svd", "--no-verify", "-q"]
ROWS = np.random.default_rng(1).standard_normal((32, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def command() -> Iterator[Command]:
    with Command() as found:
        yield found


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    (tmp_path / "scratch").mkdir()
    (tmp_path / "work" / "in.onnx").write_bytes(good().SerializeToString())
    return tmp_path / "work"


def stop_at_random(command: Command, work: Path, times: int, number: int) -> int:
    """How many runs were interrupted; each leaves nothing and says so, or is done."""
    scratch = work.parent / "scratch"
    whole = command.run(WORDS, work, scratch)
    assert whole.code == 0, whole
    rng = random.Random(number)  # noqa: S311 - moments, not secrets
    interrupted = 0
    for _ in range(times):
        (work / "out.onnx").unlink()
        found = command.run(WORDS, work, scratch, rng.uniform(0.02, 1.1 * whole.seconds), stop=number)
        done = (work / "out.onnx").exists()
        assert found.code in ((0, 130) if done else (130,)), found
        assert bool(found.code) == found.err.startswith("onnx-compress: interrupted; no")
        assert found.err.count("\n") == bool(found.code)
        assert sorted(os.listdir(work)) == (["in.onnx", "out.onnx"] if done else ["in.onnx"])
        assert os.listdir(scratch) == []
        interrupted += not done
        (work / "out.onnx").touch()
    return interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_at_a_few_moments(command: Command, work: Path, number: int) -> None:
    stop_at_random(command, work, 3, number)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_at_50_moments(command: Command, work: Path, number: int) -> None:
    assert stop_at_random(command, work, 50, number) > 0


def test_two_runs_write_one_output(command: Command, work: Path) -> None:
    """Each is done; the output is that of one of them, whole."""
    scratch = work.parent / "scratch"
    found: list[Outcome] = []
    with Command() as other:
        runs = [
            threading.Thread(target=lambda one=one: found.append(one.run(WORDS, work, scratch)))
            for one in (command, other)
        ]
        for run in runs:
            run.start()
        for run in runs:
            run.join()
    assert [outcome.code for outcome in found] == [0, 0], found
    onnx.checker.check_model(str(work / "out.onnx"), full_check=True)
    assert sorted(os.listdir(work)) == ["in.onnx", "out.onnx"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system of its own")
@pytest.mark.parametrize("spec", ["none", "svd"])
def test_a_disk_that_is_full(work: Path, spec: str) -> None:
    """A file system of 256 kB for a model of 400 kB: the old output stays, nothing is left."""
    model = Model.from_proto(good())
    model.proto.graph.initializer.append(model.tensor(np.ones(100_000, np.float32), "large"))
    model.proto.graph.node.add(op_type="Neg", input=["large"], output=["negative"])
    model.proto.graph.output.add(name="negative").type.CopyFrom(
        onnx.helper.make_tensor_type_proto(1, [100_000])
    )
    model.save(work / "in.onnx")
    small = work / "small"
    small.mkdir()
    line = f"{sys.executable} -m onnx_compress in.onnx small/out.onnx --passes {spec} -q"
    script = (
        "mount -t tmpfs -o size=256k none small || exit 77; echo old > small/out.onnx; "
        f"{line}; code=$?; ls -A small; cat small/out.onnx; exit $code"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    found = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], cwd=work, env=env, capture_output=True, text=True, check=False
    )
    if found.returncode in (77, 1):
        pytest.skip("this user may not mount")
    assert found.returncode == 4, found
    assert found.stderr.startswith("onnx-compress: the disk is full")
    assert found.stderr.count("\n") == 1
    assert found.stdout == "out.onnx\nold\n"


@pytest.mark.parametrize("packed", [False, True])
def test_data_that_changes_is_refused(tmp_path: Path, packed: bool) -> None:
    save: Any = np.savez_compressed if packed else np.savez
    save(tmp_path / "d.npz", x=ROWS)
    data = open_data(tmp_path / "d.npz", input_specs(Model.from_proto(good())))
    if packed:  # what was read once may be kept
        data.reader._kept.clear()  # type: ignore[attr-defined]
    next(data.batches(4))
    if packed:
        data.reader._kept.clear()  # type: ignore[attr-defined]
    save(tmp_path / "d.npz", x=ROWS[:20])
    with pytest.raises(InputError, match="changed while it was read"):
        list(data.batches(4))


def test_external_data_moves_with_the_model(command: Command, work: Path) -> None:
    """Out of one folder into another, and then onto itself."""
    onnx.save(good(), work / "e.onnx", save_as_external_data=True, location="e.bin", size_threshold=16)
    (work / "to").mkdir()
    for words in ("e.onnx to/out.onnx", "to/out.onnx to/out.onnx"):
        found = command.run([*words.split(), "--passes", "none", "-q"], work, work.parent / "scratch")
        assert found.code == 0, found
        copy = onnx.load(work / "to" / "out.onnx")
        assert [t.raw_data for t in copy.graph.initializer] == [t.raw_data for t in good().graph.initializer]
    left = sorted(path.name for path in (work / "to").iterdir())
    assert left == ["out.onnx", "out.onnx.0.data", "out.onnx.1.data"]


def test_two_models_compare(command: Command, work: Path) -> None:
    shutil.copy(work / "in.onnx", work / "same.onnx")
    np.savez(work / "d.npz", x=ROWS, label=np.zeros(len(ROWS), np.int64))
    found = command.run(["verify", "in.onnx", "same.onnx", "--data", "d.npz"], work, work.parent / "scratch")
    assert (found.code, found.err) == (0, "")
    assert found.out.startswith("in.onnx compared with same.onnx")


def test_inspect_shows_the_model(command: Command, work: Path) -> None:
    scratch = work.parent / "scratch"
    found = command.run(["inspect", "in.onnx"], work, scratch)
    assert found.code == 0
    assert "channel units that can go whole" in found.out
    found = command.run(["inspect", "in.onnx", "--json"], work, scratch)
    assert len(json.loads(found.out)["layers"]) == 2
    assert os.listdir(work) == ["in.onnx"]
