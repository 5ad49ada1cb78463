"""The benchmarks: `python -m tests.bench [NAME] [words ...]` runs `tests/bench/NAME.py`, or `zoo` where no name is given.

Each is one file with `main(argv)`, measures everything in one run and writes its table beside itself.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

PARTS = {"networks"}  # what benchmarks share


def main(argv: list[str]) -> None:
    """Runs the benchmark that the first word names."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py") if path.stem not in PARTS)
    name, rest = (argv[0], argv[1:]) if argv and argv[0] in names else ("zoo", argv)
    importlib.import_module(f"tests.bench.{name}").main(rest)


if __name__ == "__main__":
    main(sys.argv[1:])
