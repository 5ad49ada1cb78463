"""Frequency tables of symbols, in few bytes: explicit, or two-sided exponential around the commonest symbol.

A table is a level for each symbol: its frequency is 2^(-level/8), a twentieth exact. All arithmetic on the way from bytes to
frequencies is in integers, so that every machine that unpacks gets the table of the machine that packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.archive.fields import damaged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.archive.fields import Reader, Writer

    Array = NDArray[Any]

ABSENT = 255  # level of a symbol that does not occur
DEEPEST = 191  # level of the least frequency, 2^-24
_EIGHTHS: Array = np.array(  # 2^(24-i/8)
    [16777216, 15384775, 14107901, 12937002, 11863283, 10878679, 9975792, 9147842], np.int64
)
_SHORTEST = 4  # symbols up to which every table is explicit
_ROUGH = 3  # of the commonest's count: twice is what one hill has
_FIT_BITS = 40  # of the parameters of a table
_EXPLICIT_BITS = 6  # a level of an explicit table after zstd, about


def weights(levels: Array) -> Array:
    """Frequencies of `levels` (…, symbols) as int64, at least 1 but for absent symbols.

    >>> weights(np.uint8([0, 8, 255]))
    array([16777216,  8388608,        0])
    """
    levels = levels.astype(np.int64)
    found = np.maximum(_EIGHTHS[levels & 7] >> np.minimum(levels >> 3, 24), 1)
    return np.where(levels == ABSENT, 0, found)


@dataclass(frozen=True)
class Tables:
    """One table for each block of a stream. levels: (blocks, symbols) uint8; fits: the parametric ones, else None."""

    levels: Array
    fits: tuple[tuple[int, int, int, int] | None, ...]
    center: int

    def write(self, head: Writer) -> None:
        """What `read` needs."""
        head.number(self.center)
        for levels, fit in zip(self.levels, self.fits, strict=True):
            if fit is None:
                head.number(0)
                head.raw(levels.tobytes())
            else:
                slope, curve, cap, reach = fit
                head.number(cap)
                head.number(slope)
                head.number(curve)
                head.number(reach)

    @classmethod
    def read(cls, head: Reader, blocks: int, symbols: int) -> Tables:
        """The tables `write` wrote."""
        center = head.number(255)
        rows: list[Array] = []
        for _ in range(blocks):
            cap = head.number(DEEPEST)
            if cap == 0:
                row = np.frombuffer(head.raw(symbols), np.uint8)
                if (row == ABSENT).all():
                    raise damaged("a table is empty")
                rows.append(row)
            else:
                rows.append(_levels(head.number(1 << 20), head.number(1 << 20), cap, center, symbols))
                # > what is far out in no block takes slots from what is there
                rows[-1][_away(center, symbols) > head.number(255)] = ABSENT
        return cls(np.array(rows, np.uint8).reshape(blocks, symbols), (None,) * blocks, center)


def is_rough(counts: Array) -> bool:
    """Whether symbols that occur so often do not become rarer from one commonest on, beyond what chance does."""
    both = counts[1:] + counts[:-1]
    steps = np.maximum(np.abs(np.diff(counts)) - 2 * np.sqrt(both), 0)
    return float(steps.sum()) > _ROUGH * float(counts.max())


def explicit_bits(symbols: int) -> int:
    """Of a table of its own, without a shape."""
    return 8 + _EXPLICIT_BITS * symbols


def fit_tables(counts: Array) -> tuple[Tables, float]:
    """The cheapest table for each row of `counts` (blocks, symbols), and the bits of all tables and symbols."""
    blocks, symbols = counts.shape
    center = int(counts.sum(axis=0).argmax())
    present = counts > 0
    most = np.maximum(counts.max(axis=1, keepdims=True), 1)
    depth = np.rint(8 * np.log2(most / np.maximum(counts, 1)))
    explicit = np.where(present, np.minimum(depth, DEEPEST), ABSENT).astype(np.uint8)
    found = weights(explicit)
    total = np.maximum(found.sum(axis=1, keepdims=True), 1)
    bits = (counts * np.log2(total / np.maximum(found, 1))).sum(axis=1) + explicit_bits(symbols)
    fits: list[tuple[int, int, int, int] | None] = [None] * blocks
    levels = explicit
    if symbols > _SHORTEST:
        shapes, candidates, code_bits = _candidates(center, symbols)
        costs = counts @ code_bits.T + _FIT_BITS
        best = costs.argmin(axis=1)
        better = costs[np.arange(blocks), best] < bits
        away = _away(center, symbols)
        reach = (present * away).max(axis=1)
        chosen = np.where(away > reach[:, None], ABSENT, candidates[best])
        levels = np.where(better[:, None], chosen, explicit)
        fits = [
            (*shapes[index], int(far)) if use else None
            for index, use, far in zip(best, better, reach, strict=True)
        ]
        bits = np.minimum(bits, costs[np.arange(blocks), best])
    # > an empty block: any table does
    levels = np.where(present.any(axis=1, keepdims=True) | (levels != ABSENT), levels, 0).astype(np.uint8)
    return Tables(levels, tuple(fits), center), float(bits.sum())


def _away(center: int, symbols: int) -> Array:
    """How far each symbol is from the centre."""
    return np.abs(np.arange(symbols, dtype=np.int64) - center)


def _levels(slope: int, curve: int, cap: int, center: int, symbols: int) -> Array:
    away = _away(center, symbols)
    return np.minimum((slope * away + curve * away * away) >> 8, cap).astype(np.uint8)


@lru_cache(maxsize=1)
def _shapes() -> tuple[list[tuple[int, int, int]], Array, Array, Array]:
    """Laplace, Gauss and between, of 32 widths: parameters; by the distance from the centre levels, log2 of frequencies, their sums."""
    shapes = []
    for scale in np.geomspace(0.3, 128, 32).tolist():
        laplace, gauss = 256 * 11.54 / scale, 256 * 5.77 / scale**2
        shapes += [(round(mix * laplace), round((1 - mix) * gauss), 150) for mix in (1.0, 0.4, 0.0)]
    levels = np.array([_levels(*shape, 0, 256) for shape in shapes])
    found = weights(levels).astype(np.float64)
    return shapes, levels, np.log2(found), found.cumsum(axis=1)


@lru_cache(maxsize=64)
def _candidates(center: int, symbols: int) -> tuple[list[tuple[int, int, int]], Array, Array]:
    """Every shape around `center`: parameters, levels, and bits of each symbol."""
    shapes, levels, logarithms, sums = _shapes()
    away = _away(center, symbols)
    total = sums[:, center] + sums[:, symbols - 1 - center] - sums[:, 0]
    return shapes, levels[:, away], np.log2(total)[:, np.newaxis] - logarithms[:, away]
