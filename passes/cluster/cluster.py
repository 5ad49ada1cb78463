"""The pass: weights that share few values, as far as the outputs stay what they were."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from onnx_compress.contract import Change, Result, Skip
from onnx_compress.model.codebook import opset_of
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.cluster.allocate import MOST, Choice, keep_size, keep_tolerance, keep_weights
from onnx_compress.passes.cluster.palettes import TERNARY, Style
from onnx_compress.passes.cluster.study import Study
from onnx_compress.passes.cluster.weights import find_weights
from onnx_compress.recipe import option
from onnx_compress.runtime.agreement import Reference
from onnx_compress.runtime.opset import raised

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx_compress.contract import Job
    from onnx_compress.model.codebook import Codebook
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.runtime.data import Data

BITS = 5
TOLERANCE = 0.01  # relative output error on held-out data
WEIGHT_TOLERANCE = 1e-4  # relative error of a weight, where there is no data to measure outputs on
OPSET = 7  # before it, Add does not broadcast by itself
FOUR_BITS, TWO_BITS, FEW = 21, 25, 4  # opsets that have these types, and what indices of 2 bits tell apart
TRIED = 8  # samples on which a model raised to another opset must give the same
NOTE = (
    "clustered weights save disk and download, not memory: onnxruntime unfolds them when it loads the model, for which "
    "it takes a few times their dense size"
)


@dataclass(frozen=True)
class Cluster:
    """k-means weight sharing, stored as a codebook and packed indices that onnxruntime unfolds at load."""

    name: ClassVar[str] = "cluster"

    bits: int | None = option(
        None,
        "bits of an index, or binary bases [as few as the tolerance allows; 5 without it]",
        low=1,
        high=8,
    )
    clusters: int | None = option(None, "values a weight may take, instead of bits", low=2, high=256)
    tolerance: Literal["auto"] | float | None = option(
        "auto", "relative output error that may be added on held-out data [0.01]", low=0
    )
    size: float | None = option(
        None, "fraction of the model's bytes to keep, instead of a tolerance", low=0, high=1
    )
    codebook: Literal["kmeans", "linear", "ternary", "binary"] = option("kmeans", "how the values are chosen")
    granularity: Literal["tensor", "channel", "block"] = option(
        "tensor", "what shares a codebook; block: channels of like spread"
    )
    weighting: Literal["gram", "none"] = option("gram", "weigh errors by the inputs they meet")
    rounding: Literal["gptq", "nearest"] = option(
        "gptq", "gptq: aim at the original's outputs, later weights make up for earlier ones"
    )
    storage: Literal["packed", "typed", "bytes"] = option(
        "packed", "indices in the bits they need; in ONNX's 4 and 2-bit types (opset 21, 25); a byte each"
    )
    exclude: str | None = option(None, "regular expression on the names of nodes to leave alone")

    def __post_init__(self) -> None:
        if self.bits is not None and self.clusters is not None:
            raise ValueError("bits and clusters exclude each other: 2^bits are the clusters")
        if self.clusters is not None and isinstance(self.tolerance, int | float):
            raise ValueError("clusters is a fixed number: give bits to start from, or the tolerance alone")
        if self.size is not None and (
            self.bits is not None or self.clusters is not None or isinstance(self.tolerance, int | float)
        ):
            raise ValueError("size excludes bits, clusters and tolerance: it decides the bits of each weight")
        if self.codebook == "ternary" and (self.bits is not None or self.clusters is not None):
            raise ValueError("a ternary codebook has three values: it excludes bits and clusters")
        if self.codebook == "binary" and self.clusters is not None:
            raise ValueError("a binary codebook takes bits, the number of its bases, and excludes clusters")
        try:
            re.compile(self.exclude or "")
        except re.error as error:
            raise ValueError(f"exclude is no regular expression: {error}") from error

    def apply(self, job: Job) -> Result:
        """The model with its weights clustered where that keeps to the bound, and the reasons where not."""
        opset = opset_of(job.model)
        if opset < OPSET:
            return Result(job.model, skips=[Skip("(model)", f"opset {opset} is too old: it needs {OPSET}")])
        given = job.model
        job, notes = self._raised(job)
        style = Style(self.codebook, self.granularity)
        study = Study(job, style, exclude=self.exclude, storage=self.storage)
        if not study.weights:
            return Result(job.model, skips=study.skips)
        data = None if job.data is None or job.data.random else job.data
        fit, held = data.split(seed=job.seed) if data is not None else (None, None)
        if fit is not None:
            study.look(fit, weigh=self.weighting == "gram")
        aimed = fit if self.weighting == "gram" and self.rounding == "gptq" else None
        choice, skips, warnings = self._choose(study, job, aimed, held)
        if choice.solution is None and aimed is not None:
            choice = Choice(choice.clusters, study.solve(_changed(study, choice), aimed))
        return _result(study, choice, [*study.skips, *skips, *notes], warnings, given)

    def _raised(self, job: Job) -> tuple[Job, list[Skip]]:
        """The job with its model in an opset that has the types asked for, where onnx's converter leaves its outputs as they are."""
        if self.storage != "typed":
            return job, []
        few = self.codebook == "ternary" or (self.clusters or 2 ** (self.bits or MOST)) <= FEW
        notes: list[Skip] = []
        for needed, lacks in ((TWO_BITS, "2-bit types"), (FOUR_BITS, "4-bit types"))[0 if few else 1 :]:
            found: Model | str = "there are no samples to check a converted model on"
            if job.data is not None:
                found = raised(job.model, needed, lacks, Reference(job.model, job.data.take(TRIED)).error)
            if not isinstance(found, str):
                return replace(job, model=found), notes
            notes.append(Skip("(model)", f"{found}; indices take more bits than they need"))
        return job, notes

    def survey(self, model: Model, shapes: Mapping[str, Shape]) -> Result:  # noqa: ARG002 - weights need no shapes
        """Every weight that could be clustered, and why the others are left alone."""
        weights, skips = find_weights(Surgery(model), self.exclude)
        changes = [
            Change(weight.name, "share values", f"{weight.values.dtype} {weight.values.size}", "")
            for weight in weights
        ]
        return Result(model, changes, skips)

    def _choose(
        self, study: Study, job: Job, aimed: Data | None, held: Data | None
    ) -> tuple[Choice, list[Skip], list[str]]:
        """How many values each weight gets."""
        steps = [TERNARY] if self.codebook == "ternary" else [2**bits for bits in range(1, MOST + 1)]
        if self.size is not None:
            found, met = keep_size(study, job, held, self.size, steps)
            short = f"cluster: size={self.size:g} cannot be reached; weights have the fewest values they can"
            return Choice(found), [], [] if met else [short]
        fixed = self.bits is not None or self.clusters is not None
        if self.tolerance is None or (fixed and self.tolerance == "auto"):
            count = self.clusters or (TERNARY if self.codebook == "ternary" else 2 ** (self.bits or BITS))
            return Choice([count] * len(study.weights)), [], []
        tolerance = TOLERANCE if self.tolerance == "auto" else float(self.tolerance)
        start = 0 if self.bits is None or self.codebook == "ternary" else self.bits - 1
        if held is None:
            # > what fewer values do to the outputs is unknown: a tighter bound
            limit = WEIGHT_TOLERANCE if self.tolerance == "auto" else tolerance
            choice = Choice(keep_weights(study, limit, steps[start:]))
            why = f"even {steps[-1]} values change its weight by more than {limit:g}"
        else:
            choice = keep_tolerance(study, job, aimed, held, tolerance, steps, start)
            why = f"left as it is to keep within the tolerance of {tolerance:g}"
        pairs = zip(study.weights, choice.clusters, strict=True)
        return choice, [Skip(weight.name, why) for weight, count in pairs if count is None], []


