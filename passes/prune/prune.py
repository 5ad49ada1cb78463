"""prune: whole channels, heads and hidden units are removed, and what remains is refitted to the original's outputs."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.contract import Change, Job, Result, Skip
from onnx_compress.errors import UsageError
from onnx_compress.model.channels import Channels
from onnx_compress.model.cost import cost
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.prune.allocate import Choice, at_price, chosen, counts, prices, to_budget
from onnx_compress.passes.prune.consumers import Consumer, consumers
from onnx_compress.passes.prune.cost import Work, saved
from onnx_compress.passes.prune.criteria import CRITERIA, DATA_FREE, Criterion
from onnx_compress.passes.prune.criteria.context import Context
from onnx_compress.passes.prune.cut import Repair, cut
from onnx_compress.passes.prune.refit import refit
from onnx_compress.recipe import option
from onnx_compress.runtime.agreement import Reference
from onnx_compress.runtime.observe import observe
from onnx_compress.runtime.requests import Gram

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.passes.prune.curves import Curve
    from onnx_compress.runtime.data import Data
    from onnx_compress.runtime.layers import LayerInput
    from onnx_compress.runtime.requests import GramStat

    Array = NDArray[Any]

DAMPING = 1e-3  # of the mean of the Gram matrix's diagonal
TRIALS = 7  # of bisection towards the tolerance: a price good to 1 %
PROBE = 0.25  # share of a kind that is removed to measure how much its loss moves the outputs
PROBE_SAMPLES = 128


@dataclass(frozen=True)
class _Plan:
    """What is known of the model before anything is cut."""

    model: Model
    shapes: dict[str, Shape]
    choices: list[Choice]
    work: Work
    grams: dict[LayerInput, GramStat]
    skips: list[Skip]

    def left(self, units: list[Unit], by: int) -> float:
        """The fraction of MACs (0) or parameters (1) that stays."""
        return self.work.after(units)[by] / max(self.work.after(())[by], 1.0)


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
    criterion: Criterion = option("obs", "what decides which units go")
    repair: Repair = option("least-squares", "what makes up for the units that went")
    scope: Literal["global", "layer"] = option(
        "global", "share a budget out over all kinds, or take it from each"
    )
    round_to: Literal["auto"] | int = option("auto", "keep multiples of this many units", low=1, high=1024)
    exclude: str | None = option(None, "regular expression on the names of nodes to leave alone")

    def __post_init__(self) -> None:
        budgets = [name for name in ("channels", "macs", "params") if getattr(self, name) is not None]
        if len(budgets) > 1:
            raise ValueError(f"{' and '.join(budgets)} are both budgets; give one")
        if self.exclude is not None:
            try:
                re.compile(self.exclude)
            except re.error as error:
                raise ValueError(f"exclude is no regular expression: {error}") from error

    def apply(self, job: Job) -> Result:
        """The job's model without the units that cost least, and what each kind lost."""
        budget = next(
            (name for name in ("channels", "macs", "params") if getattr(self, name) is not None), None
        )
        if job.data is None and (self.criterion not in DATA_FREE or budget is None):
            raise UsageError(
                f"prune needs --data: without it only a criterion of {', '.join(DATA_FREE)} with a budget (channels, macs or params) can run"
            )
        warnings = []
        repair: Repair = self.repair
        if job.data is None and repair != "none":
            warnings.append(
                "prune without --data repairs nothing: its outputs may be far from the original's"
            )
            repair = "none"
        fit, held = job.data.split(0.25, job.seed) if job.data is not None else (None, None)
        multiple = job.clock.round_to() if self.round_to == "auto" else self.round_to
        plan = self._plan(job, fit, held, repair, multiple)
        decisions = list(job.clock.decisions)
        if not plan.choices:
            return Result(job.model, (), plan.skips, decisions, warnings)
        if budget is not None:
            units = self._to_budget(plan, budget)
            model = self._cut(job, plan, units, repair, fit)
            left = self._left(plan, units, budget)
            if left > getattr(self, budget) + 0.005:
                warnings.append(
                    f"prune: {budget}={getattr(self, budget)} cannot be reached; {left:.3f} is left"
                )
        else:
            assert held is not None
            model, units = self._to_tolerance(job, plan, repair, fit, held)
            if units:
                model, units = self._not_slower(job, model, units)
        decisions = list(job.clock.decisions)
        return Result(model, _changes(plan, units), plan.skips + _unpruned(plan, units), decisions, warnings)

    def survey(self, model: Model, shapes: Mapping[str, Shape]) -> Result:
        """Every kind of unit some of which could go, and what pins the other weight axes."""
        units, pinned = Channels(Surgery(model), dict(shapes)).units()
        kinds: dict[frozenset[tuple[str, int]], list[Unit]] = defaultdict(list)
        for unit in units:
            kinds[unit.kind].append(unit)
        changes = [
            Change(_title(members[0]), "remove units", str(len(members)), "")
            for members in kinds.values()
            if len(members) > 1
        ]
        skips = [Skip(place, why) for place, why in pinned.items() if why != "part of a kernel"]
        return Result(model, changes, skips)

    def _plan(self, job: Job, fit: Data | None, held: Data | None, repair: Repair, multiple: int) -> _Plan:
        """Units, their curves and costs."""
        job.progress(0, 1, "looking at channels")
        shapes = infer(job.model)
        surgery = Surgery(job.model)
        channels = Channels(surgery, shapes)
        units, pinned = channels.units()
        skips = [Skip(place, why) for place, why in pinned.items() if why != "part of a kernel"]
        readers = consumers(surgery, shapes)
        units, excluded = self._without_excluded(surgery, units)
        skips += excluded
        grams = _grams(job, fit, readers, units)
        weights = {
            t.name: t.values
            for node in surgery.graph.nodes
            for t in node.inputs
            if isinstance(t, gs.Constant)
        }
        rng = np.random.default_rng(job.seed)
        context = Context(job.model, surgery, readers, fit, grams, job.clock.threads, rng, DAMPING, weights)
        curves = self._curves(context, units, skips)
        work = _work(job, channels, readers)
        choices = [_choice(curve, work, multiple, 1 if self.params is not None else 0) for curve in curves]
        plan = _Plan(job.model, shapes, choices, work, grams, skips)
        if held is not None and self.channels is None and self.scope == "global":
            return _with_sensitivity(job, plan, held, repair)
        return plan

    def _without_excluded(self, surgery: Surgery, units: list[Unit]) -> tuple[list[Unit], list[Skip]]:
        if self.exclude is None:
            return units, []
        pattern = re.compile(self.exclude)
        nodes = [node for node in surgery.graph.nodes if pattern.search(node.name)]
        names = {tensor.name for node in nodes for tensor in node.inputs}
        left = [unit for unit in units if not any(name in names for name, _ in unit.places)]
        return left, [Skip(node.name, "excluded") for node in nodes]

    def _curves(self, context: Context, units: list[Unit], skips: list[Skip]) -> list[Curve]:
        """The order of every kind of unit, by the criterion."""
        kinds: dict[frozenset[tuple[str, int]], list[Unit]] = defaultdict(list)
        for unit in units:
            kinds[unit.kind].append(unit)
        curves = []
        for members in kinds.values():
            if len(members) < 2:
                continue
            if self.criterion not in DATA_FREE and not context.reading(members):
                name, axis = min(members[0].kind)
                skips.append(Skip(f"{name}[{axis}]", "no layer after it could take over what it did"))
                continue
            curves.append(CRITERIA[self.criterion](context, members))
        return curves

    def _to_budget(self, plan: _Plan, budget: str) -> list[Unit]:
        keep = float(getattr(self, budget))
        if budget == "channels" or self.scope == "layer":
            wanted = [round(choice.curve.size * (1 - keep)) for choice in plan.choices]
            numbers = [
                int(c.counts[np.searchsorted(c.counts, number, side="right") - 1])
                for c, number in zip(plan.choices, wanted, strict=True)
            ]
            return chosen(plan.choices, numbers)
        by = 1 if budget == "params" else 0
        return chosen(plan.choices, to_budget(plan.choices, lambda units: plan.left(units, by), keep))

    def _left(self, plan: _Plan, units: list[Unit], budget: str) -> float:
        if budget == "channels":
            return 1 - len(units) / max(sum(choice.curve.size for choice in plan.choices), 1)
        return plan.left(units, 1 if budget == "params" else 0)

    def _cut(self, job: Job, plan: _Plan, units: list[Unit], repair: Repair, fit: Data | None) -> Model:
        model = cut(plan.model, plan.shapes, units, plan.grams, repair, DAMPING)
        if repair != "least-squares" or fit is None or not units:
            return model
        original = job.original if _same_tensors(job.original, plan.model) else plan.model
        return refit(
            model,
            original,
            plan.shapes,
            units,
            fit,
            threads=job.clock.threads,
            damping=DAMPING,
            progress=job.progress,
        )

    def _to_tolerance(
        self, job: Job, plan: _Plan, repair: Repair, fit: Data | None, held: Data
    ) -> tuple[Model, list[Unit]]:
        """The most that can go within the tolerance, by bisection on the price of work, then refitted."""
        tolerance = self.tolerance if self.tolerance is not None else np.inf
        reference = Reference(job.original, held, threads=job.clock.threads)
        allowed = reference.error(job.model) + tolerance
        low, high = prices(plan.choices)
        best: list[Unit] = []
        tried: dict[tuple[int, ...], bool] = {}
        for trial in range(TRIALS):
            job.progress(trial, TRIALS, "looking for the width")
            middle = float(np.sqrt(low * high))
            numbers = tuple(at_price(plan.choices, middle))
            units = chosen(plan.choices, numbers)
            if numbers not in tried:
                trial_model = cut(plan.model, plan.shapes, units, plan.grams, repair, DAMPING)
                # refitted in order, the error of a cut falls to about a half: the search allows for it
                slack = 2.0 if repair == "least-squares" else 1.0
                tried[numbers] = reference.error(trial_model) <= allowed * slack
            if tried[numbers]:
                best, low = units, middle
            else:
                high = middle
        while best:
            model = self._cut(job, plan, best, repair, fit)
            if reference.error(model) <= allowed:
                return model, best
            low /= 2
            fewer = chosen(plan.choices, at_price(plan.choices, low))
            best = fewer if len(fewer) < len(best) else []
        return job.model, []

    def _not_slower(self, job: Job, model: Model, units: list[Unit]) -> tuple[Model, list[Unit]]:
        """The pruned model, unless the clock says that it is slower as it will be shipped."""
        feeds = _feeds(job)
        if feeds is None:
            return model, units
        decision = job.clock.decide(
            "*", "keep", job.finish(job.model), job.finish(model), feeds, "not-slower"
        )
        return (model, units) if decision.kept else (job.model, [])


