"""sparsify: zeros inside weights, where they cost least, and the rest refitted on calibration data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from onnx_compress.contract import Change, Job, Result, Skip
from onnx_compress.errors import UsageError
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.sparsify.aim import aimed
from onnx_compress.passes.sparsify.allocate import Curve, cheapest, even, share_out
from onnx_compress.passes.sparsify.layers import find_layers
from onnx_compress.passes.sparsify.patterns import parse, reason_against
from onnx_compress.passes.sparsify.study import Study
from onnx_compress.recipe import option
from onnx_compress.runtime.agreement import Reference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.passes.sparsify.solve import Sparse
    from onnx_compress.runtime.data import Data

TRIALS = 7  # of bisection towards the tolerance
FITS = 3  # candidates that are refitted, each smaller than the one before
HIGHEST = 0.96  # share of zeros that the search goes up to
NOTE = "zeros save file size together with cluster or pack, not time: dense kernels multiply by them all the same"


@dataclass(frozen=True)
class Sparsify:
    """Zeros inside the weights of Conv, Gemm and MatMul, with the rest refitted by least squares; for smaller files."""

    name: ClassVar[str] = "sparsify"

    tolerance: float | None = option(
        0.01, "relative output error that may be added, on held-out data", low=0, high=1
    )
    sparsity: float | None = option(
        None, "fraction of zeros to reach, instead of a tolerance", low=0, high=0.99
    )
    pattern: str = option(
        "unstructured", "unstructured, NofM such as 2of4, kernel (4 entries of each) or connectivity"
    )
    criterion: Literal["obs", "magnitude", "wanda"] = option("obs", "what decides which weights go")
    repair: Literal["least-squares", "none"] = option("least-squares", "what makes up for those that went")
    scope: Literal["global", "layer"] = option(
        "global", "share the zeros out over layers, or the same of each"
    )
    exclude: str | None = option(None, "regular expression on the names of nodes to leave alone")

    def __post_init__(self) -> None:
        pattern = parse(self.pattern)
        if self.tolerance is None and self.sparsity is None and not pattern.fixed:
            raise ValueError(f"pattern={self.pattern} needs a tolerance or a sparsity")
        try:
            re.compile(self.exclude or "")
        except re.error as error:
            raise ValueError(f"exclude is no regular expression: {error}") from error

    def apply(self, job: Job) -> Result:
        """The job's model with zeros in its weights, as many as the budget or the tolerance says."""
        data = None if job.data is None or job.data.random else job.data
        budget = self.sparsity is not None or self.tolerance is None
        if data is None and (self.criterion != "magnitude" or not budget):
            raise UsageError(
                "sparsify needs --data: without it only criterion=magnitude with a sparsity can run"
            )
        fit, held = data.split(0.25, job.seed) if data is not None else (None, None)
        study = Study(
            job.model,
            parse(self.pattern),
            fit,
            criterion=self.criterion,
            repair=self.repair != "none" and data is not None,
            exclude=self.exclude,
            threads=job.clock.threads,
            seed=job.seed,
            progress=job.progress,
        )
        if not study.layers:
            return Result(job.model, (), study.skips)
        spread = self.scope == "global" or study.pattern.fixed
        curves = study.curves(held, job.progress) if spread and self.sparsity != 0 else []
        warnings = []
        if budget:
            zeros = self._shares(study, curves, 1.0 if self.sparsity is None else self.sparsity)
            reached = _share(study, zeros)
            if self.sparsity is not None and reached < self.sparsity - 0.005:
                warnings.append(
                    f"sparsify: sparsity={self.sparsity:g} cannot be reached; {reached:.3f} are zeros"
                )
        else:
            assert held is not None
            zeros = self._to_tolerance(job, study, curves, fit, held)
        if data is None and self.repair != "none":
            warnings.append(
                "sparsify without --data repairs nothing: its outputs may be far from the original's"
            )
        return _result(job, study, zeros, fit if study.repair else None, warnings)

    def survey(self, model: Model, shapes: Mapping[str, Shape]) -> Result:
        """Every weight that could take zeros, and why the others are left alone."""
        layers, skips = find_layers(Surgery(model), shapes, self.exclude)
        pattern = parse(self.pattern)
        changes = []
        for layer in layers:
            why = reason_against(pattern, layer.rows, layer.taps)
            if why is None:
                changes.append(Change(layer.name, "make sparse", f"{layer.size} values", ""))
            else:
                skips.append(Skip(layer.name, why))
        return Result(model, changes, skips)

    def _shares(self, study: Study, curves: list[Curve], sparsity: float) -> dict[int, int]:
        """How many zeros each layer gets for this share of all; layers that get none are left out."""
        total = round(sparsity * study.size)
        if study.pattern.fixed:
            return _whole_layers(curves, total)
        counts = share_out(curves, total) if curves else even([layer.size for layer in study.layers], total)
        return {n: count for n, count in enumerate(counts) if count > study.layers[n].zeros}

    def _to_tolerance(
        self, job: Job, study: Study, curves: list[Curve], fit: Data | None, held: Data
    ) -> dict[int, int]:
        """The most zeros within the tolerance, by bisection on their share.

        The search looks at models that are not refitted and expects what refitting gains: a fifth at first, then as measured.
        """
        assert self.tolerance is not None
        reference = Reference(job.original, held, threads=study.threads)
        allowed = reference.error(job.model) + self.tolerance
        known: dict[tuple[tuple[int, int], ...], float] = {}

        def error_of(zeros: dict[int, int]) -> float:
            key = tuple(zeros.items())
            if key not in known:
                known[key] = reference.error(study.sparse(zeros, job.progress, rough=True))
            return known[key]

        gain = 0.8 if study.repair else 1.0
        for _ in range(FITS):
            best: dict[int, int] = {}
            low, high = 0.0, HIGHEST
            for turn in range(TRIALS):
                job.progress(turn, TRIALS, "tolerance")
                middle = (low + high) / 2
                zeros = self._shares(study, curves, middle)
                if error_of(zeros) * gain <= allowed:
                    best, low = zeros, middle
                else:
                    high = middle
            error = reference.error(_sparse(job, study, best, fit)[0]) if best else 0.0
            if error <= allowed:
                return best
            # a little more than measured, so that the next one is smaller
            gain = 1.1 * max(error / max(error_of(best), 1e-12), gain)
        return {}