def _changed(study: Study, choice: Choice) -> list[int | None]:
    """The values of each weight, None for those that have no more already."""
    pairs = zip(study.before, choice.clusters, strict=True)
    return [
        None if count is None or (book is not None and book.clusters <= count) else count
        for book, count in pairs
    ]


def _result(study: Study, choice: Choice, skips: list[Skip], warnings: list[str], given: Model) -> Result:
    """The model with what gains in size stored as codebooks, and the report of it; or `given`, where nothing does."""
    chosen = _changed(study, choice)
    changes = []
    for number, (weight, count) in enumerate(zip(study.weights, choice.clusters, strict=True)):
        before = study.before[number]
        if count is None:
            continue
        if chosen[number] is None:
            assert before is not None
            skips.append(Skip(weight.name, f"already clustered to {before.clusters} values"))
            continue
        solved = None if choice.solution is None else choice.solution.books.get(number)
        book = study.book(number, count) if solved is None else solved
        error = study.error(number, count)
        if solved is not None and choice.solution is not None:
            error = choice.solution.errors[number]
        shape = "x".join(map(str, weight.shape))
        was = f"{weight.values.dtype} {shape}" if before is None else f"{before.clusters} values"
        changes.append(Change(weight.name, "cluster", was, _words(book), error))
    if all(count is None for count in chosen):
        return Result(given, skips=skips, warnings=warnings)
    return Result(study.stored(chosen, choice.solution), changes, skips, warnings=[*warnings, NOTE])


def _words(book: Codebook) -> str:
    """What a weight became."""
    if book.scales is not None:
        return f"{book.clusters} values times a scale a channel"
    if book.axis is None:
        return f"{book.clusters} values"
    return (
        f"{book.clusters} values a channel"
        if book.books is None
        else f"{len(book.values)} books of {book.clusters} values"
    )
