"""The pass: weights of 4 bits with a scale for every few inputs, as far as the outputs stay what they were."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from onnx_compress.contract import Change, Job, Result, Skip
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.int4.forms import TYPED
from onnx_compress.passes.int4.study import Study
from onnx_compress.passes.int4.weights import find_weights
from onnx_compress.recipe import option
from onnx_compress.runtime.agreement import Reference
from onnx_compress.runtime.data import random_data
from onnx_compress.runtime.opset import opset, raised
from onnx_compress.runtime.session import input_specs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.runtime.data import Data

TOLERANCE = 0.02
RANDOM_SAMPLES = 32
TRIED = 8  # samples on which a model raised to another opset must give the same
PROBES = 32  # samples that show how much one weight matters
OLDEST = 10  # opset: before it, Slice and Mod are others
WORDS = {
    "standard": "packed in memory, too",
    "contrib": "packed in memory, too",
    "table": "packed in memory, too",
    "unfolded": "in the file only",
}


@dataclass(frozen=True)
class Int4:
    """Weights of layers and tables in 4 bits with a scale for each block of inputs; what computes stays float."""

    name: ClassVar[str] = "int4"

    block: Literal[32, 64, 128] = option(32, "inputs that share a scale")
    rounding: Literal["gptq", "nearest"] = option("gptq", "how weights are rounded")
    tolerance: float | None = option(
        TOLERANCE, "relative output error that may be added on held-out data", low=0
    )
    exclude: str | None = option(None, "regular expression on the names of nodes to leave alone")

    def __post_init__(self) -> None:
        try:
            re.compile(self.exclude or "")
        except re.error as error:
            raise ValueError(f"exclude={self.exclude!r} is no regular expression: {error}") from error

    def apply(self, job: Job) -> Result:
        """The model with its weights in 4 bits where tolerance allows, else in 8, else as they were."""
        warnings: list[str] = []
        data = job.data
        if data is None:
            data = made_up(job)
            warnings.append(
                "int4: there is no --data, so the tolerance is judged on random inputs and weights are rounded to the nearest"
            )
        fit, held = data.split(seed=job.seed)
        model, notes = self._raised(job.model, held)
        if model is None:
            return Result(job.model, skips=notes)
        study = Study(model, self.block, self.exclude, job.progress)
        if not study.weights:
            return Result(job.model, skips=study.skips)
        self._choose_forms(study, job, data)
        if self.rounding == "gptq" and not data.random:
            study.look(fit, job.clock.threads)
        levels, result = self._search(study, job, held)
        if not any(levels):
            return Result(job.model, skips=[*study.skips, *self._missed(study, levels)], warnings=warnings)
        changes = [_change(study, number, bits) for number, bits in enumerate(levels) if bits]
        skips = [*study.skips, *self._missed(study, levels), *notes]
        return Result(result, changes, skips, job.clock.decisions, [*warnings, _account(study, levels)])

    def survey(self, model: Model, shapes: Mapping[str, Shape]) -> Result:
        """Every weight that could be stored in 4 bits, and why the others are left alone: for `onnx-compress inspect`."""
        weights, skips = find_weights(Surgery(model), shapes, self.exclude)
        changes = [
            Change(weight.name, "quantize weight", f"float32 {weight.size}", "int4") for weight in weights
        ]
        return Result(model, changes, skips)

    def preview(self, job: Job) -> Model:
        """`job.model` with everything in 4 bits, quickly: for clock decisions of earlier passes."""
        if opset(job.model) < OLDEST:
            return job.model
        study = Study(job.model, self.block, self.exclude)
        return study.stored([4] * len(study.weights)) if study.weights else job.model

    def _raised(self, model: Model, held: Data) -> tuple[Model | None, list[Skip]]:
        """The model in an opset that has 4 bits, or as it is: then onnxruntime's own operators take their place."""
        if opset(model) >= TYPED:
            return model, []
        study = Study(model, self.block, self.exclude)
        if all(weight.kind != "product" for weight in study.weights):
            found: Model | str = model if opset(model) >= OLDEST else ""
        else:
            reference = Reference(model, held.take(TRIED))
            found = raised(model, TYPED, "4-bit types", reference.error)
        if isinstance(found, str) and opset(model) < OLDEST:
            why = found or f"opset {opset(model)} is too old: it needs {OLDEST}"
            return None, [*study.skips, *(Skip(weight.name, why) for weight in study.weights)]
        if isinstance(found, str):
            return model, [Skip("(model)", f"{found}; onnxruntime's own operators are used instead")]
        return found, []

    def _choose_forms(self, study: Study, job: Job, data: Data) -> None:
        """Drops forms that make the model slower than it was: first that of standard products, then one after the other."""
        feeds = next(iter(data.batches(job.batch)), None)
        quick = Study(study.model, self.block, self.exclude)
        for form in ("standard", "contrib", "table"):
            levels = [0 if quick.form(n) == "unfolded" else 4 for n in range(len(quick.weights))]
            if feeds is None or all(quick.form(n) != form for n in range(len(quick.weights))):
                continue
            packed = quick.stored(levels)
            if job.clock.settle(f"({form} form)", "keep", job.model, packed, feeds, "not-slower").kept:
                break
            quick.slow.add(form)
        study.slow = set(quick.slow)

    def _search(self, study: Study, job: Job, held: Data) -> tuple[list[int], Model]:
        """The fewest bits within the tolerance: all 4; else, the worst for their size first, 8; then float."""
        count = len(study.weights)
        everything = study.stored([4] * count)
        if self.tolerance is None:
            return [4] * count, everything
        reference = Reference(job.original, held, threads=job.clock.threads)
        bound = reference.error(job.model) + self.tolerance
        if reference.error(everything) <= bound:
            return [4] * count, everything
        order = self._worst_first(study, held, job)
        best: tuple[list[int], Model] = ([0] * count, job.model)
        low, high = 1, 2 * count
        while low <= high:
            middle = (low + high) // 2
            job.progress(middle, 2 * count, "tolerance")
            levels = _levels(order, middle)
            model = study.stored(levels) if any(levels) else job.model
            if reference.error(model) <= bound:
                best, high = (levels, model), middle - 1
            else:
                low = middle + 1
        return best

    def _worst_first(self, study: Study, held: Data, job: Job) -> list[int]:
        """The weights by the output error that each alone adds for its size, on a few samples."""
        few = Reference(study.model, held.take(PROBES), threads=job.clock.threads)
        count = len(study.weights)
        matters = np.empty(count)
        for number, weight in enumerate(study.weights):
            job.progress(number, count, "sensitivity")
            alone = study.stored([4 if number == other else 0 for other in range(count)])
            matters[number] = few.error(alone) / weight.size
        return [int(n) for n in np.argsort(-np.nan_to_num(matters, nan=np.inf, posinf=np.inf), kind="stable")]

    def _missed(self, study: Study, levels: Sequence[int]) -> list[Skip]:
        why = f"left in float to keep within the tolerance of {self.tolerance or 0:g}"
        return [
            Skip(weight.name, why) for weight, bits in zip(study.weights, levels, strict=True) if not bits
        ]


