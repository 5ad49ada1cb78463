"""prune: whole channels, heads and hidden units are removed, and what remains is refitted to the original's outputs."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from onnx_compress.contract import Change, Job, Result, Skip
from onnx_compress.errors import UsageError
from onnx_compress.model.channels import Channels
from onnx_compress.model.groups import holders
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.prune.allocate import at_price, chosen, even, evenly, prices, to_budget
from onnx_compress.passes.prune.branches import branches
from onnx_compress.passes.prune.criteria import DATA_FREE, Criterion
from onnx_compress.passes.prune.cut import Repair  # noqa: TC001 - read as the type of an option
from onnx_compress.passes.prune.depth import depths, shallower
from onnx_compress.passes.prune.latency import Stopwatch, to_latency
from onnx_compress.passes.prune.plan import (
    Plan,
    by_kind,
    changes,
    curves,
    make_plan,
    readers_of,
    title,
    unpruned,
    with_sensitivity,
)
from onnx_compress.passes.prune.repairer import Repairer
from onnx_compress.passes.prune.sensitivity import sensitivity
from onnx_compress.passes.prune.shortlist import rescaled, shortlist
from onnx_compress.passes.prune.speed import Milliseconds
from onnx_compress.recipe import option
from onnx_compress.runtime.agreement import Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.passes.prune.allocate import Choice
    from onnx_compress.passes.prune.cost import Measure
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]
    Numbers = tuple[int, ...]

TRIALS = 9  # of bisection towards the tolerance
FITS = 4  # candidates that are refitted, the next larger where one kept to the tolerance, else smaller
FINALISTS = 2  # ways to meet a budget that are refitted on all samples
SLACK = 0.005  # by which a budget may be missed: units are whole
BUDGETS = ("channels", "macs", "params", "latency")


@dataclass(frozen=True)
class Prune:
    """Removes whole channels, heads and hidden units, and refits what remains by least squares on calibration data."""

    name: ClassVar[str] = "prune"

    tolerance: float | None = option(
        0.01, "relative output error that pruning may add, on held-out data", low=0, high=1
    )
    channels: float | None = option(None, "fraction of the units of each kind to keep", low=0, high=1)
    macs: float | None = option(None, "fraction of the multiply-adds to keep", low=0, high=1)
    params: float | None = option(None, "fraction of the parameters to keep", low=0, high=1)
    latency: float | None = option(None, "fraction of the measured time to keep", low=0, high=1)
    criterion: Criterion = option("obs", "what decides which units go")
    repair: Repair = option("least-squares", "what makes up for the units that went")
    scope: Literal["global", "layer"] = option(
        "global", "share a budget out over all kinds, or take it from each"
    )
    round_to: Literal["auto"] | int = option("auto", "keep multiples of this many units", low=1, high=1024)
    steps: int = option(1, "reach a budget in this many rounds of removal and repair", low=1, high=100)
    exclude: str | None = option(None, "regular expression on the names of nodes to leave alone")

    def __post_init__(self) -> None:
        budgets = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(budgets) > 1:
            raise ValueError(f"{' and '.join(budgets)} are both budgets; give one")
        if self.exclude is not None:
            try:
                re.compile(self.exclude)
            except re.error as error:
                raise ValueError(f"exclude is no regular expression: {error}") from error

    def apply(self, job: Job) -> Result:
        """The job's model without the units that cost least, and what each kind lost."""
        budget = next((name for name in BUDGETS if getattr(self, name) is not None), None)
        if job.data is None and (self.criterion not in DATA_FREE or budget in (None, "latency")):
            raise UsageError(
                f"prune needs --data: without it only a criterion of {', '.join(DATA_FREE)} with a budget (channels, "
                "macs or params) can run"
            )
        if budget is not None and self.steps > 1:
            return self._stepwise(job, budget)
        return self._once(job, budget)

    def survey(self, model: Model, shapes: Mapping[str, Shape]) -> Result:
        """Every kind of unit some of which could go, every residual branch, and what pins the other weight axes."""
        surgery = Surgery(model)
        channels = Channels(surgery, dict(shapes))
        units, pinned = channels.units()
        owners = readers_of(surgery)
        possible = [
            Change(title(members[0], owners), "remove units", str(len(members)), "")
            for members in by_kind(units)
        ]
        possible += [
            Change(branch.add, "remove branch", f"{len(branch.nodes)} nodes", "")
            for branch in branches(model, shapes)
        ]
        skips = [Skip(place, why) for place, why in holders(channels, pinned).items()]
        return Result(model, possible, skips)

    def sensitivity(self, job: Job) -> list[dict[str, Any]]:
        """What removing a quarter, a half and three quarters of each kind of unit does to the outputs."""
        return sensitivity(job, criterion=self.criterion, repair=self.repair, exclude=self.exclude)

    def _stepwise(self, job: Job, budget: str) -> Result:
        """The budget in equal factors: each round's Gram matrices are of the model that the last one left."""
        share = float(getattr(self, budget)) ** (1 / self.steps)
        once = replace(self, steps=1, **{budget: share})
        result = Result(job.model)
        done: list[Change] = []
        for _ in range(self.steps):
            result = once.apply(replace(job, model=result.model))
            done += result.changes
        return replace(result, changes=done, decisions=list(job.clock.decisions))

    def _once(self, job: Job, budget: str | None) -> Result:
        warnings = []
        repair: Repair = self.repair
        if job.data is None and repair != "none":
            warnings.append(
                "prune without --data repairs nothing: its outputs may be far from the original's"
            )
            repair = "none"
        fit, held = job.data.split(0.25, job.seed) if job.data is not None else (None, None)
        plan = self._plan(job, fit, budget)
        if not plan.choices:
            return Result(job.model, (), plan.skips, list(job.clock.decisions), warnings)
        shared = budget != "channels" and self.scope == "global"
        if held is not None and shared:
            plan = with_sensitivity(job, plan, held, repair)
        reference = None if held is None else Reference(job.original, held, threads=job.clock.threads)
        repairer = Repairer(job, plan, repair, fit, reference)
        if budget is None:
            assert held is not None
            model, units = self._to_tolerance(repairer)
            model, units = self._not_slower(job, model, units) if units else (model, units)
        elif held is not None and shared:
            watch = Stopwatch(job, plan)
            if budget == "latency":
                repairer, watch = self._at_depth(repairer, held, watch)
                plan = repairer.plan
            model, units, warning = self._best(repairer, held, budget, watch)
            warnings += [warning] if warning else []
        else:
            units, warning = self._to_budget(job, plan, budget)
            warnings += [warning] if warning else []
            repairer.settle(units)
            model = repairer.model(units)
        units = plan.channels.removable(units)
        skips = plan.skips + unpruned(plan, units)
        found = curves(plan, units) if held is not None else []
        return Result(model, changes(plan, units), skips, list(job.clock.decisions), warnings, found)

    def _plan(self, job: Job, fit: Data | None, budget: str | None, known: Measure | None = None) -> Plan:
        return make_plan(
            job,
            fit,
            criterion=self.criterion,
            exclude=self.exclude,
            multiple=job.clock.round_to() if self.round_to == "auto" else self.round_to,
            auto=self.round_to == "auto",
            budget="params" if budget == "params" else "latency" if budget == "latency" else "macs",
            known=known,
            unread=budget == "channels",
        )

    def _at_depth(self, repairer: Repairer, held: Data, watch: Stopwatch) -> tuple[Repairer, Stopwatch]:
        """With the plan of the model without some residual branches, where that meets the latency with less error."""
        job, plan, keep = repairer.job, repairer.plan, float(self.latency or 1.0)
        assert isinstance(plan.measure, Milliseconds)
        found: list[tuple[float, float, Repairer, Stopwatch]] = []
        for depth in [None, *depths(shallower(repairer, held, plan.measure, keep, self.exclude))]:
            own, timed = repairer, watch
            if depth is not None:
                known = plan.measure.only({node.name for node in depth.model.proto.graph.node})
                fresh = self._plan(replace(job, model=depth.model), repairer.fit, "latency", known)
                fresh = replace(fresh, whole=plan.whole, branches=depth.gone)
                own = replace(repairer, plan=with_sensitivity(job, fresh, held, repairer.repair))
                timed = replace(watch, plan=own.plan, known={})
            numbers, _ = to_latency(timed, own.plan.choices, keep, keep)
            found.append((max(timed.left(numbers) - keep - SLACK, 0.0), own.judge(numbers), own, timed))
        return min(found, key=lambda entry: entry[:2])[2:]

    def _best(
        self, repairer: Repairer, held: Data, budget: str, watch: Stopwatch
    ) -> tuple[Model, list[Unit], str]:
        """Of several ways to meet the budget the one that is nearest to the original once it is refitted."""
        job, plan, reference = repairer.job, repairer.plan, repairer.reference
        assert reference is not None
        keep = aim = float(getattr(self, budget))
        first = to_budget(plan.choices, plan.left, keep)
        if budget == "latency":
            first, aim = to_latency(watch, plan.choices, keep, aim)

        def meet(choices: Sequence[Choice]) -> list[int]:
            return to_budget(choices, plan.left, aim)

        repriced = rescaled(job, plan, held, repairer.repair, first)
        made: list[tuple[float, float, Model, list[Unit], float]] = []
        for choices in shortlist(job, repriced, meet, repairer.judge, FINALISTS, repairer.effort()):
            numbers, left = meet(choices), 0.0
            if budget == "latency":
                numbers, _ = to_latency(watch, choices, keep, aim)
                left = watch.left(numbers)
            units = chosen(plan.choices, numbers)
            left = left or plan.left(numbers)
            if not made:
                repairer.settle(units)
            model = repairer.model(units)
            made.append((max(left - keep - SLACK, 0.0), reference.error(model), model, units, left))
        _, _, model, units, left = min(made, key=lambda entry: entry[:2])
        return model, units, _missed(budget, keep, left)

    def _to_budget(self, job: Job, plan: Plan, budget: str) -> tuple[list[Unit], str]:
        """The units to remove, layer by layer or without data to judge by, and a warning where that is too few."""
        keep = float(getattr(self, budget))
        if budget == "channels":
            numbers = even(plan.choices, keep)
        elif self.scope == "layer":
            numbers = evenly(plan.choices, plan.left, keep)
        else:
            numbers = to_budget(plan.choices, plan.left, keep)
        units = chosen(plan.choices, numbers)
        if budget == "channels":
            return units, ""
        left = (Stopwatch(job, plan) if budget == "latency" else plan).left(numbers)
        return units, _missed(budget, keep, left)

    def _to_tolerance(self, repairer: Repairer) -> tuple[Model, list[Unit]]:
        """The most that can go within the tolerance, by bisection on the price of work, then refitted.

        The search looks at the cut model and expects what refitting gains: a half at first, then as the last fit measured.
        """
        plan, reference = repairer.plan, repairer.reference
        assert reference is not None
        tolerance = self.tolerance if self.tolerance is not None else np.inf
        allowed = reference.error(repairer.job.model) + tolerance
        known: dict[Numbers, float] = {}

        def error_of(numbers: Numbers) -> float:
            if numbers not in known:
                known[numbers] = reference.error(repairer.cut(numbers))
            return known[numbers]

        gain = 0.5 if repairer.repair == "least-squares" else 1.0
        low, high = prices(plan.choices)
        none = tuple(0 for _ in plan.choices)
        best, model, refused = none, repairer.job.model, None
        for _ in range(FITS):
            price = _highest(plan, low, high, lambda numbers, gain=gain: error_of(numbers) * gain <= allowed)  # type: ignore[misc]
            numbers = tuple(at_price(plan.choices, price))
            if numbers in (none, best, refused):
                break
            trial = repairer.model(chosen(plan.choices, numbers))
            error = reference.error(trial)
            gain = error / max(error_of(numbers), 1e-12)
            if error <= allowed:
                best, model, low = numbers, trial, price
            else:
                # a little more than measured, so that the next one is smaller
                refused, high, gain = numbers, price, 1.1 * gain
        return model, chosen(plan.choices, best)

    def _not_slower(self, job: Job, model: Model, units: list[Unit]) -> tuple[Model, list[Unit]]:
        """The pruned model, unless the clock says that it is slower as it will be shipped."""
        assert job.data is not None
        feeds = next(iter(job.data.batches(job.batch)))
        before, after = job.finish(job.model), job.finish(model)
        kept = job.clock.settle("*", "keep", before, after, feeds, "not-slower").kept
        return (model, units) if kept else (job.model, [])


def _highest(plan: Plan, low: float, high: float, fits: Callable[[Numbers], bool]) -> float:
    """The highest price of work from `low`, which fits, to `high` at which the result still fits."""
    for _ in range(TRIALS):
        middle = float(np.sqrt(low * high))
        if fits(tuple(at_price(plan.choices, middle))):
            low = middle
        else:
            high = middle
    return low


def _missed(budget: str, keep: float, left: float) -> str:
    """A warning where the budget was not reached."""
    return f"prune: {budget}={keep} cannot be reached; {left:.3f} is left" if left > keep + SLACK else ""
