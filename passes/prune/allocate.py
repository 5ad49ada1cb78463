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
    """What a kind may lose: counts (ascending, the first 0), their error and what they save."""

    curve: Curve
    counts: Array
    error: Array
    saved: Array


def counts(size: int, multiple: int) -> Array:
    """How many of `size` units may go so that a multiple of `multiple` stays; a small kind is not rounded.

    >>> counts(16, 8).tolist(), counts(5, 8).tolist()
    ([0, 8], [0, 1, 2, 3, 4])
    """
    if size < 2 * multiple:
        multiple = 1
    kept = np.arange(multiple, size, multiple)[::-1]
    return np.concatenate([[0], size - kept])


def at_price(choices: Sequence[Choice], price: float) -> list[int]:
    """How many of each kind go when a unit of work saved is worth `price` of error."""
    return [int(c.counts[np.argmin(c.error - price * c.saved)]) for c in choices]


def chosen(choices: Sequence[Choice], numbers: Sequence[int]) -> list[Unit]:
    """The units that these numbers stand for."""
    return [
        unit for choice, number in zip(choices, numbers, strict=True) for unit in choice.curve.units[:number]
    ]


def to_budget(choices: Sequence[Choice], left: Callable[[list[Unit]], float], budget: float) -> list[int]:
    """The least error with at most `budget` of the work left, `left` being the fraction left."""
    low, high = prices(choices)
    best = at_price(choices, high)
    for _ in range(ROUNDS):
        middle = float(np.sqrt(low * high))
        numbers = at_price(choices, middle)
        if left(chosen(choices, numbers)) <= budget:
            best, high = numbers, middle
        else:
            low = middle
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
