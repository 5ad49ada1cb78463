"""What is known of a model before anything is cut: units, the order in which they go, what that costs and what it saves."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress import contract
from onnx_compress.contract import Change, Job, Skip
from onnx_compress.model.channels import Channels
from onnx_compress.model.cost import cost
from onnx_compress.model.groups import holders
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.prune.allocate import Choice, aligned, counts
from onnx_compress.passes.prune.consumers import Consumer, consumers
from onnx_compress.passes.prune.cost import Macs, Measure, Params, Tally
from onnx_compress.passes.prune.criteria import CRITERIA, DATA_FREE, PURE, Criterion
from onnx_compress.passes.prune.criteria.context import Context
from onnx_compress.passes.prune.cut import Repair, cut
from onnx_compress.passes.prune.speed import measure
from onnx_compress.preflight import shapes_at
from onnx_compress.runtime.agreement import Reference
from onnx_compress.runtime.observe import observe, workers
from onnx_compress.runtime.requests import Gram

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.passes.prune.branches import Branch
    from onnx_compress.passes.prune.curves import Curve
    from onnx_compress.runtime.data import Data
    from onnx_compress.runtime.layers import LayerInput
    from onnx_compress.runtime.requests import GramStat

    Array = NDArray[Any]
    Budget = Literal["macs", "params", "latency"]

DAMPING = 1e-3  # of the mean of the Gram matrix's diagonal
PROBE = 0.25  # share of a kind that is removed to measure how much its loss moves the outputs
POINTS = 17  # of a curve in the report
PROBE_SAMPLES = 128
PROBE_WORK, PROBE_LEAST = (
    1e12,
    4,
)  # multiply-adds that all probes together may take; samples that each takes at least


@dataclass(frozen=True)
class Plan:
    """The model, its units as choices, what a budget measures, and what was left alone.

    channels: of `model`; whole: what the job's model has of what is measured; owners: of `readers_of`; branches: those
    that `model` lacks already.
    """

    model: Model
    shapes: dict[str, Shape]
    channels: Channels
    choices: list[Choice]
    measure: Measure
    tally: Tally
    grams: dict[LayerInput, GramStat]
    skips: list[Skip]
    whole: float
    owners: dict[str, str]
    branches: tuple[Branch, ...] = ()

    def left(self, numbers: Sequence[int]) -> float:
        """The fraction of what is measured that stays without the first `numbers[i]` units of each choice i."""
        return float(self.measure.of(self.tally.gone(numbers)) / max(self.whole, 1e-12))


def make_plan(
    job: Job,
    fit: Data | None,
    *,
    criterion: Criterion,
    exclude: str | None,
    multiple: int,
    auto: bool = False,
    budget: Budget = "macs",
    known: Measure | None = None,
    unread: bool = False,
) -> Plan:
    """Units, their order by the criterion, and what each number of them saves of the budget.

    auto: narrow kinds are rounded to less than `multiple`; known: the measure, where it was taken before;
    unread: units that only layers read whose weights the graph computes, and which nothing makes up for, may go too.
    """
    job.progress(0, 1, "looking at channels")
    shapes = infer(job.model)
    surgery = Surgery(job.model)
    channels = Channels(surgery, shapes)
    units, pinned = channels.units()
    skips = [Skip(place, why) for place, why in holders(channels, pinned).items()]
    readers = consumers(surgery, shapes)
    if exclude is not None:
        units, excluded = _without(surgery, units, exclude)
        skips += excluded
    grams = _grams(job, fit, readers, units)
    weights = {t.name: t.values for n in surgery.nodes() for t in n.inputs if isinstance(t, gs.Constant)}
    rng = np.random.default_rng(job.seed)
    context = Context(job.model, surgery, readers, fit, grams, job.clock.threads, rng, DAMPING, weights)
    curves = _curves(context, units, criterion, skips, unread=unread)
    what = known or _measure(job, channels, readers, budget, curves)
    tally = Tally([curve.units for curve in curves])
    choices = []
    for kind, curve in enumerate(curves):
        numbers = counts(curve.size, aligned(curve.size, multiple) if auto else multiple)
        choices.append(
            Choice(
                curve,
                numbers,
                curve.loss[numbers],
                tally.saved(what, kind, numbers.tolist()),
                len(context.reading(curve.units)),
            )
        )
    return Plan(
        job.model,
        shapes,
        channels,
        choices,
        what,
        tally,
        grams,
        skips,
        float(what.of({})),
        readers_of(surgery),
    )


def with_sensitivity(job: Job, plan: Plan, held: Data, repair: Repair) -> Plan:
    """Every curve's errors times what a quarter of its loss does to the outputs, measured kind by kind."""
    few = held.take(probe_samples(plan, len(plan.choices)))
    reference = Reference(job.original, few, threads=job.clock.threads)
    base = reference.error(plan.model)
    choices = []
    for done, choice in enumerate(plan.choices):
        job.progress(done, len(plan.choices), "probing")
        number = max(1, round(choice.curve.size * PROBE))
        probe = cut(plan.model, plan.shapes, choice.curve.units[:number], plan.grams, repair, DAMPING)
        moved = max(reference.error(probe) - base, 1e-9)
        factor = moved / max(float(choice.curve.loss[number]), 1e-12)
        choices.append(replace(choice, error=choice.error * factor))
    return replace(plan, choices=choices)


