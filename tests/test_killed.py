"""A run that is killed leaves the old file or the new one, whole; what else it left goes with the next run."""

from __future__ import annotations

import fcntl
import os
import random
import time
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from command import Command
from hostile.case import good

from onnx_compress.model import wire
from onnx_compress.model.document import Model
from onnx_compress.model.staging import ENDING, staging_file, staging_folder, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def command() -> Iterator[Command]:
    with Command() as found:
        yield found


def kill_at_random(command: Command, folder: Path, times: int, *, external: bool) -> int:
    """Overwrites a good output again and again, killed at random moments; how often the new file was there."""
    work, scratch = folder / "work", folder / "scratch"
    work.mkdir()
    scratch.mkdir()
    onnx.save(good(), work / "in.onnx", save_as_external_data=external, location="in.bin", size_threshold=16)
    words = ["in.onnx", "out.onnx", "--passes", "none" if external else "svd", "--no-verify", "-q"]
    whole = command.run(words, work, scratch)
    assert whole.code == 0, whole
    Model.load(work / "out.onnx").save(work / "new.onnx")  # what a run makes, in one file
    proto = good()
    proto.doc_string = "old"
    replaced = 0
    rng = random.Random(0)  # noqa: S311 - moments, not secrets
    for _ in range(times):
        onnx.save(proto, work / "out.onnx")
        command.run(words, work, scratch, rng.uniform(0.0, 1.2 * whole.seconds))
        found = Model.load(work / "out.onnx")  # > raises where it is not whole
        onnx.checker.check_model(found.to_proto(), full_check=True)
        is_old = found.to_proto() == proto
        assert is_old or found.to_proto() == Model.load(work / "new.onnx").to_proto()
        replaced += not is_old
    time.sleep(0.5)
    assert command.run(words, work, scratch).code == 0
    left = [name for name in [*os.listdir(work), *os.listdir(scratch)] if name.endswith(ENDING)]
    assert left == []
    return replaced


@pytest.mark.parametrize("external", [False, True])
def test_killed_at_a_few_moments(command: Command, tmp_path: Path, external: bool) -> None:
    kill_at_random(command, tmp_path, 4, external=external)


@pytest.mark.slow
@pytest.mark.parametrize("external", [False, True])
def test_killed_at_50_moments(command: Command, tmp_path: Path, external: bool) -> None:
    """Some of the moments are after the rename, most before: both happen."""
    assert 0 < kill_at_random(command, tmp_path, 50, external=external) < 50


def test_what_is_being_made_is_not_swept_and_what_nobody_makes_is(tmp_path: Path) -> None:
    (tmp_path / f".old.x{ENDING}").mkdir()
    (tmp_path / f".old.y{ENDING}").touch()
    (tmp_path / "mine.tmp").touch()
    with staging_folder(tmp_path, "a") as folder, staging_file(tmp_path, "b") as (descriptor, file):
        os.close(descriptor)
        sweep(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {folder.name, file.name, "mine.tmp"}
    assert os.listdir(tmp_path) == ["mine.tmp"]


def test_a_link_is_not_followed_when_swept(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / f".l{ENDING}").symlink_to(tmp_path / "kept")
    sweep(tmp_path)
    assert (tmp_path / "kept" / "file").exists()


def test_without_locks_nothing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with staging_folder(tmp_path, "a") as folder:
        sweep(tmp_path)
        assert folder.exists()


def test_joined_bytes_are_those_of_protobuf() -> None:
    """Weights at several depths, and every length that a prefix of another size makes."""
    model = Model.from_proto(good())
    for size in (1, 127, 300, 1023, 16_300, 16_384, 70_000):
        value = np.arange(size, dtype=np.float32)
        model.proto.graph.initializer.append(model.tensor(value, f"t{size}"))
        body = model.proto.graph.node.add(op_type="Constant", output=[f"c{size}"]).attribute.add(
            name="value", type=4
        )
        body.t.CopyFrom(model.tensor(value))
    joined = b"".join(bytes(part) for part in wire.join(*model._marked()))
    assert joined == model.to_proto().SerializeToString()
    assert len(model._marked()[1]) == 10
