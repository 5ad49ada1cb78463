"""Every command in the README runs and ends with exit code 0, but for installing and the test command itself."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from onnx_compress.model.rules import RULES
from onnx_compress.passes import PASSES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return [line.removeprefix("pip install . && ") for line in lines if "&& pytest" not in line]


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    (folder / "models").symlink_to(ROOT / "models")
    return folder


def run(argv: list[str] | str, folder: Path, *, shell: bool) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        argv, shell=shell, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_there_are_commands() -> None:
    assert len(commands()) >= 5


@pytest.mark.parametrize("command", commands())
def test_command_runs(command: str, folder: Path) -> None:
    run(command, folder, shell=True)


@pytest.mark.parametrize("code", python_blocks())
def test_python_example_runs(code: str, folder: Path) -> None:
    run([sys.executable, "-c", code], folder, shell=False)


def table(head: str) -> list[list[str]]:
    """The cells of the rows of the table that begins with `head`."""
    lines = README[README.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_pass_is_in_the_table_with_its_bounds() -> None:
    rows = {row[0].strip("`"): re.findall(r"`(\w+)`", row[2]) for row in table("| pass | what it does")}
    assert rows.keys() == {kind.name for kind in PASSES}
    for kind in PASSES:
        assert set(rows[kind.name]) <= {entry.name for entry in dataclasses.fields(kind)}


def test_every_rule_is_in_the_table_of_operators() -> None:
    found = set()
    for kind, names in table("| what they do with channels"):
        domain = "com.microsoft." if "com.microsoft" in kind else ""
        found |= {domain + name for name in names.split()}
    assert found == RULES.keys()


def test_length() -> None:
    assert len(README.splitlines()) <= 150
