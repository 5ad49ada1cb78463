"""Every pass, with its default options, on every model of the corpus: `python -m tests.corpus [FOLDER ...]`.

The models are onnx's backend suite, the zoo, and every .onnx file below the folders named. Each case runs in a child process
with a time limit, so that a crash or a hang is one failed case. Results go to corpus.jsonl beside this file as they come (a case
that is there is not run again: delete the file, or give --again failed), the table of valid, refused and failed to corpus.md.
The exit code is 1 where any case failed.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_compress.passes import PASSES
from tests.corpus.child import Child
from tests.corpus.models import corpus, read_results

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent


def main() -> int:
    """Runs what is asked for; whether anything failed."""
    words = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__)
    words.add_argument("folders", nargs="*", type=Path, help="more models: every .onnx file below")
    words.add_argument("--passes", default=",".join(["none", *(kind.name for kind in PASSES)]))
    words.add_argument("--only", default="", help="a regular expression on group/model")
    words.add_argument("--again", choices=["failed", "all"], help="run these again though results are there")
    words.add_argument("--results", type=Path, default=HERE / "corpus.jsonl")
    words.add_argument("--part", default="0/1", help="i/n: only every n-th model from the i-th on")
    words.add_argument("--table", action="store_true", help="only write the table")
    asked = words.parse_args()
    if not asked.table:
        run(asked)
    rows = list(read_results(asked.results).values())
    asked.results.with_suffix(".md").write_text(table(rows), encoding="utf-8")
    failed = [row for row in rows if row["kind"] == "failed"]
    print(table(rows).split("\n\n")[1])
    for row in failed:
        print(f"{row['group']}/{row['model']} {row['spec']}: {row['words']}")
    return 1 if failed else 0


def run(asked: argparse.Namespace) -> None:
    """Runs the cases that have no result yet."""
    done = read_results(asked.results)
    part, parts = map(int, asked.part.split("/"))
    with tempfile.TemporaryDirectory() as scratch, asked.results.open("a", encoding="utf-8") as results:
        child = Child()
        for number, item in enumerate(corpus(Path(scratch), asked.folders)):
            if number % parts != part or not re.search(asked.only, f"{item.group}/{item.name}"):
                continue
            for spec in asked.passes.split(","):
                row = done.get((item.group, item.name, spec))
                if row and not (asked.again == "all" or (asked.again and row["kind"] == asked.again)):
                    continue
                start = time.monotonic()
                kind, said, changed = child.ask(item, spec)
                row = {"group": item.group, "model": item.name, "spec": spec, "kind": kind, "words": said}
                row |= {"changed": changed, "seconds": round(time.monotonic() - start, 2)}
                results.write(json.dumps(row) + "\n")
                results.flush()
        child.end()


def table(rows: list[dict[str, Any]]) -> str:
    """Counts by group and pass, then every reason for a refusal with its count, then every failure."""
    specs = list(dict.fromkeys(row["spec"] for row in rows))
    groups = list(dict.fromkeys(row["group"] for row in rows))
    lines = ["# Every pass with default options on the corpus", ""]
    lines.append("| models | of | " + " | ".join(specs) + " |")
    lines.append("|---|--:|" + "--:|" * len(specs))
    lines += [_line(group, [row for row in rows if row["group"] == group], specs) for group in groups]
    lines += [_line("all", rows, specs), ""]
    lines.append("valid (of these, changed by the pass) / refused with a reason / failed")
    lines += ["", "## Refused", "", *_reasons(rows), "", "## Failed", ""]
    failed = [row for row in rows if row["kind"] == "failed"]
    lines += [f"- `{r['group']}/{r['model']}` {r['spec']}: {r['words']}" for r in failed] or ["None."]
    return "\n".join(lines) + "\n"


def _line(name: str, rows: list[dict[str, Any]], specs: list[str]) -> str:
    cells = []
    for spec in specs:
        here = [row for row in rows if row["spec"] == spec]
        count = collections.Counter(row["kind"] for row in here)
        changed = sum(row["changed"] for row in here)
        cells.append(f"{count['valid']} ({changed}) / {count['refused']} / {count['failed']}")
    return f"| {name} | {len({row['model'] for row in rows})} | " + " | ".join(cells) + " |"


def _reasons(rows: list[dict[str, Any]]) -> Iterator[str]:
    counts: collections.Counter[str] = collections.Counter()
    for row in rows:
        if row["kind"] == "refused":
            words = re.sub(r"\S*/\S*\.onnx", "MODEL", row["words"])
            counts[re.sub(r"'[^']*'|\b\d+\b|\{[^}]*\}", "_", words)[:160]] += 1
    yield from (f"- {count} × {words}" for words, count in counts.most_common())


if __name__ == "__main__":
    sys.exit(main())
