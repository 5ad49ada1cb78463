"""Which layers, and which forms of them, are worth a closer look: by counting, then by a micro-model's time.

First each form at half the work, which says what it costs beyond its multiply-adds; later, of the layers that are to be
factored, each form at the error that was chosen.

cp is the last resort of `auto`. Its error for its multiply-adds is often the least, but most of them are depthwise, which
take far more time than dense ones, and after the refit no accuracy is left of the advantage (resnet20 at half the work, 256 images: 73.9 %
against 74.3 % with the other forms, and five times the time to fit). So it must be no slower for its multiply-adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_compress.contract import Skip
from onnx_compress.passes.svd.forms import CP_WORK, candidates, form_macs
from onnx_compress.passes.svd.speed import propose

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx_compress.passes.svd.forms import Form, Method
    from onnx_compress.passes.svd.goal import Goal
    from onnx_compress.passes.svd.layers import Layer
    from onnx_compress.passes.svd.ranks import Option
    from onnx_compress.passes.svd.study import Study

LEAST_SAVING = 0.2  # of a layer's work: below that no clock is asked
LONGER: dict[Method, tuple[Method, ...]] = {
    "tucker2": ("svd", "spatial"),
    "cp": ("svd", "spatial", "tucker2"),
}


def worthwhile(study: Study, goal: Goal, skips: list[Skip]) -> dict[str, tuple[Method, ...]]:
    """By a layer's output: the methods that save work in it and, where the clock decides, time at half its work."""
    chosen: dict[str, tuple[Method, ...]] = {}
    asked: dict[object, dict[Method, str | float]] = {}
    for number, layer in enumerate(study.layers):
        study.job.progress(number, len(study.layers), "timing")
        halves = {method: found for method in goal.methods if (found := _half(layer, method, goal))}
        if not halves:
            which = f"rank {goal.rank}" if goal.rank else f"no rank that is a multiple of {goal.multiple}"
            skips.append(Skip(layer.node, f"{which} saves {'nothing' if goal.rank else goal.by}"))
            continue
        if layer.signature not in asked:
            asked[layer.signature] = _ask_all(study, layer, goal, halves)
        answers = asked[layer.signature]
        good = tuple(method for method, answer in answers.items() if not isinstance(answer, str))
        if not good:
            skips.append(Skip(layer.node, str(next(iter(answers.values())))))
            continue
        study.overheads.update({(layer.output, method): float(answers[method]) for method in good})
        chosen[layer.output] = good
    return chosen


def _half(layer: Layer, method: Method, goal: Goal) -> Form | None:
    """The form whose work is nearest to half the layer's."""
    forms = candidates(layer, method, goal.multiple, by=goal.by, only=goal.rank)
    half = min(forms, key=lambda form: abs(2 * form_macs(layer, form) - layer.macs), default=None)
    if half is None or method != "cp" or len(goal.methods) == 1:
        return half
    return half if goal.timed and half.rank * layer.weight.shape[2] ** 2 <= CP_WORK else None


def _ask_all(study: Study, layer: Layer, goal: Goal, halves: dict[Method, Form]) -> dict[Method, str | float]:
    """The answer for each method. Where two nodes for one are too slow, three or four at the same work are not timed."""
    answers: dict[Method, str | float] = {}
    for method, form in halves.items():
        shorter = [answers[other] for other in LONGER.get(method, ()) if other in answers]
        if shorter and all(isinstance(answer, str) for answer in shorter):
            continue
        answers[method] = _ask(study, layer, goal, form)
        if method == "cp" and len(halves) > 1 and not _no_slower(answers, shorter):
            answers[method] = "cp is slower for its multiply-adds than the other forms"
    return answers


def _no_slower(answers: dict[Method, str | float], others: list[str | float]) -> bool:
    """Whether cp costs no more time beyond its multiply-adds than each other form that is any use."""
    own = answers["cp"]
    return isinstance(own, str) or all(own <= other for other in others if not isinstance(other, str))


def _ask(study: Study, layer: Layer, goal: Goal, form: Form) -> str | float:
    """Why the clock is against factoring this layer, or the time that doing so costs beyond its multiply-adds."""
    if not goal.timed:
        return 0.0
    share = form_macs(layer, form) / max(layer.macs, 1)
    if share > 1 - LEAST_SAVING and goal.keep_if == "faster":
        return f"factored at rank {form} would still take {share:.0%} of its multiply-adds"
    decision = propose(study.job, layer, form, study.shapes)
    if decision is None:
        return 0.0
    if decision.kept or (goal.keep_if == "not-slower" and (decision.high or 1.0) >= 1):
        return max(1 - decision.value - share, 0.0)
    return f"factored at rank {form} ({form.method}) it would be {decision.ratio or 0:.2f}x as fast"


def fastest_forms(
    study: Study, goal: Goal, layers: Mapping[str, Layer], plan: Mapping[str, Option]
) -> dict[str, Option]:
    """`plan` with each layer in the form that a micro-model finds fastest among those that lose no more of its output.

    Without the layers that no form makes faster. What a form costs beyond its multiply-adds is known at half the work
    only: at the rank that the error asks for another may be faster. `study.gains` has the time that each layer's form
    saves, in multiply-adds of the dense layer.
    """
    if not goal.timed:
        return dict(plan)
    asked: dict[object, float] = {}
    chosen: dict[str, Option] = {}
    for number, (output, option) in enumerate(plan.items()):
        study.job.progress(number, len(plan), "timing")
        layer, rivals = layers[output], {option.form.method: option}
        for item in sorted(study.tables[output], key=lambda item: item.macs):
            if item.error <= option.error:
                rivals.setdefault(item.form.method, item)
        saved: dict[Method, float] = {}
        for method, item in rivals.items():
            key = layer.signature, item.form
            if key not in asked:
                decision = propose(study.job, layer, item.form, study.shapes)
                asked[key] = 1 - item.macs / max(layer.macs, 1) if decision is None else decision.value
            saved[method] = asked[key]
        study.gains[output] = {rivals[method].form: gain * layer.macs for method, gain in saved.items()}
        best = max(saved, key=lambda method: saved[method])
        if saved[best] <= 0 and goal.keep_if == "faster":
            continue
        chosen[output] = rivals[best]
    return chosen
