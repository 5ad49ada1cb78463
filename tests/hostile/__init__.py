"""Some 450 hostile or broken files, made here, each with the words it is given to; `expected.txt` says how each must end."""

from __future__ import annotations

from hostile.archives import CASES as ARCHIVES
from hostile.bombs import CASES as BOMBS
from hostile.case import Case
from hostile.data import CASES as DATA
from hostile.external import CASES as EXTERNAL
from hostile.files import CASES as FILES
from hostile.graphs import CASES as GRAPHS
from hostile.kept import CASES as KEPT
from hostile.odd import CASES as ODD
from hostile.plain import CASES as PLAIN
from hostile.words import CASES as WORDS

PARTS = {
    "plain": PLAIN,
    "file": FILES,
    "graph": GRAPHS,
    "bomb": BOMBS,
    "external": EXTERNAL,
    "kept": KEPT,
    "data": DATA,
    "words": WORDS,
    "archive": ARCHIVES,
    "odd": ODD,
}
CASES: dict[str, Case] = {
    f"{part}: {name}": case for part, cases in PARTS.items() for name, case in cases.items()
}

__all__ = ["CASES", "Case"]
