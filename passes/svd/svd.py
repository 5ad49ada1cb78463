"""The pass: layers factored into two thinner ones, as far as the error and the clock allow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from onnx_compress.contract import Change, Result, Skip
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.svd.aim import relative_error
from onnx_compress.passes.svd.factors import apply_factors, factored_macs
from onnx_compress.passes.svd.layers import find_layers
from onnx_compress.passes.svd.ranks import ShareOut, candidate_ranks
from onnx_compress.passes.svd.refit import refit
from onnx_compress.passes.svd.speed import propose, quantizes
from onnx_compress.passes.svd.study import Study, first_feeds
from onnx_compress.recipe import option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx_compress.contract import Job
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.passes.svd.factors import Factors
    from onnx_compress.passes.svd.layers import Layer
    from onnx_compress.passes.svd.ranks import Option

DEFAULT_TOLERANCE = 0.02  # of the outputs' variance
GRAIN = 8  # ranks without a clock: what 8 float lanes and the int8 kernels like
ROUNDS = 7  # whole models tried in the search for the largest saving within the tolerance
HOPELESS = 4  # times the tolerance: what one layer alone may do to the outputs and still be looked into
LEAST_GAIN = 0.05  # of a layer's time, by what is known before the whole model is timed
LEAST_SAVING = 0.2  # of a layer's work: below that no clock is asked


@dataclass(frozen=True)
class Svd:
    """Factors Gemm, MatMul and Conv into two thinner layers, whitened by the data and refitted towards the original."""

    name: ClassVar[str] = "svd"
    tolerance: Literal["auto"] | float | None = option(
        "auto", "error it may add to the outputs, share of their variance (auto: 0.02)", low=0
    )
    rank: int | None = option(None, "rank of every layer", low=1)
    energy: float | None = option(None, "share of each layer's output energy to keep", low=0, high=1)
    macs: float | None = option(None, "fraction of the model's multiply-adds to keep", low=0, high=1)
    params: float | None = option(None, "fraction of the model's weights to keep", low=0, high=1)
    method: Literal["auto", "svd", "spatial"] = option(
        "auto", "svd: k x k to r channels, then 1 x 1; spatial: k x 1, then 1 x k; auto: the better of them"
    )
    data_aware: bool = option(True, "weigh errors by the calibration data; false: by the weights alone")
    keep_if: Literal["faster", "not-slower", "always"] = option(
        "faster", "keep a factored layer only where it is measured so"
    )
    round_to: Literal["auto"] | int = option("auto", "ranks are multiples of this", low=1)
    exclude: str | None = option(None, "leave nodes alone whose name matches this regular expression")

    def __post_init__(self) -> None:
        given = [word for word in ("rank", "energy", "macs", "params") if getattr(self, word) is not None]
        if self.tolerance not in ("auto", None):
            given.append("tolerance")
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: give one budget")
        if not given and self.tolerance is None:
            raise ValueError("tolerance=none leaves no bound: give rank, energy, macs or params")

    def apply(self, job: Job) -> Result:
        """The job's model with every layer factored that this saves work in, within the budget."""
        study = Study.of(job, exclude=self.exclude, data_aware=self.data_aware)
        skips = list(study.skips)
        multiple = self._multiple(job)
        layers = self._worthwhile(study, multiple, skips)
        study.observe(layers)
        study.tabulate(layers, self._methods, multiple, by=self._by, only=self.rank)
        plan, warnings = self._plan(study, layers, skips)
        made = self._fit(study, plan)
        kept = self._keep(study, plan, made, skips)
        if len(kept) < len(plan):
            plan = {output: plan[output] for output in kept}
            made = self._fit(study, plan)
        model = apply_factors(job.model, made) if made else job.model
        changes = [
            _change(study, layer, made[layer.output], plan.get(layer.output))
            for layer in study.layers
            if layer.output in made
        ]
        return Result(model, changes, skips, tuple(job.clock.decisions), warnings)

    def survey(self, model: Model, shapes: Mapping[str, Shape]) -> Result:
        """Every layer that could be factored, and why the others could not."""
        layers, skips = find_layers(Surgery(model), shapes, self.exclude)
        changes = [
            Change(layer.node, "factor", " x ".join(str(size) for size in layer.weight.shape[1:]), "")
            for layer in layers
        ]
        return Result(model, changes, skips)

    def _fit(self, study: Study, plan: dict[str, Option]) -> dict[str, Factors]:
        """The factors of `plan` and the weights refitted around them."""
        if not plan:
            return {}
        key = frozenset((output, item.method, item.rank) for output, item in plan.items())
        if key not in study.refits:
            study.refits[key] = refit(study, plan, study.fit if self._bounded else study.data)
        return study.refits[key]

    @property
    def _bounded(self) -> bool:
        """Whether an error bound decides, which must be judged on data that no fit has seen."""
        return all(getattr(self, word) is None for word in ("rank", "energy", "macs", "params"))

    @property
    def _by(self) -> str:
        return "params" if self.params is not None else "macs"

    @property
    def _methods(self) -> tuple[str, ...]:
        return ("svd", "spatial") if self.method == "auto" else (self.method,)

    @property
    def _bound(self) -> float:
        return DEFAULT_TOLERANCE if self.tolerance in ("auto", None) else float(self.tolerance)

    def _multiple(self, job: Job) -> int:
        if self.round_to != "auto":
            return self.round_to
        if self.keep_if == "always":
            return GRAIN
        return job.clock.round_to("conv", quantized=quantizes(job))

    def _worthwhile(self, study: Study, multiple: int, skips: list[Skip]) -> list[Layer]:
        """The layers that have a rank which saves work and, where the clock decides, are faster at half their work."""
        chosen: list[Layer] = []
        asked: dict[object, str | float] = {}
        for number, layer in enumerate(study.layers):
            study.job.progress(number, len(study.layers), "timing")
            best = self._half(layer, multiple)
            if best is None:
                which = f"rank {self.rank}" if self.rank else f"no rank that is a multiple of {multiple}"
                skips.append(Skip(layer.node, f"{which} saves {'nothing' if self.rank else self._by}"))
                continue
            if layer.signature not in asked:
                asked[layer.signature] = self._ask(study, layer, *best)
            answer = asked[layer.signature]
            if isinstance(answer, str):
                skips.append(Skip(layer.node, answer))
                continue
            study.overheads[layer.output] = answer
            chosen.append(layer)
        return chosen

    def _half(self, layer: Layer, multiple: int) -> tuple[str, int] | None:
        """The method and rank whose work is nearest to half the layer's."""
        pairs = [
            (method, rank)
            for method in self._methods
            if method == "svd" or layer.spatial
            for rank in candidate_ranks(layer, method, multiple, by=self._by, only=self.rank)
        ]
        return min(pairs, key=lambda pair: abs(2 * factored_macs(layer, *pair) - layer.macs), default=None)

    def _ask(self, study: Study, layer: Layer, method: str, rank: int) -> str | float:
        """Why the clock is against factoring this layer, or the time that doing so costs beyond its multiply-adds."""
        if self.keep_if == "always":
            return 0.0
        share = factored_macs(layer, method, rank) / max(layer.macs, 1)
        if share > 1 - LEAST_SAVING and self.keep_if == "faster":
            return f"factored at rank {rank} would still take {share:.0%} of its multiply-adds"
        decision = propose(study.job, layer, method, rank, study.shapes)
        if decision is None:
            return 0.0
        if decision.kept or (self.keep_if == "not-slower" and (decision.high or 1.0) >= 1):
            return max(1 - decision.value - share, 0.0)
        return f"factored at rank {rank} ({method}) it would be {decision.ratio or 0:.2f}x as fast"

    def _plan(
        self, study: Study, layers: list[Layer], skips: list[Skip]
    ) -> tuple[dict[str, Option], list[str]]:
        """What to do with each layer; those not named stay dense."""
        if self.keep_if == "faster":
            for layer in layers:
                most = (1 - LEAST_GAIN - study.overheads[layer.output]) * layer.macs
                kept = [item for item in study.tables[layer.output] if item.macs <= most]
                study.tables[layer.output] = kept
        usable = [layer for layer in layers if study.tables[layer.output]]
        if not usable:
            return {}, []
        if self.rank is not None or self.energy is not None:
            return self._plan_each(study, usable, skips), []
        if study.held is None and self._bounded:
            return self._plan_bounded(study, usable, skips), []
        study.probe(usable, HOPELESS * self._bound if self._bounded else math.inf)
        share = ShareOut([self._rows(study, layer) for layer in usable])
        if self._bounded:
            plan = self._largest_saving(study, usable, share)
            skips += [
                Skip(layer.node, f"no rank that pays keeps the outputs within {self._bound:g}")
                for layer in usable
                if layer.output not in plan
            ]
            return plan, []
        total, wanted = (study.params, self.params) if self._by == "params" else (study.macs, self.macs)
        budget = (wanted or 0.0) * total - (total - share.most)
        picks = share.choose(budget)
        warnings = []
        if picks is None:
            least = (total - share.most + share.least) / max(total, 1)
            warnings.append(f"svd cannot keep only {wanted:g} of the {self._by}; the least is {least:.2f}")
            picks = share.choose(share.least)
        assert picks is not None
        return _picked(study, usable, picks), warnings

    def _plan_each(self, study: Study, layers: list[Layer], skips: list[Skip]) -> dict[str, Option]:
        """One rank for all, or the least rank that keeps the energy: each layer by itself."""
        plan: dict[str, Option] = {}
        for layer in layers:
            options = study.tables[layer.output]
            found = [item for item in options if self.energy is None or item.error <= 1 - self.energy]
            if self.rank is not None and options:
                found = [min(options, key=lambda item: item.error)]
            if found:
                plan[layer.output] = min(found, key=lambda item: (item.macs, item.error))
            else:
                why = f"no rank that saves work keeps {self.energy or 0:.4g} of its output's energy"
                skips.append(Skip(layer.node, why))
        return plan

    def _plan_bounded(self, study: Study, layers: list[Layer], skips: list[Skip]) -> dict[str, Option]:
        """Without data: the least rank whose error in the weights themselves is within the tolerance."""
        plan: dict[str, Option] = {}
        for layer in layers:
            found = [item for item in study.tables[layer.output] if item.error <= self._bound]
            if found:
                plan[layer.output] = min(found, key=lambda item: item.macs)
            else:
                skips.append(
                    Skip(layer.node, f"no rank that saves work keeps its weights within {self._bound:g}")
                )
        return plan

    def _rows(self, study: Study, layer: Layer) -> list[tuple[float, float]]:
        """(cost, harm) of leaving the layer alone, then of each of its options."""
        options = study.tables[layer.output]
        harms = [study.harm(layer.output, item.error) for item in options]
        if self._by == "params":
            costs = [float(item.params) for item in options]
            return [(float(layer.params), 0.0), *zip(costs, harms, strict=True)]
        # the largest saving within a tolerance is one of time, as far as that is known; a budget counts work
        wasted = study.overheads.get(layer.output, 0.0) * layer.macs if self._bounded else 0.0
        return [(float(layer.macs), 0.0), *zip([item.macs + wasted for item in options], harms, strict=True)]

    def _largest_saving(self, study: Study, layers: list[Layer], share: ShareOut) -> dict[str, Option]:
        """The plan that saves most and whose measured error on held-out data, once refitted, stays within the tolerance.

        Refitting is slow, so the search measures plans without it; once it is known how much the refit gains, it goes on
        from there.
        """
        plan = self._search(study, layers, share, self._bound)
        if not plan or study.fit is None:
            return plan
        plain = study.error(study.build(plan))
        refitted = study.error(apply_factors(study.job.model, self._fit(study, plan)))
        if refitted > 0.8 * plain:
            return plan
        bolder = self._search(study, layers, share, 0.9 * self._bound * plain / refitted)
        if study.error(apply_factors(study.job.model, self._fit(study, bolder))) <= self._bound:
            return bolder
        return plan

    def _search(self, study: Study, layers: list[Layer], share: ShareOut, bound: float) -> dict[str, Option]:
        """The plan that saves most whose error without a refit stays within `bound`, by bisection on the work left."""
        low, high = share.least, share.most
        best: dict[str, Option] = {}
        for round_ in range(ROUNDS):
            study.job.progress(round_, ROUNDS, "tolerance")
            middle = (low + high) / 2
            picks = share.choose(middle)
            plan = _picked(study, layers, picks) if picks else {}
            if not plan:
                break
            if study.error(study.build(plan)) <= bound:
                best, high = plan, middle
            else:
                low = middle
        return best

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
        gains = {node: float(works[output] - plan[output].macs) for node, output in outputs.items()}

        def build(kept: set[str]) -> Model:
            dropped = {output for node, output in outputs.items() if node not in kept}
            return job.finish(
                apply_factors(job.model, {key: item for key, item in made.items() if key not in dropped})
            )

        kept = job.clock.keep_best(job.finish(job.model), gains, build, first_feeds(job), self.keep_if)
        dropped = [node for node in outputs if node not in kept]
        skips += [Skip(node, f"the whole model is not {self.keep_if} with it factored") for node in dropped]
        return {outputs[node] for node in kept}


def _picked(study: Study, layers: list[Layer], picks: list[int]) -> dict[str, Option]:
    return {
        layer.output: study.tables[layer.output][pick - 1]
        for layer, pick in zip(layers, picks, strict=True)
        if pick
    }


def _change(study: Study, layer: Layer, made: Factors, chosen: Option | None) -> Change:
    _, n, k = layer.weight.shape
    before = f"{layer.groups} x {n} x {k}" if layer.groups > 1 else f"{n} x {k}"
    if chosen is None:
        return Change(layer.node, "refit", before, before)
    after = f"rank {chosen.rank}, {chosen.macs / max(layer.macs, 1):.2f} of its multiply-adds"
    error = relative_error(study.problems[layer.output], study.factors(layer.output, chosen))
    return Change(layer.node, made.method, before, after, error)
