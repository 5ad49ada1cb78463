"""The pass: weights in half precision in the file, in single precision when they are multiplied.

What computes stays float32. onnxruntime's CPU has few kernels for halves: a model that computes in them is loaded with
casts around every node, and is slower. Runtimes that do compute in halves (TensorRT, OpenVINO, GPUs) turn float32
nodes into halves themselves, with their own list of what must stay; a file of halves with Casts is what OpenVINO's own
converter writes. So there is no mode that computes in halves: it would serve no runtime better than this one.

It goes last: the other passes do not look behind the Casts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnx_compress.contract import Change, Job, Result, Skip
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.fp16.weights import LEAST, find_weights, store
from onnx_compress.recipe import option
from onnx_compress.runtime.agreement import Reference
from onnx_compress.runtime.opset import opset

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.runtime.data import Data

OLDEST = 6  # opset: before it, Cast is another
ROUNDED = 2.0**-22  # (w − w̃)²/w² of a half at most, where it is not subnormal
NOTE = "fp16: halves save disk and download, not memory or time: onnxruntime casts them once, when it loads the model"


@dataclass(frozen=True)
class Fp16:
    """Weights stored as float16 with a Cast to float32 that onnxruntime computes at load: half the file, the same speed."""

    name: ClassVar[str] = "fp16"

    tolerance: float | None = option(0.001, "relative output error that may be added on held-out data", low=0)
    exclude: str | None = option(None, "regular expression on the names of nodes to leave alone")

    def __post_init__(self) -> None:
        try:
            re.compile(self.exclude or "")
        except re.error as error:
            raise ValueError(f"exclude={self.exclude!r} is no regular expression: {error}") from error

    def apply(self, job: Job) -> Result:
        """The model with every weight in halves that the tolerance allows, and why the others are not."""
        if opset(job.model) < OLDEST:
            why = f"opset {opset(job.model)} is too old: it needs {OLDEST}"
            return Result(job.model, skips=[Skip("(model)", why)])
        weights, skips = find_weights(Surgery(job.model), self.exclude)
        if not weights:
            why = f"no float32 weight of {LEAST} values or more is left to store in halves"
            return Result(job.model, skips=skips or [Skip("(model)", why)])
        errors = [weight.error() for weight in weights]
        kept, model = self._within(job, errors)
        changes = []
        for number, weight in enumerate(weights):
            if number in kept:
                shape = "x".join(map(str, weight.tensor.shape))
                changes.append(
                    Change(weight.name, "store in halves", f"float32 {shape}", "float16", errors[number])
                )
            else:
                skips.append(Skip(weight.name, self._why_not(job.data, errors[number])))
        return Result(model, changes, skips, warnings=[NOTE] if changes else [])

    def survey(self, model: Model, shapes: Mapping[str, Shape]) -> Result:  # noqa: ARG002 - weights need no shapes
        """Every weight that could be stored in halves, and why the others are left alone."""
        weights, skips = find_weights(Surgery(model), self.exclude)
        changes = [Change(weight.name, "store in halves", "float32", "float16") for weight in weights]
        return Result(model, changes, skips)

    def _why_not(self, data: Data | None, error: float) -> str:
        if data is None or data.random:
            return f"many of its values are too small for halves: its error would be {error:.2g}"
        return f"left as it is to keep within the tolerance of {self.tolerance or 0:g}"

    def _within(self, job: Job, errors: Sequence[float]) -> tuple[set[int], Model]:
        """The most weights, those that lose most left out first, with which the tolerance is kept; and the model.

        Without data all that lose no more than rounding to 11 bits does: outputs for random inputs tell nothing here.
        """
        order = sorted(range(len(errors)), key=lambda number: (errors[number], number))
        everything = set(order)
        model = self._stored(job.model, everything)
        if self.tolerance is None:
            return everything, model
        if job.data is None or job.data.random:
            sound = {number for number in everything if errors[number] <= ROUNDED}
            return sound, self._stored(job.model, sound)
        _, held = job.data.split(seed=job.seed)
        reference = Reference(job.original, held, threads=job.clock.threads)
        bound = reference.error(job.model) + self.tolerance
        if reference.error(model) <= bound:
            return everything, model
        kept, best = set[int](), job.model
        low, high = 1, len(order) - 1
        while low <= high:
            middle = (low + high) // 2
            job.progress(middle, len(order), "tolerance")
            trial = set(order[:middle])
            model = self._stored(job.model, trial)
            if reference.error(model) <= bound:
                kept, best, low = trial, model, middle + 1
            else:
                high = middle - 1
        return kept, best

    def _stored(self, model: Model, numbers: set[int]) -> Model:
        surgery = Surgery(model)
        weights, _ = find_weights(surgery, self.exclude)
        store(surgery, [weight for number, weight in enumerate(weights) if number in numbers])
        return surgery.commit()
