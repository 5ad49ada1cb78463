"""Cuts and repairs a choice of units, wholly or quickly, and says how far the result is from the original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx_compress.passes.prune.allocate import chosen
from onnx_compress.passes.prune.cut import Repair, cut
from onnx_compress.passes.prune.plan import DAMPING, Plan
from onnx_compress.passes.prune.refit import QUICK as FEWER
from onnx_compress.passes.prune.refit import refit
from onnx_compress.runtime.columns import enough

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx_compress.contract import Job
    from onnx_compress.model.channels import Unit
    from onnx_compress.model.document import Model
    from onnx_compress.runtime.agreement import Reference
    from onnx_compress.runtime.data import Data

QUICK = 128  # samples that allocations are refitted on to compare them


@dataclass
class Repairer:
    """fit: the samples that layers are fitted on; reference: the original on those held out; variance: of `refit`."""

    job: Job
    plan: Plan
    repair: Repair
    fit: Data | None
    reference: Reference | None = None
    variance: bool = False

    def model(self, units: Sequence[Unit]) -> Model:
        """The plan's model without `units`, repaired on all samples."""
        return self._made(units, self.fit, quick=False, variance=self.variance)

    def quick(self, units: Sequence[Unit], *, variance: bool = False) -> Model:
        """The plan's model without `units`, repaired on few samples."""
        few = None if self.fit is None else self.fit.take(QUICK)
        return self._made(units, few, quick=True, variance=variance)

    def cut(self, numbers: Sequence[int]) -> Model:
        """The plan's model without these numbers of each kind; what read them makes up for them, no more."""
        units = chosen(self.plan.choices, list(numbers))
        return cut(self.plan.model, self.plan.shapes, units, self.plan.grams, self.repair, DAMPING)

    def judge(self, numbers: Sequence[int]) -> float:
        """The error without these numbers of each kind, repaired on few samples."""
        return self._judged(chosen(self.plan.choices, list(numbers)), variance=self.variance)

    def effort(self) -> float:
        """About how many multiply-adds the fits of `judge` take, were all layers fitted."""
        samples = 0 if self.fit is None else min(QUICK, self.fit.samples)
        work = 0.0
        for layer, stat in self.plan.grams.items():
            groups, inputs = stat.mean.shape
            columns = min(FEWER * enough(layer.group, inputs), samples * stat.available)
            work += 3.0 * columns * groups * inputs**2  # x xᵀ, x yᵀ, and x yᵀ through a clamp; y as wide as x
        return work

    def settle(self, units: Sequence[Unit]) -> None:
        """Scales the outputs of refitted layers from now on, if that brings this cut nearer to the original."""
        touched = units or self.plan.branches
        if self.repair == "least-squares" and self.fit is not None and self.reference is not None and touched:
            self.variance = self._judged(units, variance=True) < self._judged(units, variance=False)

    def _judged(self, units: Sequence[Unit], *, variance: bool) -> float:
        assert self.reference is not None
        return self.reference.error(self.quick(units, variance=variance))

    def _made(self, units: Sequence[Unit], data: Data | None, *, quick: bool, variance: bool) -> Model:
        plan, job = self.plan, self.job
        units = plan.channels.removable(units)
        model = cut(plan.model, plan.shapes, units, plan.grams, self.repair, DAMPING)
        if self.repair != "least-squares" or data is None or not (units or plan.branches):
            return model
        return refit(
            model,
            job.original if _same_tensors(job.original, plan.model) else job.model,
            plan.shapes,
            units,
            data,
            threads=job.clock.threads,
            damping=DAMPING,
            progress=_silent if quick else job.progress,
            quick=quick,
            variance=variance,
        )


def _silent(done: int, total: int, what: str) -> None:
    """Progress goes nowhere."""


def _same_tensors(original: Model, model: Model) -> bool:
    """Whether every tensor of `model` is one of the original's too and as wide, so that it can be aimed at."""
    names = {name for node in original.proto.graph.node for name in node.output}
    sizes = {tensor.name: list(tensor.dims) for tensor in original.proto.graph.initializer}
    return all(name in names for node in model.proto.graph.node for name in node.output) and all(
        sizes.get(tensor.name, tensor.dims) == list(tensor.dims) for tensor in model.proto.graph.initializer
    )
