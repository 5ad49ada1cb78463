"""A real bash completes the command's words, those of `run` too, which nobody types."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from onnx_compress.passes import PASSES

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
source <("$PROGRAM" --show-completion bash)
read -ra COMP_WORDS <<< "$LINE"
[[ "$LINE" == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_onnx_compress_completion "$PROGRAM"
printf '%s\n' "${COMPREPLY[@]}"
"""
SPECS = sorted(f"prune,{kind.name}" for kind in PASSES if kind.name.startswith("s"))


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash is installed")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("onnx-compress ver", ["verify"]),
        ("onnx-compress in.onnx out.onnx --memory", ["--memory-limit"]),
        ("onnx-compress run in.onnx out.onnx --memory", ["--memory-limit"]),
        ("onnx-compress in.onnx out.onnx --passes prune,s", SPECS),
        ("onnx-compress in.onnx out.onnx --metric to", ["top1", "top5"]),
        ("onnx-compress pack a.onnx a.ocz --coder r", ["range"]),
        ("onnx-compress passes in", sorted(k.name for k in PASSES if k.name.startswith("in"))),
        ("onnx-compress inspect in.onnx --self", ["--self-test"]),
    ],
)
def test_bash_completes(line: str, expected: list[str], tmp_path: Path) -> None:
    program = tmp_path / "onnx-compress"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m onnx_compress "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    given = {"PROGRAM": str(program), "LINE": line, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        ["bash", "-c", SCRIPT], env={**os.environ, **given}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == expected
    assert not done.stderr