def _whole_layers(curves: list[Curve], total: int) -> dict[int, int]:
    """Layers that take a fixed pattern, cheapest first, until `total` entries are zero."""
    gains = [max(round(curve.levels[-1] * curve.size) - curve.zeros, 0) for curve in curves]
    found: dict[int, int] = {}
    left = total - sum(curve.zeros for curve in curves)
    for number in cheapest([float(curve.errors[-1]) for curve in curves], gains):
        if left <= 0:
            break
        if gains[number] > 0:
            found[number] = curves[number].zeros + gains[number]
            left -= gains[number]
    return found


def _share(study: Study, zeros: Mapping[int, int]) -> float:
    """The share of zeros in all the layers' weights."""
    return sum(zeros.get(n, layer.zeros) for n, layer in enumerate(study.layers)) / study.size


def _sparse(
    job: Job, study: Study, zeros: Mapping[int, int], fit: Data | None
) -> tuple[Model, Mapping[int, Sparse]]:
    """The model with this many zeros in each of these layers, refitted on `fit` where there is any; and the layers."""
    if fit is not None and study.repair:
        return aimed(study, zeros, job, fit)
    model = study.sparse(zeros, job.progress)
    return model, {n: found for n, count in zeros.items() if (found := study.solved(n, count)) is not None}


def _result(
    job: Job, study: Study, zeros: Mapping[int, int], fit: Data | None, warnings: list[str]
) -> Result:
    """The model, and the report of it."""
    skips = list(study.skips)
    model, found = _sparse(job, study, zeros, fit) if zeros else (job.model, {})
    changes = []
    for number, layer in enumerate(study.layers):
        sparse = found.get(number) if number in zeros else None
        if sparse is None:
            why = "others cost less" + ("; refitted to the layers before it" if number in found else "")
            skips.append(Skip(layer.name, f"left as it is, {layer.zeros / layer.size:.1%} zeros: {why}"))
            continue
        before, after = (f"{count / layer.size:.1%} zeros" for count in (layer.zeros, sparse.zeros))
        changes.append(Change(layer.name, "sparsify", before, after, sparse.error))
    return Result(model, changes, skips, warnings=[*warnings, NOTE] if changes else warnings)
