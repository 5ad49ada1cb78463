"""Which entries of a weight go, for scores that say how much each is worth."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

ENTRIES = 4  # of a kernel that a kernel pattern keeps
PATTERNS = 8  # different ones in a layer


@dataclass(frozen=True)
class Pattern:
    """What zeros must look like. kind: unstructured, nm (keep of every `of` inputs), kernel or connectivity."""

    kind: str
    keep: int = 0
    of: int = 0

    @property
    def fixed(self) -> bool:
        """Whether it alone says how many zeros a layer has."""
        return self.kind in ("nm", "kernel")


def parse(word: str) -> Pattern:
    """The pattern of a word.

    Raises ValueError for a word that is none.

    >>> parse("2of4")
    Pattern(kind='nm', keep=2, of=4)
    """
    if word in ("unstructured", "kernel", "connectivity"):
        return Pattern(word)
    found = re.fullmatch(r"(\d+)of(\d+)", word)
    if found is None:
        raise ValueError(
            f"pattern={word} is not understood; it takes unstructured, kernel, connectivity or NofM, such as 2of4"
        )
    keep, of = int(found[1]), int(found[2])
    if not 1 <= keep < of <= 64:
        raise ValueError(
            f"pattern={word} keeps {keep} of every {of}: N is at least 1, less than M, M at most 64"
        )
    return Pattern("nm", keep, of)


def reason_against(pattern: Pattern, rows: Array, taps: int) -> str | None:
    """Why a layer (groups, N, K) with kernels of `taps` entries cannot take the pattern, or None."""
    channels = rows.shape[2] // taps
    if pattern.kind == "nm" and channels % pattern.of:
        return f"its {channels} input channels are no multiple of {pattern.of}"
    if pattern.kind == "kernel" and taps <= ENTRIES:
        return f"its kernels have no more than {ENTRIES} entries"
    if pattern.kind == "connectivity" and (taps == 1 or channels == 1):
        return "it has no kernels of which some could go"
    return None


def order(pattern: Pattern, inputs: int, taps: int) -> Array:
    """The inputs in the order in which a pattern's blocks are contiguous: N:M counts channels of one tap."""
    indices = np.arange(inputs)
    return indices.reshape(-1, taps).T.reshape(-1) if pattern.kind == "nm" else indices


def largest(scores: Array, zeros: int) -> Array:
    """A mask of all but the `zeros` lowest scores; of equal ones the first go."""
    keep = np.ones(scores.size, bool)
    keep[np.argsort(scores, axis=None, kind="stable")[:zeros]] = False
    return keep.reshape(scores.shape)


def largest_in_rows(scores: Array, zeros: int) -> Array:
    """A mask of all but the lowest scores of each row (last axis), `zeros` in all, to one the same number in each."""
    rows = scores.reshape(-1, scores.shape[-1])
    each, more = divmod(zeros, len(rows))
    ranks = np.argsort(np.argsort(rows, axis=1, kind="stable"), axis=1, kind="stable")
    counts = each + (np.arange(len(rows)) < more)
    keep: Array = (ranks >= counts[:, np.newaxis]).reshape(scores.shape)
    return keep


def of_blocks(scores: Array, keep: int, of: int) -> Array:
    """A mask of the `keep` highest of every `of` neighbours along the last axis.

    >>> of_blocks(np.array([[4, 1, 3, 2]]), 2, 4)
    array([[ True, False,  True, False]])
    """
    blocks = scores.reshape(-1, of)
    ranks = np.argsort(np.argsort(-blocks, axis=1, kind="stable"), axis=1, kind="stable")
    mask: Array = (ranks < keep).reshape(scores.shape)
    return mask


def kernels(scores: Array, taps: int) -> Array:
    """A mask that leaves each kernel of `taps` entries one of PATTERNS sets of ENTRIES entries.

    The sets are those which the most score asks for: each kernel asks for its own best; each then takes the set of which
    it keeps most. Niu et al. 2020 (PatDNN), arXiv:2001.00138; Ma et al. 2020 (PCONV), arXiv:1909.05073.
    """
    each = scores.reshape(-1, taps)
    own = of_blocks(each, ENTRIES, taps)
    sets, which = np.unique(own, axis=0, return_inverse=True)
    worth = np.bincount(which.reshape(-1), (each * own).sum(axis=1), len(sets))
    best = sets[np.argsort(-worth, kind="stable")[:PATTERNS]]
    mask: Array = best[np.argmax(each @ best.T.astype(np.float64), axis=1)].reshape(scores.shape)
    return mask


def connectivity(scores: Array, taps: int, zeros: int) -> Array:
    """A mask without the whole kernels of `taps` entries that score least, `zeros` entries in all, rounded down."""
    each = scores.reshape(-1, taps)
    keep = largest(each.sum(axis=1), zeros // taps)
    return np.repeat(keep, taps).reshape(scores.shape)
