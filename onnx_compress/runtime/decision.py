"""A choice the clock made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """A choice that the clock made, kept so that a replay needs no clock.

    what: "keep", "round_to" or "time"; ratio: time before over time after, with its 95 % interval low..high.
    """

    node: str
    what: str
    value: float
    kept: bool
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
