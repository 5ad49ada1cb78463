"""The pass: weights that share few values, as far as the outputs stay what they were."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from onnx_compress.contract import Change, Result, Skip
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.cluster.allocate import MOST, keep_tolerance, keep_weights
from onnx_compress.passes.cluster.study import Study
from onnx_compress.passes.cluster.weights import find_weights
from onnx_compress.recipe import option

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx_compress.contract import Job
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.runtime.data import Data

BITS = 5
TOLERANCE = 0.02  # relative output error on held-out data
WEIGHT_TOLERANCE = 1e-4  # relative error of a weight, where there is no data to measure outputs on
OPSET = 7  # before it, Add does not broadcast by itself


@dataclass(frozen=True)
class Cluster:
    """k-means weight sharing, stored as a codebook and indices of one byte that onnxruntime unfolds at load."""

    name: ClassVar[str] = "cluster"

    bits: int | None = option(
        None, "bits of an index [5; more where the tolerance asks for it]", low=1, high=8
    )
    clusters: int | None = option(None, "values a weight may take, instead of bits", low=2, high=256)
    tolerance: Literal["auto"] | float | None = option(
        "auto", "relative output error that may be added on held-out data [0.02]", low=0
    )
    codebook: Literal["kmeans", "linear"] = option("kmeans", "how the values are chosen")
    granularity: Literal["tensor", "channel"] = option("tensor", "what shares a codebook")
    weighting: Literal["gram", "none"] = option("gram", "weigh errors by the inputs they meet")
    exclude: str | None = option(None, "regular expression on the names of nodes to leave alone")

    def __post_init__(self) -> None:
        if self.bits is not None and self.clusters is not None:
            raise ValueError("bits and clusters exclude each other: 2^bits are the clusters")
        if self.clusters is not None and isinstance(self.tolerance, int | float):
            raise ValueError("clusters is a fixed number: give bits to start from, or the tolerance alone")
        try:
            re.compile(self.exclude or "")
        except re.error as error:
            raise ValueError(f"exclude is no regular expression: {error}") from error

    def apply(self, job: Job) -> Result:
        """The model with its weights clustered where that keeps to the bound, and the reasons where not."""
        opset = next((o.version for o in job.model.proto.opset_import if o.domain in ("", "ai.onnx")), 1)
        if opset < OPSET:
            return Result(job.model, skips=[Skip("(model)", f"opset {opset} is too old: it needs {OPSET}")])
        channel = self.granularity == "channel"
        study = Study(job.model, kind=self.codebook, per_channel=channel, exclude=self.exclude)
        if not study.weights:
            return Result(job.model, skips=study.skips)
        data = None if job.data is None or job.data.random else job.data
        fit, held = data.split(seed=job.seed) if data is not None else (None, None)
        if fit is not None:
            study.look(fit, weigh=self.weighting == "gram")
        clusters, skips = self._clusters(study, job, held)
        return _result(study, clusters, [*study.skips, *skips])

    def survey(self, model: Model, shapes: Mapping[str, Shape]) -> Result:  # noqa: ARG002 - weights need no shapes
        """Every weight that could be clustered, and why the others are left alone."""
        weights, skips = find_weights(Surgery(model), self.exclude)
        changes = [
            Change(weight.name, "share values", f"{weight.values.dtype} {weight.values.size}", "")
            for weight in weights
        ]
        return Result(model, changes, skips)

    def _clusters(self, study: Study, job: Job, held: Data | None) -> tuple[list[int | None], list[Skip]]:
        """How many values each weight gets."""
        fixed = self.bits is not None or self.clusters is not None
        count = self.clusters or 2 ** (self.bits or BITS)
        if self.tolerance is None or (fixed and self.tolerance == "auto"):
            return [count] * len(study.weights), []
        tolerance = TOLERANCE if self.tolerance == "auto" else float(self.tolerance)
        if held is None:
            # > most at once: what fewer values do to the outputs is unknown, and the file is no larger
            unasked = self.tolerance == "auto"
            limit = WEIGHT_TOLERANCE if unasked else tolerance
            found = keep_weights(study, limit, MOST if unasked else self.bits or BITS)
            why = f"even 256 values change its weight by more than {limit:g}"
        else:
            found, _ = keep_tolerance(study, job, held, tolerance, self.bits or BITS)
            why = f"left as it is to keep within the tolerance of {tolerance:g}"
        missed = [Skip(w.name, why) for w, c in zip(study.weights, found, strict=True) if c is None]
        return found, missed


def _result(study: Study, clusters: Sequence[int | None], skips: list[Skip]) -> Result:
    """The model with what gains in size stored as codebooks, and the report of it."""
    chosen = list(clusters)
    changes = []
    for number, (weight, count) in enumerate(zip(study.weights, clusters, strict=True)):
        if count is None:
            continue
        if weight.book is not None and weight.book.clusters <= count:
            chosen[number] = None
            skips.append(Skip(weight.name, f"already clustered to {weight.book.clusters} values"))
            continue
        book = study.book(number, count)
        values = weight.values
        shape = "x".join(map(str, values.shape))
        before = f"{values.dtype} {shape}" if weight.book is None else f"{weight.book.clusters} values"
        after = f"{book.clusters} values" + ("" if book.axis is None else " a channel")
        changes.append(Change(weight.name, "cluster", before, after, study.error(number, count)))
    if all(count is None for count in chosen):
        return Result(study.model, skips=skips)
    note = "clustered weights save disk and download, not memory: onnxruntime unfolds them when it loads the model"
    return Result(study.stored(chosen), changes, skips, warnings=[note])
