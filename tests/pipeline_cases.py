"""A product of matrices, data for it, and small passes: what the tests of the pipeline share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable  # noqa: TC003 - recipes read the hints of fields
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx

from onnx_compress.contract import Change, Job, Result, Skip
from onnx_compress.model.document import Model
from onnx_compress.recipe import option
from onnx_compress.runtime.session import Session

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 8)).astype(np.float32)
W = RNG.standard_normal((8, 6)).astype(np.float32)
LABELS = (X @ W).argmax(1)


def proto(body: str = "y = MatMul(x, w)") -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17, "com.acme" : 1]> g (float[N, 8] x) => (float[N, 6] y) {{ {body} }}'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(W, "w"))
    return model


def scaled(model: Model, factor: float) -> Model:
    result = model.copy()
    weight = next(t for t in result.proto.graph.initializer if list(t.dims) == [8, 6])
    result.set_array(weight, result.array(weight) * np.float32(factor))
    return result


@dataclass(frozen=True)
class Scale:
    """Multiplies the weight, which changes the outputs by a known amount."""

    name: ClassVar[str] = "scale"
    by: float = option(1.0, "factor", low=0.0, high=10.0)

    def apply(self, job: Job) -> Result:
        change = Change("matmul", "scale", "1", f"{self.by:g}", 0.0)
        return Result(
            scaled(job.model, self.by), [change], [Skip("other", "is not there")], warnings=["scaled"]
        )


@dataclass(frozen=True)
class Rounded:
    """A pass with a preview and clock decisions."""

    name: ClassVar[str] = "rounded"
    digits: int = option(3, "digits to keep", low=0, high=9)

    def apply(self, job: Job) -> Result:
        model = self.preview(job)
        feeds = {"x": X[:1]}
        job.clock.round_to("gemm")
        decision = job.clock.decide(
            "matmul", "keep", job.finish(job.model), job.finish(model), feeds, "not-slower"
        )
        kept = job.clock.keep_best(job.model, {"matmul": 0.5}, lambda _: model, feeds, "not-slower")
        return Result(model if decision.kept and kept else job.model, decisions=[decision])

    def preview(self, job: Job) -> Model:
        result = job.model.copy()
        weight = next(t for t in result.proto.graph.initializer if list(t.dims) == [8, 6])
        result.set_array(weight, result.array(weight).round(self.digits))
        return result


@dataclass(frozen=True)
class Call:
    """Does what it is told, to see what comes of it."""

    name: ClassVar[str] = "call"
    function: Callable[[Job], Any] = dataclasses.field(default=lambda job: Result(job.model), init=False)

    def apply(self, job: Job) -> Result:
        found: Result = self.function(job)
        return found


def call(function: Callable[[Job], Any]) -> Call:
    item = Call()
    object.__setattr__(item, "function", function)
    return item


def outputs(path: Path) -> Any:
    return Session(Model.load(path), threads=1).run({"x": X})["y"]