def made_up(job: Job) -> Data:
    """Random inputs for the job's model."""
    return random_data(input_specs(job.model), RANDOM_SAMPLES, job.seed, job.input_shapes)


def _levels(order: Sequence[int], raised_steps: int) -> list[int]:
    """Bits of each weight when this many steps were taken: one turns 4 bits into 8, worst first, then 8 into float.

    >>> _levels([1, 0], 1), _levels([1, 0], 3)
    ([4, 8], [8, 0])
    """
    count = len(order)
    levels = [4] * count
    for number in order[: min(raised_steps, count)]:
        levels[number] = 8
    for number in order[: max(raised_steps - count, 0)]:
        levels[number] = 0
    return levels


def _change(study: Study, number: int, bits: int) -> Change:
    weight, coded = study.weights[number], study.coded(number, bits)
    shape = "x".join(map(str, weight.shape))
    signs = "" if coded.blocks.zeros is None else " with zeros"
    after = f"int{bits} by {coded.blocks.block}{signs}, {WORDS[study.form(number)]}"
    return Change(weight.name, "quantize weight", f"float32 {shape}", after, coded.error)


def _account(study: Study, levels: Sequence[int]) -> str:
    """What became of file and memory, in words."""
    file: Counter[str] = Counter()
    for number, bits in enumerate(levels):
        weight = study.weights[number]
        size = study.coded(number, bits).blocks.nbytes if bits else 4 * weight.size
        packed = bits and study.form(number) != "unfolded"
        file["before"] += 4 * weight.size
        file["after"] += size
        file["memory"] += size if packed else 4 * weight.size
    megabytes: dict[str, Any] = {key: f"{value / 1e6:.2f}" for key, value in file.items()}
    text = f"int4: weights of {megabytes['before']} MB take {megabytes['after']} MB in the file"
    if math.isclose(file["memory"], file["before"]):
        return f"{text}; in memory as much as before, since onnxruntime unfolds them when it loads the model"
    return f"{text} and {megabytes['memory']} MB in memory, where onnxruntime keeps those of MatMul, Gemm and tables packed"
