"""Labels that are the same: a union-find on arrays, each root with what pins it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Labels = NDArray[np.int64]


class Ties:
    """Integer labels from 0 on. Tied ones have one root, the least of them; a pin holds for all of them."""

    def __init__(self) -> None:
        self.size = 0
        self.reasons = [""]
        self._numbers = {"": 0}
        self._parent = np.arange(1024)
        self._pins = np.zeros(1024, np.int32)

    def fresh(self, count: int) -> Labels:
        """New labels."""
        first, self.size = self.size, self.size + count
        while self.size > len(self._parent):
            more = len(self._parent)
            self._parent = np.concatenate([self._parent, np.arange(more, 2 * more)])
            self._pins = np.concatenate([self._pins, np.zeros(more, np.int32)])
        return np.arange(first, self.size)

    def roots(self, labels: Labels) -> Labels:
        """The root of each label."""
        found = self._parent[labels]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parent[labels] = found
        return found

    def tie(self, a: Labels, b: Labels) -> None:
        """Pair by pair, these are the same."""
        while True:
            left, right = self.roots(a), self.roots(b)
            apart = left != right
            if not apart.any():
                return
            low, high = np.minimum(left, right)[apart], np.maximum(left, right)[apart]
            moves = (self._pins[high] > 0) & (self._pins[low] == 0)
            self._pins[low[moves]] = self._pins[high[moves]]
            # > where one root is to go to several, the last wins, and the next round ties the others
            self._parent[high] = low

    def pin(self, labels: Labels, why: str) -> None:
        """These cannot go; the first reason given stays."""
        roots = self.roots(labels)
        if why not in self._numbers:
            self._numbers[why] = len(self.reasons)
            self.reasons.append(why)
        self._pins[roots[self._pins[roots] == 0]] = self._numbers[why]

    def pins(self, roots: Labels) -> NDArray[np.int32]:
        """For each root the number of its reason in `reasons`, 0 where it is free."""
        return self._pins[roots]

    def give(self, roots: Labels, numbers: NDArray[np.int32]) -> None:
        """Pins roots for reasons known by their numbers (0: not at all), where they are free."""
        open_ = (numbers > 0) & (self._pins[roots] == 0)
        self._pins[roots[open_]] = numbers[open_]
