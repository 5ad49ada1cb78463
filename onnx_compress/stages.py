"""Runs the passes of a recipe, one after the other, each result checked, loaded and run before the next."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from onnx_compress.contract import Job, Result, Skip
from onnx_compress.errors import CompressError, InputError, LimitError, UsageError
from onnx_compress.model.check import check
from onnx_compress.model.cost import Cost, cost
from onnx_compress.model.shapes import infer
from onnx_compress.preflight import shapes_at
from onnx_compress.report.build import Step
from onnx_compress.runtime.session import Session, input_specs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.contract import Pass
    from onnx_compress.model.document import Model
    from onnx_compress.runtime.clock import Clock
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]
    Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Line:
    """What all passes of a run share. feeds: one batch that runs, empty where the model cannot be run."""

    original: Model
    data: Data | None
    feeds: Mapping[str, Array]
    seed: int
    clock: Clock
    progress: Progress
    input_shapes: dict[str, tuple[int, ...]]
    replay: list[list[Mapping[str, Any]]] | None = None
    batch: int = 1
    min_sqnr: float | None = None
    max_drop: float | None = None
    score: Callable[[Mapping[str, Any], Mapping[str, Any]], float] | None = None


@dataclass
class Stages:
    """What became of the model: it after each stage by name, the report's steps, and warnings."""

    models: list[tuple[str, Model]]
    steps: list[Step] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def model(self) -> Model:
        """The model as it now is."""
        return self.models[-1][1]

    @property
    def names(self) -> str:
        """The passes that ran, for an error."""
        return ", ".join(step.name for step in self.steps)


def run_passes(passes: Sequence[Pass], stages: Stages, line: Line) -> None:
    """Runs `passes` on the last model of `stages`, and adds what they did.

    Raises the pass's own CompressError, or LimitError where a pass fails or leaves a model that is not valid, does not
    load or does not run; the pass is named.
    """
    for number, item in enumerate(passes):
        line.progress(0, 1, item.name)
        start = time.perf_counter()
        replay = None if line.replay is None else line.replay[number]
        job = _job(stages.model, item.name, passes[number + 1 :], line, replay)
        result = _apply(item, job, stages)
        if line.feeds:
            examine(result.model, item.name, stages, line)
        decisions = list(job.clock.decisions)
        decisions += [decision for decision in result.decisions if decision not in decisions]
        step = Step(
            item.name,
            {entry.name: getattr(item, entry.name) for entry in dataclasses.fields(item) if entry.init},
            time.perf_counter() - start,
            stages.steps[-1].after,
            cost_of(result.model, line.feeds),
            result.changes,
            result.skips,
            decisions,
            result.curves,
        )
        stages.warnings += [*job.warnings, *result.warnings]
        stages.steps.append(step)
        stages.models.append((item.name, result.model))
        line.progress(1, 1, item.name)


def cost_of(model: Model, feeds: Mapping[str, Array]) -> Cost:
    """The cost of one sample like those of `feeds`."""
    if not feeds:
        return cost(model, infer(model))
    return cost(model, shapes_at(model, feeds))


def _job(
    model: Model, name: str, later: Sequence[Pass], line: Line, replay: Sequence[Mapping[str, Any]] | None
) -> Job:
    def progress(done: int, total: int, what: str) -> None:
        line.progress(done, total, f"{name}: {what}" if what else name)

    job = Job(
        model,
        line.original,
        line.data,
        line.seed,
        line.clock.successor(replay),
        progress=progress,
        input_shapes=line.input_shapes,
        batch=line.batch,
        min_sqnr=line.min_sqnr,
        max_drop=line.max_drop,
        score=line.score,
    )
    previews = [item for item in later if callable(getattr(item, "preview", None))]
    if not previews:
        return job
    return replace(job, finish=lambda candidate: _finished(candidate, previews, job))


def _finished(model: Model, passes: Sequence[Any], job: Job) -> Model:
    """`model` as the previews of `passes` leave it. A micro-model, whose inputs are not the job's, gets no data."""
    own = [(spec.name, spec.shape) for spec in input_specs(model)]
    alike = own == [(spec.name, spec.shape) for spec in input_specs(job.model)]
    for item in passes:
        data, shapes = (job.data, job.input_shapes) if alike else (None, {})
        model = item.preview(replace(job, model=model, data=data, input_shapes=shapes))
    return model


def _apply(item: Pass, job: Job, stages: Stages) -> Result:
    """What the pass returns; any error says which pass it was.

    BLAS has one thread: its sums are then the same on any machine, and its threads do not spin beside onnxruntime's.
    """
    from threadpoolctl import threadpool_limits

    try:
        with threadpool_limits(1, "blas"):
            return item.apply(job)
    except CompressError as error:
        if str(error).startswith(item.name):
            raise
        kind = type(error) if type(error) in (UsageError, InputError, LimitError) else LimitError
        raise kind(f"{item.name}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())
        raise LimitError(
            f"pass {item.name!r} failed after {stages.names}: {type(error).__name__}: {words}"
        ) from error


def examine(model: Model, name: str, stages: Stages, line: Line) -> None:
    """Raises LimitError where the pass `name` broke the model: it is not valid, does not load, or does not run."""
    before = [(value.name, value.type.WhichOneof("value")) for value in line.original.proto.graph.output]
    after = [(value.name, value.type.WhichOneof("value")) for value in model.proto.graph.output]
    why = "" if before == after else "its outputs are others"
    try:
        check(model)
        Session(model, threads=line.clock.threads).run(line.feeds)
    except CompressError as error:
        why = str(error)
    if why:
        raise LimitError(f"pass {name!r} broke the model, after {stages.names}: {why}; please report it")


def skip_all(passes: Sequence[Pass], stages: Stages, why: str) -> None:
    """Adds the passes to `stages` as steps that did nothing."""
    for item in passes:
        now = stages.steps[-1].after
        stages.steps.append(Step(item.name, {}, 0.0, now, now, skips=[Skip("*", why)]))
        stages.models.append((item.name, stages.model))
