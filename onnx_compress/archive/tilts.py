"""Frequency tables that are one table, tilted: three small numbers each.

In a context where large values are expected, large ones are more frequent by a factor that grows with their distance from the
commonest: f(s) = f0(s) 2^-(a |v| + b v + c [v = 0]), v = s - centre. With a, b and c of the greatest likelihood (Newton's method: it is
an exponential family, so there is one) sixteen such tables cost less than two of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.archive.fields import damaged
from onnx_compress.archive.tables import ABSENT, DEEPEST, Tables, fit_tables, weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.archive.fields import Reader, Writer

    Array = NDArray[Any]

_MOST = 4095  # of a number, either way
_STEPS = 6  # Newton's
_NO_STEP = 0.02  # in a tilt, over the whole reach, in nats
_NEAR = 8  # distance from the centre from which on so many symbols are one


@dataclass(frozen=True)
class Tilts:
    """A table and its tilts. tilts: (blocks, 3) int64; center: the symbol from which v counts; levels: as of `Tables`."""

    base: Tables
    center: int
    tilts: Array
    levels: Array

    def write(self, head: Writer) -> None:
        """What `read` needs."""
        self.base.write(head)
        head.number(self.center)
        for value in self.tilts.T.reshape(-1).tolist():  # > alike one behind the other
            head.number(2 * value if value >= 0 else -2 * value - 1)

    @classmethod
    def read(cls, head: Reader, blocks: int, symbols: int) -> Tilts:
        """The tables `write` wrote."""
        base, center = Tables.read(head, 1, symbols), head.number(symbols - 1)
        coded = np.array([head.number(2 * _MOST) for _ in range(3 * blocks)], np.int64)
        tilts = np.where(coded & 1, -(coded >> 1) - 1, coded >> 1).reshape(3, blocks).T
        if (base.levels == ABSENT).all():
            raise damaged("a table is empty")
        return cls(base, center, tilts, _tilted(base.levels[0], tilts, center))


def fit_tilts(counts: Array) -> Tilts:
    """Tables for the rows of `counts` (blocks, symbols)."""
    total = counts.sum(axis=0)
    center = int(total.argmax())
    smooth = total.copy()
    # > the tilts have a number for the centre alone: the base need not follow its spike
    smooth[center] = max(total[max(center - 1, 0) : center + 2 : 2].max(initial=0), 1)
    base, _ = fit_tables(smooth[np.newaxis])
    tilts = _newton(counts, base.levels[0], center)
    return Tilts(base, center, tilts, _tilted(base.levels[0], tilts, center))


def table_bits(counts: Array, levels: Array) -> float:
    """Bits of symbols that occur `counts` times, by the tables of `levels`."""
    found = weights(levels)
    total = np.maximum(found.sum(axis=1, keepdims=True), 1)
    return float((counts * np.log2(total / np.maximum(found, 1))).sum())


def _newton(counts: Array, base: Array, center: int) -> Array:
    """The tilts that make `counts` (blocks, symbols) most likely, shrunk a little toward none."""
    away = np.arange(base.size) - center
    reach = max(float(np.abs(away).max()), 1.0)
    eighth = np.log(2) / 8
    weight = np.where(base == ABSENT, 0, np.exp(-eighth * base))
    # > far out neighbours are as one: where they are on average by the base
    coarse = np.where(np.abs(away) < _NEAR, away, np.sign(away) * (_NEAR + np.abs(away) // _NEAR))
    groups = np.flatnonzero(np.diff(coarse, prepend=coarse[0] - 1))
    mass = np.add.reduceat(weight, groups)
    used = np.add.reduceat(counts, groups, axis=1)[:, mass > 0].astype(np.float64)
    place = np.add.reduceat(weight * away, groups)[mass > 0] / mass[mass > 0]
    start = np.log(mass[mass > 0])
    features = np.stack([np.abs(place) / reach, place / reach, place == 0], axis=1)
    products = (features[:, :, np.newaxis] * features[:, np.newaxis]).reshape(-1, 9)
    size = used.sum(axis=1)
    aim = used @ features
    theta = np.zeros((len(counts), 3))
    for _ in range(_STEPS):
        score = start + theta @ features.T
        share = np.exp(score - score.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        mean = share @ features
        covariance = (share @ products).reshape(-1, 3, 3) - mean[:, :, None] * mean[:, None, :]
        slope = aim - size[:, None] * mean - 0.1 * theta
        step = np.linalg.solve(size[:, None, None] * covariance + 0.1 * np.eye(3), slope[..., None])[..., 0]
        theta += np.clip(step, -3, 3)
        if np.abs(step).max() < _NO_STEP:
            break
    point = (1 << _fine(away)) / reach
    whole = -theta / eighth * [point, point, 1]
    return np.clip(np.rint(whole), -_MOST, _MOST).astype(np.int64)


def _fine(away: Array) -> int:
    """Bits behind the point of a and b: enough for an eighth of a bit at the farthest symbol."""
    return max(int(np.abs(away).max()).bit_length() - 1, 0)


def _tilted(base: Array, tilts: Array, center: int) -> Array:
    """The levels of every block (blocks, symbols); integers throughout, so the same everywhere."""
    away = np.arange(base.size, dtype=np.int64) - center
    found = (
        base
        + ((tilts[:, :1] * np.abs(away) + tilts[:, 1:2] * away) >> _fine(away))
        + tilts[:, 2:] * (away == 0)
    )
    present = base != ABSENT
    found -= found[:, present].min(axis=1, keepdims=True)
    return np.where(present, np.minimum(found, DEEPEST), ABSENT).astype(np.uint8)
