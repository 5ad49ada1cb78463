"""Two models that take the same inputs, one beside the other: what `verify A B` reports."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from onnx_compress.account import close
from onnx_compress.contract import silent
from onnx_compress.errors import InputError
from onnx_compress.model.check import check
from onnx_compress.proof import prove, sample
from onnx_compress.report.build import Step
from onnx_compress.request import Request, load_model, open_inputs, read_words
from onnx_compress.run import Run, Watch
from onnx_compress.runtime.inner import compare_inside
from onnx_compress.runtime.session import input_specs
from onnx_compress.stages import Stages, cost_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from onnx_compress.model.document import Model

    Progress = Callable[[int, int, str], None]


def compare(
    before: Any,
    after: Any,
    *,
    data: Any = None,
    eval: Any = None,  # noqa: A002 - the word of the command
    preprocess: str | None = None,
    metric: str = "top1",
    max_drop: float | None = None,
    min_sqnr: float | None = None,
    min_speedup: float | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    threads: int | None = None,
    batch: int = 1,
    samples: int = 512,
    seed: int = 0,
    detail: bool = False,
    layers: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The report of two models that take the same inputs: agreement, metric and latency. Arguments as of `compress`.

    layers: also the inner tensors whose names match, in the order of the graph, under `layers`: `tensors`.

    Raises ThresholdError (the report in its attribute `report`), UsageError, InputError or LimitError, each one line.
    """
    request = Request(
        model=before,
        passes=(),
        data=data,
        eval=eval,
        preprocess=preprocess,
        metric=metric,
        max_drop=max_drop,
        min_sqnr=min_sqnr,
        min_speedup=min_speedup,
        input_shapes={name: tuple(shape) for name, shape in (input_shapes or {}).items()},
        threads=threads,
        batch=batch,
        samples=samples,
        seed=seed,
        detail=detail,
    )
    return run(request, after, layers=layers, progress=progress or silent)


def run(request: Request, after: Any, *, layers: bool, progress: Progress) -> dict[str, Any]:
    """The report of the request's model beside `after`, measured in this process."""
    words, watch = read_words(request), Watch(progress)
    with watch("load"):
        first, second = load_model(request.model), load_model(after)
        check(second)
    this = Run(request, words, watch, Stages([("original", first)]))
    with watch("data"):
        this.inputs = open_inputs(first, request)
    found = this.try_out(first)
    _check_inputs(first, second)
    if not found.runs:
        raise InputError(found.warnings[0])
    inside = _inside(this, first, second) if layers else []
    step = Step("verify", {}, 0.0, cost_of(first, found.feeds), cost_of(second, found.feeds))
    this.stages.steps.append(step)
    with watch("verify"):
        proof = prove(this, second, found.feeds)
    report = close(this, second, proof)
    report["passes"] = []
    if layers:
        report["layers"]["tensors"] = inside
    return report


def _inside(this: Run, first: Model, second: Model) -> list[dict[str, Any]]:
    """The inner tensors whose names match, compared."""
    with this.watch("layers"):
        data = this.inputs.eval or this.inputs.data or sample(this, first)
        found = compare_inside(first, second, data, threads=this.words.clock.threads)
    return [asdict(item) for item in found]


def _check_inputs(first: Model, second: Model) -> None:
    """Raises InputError where the second model needs another input or type."""
    taken = {spec.name: spec.dtype for spec in input_specs(first)}
    for spec in input_specs(second):
        if taken.get(spec.name) != spec.dtype:
            raise InputError(
                f"the models cannot be compared: the second takes {spec.name!r} ({spec.dtype}), "
                f"the first takes {', '.join(f'{name!r} ({dtype})' for name, dtype in taken.items())}"
            )
