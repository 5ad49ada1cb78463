"""Several ways to meet a budget, refitted on few samples to tell which are worth the whole fit.

The share-out adds up errors as if kinds did not meet, takes their scale from one probe, and cannot know how much of
each refitting will repair: what one layer reads, that layer can make up for; what many read (a residual stream), less so.
So the scale is probed again at the numbers chosen; kinds that many layers read are tried at higher prices; and from the
best of these on each kind's price is raised, else lowered, where that helps. (SPDY, Frantar &
Alistarh 2022, section 4: a share-out is judged by the stitched model, not by the sum.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from onnx_compress.passes.prune.cut import Repair, cut
from onnx_compress.passes.prune.plan import DAMPING, PROBE_SAMPLES, Plan
from onnx_compress.runtime.agreement import Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnx_compress.contract import Job
    from onnx_compress.passes.prune.allocate import Choice
    from onnx_compress.runtime.data import Data

    Numbers = list[int]

PENALTIES = (1.0, 4.0, 256.0)  # on the error of kinds that many layers read
MANY = 2  # layers: more than these read a shared kind
STEP = 4.0  # by which the price of one kind is raised or lowered
TRIES = 24  # refits on few samples, at most
FEWEST = 6
WORK = 7e12  # multiply-adds of all of these: some two minutes on two cores
GAIN = 0.005  # of the error: less is taken for chance


def shortlist(
    job: Job,
    choices: Sequence[Choice],
    meet: Callable[[Sequence[Choice]], Numbers],
    judge: Callable[[Numbers], float],
    finalists: int,
    effort: float = 0.0,
) -> list[list[Choice]]:
    """Choices repriced in the best ways found, best first, such that `meet` tells different numbers for each.

    meet: the numbers that reach the budget at these prices; judge: the error that such numbers leave after a quick refit, which
    takes `effort` multiply-adds.
    """
    tries = tries_for(effort)
    known: dict[tuple[int, ...], float] = {}

    def look(numbers: Numbers) -> float:
        if tuple(numbers) not in known:
            job.progress(len(known), tries, "sharing out")
            known[tuple(numbers)] = judge(numbers)
        return known[tuple(numbers)]

    tried = [[_dearer(choice, penalty) for choice in choices] for penalty in PENALTIES]
    best = min(tried, key=lambda trial: look(meet(trial)))
    for kind in _by_saving(best, meet(best)):
        for factor in (STEP, 1 / STEP):
            if len(known) >= tries:
                break
            trial = [replace(c, error=c.error * factor) if i == kind else c for i, c in enumerate(best)]
            tried.append(trial)
            if look(meet(trial)) < look(meet(best)) * (1 - GAIN):
                best = trial
                break
    found: dict[tuple[int, ...], list[Choice]] = {}
    for trial in sorted(tried, key=lambda trial: look(meet(trial))):
        found.setdefault(tuple(meet(trial)), trial)
    return list(found.values())[:finalists]


def tries_for(effort: float) -> int:
    """How many refits of `effort` multiply-adds each a search may take.

    >>> tries_for(1e9), tries_for(5e11), tries_for(1e14)
    (24, 14, 6)
    """
    return max(min(TRIES, int(WORK / max(effort, 1.0))), min(FEWEST, TRIES))


def _by_saving(choices: Sequence[Choice], numbers: Numbers) -> list[int]:
    """The kinds, those first that save most."""
    saved = [
        float(c.saved[np.searchsorted(c.counts, number)]) for c, number in zip(choices, numbers, strict=True)
    ]
    return [int(kind) for kind in np.argsort(-np.array(saved), kind="stable")]


def rescaled(job: Job, plan: Plan, held: Data, repair: Repair, numbers: Numbers) -> list[Choice]:
    """Choices whose error at `numbers` is what cutting that kind alone does to the outputs."""
    reference = Reference(job.original, held.take(PROBE_SAMPLES), threads=job.clock.threads)
    base = reference.error(plan.model)
    choices = []
    for done, (choice, number) in enumerate(zip(plan.choices, numbers, strict=True)):
        job.progress(done, len(numbers), "probing again")
        if number:
            units = choice.curve.units[:number]
            alone = reference.error(cut(plan.model, plan.shapes, units, plan.grams, repair, DAMPING))
            at = int(np.searchsorted(choice.counts, number))
            factor = max(alone - base, 1e-9) / max(float(choice.error[at]), 1e-12)
            choice = replace(choice, error=choice.error * factor)  # noqa: PLW2901
        choices.append(choice)
    return choices


def _dearer(choice: Choice, penalty: float) -> Choice:
    return replace(choice, error=choice.error * penalty) if choice.readers > MANY else choice
