"""Every command in the README runs and ends with exit code 0, but for installing and the test command itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_length() -> None:
    assert len(README.splitlines()) <= 150
