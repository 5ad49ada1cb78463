"""What to do with each layer: options picked from the tables, by one budget or bound for all."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING

from onnx_compress.contract import Skip
from onnx_compress.passes.svd.edits import apply_factors
from onnx_compress.passes.svd.ranks import Option, ShareOut, option_of, vbmf_form
from onnx_compress.passes.svd.refit import refit
from onnx_compress.passes.svd.worth import fastest_forms

if TYPE_CHECKING:
    from onnx_compress.passes.svd.factors import Factors
    from onnx_compress.passes.svd.forms import Method
    from onnx_compress.passes.svd.goal import Goal
    from onnx_compress.passes.svd.layers import Layer
    from onnx_compress.passes.svd.study import Study

ROUNDS = 7  # whole models tried in the search for the largest saving within the tolerance
HOPELESS = 4  # times the tolerance: what one layer alone may do to the outputs and still be looked into
LEAST_GAIN = 0.05  # of a layer's time, by what is known before the whole model is timed


class Planner:
    """The choice of options for the layers of one study, towards one goal."""

    def __init__(self, study: Study, goal: Goal, skips: list[Skip]) -> None:
        self.study, self.goal, self.skips = study, goal, skips
        self.warnings: list[str] = []

    def plan(self, layers: list[Layer]) -> dict[str, Option]:
        """What to do with each layer; those not named stay dense."""
        study, goal = self.study, self.goal
        if goal.keep_if == "faster":
            for layer in layers:
                study.tables[layer.output] = [
                    item for item in study.tables[layer.output] if self._pays(layer, item)
                ]
        usable = [layer for layer in layers if study.tables[layer.output]]
        if not usable:
            return {}
        if goal.each:
            return self._each(usable)
        if study.held is None and goal.bounded:
            return self._by_weights(usable)
        if not goal.quick:
            study.probe(usable, HOPELESS * goal.bound if goal.bounded else math.inf, goal.by)
        share = ShareOut([self._rows(layer) for layer in usable])
        if goal.bounded:
            plan = self._largest_saving(usable, share)
            within = f"no rank that pays keeps the outputs within {goal.bound:g}"
            slower = "no form of it is faster at the rank that the error asks for"
            self.skips += [
                Skip(layer.node, slower if layer.output in study.gains else within)
                for layer in usable
                if layer.output not in plan
            ]
            return plan
        return self._within_budget(usable, share)

    def fit(self, plan: dict[str, Option]) -> dict[str, Factors]:
        """The factors of `plan` and the weights refitted around them; quick: the factors as they are."""
        if not plan:
            return {}
        study = self.study
        if self.goal.quick:
            return {output: study.factors(output, item) for output, item in plan.items()}
        key = frozenset((output, item.form) for output, item in plan.items())
        if key not in study.refits:
            study.refits[key] = refit(
                study, plan, study.fit if self.goal.bounded else study.data, quick=self.goal.bounded
            )
        return study.refits[key]

    def settle(self, plan: dict[str, Option]) -> tuple[dict[str, Option], dict[str, Factors]]:
        """`plan` and its factors, within the tolerance on held-out data.

        What the clock leaves of a plan may be worse than the whole, in which the layers made up for each other, and a refit on
        few samples worse than none. Where it is, the factors stay as they were fitted to their own inputs, and where that
        misses too, the layer that does most harm goes.
        """
        study, goal = self.study, self.goal
        if study.held is None or not goal.bounded:
            return plan, self.fit(plan)
        plan = dict(plan)
        while plan:
            for made in (
                self.fit(plan),
                {output: study.factors(output, item) for output, item in plan.items()},
            ):
                if study.error(apply_factors(study.job.model, made)) <= self.allowed:
                    return plan, made
            worst = max(plan, key=lambda output: study.harm(output, plan[output].error))
            del plan[worst]
            node = next(layer.node for layer in study.layers if layer.output == worst)
            self.skips.append(Skip(node, f"with it the outputs miss {goal.bound:g}"))
        return {}, {}

    @cached_property
    def allowed(self) -> float:
        """The output error that the result may have: not the bound alone, as earlier passes had their own."""
        return self.study.error(self.study.job.model) + self.goal.bound

    def _pays(self, layer: Layer, item: Option) -> bool:
        wasted = self.study.overheads.get((layer.output, item.form.method), 0.0)
        return item.macs <= (1 - LEAST_GAIN - wasted) * layer.macs

    def _within_budget(self, layers: list[Layer], share: ShareOut) -> dict[str, Option]:
        """The plan that loses least at the work, or the weights, that may be left."""
        study, goal = self.study, self.goal
        total, wanted = (study.params, goal.params) if goal.by == "params" else (study.macs, goal.macs)
        picks = share.choose((wanted or 0.0) * total - (total - share.most))
        if picks is None:
            least = (total - share.most + share.least) / max(total, 1)
            self.warnings.append(
                f"svd cannot keep only {wanted:g} of the {goal.by}; the least is {least:.2f}"
            )
            picks = share.choose(share.least)
        assert picks is not None
        return self._picked(layers, picks)

    def _each(self, layers: list[Layer]) -> dict[str, Option]:
        """One rank for all, the ranks that stand out of the noise, or the least that keep the energy: each by itself."""
        plan: dict[str, Option] = {}
        for layer in layers:
            options = self.study.tables[layer.output]
            why = f"no rank that saves work keeps {self.goal.energy or 0:.4g} of its output's energy"
            if self.goal.vbmf:
                methods = dict.fromkeys(item.form.method for item in options)
                options = self._by_noise(layer, [method for method in methods if method != "cp"])
                why = "no ranks that stand out of its weight's noise save work"
            found = [
                item for item in options if self.goal.energy is None or item.error <= 1 - self.goal.energy
            ]
            if self.goal.rank is not None and options:
                found = [min(options, key=lambda item: item.error)]
            if found:
                plan[layer.output] = min(found, key=lambda item: (item.macs, item.error))
            else:
                self.skips.append(Skip(layer.node, why))
        return plan

    def _by_noise(self, layer: Layer, methods: list[Method]) -> list[Option]:
        """The options whose ranks variational Bayes finds in the weight, where they save work."""
        forms = [vbmf_form(layer, method, self.goal.multiple) for method in methods]
        problem = self.study.problem(layer.output)
        options = [option_of(layer, problem, form) for form in forms if form is not None]
        return [option for option in options if option.macs < layer.macs]

    def _by_weights(self, layers: list[Layer]) -> dict[str, Option]:
        """Without data: the least rank whose error in the weights themselves is within the tolerance."""
        plan: dict[str, Option] = {}
        for layer in layers:
            found = [item for item in self.study.tables[layer.output] if item.error <= self.goal.bound]
            if found:
                plan[layer.output] = min(found, key=lambda item: item.macs)
            else:
                why = f"no rank that saves work keeps its weights within {self.goal.bound:g}"
                self.skips.append(Skip(layer.node, why))
        return plan

    def _rows(self, layer: Layer) -> list[tuple[float, float]]:
        """(cost, harm) of leaving the layer alone, then of each of its options."""
        study = self.study
        options = study.tables[layer.output]
        harms = [study.harm(layer.output, item.error) for item in options]
        if self.goal.by == "params":
            return [(float(layer.params), 0.0), *zip([float(o.params) for o in options], harms, strict=True)]
        # the largest saving within a tolerance is one of time, as far as that is known; a budget counts work
        wasted = {o.form.method: study.overheads.get((layer.output, o.form.method), 0.0) for o in options}
        extra = [wasted[o.form.method] * layer.macs if self.goal.bounded else 0.0 for o in options]
        costs = [item.macs + more for item, more in zip(options, extra, strict=True)]
        return [(float(layer.macs), 0.0), *zip(costs, harms, strict=True)]

    def _largest_saving(self, layers: list[Layer], share: ShareOut) -> dict[str, Option]:
        """The plan that saves most and that, once refitted, adds no more than the tolerance on held-out data.

        Refitting is slow, so the search measures plans without it; once it is known how much the refit gains, it goes on
        from there.
        """
        study, allowed = self.study, self.allowed
        plan = self._search(layers, share, allowed)
        if not plan or study.fit is None:
            return plan
        if not self.goal.quick:
            plain = study.error(study.build(plan))
            refitted = study.error(apply_factors(study.job.model, self.fit(plan)))
            if refitted < 0.8 * plain:  # > not <=: both are 0 where the outputs are constant
                bolder = self._search(layers, share, 0.9 * allowed * plain / max(refitted, 1e-12))
                if study.error(apply_factors(study.job.model, self.fit(bolder))) <= allowed:
                    plan = bolder
        faster = fastest_forms(study, self.goal, {layer.output: layer for layer in layers}, plan)
        if faster != plan and study.error(apply_factors(study.job.model, self.fit(faster))) <= allowed:
            return faster
        return plan

    def _search(self, layers: list[Layer], share: ShareOut, bound: float) -> dict[str, Option]:
        """The plan that saves most whose error without a refit stays within `bound`, by bisection on the work left."""
        low, high = share.least, share.most
        best: dict[str, Option] = {}
        for round_ in range(ROUNDS):
            self.study.job.progress(round_, ROUNDS, "tolerance")
            middle = (low + high) / 2
            picks = share.choose(middle)
            plan = self._picked(layers, picks) if picks else {}
            if not plan:
                break
            if self.study.error(self.study.build(plan)) <= bound:
                best, high = plan, middle
            else:
                low = middle
        return best

    def _picked(self, layers: list[Layer], picks: list[int]) -> dict[str, Option]:
        return {
            layer.output: self.study.tables[layer.output][pick - 1]
            for layer, pick in zip(layers, picks, strict=True)
            if pick
        }