def _feeds(job: Job) -> dict[str, Array] | None:
    """One sample, for the clock."""
    return None if job.data is None else next(iter(job.data.batches(1)), None)


def _grams(
    job: Job, fit: Data | None, readers: list[Consumer], units: list[Unit]
) -> dict[LayerInput, GramStat]:
    """The Gram matrix of every layer that reads a channel that may go."""
    if fit is None:
        return {}
    places = {place for unit in units for place in unit.places}
    layers = {r.layer for r in readers if (r.weight.name, r.inner) in places}
    job.progress(0, 1, "observing")
    found = observe(job.model, fit, [Gram(layer) for layer in layers], threads=job.clock.threads)
    return {layer: found[Gram(layer)] for layer in layers}


def _work(job: Job, channels: Channels, readers: list[Consumer]) -> Work:
    shapes = {name: tuple(int(s) for s in constant.shape) for name, constant in channels.constants.items()}
    concrete = infer(job.model, job.input_shapes or None)
    by_node = {layer.node: layer.macs for layer in cost(job.model, concrete).layers}
    macs: dict[str, int] = {}
    for reader in readers:
        macs[reader.weight.name] = macs.get(reader.weight.name, 0) + by_node.get(reader.name, 0)
    return Work(shapes, macs)


def _choice(curve: Curve, work: Work, multiple: int, by: int) -> Choice:
    numbers = counts(curve.size, multiple)
    return Choice(curve, numbers, curve.loss[numbers], saved(work, curve.units, numbers.tolist(), by=by))


