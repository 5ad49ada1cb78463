"""The pass: an int8 model that keeps to a tolerance and is not slower, or the reasons why not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from onnx_compress.contract import Change, Job, Result, Skip
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.int8.fallback import hold
from onnx_compress.passes.int8.lower import lower
from onnx_compress.passes.int8.opset import raised
from onnx_compress.passes.int8.placement import FLOAT_ONLY, LAYERS, place, weight_of
from onnx_compress.passes.int8.quantizer import Choices, Quantizer
from onnx_compress.recipe import option
from onnx_compress.runtime.agreement import Reference
from onnx_compress.runtime.data import random_data
from onnx_compress.runtime.machine import products_saturate
from onnx_compress.runtime.session import input_specs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.passes.int8.placement import Placement
    from onnx_compress.runtime.data import Data
    from onnx_compress.runtime.decision import Decision

RANDOM_SAMPLES = 32
PREVIEW_SAMPLES = 16
CODED = {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "MatMulInteger", "ConvInteger"}


@dataclass(frozen=True)
class Int8:
    """Activations in 8 bits with one scale a tensor, weights in int8 with one a channel."""

    name: ClassVar[str] = "int8"

    tolerance: float | None = option(0.02, "relative output error that may be added on held-out data", low=0)
    calibrate: Literal["mse", "minmax", "percentile", "entropy"] = option(
        "mse", "how an activation's range is chosen"
    )
    weights: Literal["per-channel", "per-tensor"] = option("per-channel", "how many scales a weight has")
    activations: Literal["uint8", "int8"] = option("uint8", "type of the activations")
    rounding: Literal["gptq", "nearest"] = option("gptq", "how weights are rounded")
    bias_correction: bool = option(True, "restore the mean of each layer's output")
    reduce_range: Literal["auto"] | bool = option(
        "auto", "7-bit weights, where sums of 8-bit products may saturate"
    )
    exclude: str | None = option(None, "regular expression on the names of nodes that stay in float")
    keep_if: Literal["not-slower", "faster", "always"] = option(
        "not-slower", "what the clock must say of the result"
    )
    target: Literal["ort-cpu"] = option("ort-cpu", "whose kernels the placement suits")

    def __post_init__(self) -> None:
        try:
            re.compile(self.exclude or "")
        except re.error as error:
            raise ValueError(f"exclude={self.exclude!r} is no regular expression: {error}") from error

    def apply(self, job: Job) -> Result:
        """The model in int8 where tolerance and clock allow; what stayed in float is in the skips, with the reason."""
        if is_quantized(job.model):
            return Result(job.model, skips=[Skip("*", "the model is quantized already")])
        warnings = []
        data = job.data
        if data is None:
            data = made_up(job)
            warnings.append("int8: there is no --data, so the ranges come from random inputs")
        fit, held = data.split()
        model = raised(job.model, Reference(job.model, held.take(4), threads=job.clock.threads).error)
        if isinstance(model, str):
            return Result(job.model, skips=list(_all_left(job.model, model)), warnings=warnings)
        quantizer = self._quantizer(model, fit, job)
        inside = list(_in_bodies(model))
        if not quantizer.layers:
            return Result(job.model, skips=[*_left(quantizer.quantized()[1]), *inside], warnings=warnings)
        quantizer.observe()
        found = self._within_tolerance(job, quantizer, held)
        if isinstance(found, str):
            return Result(job.model, skips=[*_all_left(job.model, found), *inside], warnings=warnings)
        candidate, placement, _ = found
        feeds = next(iter(held.batches(1)))
        decision = job.clock.decide(
            "int8", "keep", job.finish(job.model), job.finish(candidate), feeds, self.keep_if
        )
        if not decision.kept:
            why = f"int8 is slower here than float: {_ratio(decision)} of its speed"
            return Result(
                job.model,
                skips=[*_all_left(job.model, why), *inside],
                decisions=[decision],
                warnings=warnings,
            )
        if self.bits < 8:
            warnings.append("int8: weights have 7 bits, since 8-bit products may saturate on this processor")
        return Result(
            candidate,
            [_change(quantizer, name, self.activations) for name in placement.layers],
            [*_left(placement), *inside],
            [decision],
            warnings,
        )

    def survey(self, model: Model, shapes: Mapping[str, Shape]) -> Result:
        """Every layer that could run in int8, and why the others stay in float."""
        if is_quantized(model):
            return Result(model, skips=[Skip("*", "the model is quantized already")])
        placement = place(Surgery(lower(model, shapes)).graph, {})
        changes = [Change(name, "quantize", "float32", "int8") for name in placement.layers]
        return Result(model, changes, [*_left(placement), *_in_bodies(model)])

    def preview(self, job: Job) -> Model:
        """`job.model` as this pass would leave it, quickly: for clock decisions of earlier passes."""
        if is_quantized(job.model):
            return job.model
        data = (job.data or made_up(job)).take(PREVIEW_SAMPLES)
        model = raised(job.model, lambda _: 0.0)
        if isinstance(model, str):
            return job.model
        choices = Choices(
            "minmax", self.weights == "per-channel", self.activations == "int8", "nearest", False
        )
        quantizer = self._quantizer(model, data, job, choices)
        return quantizer.quantized()[0] if quantizer.layers else job.model

    @property
    def bits(self) -> int:
        """Of a weight."""
        reduced = products_saturate() if self.reduce_range == "auto" else self.reduce_range
        return 7 if reduced else 8

    def _quantizer(self, model: Model, data: Data, job: Job, choices: Choices | None = None) -> Quantizer:
        choices = choices or Choices(
            self.calibrate,
            self.weights == "per-channel",
            self.activations == "int8",
            self.rounding,
            self.bias_correction,
            self.bits,
        )
        lowered = lower(model, infer(model, job.input_shapes))
        pattern = re.compile(self.exclude) if self.exclude else None
        keep = {
            node.name: f"excluded by exclude={self.exclude}"
            for node in lowered.proto.graph.node
            if pattern and pattern.search(node.name)
        }
        return Quantizer(
            lowered, data, choices, keep, infer(lowered, job.input_shapes), job.clock.threads, job.progress
        )

    def _within_tolerance(
        self, job: Job, quantizer: Quantizer, held: Data
    ) -> tuple[Model, Placement, float] | str:
        reference = Reference(job.original, held, threads=job.clock.threads)
        model, placement = quantizer.quantized()
        if self.tolerance is None:
            return model, placement, reference.error(model)
        bound = reference.error(job.model) + self.tolerance
        error = reference.error(model)
        if error <= bound:
            return model, placement, error
        layered, fewer = quantizer.quantized(followers=False)
        less = reference.error(layered)
        if less <= bound:
            return layered, fewer, less
        small = Reference(job.original, held.take(32), threads=job.clock.threads)
        best = hold(quantizer, reference.error, small.error, bound, followers=error <= less)
        if best is None:
            return f"no layer could be quantized within the tolerance of {self.tolerance:g}: {min(error, less):.2g}"
        return best


def is_quantized(model: Model) -> bool:
    """Whether somebody quantized the activations of this model."""
    return any(node.op in CODED or node.op.startswith("QLinear") for node in Surgery(model).nodes())


def made_up(job: Job) -> Data:
    """Random inputs for the job's model."""
    return random_data(input_specs(job.model), RANDOM_SAMPLES, job.seed, job.input_shapes)


def _left(placement: Placement) -> Iterator[Skip]:
    for name, why in placement.left.items():
        yield Skip(name, why)


def _all_left(model: Model, why: str) -> Iterator[Skip]:
    """Every layer of the main graph, left in float for one reason."""
    for node in Surgery(model).graph.nodes:
        if (node.op in LAYERS or node.op in FLOAT_ONLY) and weight_of(node) is not None:
            yield Skip(node.name, why)


def _in_bodies(model: Model) -> Iterator[Skip]:
    surgery = Surgery(model)
    for graph in surgery.graphs():
        if graph is surgery.graph:
            continue
        for node in graph.nodes:
            if (node.op in LAYERS or node.op in FLOAT_ONLY) and weight_of(node) is not None:
                yield Skip(node.name, "it stands in a body of an If, Loop or Scan")


def _change(quantizer: Quantizer, name: str, activations: str) -> Change:
    node = quantizer.nodes[name]
    shape = "x".join(str(size) for size in node.inputs[1].shape)
    return Change(name, "quantize", f"{node.op} {shape} float32", f"{shape} int8, {activations} activations")


def _ratio(decision: Decision) -> str:
    return "a fraction" if decision.ratio is None else f"{decision.ratio:.2f}"