def probe_samples(plan: Plan, probes: int) -> int:
    """How many samples each of so many probes of the plan's model takes."""
    macs = max(cost(plan.model, plan.shapes).macs, 1) * max(probes, 1)
    return min(PROBE_SAMPLES, max(int(PROBE_WORK / macs), PROBE_LEAST))


def by_kind(units: Sequence[Unit]) -> list[list[Unit]]:
    """Units that are alternatives to each other, together; kinds of one unit, which cannot go, left out."""
    kinds: dict[frozenset[tuple[str, int]], list[Unit]] = defaultdict(list)
    for unit in units:
        kinds[unit.kind].append(unit)
    return [members for members in kinds.values() if len(members) > 1]


def changes(plan: Plan, units: Sequence[Unit]) -> list[Change]:
    """The branches that went, and what each kind lost."""
    gone = {id(unit) for unit in units}
    found = [Change(item.add, "branch", f"{len(item.nodes)} nodes", "removed") for item in plan.branches]
    for choice in plan.choices:
        number = sum(id(unit) in gone for unit in choice.curve.units)
        if number:
            size, loss = choice.curve.size, float(choice.curve.loss[number])
            found.append(
                Change(
                    title(choice.curve.units[0], plan.owners), "units", str(size), str(size - number), loss
                )
            )
    return found


def curves(plan: Plan, units: Sequence[Unit]) -> list[contract.Curve]:
    """For each kind of unit the error that was expected of every share that could go, at most POINTS of them."""
    gone = {id(unit) for unit in units}
    found = []
    for choice in plan.choices:
        points = np.unique(np.linspace(0, len(choice.counts) - 1, POINTS).round().astype(int))
        size = choice.curve.size
        left = sum(id(unit) not in gone for unit in choice.curve.units) / size
        shares = (choice.counts[points] / size).tolist()
        where = title(choice.curve.units[0], plan.owners)
        found.append(contract.Curve(where, shares, choice.error[points].tolist(), left))
    return found


def unpruned(plan: Plan, units: Sequence[Unit]) -> list[Skip]:
    """The kinds that lost nothing."""
    gone = {id(unit) for unit in units}
    why = "its units are all worth more than the work they cost"
    whole = [c for c in plan.choices if not any(id(unit) in gone for unit in c.curve.units)]
    return [Skip(title(choice.curve.units[0], plan.owners), why) for choice in whole]


def title(unit: Unit, owners: Mapping[str, str]) -> str:
    """A kind by the nodes whose weights it takes from: the first two and how many more. owners: of weights, as of `readers_of`."""
    touched = {owners.get(name, name) for name, _ in unit.places}
    names = [node for node in dict.fromkeys(owners.values()) if node in touched]
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def readers_of(surgery: Surgery) -> dict[str, str]:
    """For each weight the first node that reads it, by name, in the order of the graph."""
    found: dict[str, str] = {}
    for node in surgery.nodes():
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant):
                found.setdefault(tensor.name, str(node.name))
    return found


def _without(surgery: Surgery, units: list[Unit], exclude: str) -> tuple[list[Unit], list[Skip]]:
    pattern = re.compile(exclude)
    nodes = [node for node in surgery.graph.nodes if pattern.search(node.name)]
    names = {tensor.name for node in nodes for tensor in node.inputs}
    left = [unit for unit in units if not any(name in names for name, _ in unit.places)]
    return left, [Skip(node.name, "excluded") for node in nodes]


def _curves(
    context: Context, units: list[Unit], criterion: Criterion, skips: list[Skip], *, unread: bool
) -> list[Curve]:
    """The order of every kind of unit, by the criterion; of the `unread` by what makes them."""
    kinds, others = [], []
    for members in by_kind(units):
        if criterion in DATA_FREE or context.reading(members):
            kinds.append(members)
        elif unread:
            others.append(members)
        else:
            name, axis = min(members[0].kind)
            skips.append(Skip(f"{name}[{axis}]", "no layer after it could take over what it did"))
    with workers(context.threads if criterion in PURE else 1) as pool:
        found = list(pool.map(partial(CRITERIA[criterion], context), kinds))
    return found + [CRITERIA["l1"](context, members) for members in others]


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


def _measure(
    job: Job, channels: Channels, readers: list[Consumer], budget: Budget, curves: list[Curve]
) -> Measure:
    shapes = {name: tuple(int(s) for s in constant.shape) for name, constant in channels.constants.items()}
    if budget == "params":
        return Params(shapes)
    if budget == "latency":
        assert job.data is not None
        feeds = next(iter(job.data.batches(job.batch)))
        return measure(job, readers, shapes_at(job.model, feeds), curves)
    concrete = infer(job.model, job.input_shapes or None)
    by_node = {layer.node: layer.macs for layer in cost(job.model, concrete).layers}
    macs: dict[str, int] = {}
    for reader in readers:
        macs[reader.weight.name] = macs.get(reader.weight.name, 0) + by_node.get(reader.name, 0)
    return Macs(shapes, macs)
