"""Samples as batches that fit a model: taken in order, split in two, with their targets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from onnx_compress.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Array = NDArray[Any]

GOLDEN = (
    5**0.5 - 1
) / 2  # its multiples modulo 1 are spread evenly and fall in step with no period of the data


class Reader(Protocol):
    """Samples by number: what a kind of source (npz, images, ...) has to offer.

    groups: a number for each sample; only neighbours of equal number can share a batch (their shapes agree).
    """

    groups: Array

    def read(self, rows: Array) -> dict[str, Array]:
        """The model inputs of these samples, all of one group, as one batch."""
        ...

    def targets(self) -> dict[str, Array]:
        """The arrays that are no model input, axis 0 = all samples of the source."""
        ...


@dataclass(frozen=True)
class Data:
    """Samples of one source, in a fixed order.

    source: where they come from, for the report; rows: the numbers of the samples kept;
    fixed: the batch size that the model demands, or None; random: made up, not measured; notes: what was left out.
    """

    source: str
    reader: Reader
    rows: Array
    fixed: int | None = None
    random: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, source: str, reader: Reader, *, fixed: int | None, samples: int | None, random: bool = False
    ) -> Data:
        """The first `samples` (all where None) of `reader`, a batch at least, less those that fill no whole one of `fixed`.

        Raises InputError where nothing is left.
        """
        total = len(reader.groups)
        if total == 0:
            raise InputError(f"{source}: holds no samples")
        wanted = np.arange(total)[: None if samples is None else max(samples, fixed or 1)]
        rows = _fill(wanted, reader.groups, fixed)
        if len(rows) == 0:
            raise InputError(
                f"{source}: the model takes batches of exactly {fixed} samples, and there are only {len(wanted)}"
            )
        lost = len(wanted) - len(rows)
        notes = (
            (f"{source}: the last {lost} samples fill no batch of {fixed} and are left out",) if lost else ()
        )
        return cls(source, reader, rows, fixed, random, notes)

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(self.rows)

    @cached_property
    def targets(self) -> dict[str, Array]:
        """The arrays of the source that are no model input (`label`, `score`, ...), axis 0 = samples."""
        return {name: values[self.rows] for name, values in self.reader.targets().items()}

    @property
    def labels(self) -> Array | None:
        """The targets named `label`, or None."""
        return self.targets.get("label")

    def batches(self, size: int = 32) -> Iterator[dict[str, Array]]:
        """The model inputs in batches of at most `size` samples, of exactly `fixed` where the model demands it.

        A batch is shorter where the shapes of the samples change, and at the end. A sample without a batch axis is a
        batch of its own.
        """
        for rows in _runs(self.rows, self.reader.groups, self.fixed or max(size, 1)):
            yield self.reader.read(rows)

    def take(self, count: int) -> Data:
        """The first `count` samples (at least one batch)."""
        least = self.fixed or 1
        return replace(self, rows=_fill(self.rows[: max(count, least)], self.reader.groups, self.fixed))

    def split(self, fraction: float = 0.25, seed: int = 0) -> tuple[Data, Data]:
        """The samples to fit on and the held-out ones, about `fraction` of all, spread evenly over the order.

        With a single batch there is nothing to split: both are all of it.
        """
        units = _runs(self.rows, self.reader.groups, self.fixed or 1)
        if len(units) < 2:
            return self, self
        count = min(max(round(fraction * len(units)), 1), len(units) - 1)
        position = ((np.arange(len(units)) + seed % 2**32) * GOLDEN) % 1
        held = np.zeros(len(units), bool)
        held[np.argsort(position, kind="stable")[:count]] = True
        kept = np.concatenate([unit for unit, out in zip(units, held, strict=True) if not out])
        rest = np.concatenate([unit for unit, out in zip(units, held, strict=True) if out])
        return replace(self, rows=kept), replace(self, rows=rest)


def _runs(rows: Array, groups: Array, size: int) -> list[Array]:
    """`rows` cut where the group changes and then every `size`."""
    cuts = np.flatnonzero(np.diff(groups[rows])) + 1
    return [run[at : at + size] for run in np.split(rows, cuts) for at in range(0, len(run), size)]


def _fill(rows: Array, groups: Array, fixed: int | None) -> Array:
    """The rows that fill whole batches of `fixed`."""
    if fixed is None:
        return rows
    whole = [run for run in _runs(rows, groups, fixed) if len(run) == fixed]
    return np.concatenate(whole) if whole else rows[:0]
