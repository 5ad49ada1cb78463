"""Hostile and broken files end in one line, the documented exit code and nothing left behind; odd but valid ones are kept whole."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from command import Command, Outcome
from hostile import CASES
from hostile.case import good
from oracle import unlike

from onnx_compress.model.document import Model

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPECTED = Path(__file__).parent / "hostile" / "expected.txt"
LIMITS = ("--time-limit", "15", "--memory-limit", "2")
SECONDS = 20.0
MEMORY = 2_000_000_000


@pytest.fixture(scope="module")
def command() -> Iterator[Command]:
    with Command() as found:
        yield found


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def ran(command: Command, case: str, folder: Path) -> tuple[Outcome, list[str], list[str]]:
    """How it ended, and what lay in the folder before and after."""
    work, scratch = folder / "work", folder / "scratch"
    work.mkdir()
    scratch.mkdir()
    CASES[case].make(work)
    before = tree(folder)
    words = CASES[case].words.split(" ")
    limits = LIMITS if "--time-limit" not in words else LIMITS[2:]
    limits = LIMITS[:2] if "--memory-limit" in words else limits
    return command.run([*words, *limits], work, scratch, SECONDS), before, tree(folder)


def expected() -> dict[str, tuple[int, list[str]]]:
    """The exit code of each case, and what its line says."""
    lines = EXPECTED.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line and not line.startswith("#")]
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    return {name: (int(code), said.split(" .. ")) for code, name, said in cells}


ENDS = expected()


def test_each_case_has_its_line_in_the_table() -> None:
    assert list(ENDS) == list(CASES)
    assert len(CASES) >= 200
    assert not [name for name, (code, said) in ENDS.items() if bool(code) != any(said)]


# > the whole set takes a few minutes: a part of it, spread over all kinds, is for every day
SOME = [name for at, name in enumerate(CASES) if at % 11 == 0 or name.startswith("plain")]


@pytest.mark.parametrize("case", SOME)
def test_some_hostile_files(command: Command, tmp_path: Path, case: str) -> None:
    ends_well(command, tmp_path, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_hostile_files(command: Command, tmp_path: Path, case: str) -> None:
    ends_well(command, tmp_path, case)


def ends_well(command: Command, folder: Path, case: str) -> None:
    """One line, the exit code, no traceback, nothing left; or a result that lacks nothing of the model."""
    found, before, after = ran(command, case, folder)
    new = [path for path in after if path not in before]
    (code, said), words = ENDS[case], CASES[case].words.split()
    assert found.code == code, found
    assert all(letter.isprintable() or letter == "\n" for letter in found.err + found.out), found
    assert "Traceback" not in found.err + found.out
    assert "a bug in" not in found.err
    assert found.peak < MEMORY
    if found.code:
        assert found.out == ""
        assert found.err.startswith("onnx-compress: ")
        assert found.err.count("\n") == 1
        assert found.err.endswith("\n")
        assert len(found.err) < 2000
        assert all(part in found.err for part in said), found
        assert new == []
    else:
        assert found.err == ""
        # > a lossless copy of a model with external data has its own data file; a link leads to its target
        made = [path for path in new if not path.endswith(".0.data")]
        assert made in ([] if words[0] == "inspect" else ["work/out.onnx"], ["work/new.onnx"])
        source = folder / "work" / words[0]
        for path in made:
            assert unlike(Model.load(source), Model.load(folder / path), stamped=False) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
def test_a_name_that_is_no_text(command: Command, tmp_path: Path) -> None:
    name = os.fsdecode(b"m\xff.onnx")
    (tmp_path / name).write_bytes(good().SerializeToString())
    assert command.run([name, "out.onnx", "--passes", "none"], tmp_path, tmp_path).code == 0
    assert command.run(["gone" + name, "out.onnx", "--passes", "none"], tmp_path, tmp_path).code == 3
