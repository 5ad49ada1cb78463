"""The pass: an int8 model that keeps to a tolerance and is not slower, or the reasons why not."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from onnx_compress.contract import Change, Job, Result, Skip
from onnx_compress.model.codebook import unfold
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.int8.bodies import in_branches
from onnx_compress.passes.int8.dynamic import candidates, dynamic
from onnx_compress.passes.int8.edges import integer_edges
from onnx_compress.passes.int8.forms import at_run_time, recurrent, weights_alone
from onnx_compress.passes.int8.guard import guard
from onnx_compress.passes.int8.islands import islands
from onnx_compress.passes.int8.lower import lower
from onnx_compress.passes.int8.opset import OPSET, OPSET_16, raised
from onnx_compress.passes.int8.placement import place
from onnx_compress.passes.int8.quantizer import Choices, Quantizer
from onnx_compress.passes.int8.search import Found, Search
from onnx_compress.passes.int8.sensitivity import sensitivity
from onnx_compress.passes.int8.targets import TARGETS, Rules, check_static, codes_for
from onnx_compress.passes.int8.weightonly import weight_only
from onnx_compress.recipe import option
from onnx_compress.runtime.data import random_data
from onnx_compress.runtime.machine import products_saturate
from onnx_compress.runtime.session import input_specs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.passes.int8.ranges import Codes
    from onnx_compress.runtime.data import Data

FREE = ("float", "dynamic")  # forms without calibrated ranges
RANDOM_SAMPLES = 32
PREVIEW_SAMPLES = 16


@dataclass(frozen=True)
class Int8:
    """Activations in 8 bits with one scale a tensor, weights in int8 with one a channel."""

    name: ClassVar[str] = "int8"

    tolerance: float | None = option(0.01, "relative output error that may be added on held-out data", low=0)
    calibrate: Literal["mse", "minmax", "percentile", "entropy"] = option(
        "mse", "how an activation's range is chosen"
    )
    weights: Literal["per-channel", "per-tensor"] = option("per-channel", "how many scales a weight has")
    activations: Literal["uint8", "int8", "uint16", "float", "dynamic"] = option(
        "uint8", "type of the activations; float: weights alone; dynamic: scales at run time"
    )
    rounding: Literal["gptq", "nearest", "adaround"] = option("gptq", "how weights are rounded")
    equalize: Literal["auto"] | bool = option(
        "auto", "balance channels between layers; auto: where it lowers the measured error"
    )
    smooth: Literal["auto"] | bool = option(
        "auto", "balance channels between a LayerNormalization and its layers"
    )
    bias_correction: bool = option(True, "restore the mean of each layer's output")
    reduce_range: Literal["auto"] | bool = option(
        "auto", "7-bit weights, where sums of 8-bit products may saturate"
    )
    exclude: str | None = option(None, "regular expression on the names of nodes that stay in float")
    io: Literal["float", "int8"] = option(
        "float", "type of the inputs and outputs; int8: codes, whose scales are in the metadata"
    )
    keep_if: Literal["not-slower", "faster", "always"] = option(
        "not-slower", "what the clock must say of the result"
    )
    target: Literal["ort-cpu", "tensorrt", "qnn", "openvino"] = option(
        "ort-cpu", "whose kernels the placement suits"
    )

    def __post_init__(self) -> None:
        try:
            re.compile(self.exclude or "")
        except re.error as error:
            raise ValueError(f"exclude={self.exclude!r} is no regular expression: {error}") from error
        if self.activations not in FREE:
            codes_for(self.target, self.activations)
        elif self.target != "ort-cpu":
            raise ValueError(f"activations={self.activations} is for target=ort-cpu, not {self.target}")
        elif self.io != "float":
            raise ValueError(
                f"io={self.io} needs calibrated ranges, which activations={self.activations} has not"
            )

    def apply(self, job: Job) -> Result:
        """The model in int8 where tolerance and clock allow; what stayed in float is in the skips, with the reason."""
        if islands(job.model) is None:
            return Result(job.model, skips=[Skip("*", "the model is quantized already")])
        check_static(job.model, self.target)
        given, job = job.model, replace(job, model=unfolded(job.model))
        warnings = []
        data = job.data
        if data is None:
            data = made_up(job)
            warnings.append("int8: there is no --data, so the ranges come from random inputs")
        fit, held = data.split(seed=job.seed)
        judge, bound = guard(replace(job, data=data), held, self.tolerance, exact=not self.rules.timed)
        search = Search(self, job, fit, held, judge, bound, given.nbytes)
        found = self.found(search)
        if found.model is job.model:
            found = replace(found, model=given)  # > codebooks stay as they were stored
        found = search.stored(found)
        if self.io == "int8":
            found = at_the_edges(found)
        if self.bits < 8:
            warnings.append("int8: weights have 7 bits, since 8-bit products may saturate on this processor")
        return Result(found.model, found.changes, found.skips, search.decisions, warnings)

    def found(self, search: Search) -> Found:
        """The model in the form that the options ask for; in float what neither tolerance nor clock allow."""
        if self.activations == "float":
            return weights_alone(search)
        if self.activations == "dynamic":
            return at_run_time(search, in_branches(search, Found(search.job.model)), self.keep_if)
        found = search.integer()
        if not self.rules.timed:
            return found
        if found.placement is not None:
            found = search.in_time(found)
        found = in_branches(search, found)
        # > faster: its file is no smaller than that of weights stored in int8
        return at_run_time(search, found, "always" if self.keep_if == "always" else "faster")

    def sensitivity(self, job: Job) -> list[dict[str, Any]]:
        """What each layer alone in int8, and all but it, does to the outputs: for `inspect --sensitivity`."""
        data = job.data or made_up(job)
        fit, held = data.split(seed=job.seed)
        model = raised(unfolded(job.model), lambda _: 0.0, self.opset)
        if isinstance(model, str) or islands(job.model) is None:
            return []
        return sensitivity(job, self.quantizer(model, fit, job), held)

    def survey(self, model: Model, shapes: Mapping[str, Shape]) -> Result:
        """Every layer that could run in int8, and why the others stay in float: for `onnx-compress inspect`."""
        if islands(model) is None:
            return Result(model, skips=[Skip("*", "the model is quantized already")])
        model = unfolded(model)
        keep = self.kept(model)
        placement = place(Surgery(lower(model, shapes, keep, self.rules)).graph, keep, rules=self.rules)
        changes = [Change(name, "quantize", "float32", "int8") for name in placement.layers]
        return Result(model, changes, [Skip(name, why) for name, why in placement.left.items()])

    def preview(self, job: Job) -> Model:
        """`job.model` as this pass would leave it, quickly: for clock decisions of earlier passes."""
        if islands(job.model) is None:
            return job.model
        model = raised(unfolded(job.model), lambda _: 0.0, self.opset)
        if isinstance(model, str):
            return job.model
        kept = self.kept(job.model)
        if self.activations == "float":
            return weight_only(model, kept, {}, 2 ** (self.bits - 1) - 1)[0]
        if self.activations == "dynamic":
            return dynamic(model, candidates(model, kept), self.bits)[0]
        data = (job.data or made_up(job)).take(PREVIEW_SAMPLES)
        choices = Choices(
            "minmax", self.weights == "per-channel", self.codes, "nearest", False, rules=self.rules
        )
        quantizer = self.quantizer(model, data, job, choices)
        if quantizer.layers:
            model = quantizer.quantized()[0]
        return recurrent(model, kept, self.bits) if self.rules.timed else model

    @property
    def rules(self) -> Rules:
        """Of the target."""
        rules = TARGETS[self.target]
        return rules if self.io == "float" else replace(rules, floats=frozenset(), edges=True)

    @property
    def codes(self) -> Codes:
        """Of the activations."""
        return codes_for(self.target, "uint8" if self.activations in FREE else self.activations)

    @property
    def opset(self) -> int:
        """The least that the result needs."""
        return OPSET_16 if self.codes.steps > 255 else OPSET

    @property
    def bits(self) -> int:
        """Of a weight."""
        reduced = products_saturate() if self.reduce_range == "auto" else self.reduce_range
        return 7 if reduced else 8

    def quantizer(self, model: Model, data: Data, job: Job, choices: Choices | None = None) -> Quantizer:
        """What quantizes `model`, which is at opset 13 or later, by this pass's options or by `choices`."""
        choices = choices or Choices(
            self.calibrate,
            self.weights == "per-channel",
            self.codes,
            self.rounding,
            self.bias_correction,
            self.bits,
            self.rules,
        )
        keep = self.kept(model)
        lowered = lower(model, infer(model), keep, self.rules)
        shapes = infer(lowered)
        return Quantizer(lowered, data, choices, keep, shapes, job.clock.threads, job.progress)

    def kept(self, model: Model) -> dict[str, str]:
        """Nodes that stay as they are whatever is measured, and why."""
        found = islands(model) or {}
        if self.exclude is not None:
            pattern = re.compile(self.exclude)
            names = {node.name for node in Surgery(model).nodes() if pattern.search(node.name)}
            found |= dict.fromkeys(names, f"excluded by exclude={self.exclude}")
        return found


def unfolded(model: Model) -> Model:
    """`model` with every weight that is stored as a codebook dense again; itself where there is none."""
    surgery = Surgery(model)
    return surgery.commit() if unfold(surgery) else model


def at_the_edges(found: Found) -> Found:
    """What was found, with codes for inputs and outputs where integers stand behind them."""
    model, changes, skips = integer_edges(found.model)
    return replace(found, model=model, changes=(*found.changes, *changes), skips=(*found.skips, *skips))


def made_up(job: Job) -> Data:
    """Random inputs for the job's model."""
    return random_data(input_specs(job.model), RANDOM_SAMPLES, job.seed, job.input_shapes)
