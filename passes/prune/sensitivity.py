"""How much each kind of unit matters: part of it goes, and the outputs are looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_compress.passes.prune.cut import Repair, cut
from onnx_compress.passes.prune.plan import DAMPING, make_plan, title
from onnx_compress.runtime.agreement import Reference

if TYPE_CHECKING:
    from onnx_compress.contract import Job
    from onnx_compress.passes.prune.criteria import Criterion

SHARES = (0.25, 0.5, 0.75)
SAMPLES = 128  # whose outputs are compared


def sensitivity(
    job: Job, *, criterion: Criterion, repair: Repair, exclude: str | None
) -> list[dict[str, Any]]:
    """For each kind of unit alone and each of SHARES: `where`, `share`, `units` that went, and the relative `error`.

    The units go in the order of the criterion, and those that read them are repaired, as in a run of the pass.
    """
    assert job.data is not None
    fit, held = job.data.split(0.25, job.seed)
    plan = make_plan(job, fit, criterion=criterion, exclude=exclude, multiple=1)
    reference = Reference(job.model, held.take(SAMPLES), threads=job.clock.threads)
    rows = []
    for done, choice in enumerate(plan.choices):
        job.progress(done, len(plan.choices), "sensitivity")
        units = choice.curve.units
        for share in SHARES:
            count = min(max(1, round(choice.curve.size * share)), choice.curve.size - 1)
            candidate = cut(plan.model, plan.shapes, units[:count], plan.grams, repair, DAMPING)
            error = reference.error(candidate)
            rows.append(
                {"where": title(units[0], plan.owners), "share": share, "units": count, "error": error}
            )
    return rows
