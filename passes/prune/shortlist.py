"""Several ways to meet a budget, to be cut, refitted and measured.

The share-out adds up errors as if kinds did not meet, takes their scale from one probe, and cannot know how much of
each refitting will repair: what one layer reads, that layer can make up for; what many read (a residual stream), less so.
So the scale is probed again at the numbers chosen, and kinds that many layers read are tried at a higher price and not at
all. (SPDY, Frantar & Alistarh 2022, section 4: a share-out is judged by the stitched model, not by the sum.)
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from onnx_compress.passes.prune.allocate import chosen, to_budget
from onnx_compress.passes.prune.cut import Repair, cut
from onnx_compress.passes.prune.plan import DAMPING, PROBE_SAMPLES, Plan
from onnx_compress.runtime.agreement import Reference

if TYPE_CHECKING:
    from onnx_compress.contract import Job
    from onnx_compress.passes.prune.allocate import Choice
    from onnx_compress.runtime.data import Data

PENALTIES = (1.0, 4.0, math.inf)  # on the error of kinds that many layers read
MANY = 2  # layers: more than these read a shared kind


def candidates(job: Job, plan: Plan, held: Data, repair: Repair, keep: float) -> list[list[int]]:
    """Numbers of each kind that meet the budget, `keep` of the measure staying, each different; the first always is."""
    choices = _rescaled(job, plan, held, repair, to_budget(plan.choices, plan.left, keep))
    found: list[list[int]] = []
    for penalty in PENALTIES:
        numbers = to_budget([_dearer(choice, penalty) for choice in choices], plan.left, keep)
        if numbers not in found and (not found or plan.left(chosen(plan.choices, numbers)) <= keep):
            found.append(numbers)
    return found


def _rescaled(job: Job, plan: Plan, held: Data, repair: Repair, numbers: list[int]) -> list[Choice]:
    """Choices whose error at `numbers` is what cutting that kind alone does to the outputs."""
    reference = Reference(job.original, held.take(PROBE_SAMPLES), threads=job.clock.threads)
    base = reference.error(job.model)
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
    if choice.readers <= MANY or penalty == 1:
        return choice
    if math.isinf(penalty):
        return replace(choice, counts=choice.counts[:1], error=choice.error[:1], saved=choice.saved[:1])
    return replace(choice, error=choice.error * penalty)
