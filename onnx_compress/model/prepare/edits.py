"""What prepare did, and what it left alone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """One edit: `node` went from `before` to `after`."""

    node: str
    what: str
    before: str
    after: str


@dataclass(frozen=True)
class Left:
    """Why a node was left as it is."""

    node: str
    why: str
