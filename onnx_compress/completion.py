"""What a shell may complete: the words of `run` though it is not typed, and the names of passes, metrics and coders."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, MutableMapping

ASKED = "_ONNX_COMPRESS_COMPLETE"  # typer's variable: the shell asks for completions


def name_run(commands: Collection[str], environment: MutableMapping[str, str] = os.environ) -> None:
    """Puts `run` in front of the words that a shell wants completed, where no command is named.

    Typer reads the words from variables that its shell scripts set.

    >>> words = {ASKED: "complete_bash", "COMP_WORDS": "onnx-compress in.onnx --da", "COMP_CWORD": "2"}
    >>> name_run(["run"], words); words["COMP_WORDS"], words["COMP_CWORD"]
    ('onnx-compress run in.onnx --da', '3')
    """
    if ASKED not in environment:
        return
    variable = "COMP_WORDS" if "COMP_WORDS" in environment else "_TYPER_COMPLETE_ARGS"
    # bash joins the words by newlines; a first word still being typed may yet become a command
    found = re.match(r"(\S+)(\s+)(\S+)\s", environment.get(variable, ""))
    if found is None or found[3] in commands or found[3] in {"--help", "--version"}:
        return
    environment[variable] = f"{found[1]}{found[2]}run{environment[variable][found.end(1) :]}"
    if "COMP_CWORD" in environment:
        environment["COMP_CWORD"] = str(int(environment["COMP_CWORD"]) + 1)


def complete_spec(incomplete: str) -> list[str]:
    """SPECs whose last pass begins as typed."""
    done, comma, last = incomplete.rpartition(",")
    return [done + comma + name for name in complete_pass(last)]


def complete_pass(incomplete: str) -> list[str]:
    """The passes that begin so."""
    from onnx_compress.passes import known_passes

    return sorted(kind.name for kind in known_passes() if kind.name.startswith(incomplete))


def complete_metric(incomplete: str) -> list[str]:
    """The metrics that begin so; a function of the user's is no word of ours."""
    from onnx_compress.verify import METRICS

    return sorted(name for name in METRICS if name.startswith(incomplete))


def complete_coder(incomplete: str) -> list[str]:
    """The coders that begin so."""
    from onnx_compress.archive.streams import CODERS

    return sorted(name for name in CODERS if name.startswith(incomplete))
