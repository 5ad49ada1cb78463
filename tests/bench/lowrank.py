"""What svd is to show: `python -m tests.bench lowrank [SECTION ...] [--only NET] [--tensorly PYTHON] [--resnet18 FILE] [--vgg FILE] [--minilm FILE]`.

Sections: tensorly, plain, rank, budgets, interplay, minilm, vgg, faster, resnet50. Each row is written to `lowrank.json` as soon as it is
measured, in place of an earlier one of the same net and recipe, and the table of all is `lowrank.md`. What is not there (the shared assets, an
interpreter with tensorly, the nets that `tests.bench resnet18` and `vgg` train, a package's MiniLM) is left out. Accuracies are on whole evaluation
sets, times of this machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench._lowrank_outputs import plain, rank, tensorly
from tests.bench._lowrank_runs import budgets, faster, interplay, minilm, resnet50, vgg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Row = dict[str, Any]

HERE = Path(__file__).parent
WHAT = ("net", "recipe", "budget")  # of a row is measured
SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "tensorly": tensorly,
    "plain": plain,
    "rank": rank,
    "budgets": budgets,
    "interplay": interplay,
    "minilm": minilm,
    "vgg": vgg,
    "faster": faster,
    "resnet50": resnet50,
}


def table(name: str, rows: list[Row]) -> list[str]:
    """A section as Markdown."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"## {name}", "", str(SECTIONS[name].__doc__).splitlines()[0], ""]
    lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return [*lines, *(f"| {' | '.join(str(row.get(key, '')) for key in columns)} |" for row in rows), ""]


def put(rows: list[Row], row: Row) -> None:
    """`row` takes the place of the one that measured the same, or comes last."""
    what = [row.get(key) for key in WHAT]
    place = next((i for i, old in enumerate(rows) if [old.get(key) for key in WHAT] == what), len(rows))
    rows[place : place + 1] = [row]


def main(argv: list[str] | None = None) -> None:
    """Runs the sections asked for and writes all that are known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--only", default="", help="nets whose name contains this")
    parser.add_argument("--share", type=float, help="this budget alone, of the sections that have several")
    parser.add_argument(
        "--tensorly", default=sys.executable, help="an interpreter that has tensorly and onnx"
    )
    parser.add_argument("--resnet18", help="what `tests.bench resnet18` wrote")
    parser.add_argument("--vgg", help="what `tests.bench vgg` wrote")
    parser.add_argument("--minilm", help="a MiniLM with token ids in and hidden states out")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder of lowrank.json and lowrank.md")
    words = parser.parse_args(argv)
    path = words.out / "lowrank.json"
    known: dict[str, list[Row]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in words.sections or SECTIONS:
        for row in SECTIONS[name](words):
            print(row, flush=True)
            put(known.setdefault(name, []), row)
            path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
            lines = [line for each in SECTIONS if each in known for line in table(each, known[each])]
            (words.out / "lowrank.md").write_text("\n".join(lines), encoding="utf-8")
