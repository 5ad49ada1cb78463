"""Which residual branches go before units do: where kernels gain nothing from a narrower layer, they gain from one less.

One branch at a time: the one whose loss moves the outputs least for what it saves, of the model as it was quickly refitted
without those before it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnx_compress.passes.prune.branches import Branch, branches, without
from onnx_compress.passes.prune.plan import probe_samples
from onnx_compress.passes.prune.shortlist import tries_for
from onnx_compress.runtime.agreement import Reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx_compress.model.document import Model
    from onnx_compress.passes.prune.repairer import Repairer
    from onnx_compress.passes.prune.speed import Milliseconds
    from onnx_compress.runtime.data import Data

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the branches that meet the budget alone
LEAST = 1e-3  # of all that is measured: a branch that saves less is left


@dataclass(frozen=True)
class Shallower:
    """The job's model without some branches, and the share of what is measured that it has left."""

    model: Model
    gone: tuple[Branch, ...]
    left: float


def shallower(
    repairer: Repairer, held: Data, measure: Milliseconds, keep: float, exclude: str | None
) -> list[Shallower]:
    """The plan's model, and without one of its branches, two, three..., until at most `keep` is left or none can go.

    As many as the work allows are repaired on few samples; exclude: a regular expression on the names of nodes that stay.
    """
    job, plan = repairer.job, repairer.plan
    most = len(branches(plan.model, plan.shapes))
    few = held.take(probe_samples(plan, most * (most + 1) // 2))
    reference = Reference(job.original, few, threads=job.clock.threads)
    each = math.ceil(most / tries_for(repairer.effort()))
    layers = set(measure.tables)
    found = [Shallower(plan.model, (), 1.0)]
    while found[-1].left > keep:
        job.progress(len(found), most + 1, "taking branches out")
        last = found[-1]
        base = reference.error(last.model)
        best: tuple[float, float, Branch, Model] | None = None
        # > what is left has the names and the shapes that it had
        for branch in branches(last.model, plan.shapes):
            saved = last.left - float(measure.only(layers - branch.nodes).of({})) / plan.whole
            if saved < LEAST or (exclude and any(re.search(exclude, node) for node in branch.nodes)):
                continue
            candidate = without(last.model, branch)
            price = (reference.error(candidate) - base) / saved
            if best is None or price < best[0]:
                best = price, saved, branch, candidate
        if best is None:
            break
        _, saved, branch, candidate = best
        layers -= branch.nodes
        gone = (*last.gone, branch)
        if len(gone) % each == 0:
            candidate = replace(repairer, plan=replace(plan, model=candidate, branches=gone)).quick([])
        found.append(Shallower(candidate, gone, last.left - saved))
    return found


def depths(found: Sequence[Shallower]) -> list[Shallower]:
    """Those that lack SHARES of the branches of the last: units make up the rest."""
    picks = {round((len(found) - 1) * share) for share in SHARES} - {0}
    return [found[pick] for pick in sorted(picks)]
