"""The pass: layers factored into thinner ones, as far as the error and the clock allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from onnx_compress.contract import Change, Result, Skip
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.svd.aim import relative_error
from onnx_compress.passes.svd.edits import apply_factors
from onnx_compress.passes.svd.goal import Goal
from onnx_compress.passes.svd.layers import find_layers
from onnx_compress.passes.svd.plan import Planner
from onnx_compress.passes.svd.sensitivity import sensitivity
from onnx_compress.passes.svd.speed import quantizes
from onnx_compress.passes.svd.study import Study, one_batch
from onnx_compress.passes.svd.worth import worthwhile
from onnx_compress.recipe import option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx_compress.contract import Job
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.passes.svd.factors import Factors
    from onnx_compress.passes.svd.forms import Method
    from onnx_compress.passes.svd.layers import Layer
    from onnx_compress.passes.svd.ranks import Option

DEFAULT_TOLERANCE = 0.01  # of the outputs' variance
GRAIN = 8  # ranks without a clock: what 8 float lanes and the int8 kernels like


@dataclass(frozen=True)
class Svd:
    """Factors layers into two or more thinner ones, whitened by the data and refitted towards the original."""

    name: ClassVar[str] = "svd"
    tolerance: Literal["auto"] | float | None = option(
        "auto", "error it may add to the outputs, share of their variance (auto: 0.01)", low=0
    )
    rank: int | None = option(None, "rank of every layer", low=1)
    energy: float | None = option(None, "share of each layer's output energy to keep", low=0, high=1)
    macs: float | None = option(None, "fraction of the model's multiply-adds to keep", low=0, high=1)
    params: float | None = option(None, "fraction of the model's weights to keep", low=0, high=1)
    method: Literal["auto", "svd", "spatial", "tucker2", "cp"] = option(
        "auto",
        "svd: k x k to r channels, then 1 x 1; spatial: k x 1, then 1 x k; tucker2: 1 x 1, k x k, 1 x 1; "
        "cp: 1 x 1, k x 1 and 1 x k depthwise, 1 x 1; auto: the best of them, layer by layer",
    )
    rank_rule: Literal["tolerance", "vbmf"] = option(
        "tolerance",
        "vbmf: each layer's ranks are those that stand out of its weight's noise (variational Bayes)",
    )
    data_aware: bool = option(True, "weigh errors by the calibration data; false: by the weights alone")
    keep_if: Literal["faster", "not-slower", "always"] = option(
        "faster", "keep a factored layer only where it is measured so"
    )
    round_to: Literal["auto"] | int = option("auto", "ranks are multiples of this", low=1)
    effort: Literal["full", "quick"] = option(
        "full",
        "quick: method svd from one look at each layer's outputs, no probes, no refits; "
        "a large net in seconds",
    )
    exclude: str | None = option(None, "leave nodes alone whose name matches this regular expression")

    def __post_init__(self) -> None:
        given = [word for word in ("rank", "energy", "macs", "params") if getattr(self, word) is not None]
        if self.tolerance not in ("auto", None):
            given.append("tolerance")
        if self.rank_rule == "vbmf":
            given.append("rank_rule=vbmf")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: give one budget")
        if not given and self.tolerance is None:
            raise ValueError("tolerance=none leaves no bound: give rank, energy, macs or params")
        if self.effort == "quick" and self.method not in ("auto", "svd"):
            raise ValueError(f"effort=quick is of method=svd alone: it cannot do {self.method}")

    def apply(self, job: Job) -> Result:
        """The job's model with every layer factored that this saves work in, within the budget."""
        goal = self._goal(job)
        study = Study.of(job, exclude=self.exclude, data_aware=self.data_aware)
        skips = list(study.skips)
        methods = worthwhile(study, goal, skips)
        layers = [layer for layer in study.layers if layer.output in methods]
        study.observe(layers, by_output=goal.quick)
        study.tabulate(layers, methods, goal.multiple, by=goal.by, only=self.rank)
        planner = Planner(study, goal, skips)
        plan = planner.plan(layers)
        kept = self._keep(study, plan, planner.fit(plan), skips)
        plan, made = planner.settle({output: plan[output] for output in plan if output in kept})
        model = apply_factors(job.model, made) if made else job.model
        changes = [
            _change(study, layer, made[layer.output], plan.get(layer.output))
            for layer in study.layers
            if layer.output in made
        ]
        return Result(model, changes, skips, tuple(job.clock.decisions), planner.warnings)

    def survey(self, model: Model, shapes: Mapping[str, Shape]) -> Result:
        """Every layer that could be factored, and why the others could not."""
        layers, skips = find_layers(Surgery(model), shapes, self.exclude)
        changes = [
            Change(layer.node, "factor", " x ".join(str(size) for size in layer.weight.shape[1:]), "")
            for layer in layers
        ]
        return Result(model, changes, skips)

    def sensitivity(self, job: Job) -> list[dict[str, Any]]:
        """What each layer alone, factored, does to the outputs: for `inspect --sensitivity`."""
        study = Study.of(job, exclude=self.exclude, data_aware=self.data_aware)
        return sensitivity(study, self._methods)

    def _goal(self, job: Job) -> Goal:
        bound = DEFAULT_TOLERANCE if self.tolerance in ("auto", None) else float(self.tolerance)
        return Goal(
            bound,
            self.keep_if,
            self._methods,
            self._multiple(job),
            rank=self.rank,
            energy=self.energy,
            macs=self.macs,
            params=self.params,
            vbmf=self.rank_rule == "vbmf",
            quick=self.effort == "quick",
        )

    @property
    def _methods(self) -> tuple[Method, ...]:
        if self.effort == "quick":
            return ("svd",)
        return ("svd", "spatial", "tucker2", "cp") if self.method == "auto" else (self.method,)

    def _multiple(self, job: Job) -> int:
        if self.round_to != "auto":
            return self.round_to
        if self.keep_if == "always":
            return GRAIN
        return job.clock.round_to("conv", quantized=quantizes(job))

    def _keep(
        self, study: Study, plan: dict[str, Option], made: dict[str, Factors], skips: list[Skip]
    ) -> set[str]:
        """The layers whose factors stay, by the clock on the whole model."""
        if self.keep_if == "always" or not plan:
            return set(plan)
        job = study.job
        names = {layer.output: layer.node for layer in study.layers if layer.output in plan}
        if len(set(names.values())) < len(names):  # two nodes of one name
            names = {output: output for output in names}
        outputs = {node: output for output, node in names.items()}
        works = {layer.output: layer.macs for layer in study.layers}
        gains = {
            node: study.gains.get(output, {}).get(plan[output].form, float(works[output] - plan[output].macs))
            for node, output in outputs.items()
        }

        def build(kept: set[str]) -> Model:
            dropped = {output for node, output in outputs.items() if node not in kept}
            return job.finish(
                apply_factors(job.model, {key: item for key, item in made.items() if key not in dropped})
            )

        kept = job.clock.keep_best(job.finish(job.model), gains, build, one_batch(job), self.keep_if)
        dropped = [node for node in outputs if node not in kept]
        skips += [Skip(node, f"the whole model is not {self.keep_if} with it factored") for node in dropped]
        return {outputs[node] for node in kept}


def _change(study: Study, layer: Layer, made: Factors, chosen: Option | None) -> Change:
    _, n, k = layer.weight.shape
    before = f"{layer.groups} x {n} x {k}" if layer.groups > 1 else f"{n} x {k}"
    if chosen is None:
        return Change(layer.node, "refit", before, before)
    if layer.macs:
        left = f"{chosen.macs / layer.macs:.2f} of its multiply-adds"
    else:  # a table
        left = f"{chosen.params / layer.params:.2f} of its weights"
    after = f"rank {chosen.form}, {left}"
    if layer.output in study.projected:  # the table of method svd is exact
        return Change(layer.node, made.method, before, after, chosen.error)
    error = relative_error(study.problems[layer.output], study.factors(layer.output, chosen))
    return Change(layer.node, made.method, before, after, error)
