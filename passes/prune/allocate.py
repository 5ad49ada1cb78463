"""How many units of each kind go: least error for what is saved.

Minimise Σ s_k e_k(m_k) − λ Σ c_k(m_k), kind by kind, for a price λ of work; a larger λ prunes more. (SPDY, Frantar &
Alistarh 2022, with the Lagrangian in place of the dynamic program.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit
    from onnx_compress.passes.prune.curves import Curve

    Array = NDArray[Any]

ROUNDS = 40  # of bisection: a factor of 2^40 in the price


@dataclass(frozen=True)
class Choice:
    """What a kind may lose: counts (ascending, the first 0), their error and what they save; how many layers read it."""

    curve: Curve
    counts: Array
    error: Array
    saved: Array
    readers: int = 1


def counts(size: int, multiple: int) -> Array:
    """How many of `size` units may go so that a multiple of `multiple` stays; a small kind is not rounded.

    >>> counts(16, 8).tolist(), counts(5, 8).tolist()
    ([0, 8], [0, 1, 2, 3, 4])
    """
    if size < 2 * multiple:
        multiple = 1
    kept = np.arange(multiple, size, multiple)[::-1]
    return np.concatenate([[0], size - kept])


def aligned(size: int, multiple: int) -> int:
    """The multiple that widths of a kind of `size` are rounded to: `multiple`, less where that leaves under four widths.

    >>> [aligned(size, 16) for size in (64, 32, 24, 16, 3)]
    [16, 8, 4, 4, 1]
    """
    return min(multiple, 1 << max(size // 4, 1).bit_length() - 1)


def at_price(choices: Sequence[Choice], price: float) -> list[int]:
    """How many of each kind go when a unit of work saved is worth `price` of error."""
    return [int(c.counts[np.argmin(c.error - price * c.saved)]) for c in choices]


def chosen(choices: Sequence[Choice], numbers: Sequence[int]) -> list[Unit]:
    """The units that these numbers stand for."""
    return [
        unit for choice, number in zip(choices, numbers, strict=True) for unit in choice.curve.units[:number]
    ]


def even(choices: Sequence[Choice], keep: float) -> list[int]:
    """How many of each kind go so that every weight axis keeps the share `keep`.

    Heads and their width cut the same axes, so each keeps √keep of itself; where one of such kinds has an axis to
    itself (what is within the groups of a convolution), it alone makes up the share, and the other (the groups) stays.
    """
    covers = [_cover(choice.curve.units) for choice in choices]
    at: dict[tuple[str, int], list[int]] = {}
    for number, cover in enumerate(covers):
        for place in cover:
            at.setdefault(place, []).append(number)
    rivals = [
        {p: [j for j in at[p] if j != i and np.intersect1d(covers[j][p], c).size] for p, c in cover.items()}
        for i, cover in enumerate(covers)
    ]
    alone = [any(not others for others in places.values()) for places in rivals]
    numbers = [0] * len(choices)
    gone: dict[tuple[str, int], Array] = {}
    nothing = np.empty(0, np.int64)
    waiting = set(range(len(choices)))
    for i in sorted(waiting, key=lambda i: (not alone[i], choices[i].curve.size)):
        waiting.discard(i)
        needs = [keep]
        if not alone[i]:
            needs = []
            for place, indices in covers[i].items():
                left = 1 - np.intersect1d(gone.get(place, nothing), indices).size / indices.size
                shared = 1 + len(waiting.intersection(rivals[i][place]))
                needs.append(min(1.0, keep / left) ** (1 / shared))
        wanted = round(choices[i].curve.size * (1 - max(needs)))
        counts = choices[i].counts
        numbers[i] = int(counts[np.searchsorted(counts, wanted, side="right") - 1])
        for place, taken in _cover(choices[i].curve.units[: numbers[i]]).items():
            gone[place] = np.union1d(gone.get(place, nothing), taken)
    return numbers


def evenly(choices: Sequence[Choice], left: Callable[[list[int]], float], budget: float) -> list[int]:
    """The largest share of every kind with which at most `budget` of the work is left, to a thousandth."""
    low, high = 0.0, 1.0
    best = even(choices, low)
    for _ in range(10):
        middle = (low + high) / 2
        numbers = even(choices, middle)
        if left(numbers) <= budget:
            best, low = numbers, middle
        else:
            high = middle
    return best


def _cover(units: Sequence[Unit]) -> dict[tuple[str, int], Array]:
    """The indices of each weight axis that these units take."""
    pieces: dict[tuple[str, int], list[Array]] = {}
    for unit in units:
        for place, indices in unit.places.items():
            pieces.setdefault(place, []).append(indices)
    return {place: np.unique(np.concatenate(parts)) for place, parts in pieces.items()}


def to_budget(choices: Sequence[Choice], left: Callable[[list[int]], float], budget: float) -> list[int]:
    """The least error with at most `budget` of the work left, `left` being the fraction left."""
    low, high = prices(choices)
    least, best = at_price(choices, low), at_price(choices, high)
    for _ in range(ROUNDS):
        if least == best:
            break
        middle = float(np.sqrt(low * high))
        numbers = at_price(choices, middle)
        if left(numbers) <= budget:
            best, high = numbers, middle
        else:
            least, low = numbers, middle
    return best


def prices(choices: Sequence[Choice]) -> tuple[float, float]:
    """A price at which nothing goes, and one at which everything that may goes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [np.diff(c.error) / np.diff(c.saved) for c in choices if len(c.counts) > 1]
    all_ratios = np.concatenate(ratios) if ratios else np.array([1.0])
    usable = all_ratios[np.isfinite(all_ratios) & (all_ratios > 0)]
    if not usable.size:
        return 1e-12, 1.0
    return float(usable.min()) * 1e-3, float(usable.max()) * 1e3