def _with_sensitivity(job: Job, plan: _Plan, held: Data, repair: Repair) -> _Plan:
    """Every curve's errors times what a quarter of its loss does to the outputs, measured kind by kind."""
    few = held.take(PROBE_SAMPLES)
    reference = Reference(job.original, few, threads=job.clock.threads)
    base = reference.error(job.model)
    choices = []
    for done, choice in enumerate(plan.choices):
        job.progress(done, len(plan.choices), "probing")
        number = max(1, round(choice.curve.size * PROBE))
        probe = cut(plan.model, plan.shapes, choice.curve.units[:number], plan.grams, repair, DAMPING)
        moved = max(reference.error(probe) - base, 1e-9)
        factor = moved / max(float(choice.curve.loss[number]), 1e-12)
        choices.append(Choice(choice.curve, choice.counts, choice.error * factor, choice.saved))
    return _Plan(plan.model, plan.shapes, choices, plan.work, plan.grams, plan.skips)


def _same_tensors(original: Model, model: Model) -> bool:
    """Whether every tensor of `model` is one of the original's too, so that it can be aimed at."""
    names = {name for node in original.proto.graph.node for name in node.output}
    return all(name in names for node in model.proto.graph.node for name in node.output)


def _changes(plan: _Plan, units: Sequence[Unit]) -> list[Change]:
    gone = {id(unit) for unit in units}
    changes = []
    for choice in plan.choices:
        number = sum(id(unit) in gone for unit in choice.curve.units)
        if number:
            size = choice.curve.size
            changes.append(
                Change(
                    _title(choice.curve.units[0]),
                    "units",
                    str(size),
                    str(size - number),
                    float(choice.curve.loss[number]),
                )
            )
    return changes


def _unpruned(plan: _Plan, units: Sequence[Unit]) -> list[Skip]:
    gone = {id(unit) for unit in units}
    why = "its units are all worth more than the work they cost"
    return [
        Skip(_title(c.curve.units[0]), why)
        for c in plan.choices
        if not any(id(unit) in gone for unit in c.curve.units)
    ]


def _title(unit: Unit) -> str:
    """A kind by the weights it takes from: the first two and how many more."""
    names = sorted({name for name, _ in unit.places})
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
