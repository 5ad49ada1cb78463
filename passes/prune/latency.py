"""To a share of the measured time: the table says which widths, the whole model as it will be shipped says how far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnx_compress.passes.prune.allocate import chosen, to_budget
from onnx_compress.passes.prune.cut import cut
from onnx_compress.passes.prune.plan import DAMPING, Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx_compress.contract import Job
    from onnx_compress.model.document import Model
    from onnx_compress.passes.prune.allocate import Choice

ROUNDS = 6  # of measuring towards the share
CLOSE = 0.03  # of the time: near enough below it


@dataclass
class Stopwatch:
    """The share of its time that the job's model takes without some units; each is measured once."""

    job: Job
    plan: Plan
    known: dict[tuple[int, ...], float] = field(default_factory=dict)
    before: Model | None = None

    def left(self, numbers: Sequence[int]) -> float:
        """Measured in turns with the whole model, on one batch, both as they will be shipped.

        The table's share where it lies in the measured interval, else the interval's nearer end: what else the machine does
        widens the interval.
        """
        key = tuple(numbers)
        if key not in self.known:
            assert self.job.data is not None
            feeds = next(iter(self.job.data.batches(self.job.batch)))
            self.before = self.before or self.job.finish(self.job.model)
            units = chosen(self.plan.choices, list(numbers))
            candidate = cut(self.plan.model, self.plan.shapes, units, self.plan.grams, "none", DAMPING)
            parts = ["*", *(branch.add for branch in self.plan.branches), *map(str, key)]
            found = self.job.clock.propose(" ".join(parts), self.before, self.job.finish(candidate), feeds)
            left = 1 - found.value
            if found.low and found.high:
                left = min(max(self.plan.left(numbers), 1 / found.high), 1 / found.low)
            self.known[key] = left
        return self.known[key]


def to_latency(
    watch: Stopwatch, choices: Sequence[Choice], keep: float, aim: float
) -> tuple[list[int], float]:
    """The numbers of least error that take at most `keep` of the time, and the share of the table's time that they have.

    aim: the share of the table's time to begin with. Where no round meets `keep` the fastest is returned.
    """
    found: list[tuple[float, list[int], float]] = []
    for _ in range(ROUNDS):
        numbers = to_budget(choices, watch.plan.left, aim)
        left = watch.left(numbers)
        found.append((left, numbers, aim))
        if keep - CLOSE <= left <= keep:
            break
        aim = min(max(0.02, aim * (keep - CLOSE / 3) / max(left, 0.02)), 1.0)
    met = [entry for entry in found if entry[0] <= keep]
    # > the slowest that meets it removes least
    _, numbers, aim = max(met, key=lambda entry: entry[0]) if met else min(found, key=lambda entry: entry[0])
    return numbers, aim
