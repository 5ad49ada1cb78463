"""The straight line: words -> recipe -> document -> preflight -> prepare -> passes -> verify -> report."""

from __future__ import annotations

import hashlib
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from onnx_compress.detail import Side, try_detail
from onnx_compress.errors import InputError, ThresholdError
from onnx_compress.model import prepare as preparation
from onnx_compress.model.document import Model, check
from onnx_compress.model.lossless import copy_checked
from onnx_compress.preflight import Preflight, first_feeds, preflight
from onnx_compress.report.build import DataUsed, Outcome, Step, report
from onnx_compress.request import Inputs, Request, Words, load_model, open_inputs, read_words
from onnx_compress.runtime import machine
from onnx_compress.runtime.agreement import batch_rows
from onnx_compress.runtime.data import random_data
from onnx_compress.runtime.inner import Inner, compare_inside
from onnx_compress.runtime.machine import peak_resident
from onnx_compress.runtime.session import input_specs
from onnx_compress.stages import Line, Stages, cost_of, examine, run_passes, skip_all
from onnx_compress.verify import Threshold, Verification, costliest
from onnx_compress.verify import verify as compare_models

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.cost import Cost
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]
    Progress = Callable[[int, int, str], None]

RANDOM_SAMPLES = 32  # for verification without data
QUANTIZED = {"DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger"}
NOT_RUN = "the model cannot be run by onnxruntime"


@dataclass(frozen=True)
class Compressed:
    """The result: `model`, and `report` as plain data. lossless: what is saved is the input, byte for byte."""

    model: Model
    report: dict[str, Any]
    lossless: bool = False

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model to `path`: beside it first, synced, then renamed; over 2 GB with one external data file.

        Raises OSError where it cannot be written; then `path` is what it was.
        """
        if self.lossless and self.model.source is not None:
            copy_checked(self.model, path)
        else:
            self.model.save(path)
        self.report["output"] = str(path)


def _silent(done: int, total: int, what: str) -> None:
    """Progress goes nowhere."""


def compress(
    model: Any,
    passes: Any,
    *,
    data: Any = None,
    eval: Any = None,  # noqa: A002 - the word of the command
    preprocess: str | None = None,
    metric: str = "top1",
    max_drop: float | None = None,
    min_sqnr: float | None = None,
    min_speedup: float | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    decisions: Any = None,
    threads: int | None = None,
    batch: int = 1,
    samples: int = 512,
    seed: int = 0,
    verify: bool = True,
    freeze_inputs: bool = False,
    detail: bool = False,
    isolate: bool = False,
    progress: Progress | None = None,
) -> Compressed:
    """`model` after `passes`, and the report of what was done and measured. Arguments are never changed.

    model: a path, a ModelProto, or anything with `.model_proto`; passes: a SPEC, a Recipe or passes; data: a path, an
    iterable of feeds or an onnxruntime CalibrationDataReader; eval: as data, with targets; decisions: the report (or its
    path) of an earlier run, whose clock decisions are replayed; threads: None for the physical cores; detail: the report
    also has the time of each layer and histograms, which its HTML form draws; isolate: in a child process, so that a crash of native code is a LimitError; progress: called with (done, total, what).
    Raises ThresholdError (the report in its attribute `report`), UsageError, InputError or LimitError, each one line.
    """
    request = Request(
        model=model,
        passes=passes,
        data=data,
        eval=eval,
        preprocess=preprocess,
        metric=metric,
        max_drop=max_drop,
        min_sqnr=min_sqnr,
        min_speedup=min_speedup,
        input_shapes={name: tuple(shape) for name, shape in (input_shapes or {}).items()},
        decisions=decisions,
        threads=threads,
        batch=batch,
        samples=samples,
        seed=seed,
        verify=verify,
        freeze_inputs=freeze_inputs,
        detail=detail,
    )
    if isolate:
        from onnx_compress.isolate import run_isolated

        return Compressed(*run_isolated(request, progress))
    return run(request, progress or _silent)


def run(request: Request, progress: Progress = _silent) -> Compressed:
    """The result of a request, computed in this process."""
    words = read_words(request)
    watch = _Watch(progress)
    with watch("load"):
        model = load_model(request.model)
    if not words.passes:
        return _copy(request, words, model, watch)
    with watch("data"):
        inputs = open_inputs(model, request)
    with watch("preflight"):
        found = preflight(
            model,
            input_shapes=request.input_shapes,
            data=inputs.data or inputs.eval,
            seed=request.seed,
            threads=words.clock.threads,
        )
    request = replace(request, input_shapes=found.input_shapes)
    if found.single:
        inputs = inputs.one_by_one()
    stages = Stages([("original", model)], warnings=[*inputs.warnings, *found.warnings])
    line = Line(
        model,
        inputs.data,
        found.feeds,
        request.seed,
        words.clock,
        progress,
        request.input_shapes,
        words.replay,
        request.batch,
    )
    with watch("prepare"):
        _prepare(stages, found, line, freeze=request.freeze_inputs)
    with watch("passes"):
        if found.runs:
            run_passes(words.passes, stages, replace(line, original=stages.model))
        else:
            skip_all(words.passes, stages, NOT_RUN)
    result = _stamped(stages.model, words, model)
    proof = _Proof()
    if request.verify and found.runs:
        with watch("verify"):
            proof = _prove(model, result, words, inputs, request, progress)
            proof = _detailed(proof, stages, result, line.feeds, request, words)
    return _finish(request, words, stages, result, proof, inputs, watch)


def _prepare(stages: Stages, found: Preflight, line: Line, *, freeze: bool) -> None:
    """Adds prepare to the stages, as the first step of the report."""
    start = time.perf_counter()
    model = stages.model
    before = cost_of(model, found.feeds)
    frozen = []
    if freeze:
        model = model.copy()
        frozen = preparation.freeze_inputs(model)
    prepared = preparation.prepare(model, found.shapes)
    step = Step(
        "prepare",
        {},
        time.perf_counter() - start,
        before,
        cost_of(prepared.model, found.feeds),
        [*frozen, *prepared.changes],
        prepared.skips,
    )
    stages.steps.append(step)
    if found.runs:
        examine(prepared.model, "prepare", stages, line)
    stages.models.append(("prepare", prepared.model))


def _random(model: Model, request: Request, inputs: Inputs) -> Data:
    """Random inputs, for a run without data."""
    data = random_data(input_specs(model), RANDOM_SAMPLES, request.seed, request.input_shapes, model)
    return replace(data, fixed=1) if inputs.single else data


@dataclass(frozen=True)
class _Proof:
    """What verification found, and on which data."""

    verification: Verification = field(default_factory=Verification)
    data: Data | None = None
    detail: Mapping[str, Any] | None = None


def _prove(
    before: Model, after: Model, words: Words, inputs: Inputs, request: Request, progress: Progress
) -> _Proof:
    """Agreement and metric on --eval, which no pass has seen, else on --data, else on random inputs; and latency."""
    data = inputs.eval or inputs.data or _random(before, request, inputs)
    feeds = first_feeds(before, request.input_shapes, inputs.eval or inputs.data, request.seed, request.batch)
    verification = compare_models(
        before,
        after,
        data,
        score=words.score,
        feeds=feeds,
        threads=words.clock.threads,
        batch=batch_rows(feeds),
        clock=words.clock.successor(),
        progress=progress,
    )
    return _Proof(verification, data)


def _detailed(
    proof: _Proof,
    stages: Stages,
    result: Model,
    feeds: Mapping[str, Array],
    request: Request,
    words: Words,
) -> _Proof:
    """The proof with what a close look shows, where the request asks for one."""
    if not request.detail or proof.data is None:
        return proof
    before = Side(stages.models[0][1], stages.steps[0].before.layers)
    after = Side(result, stages.steps[-1].after.layers)
    found, warnings = try_detail(before, after, proof.data, feeds, threads=words.clock.threads)
    stages.warnings += warnings
    return replace(proof, detail=found)


def _finish(
    request: Request,
    words: Words,
    stages: Stages,
    result: Model,
    proof: _Proof,
    inputs: Inputs,
    watch: _Watch,
) -> Compressed:
    """The result with its report. Raises ThresholdError where a limit is missed."""
    thresholds = proof.verification.thresholds(request.limits)
    missed = [threshold for threshold in thresholds if not threshold.met]
    # the costliest pass is looked for before the report closes: it takes time too
    blame = _blame(missed[0], stages, words, proof, request) if missed and proof.data else ""
    used = inputs.data or proof.data
    feeds: Mapping[str, Array] = {}
    if proof.data is not None:
        feeds = next(iter(proof.data.batches(1)))
    first = stages.steps[0].before if stages.steps else cost_of(stages.model, feeds)
    outcome = Outcome(
        input=str(request.model) if stages.models[0][1].source else None,
        output=None,
        recipe=words.spec,
        seed=request.seed,
        before=first,
        after=_after(stages, first, result),
        environment=machine.environment(),
        seconds=watch.elapsed,
        peak_rss_bytes=peak_resident(),
        stages=watch.seconds,
        steps=stages.steps,
        agreement=proof.verification.agreement,
        metric=proof.verification.metric,
        latency=proof.verification.latency,
        detail=proof.detail,
        data=DataUsed(used.source, used.samples, used.random) if used else DataUsed(),
        thresholds=thresholds,
        warnings=list(dict.fromkeys([*stages.warnings, *_warnings(stages, result, proof)])),
    )
    found = report(outcome)
    if missed:
        error = ThresholdError(f"{'; '.join(map(str, missed))}{blame}; nothing was written")
        error.report = found  # type: ignore[attr-defined]
        raise error
    return Compressed(result, found, lossless=not words.passes)


def _after(stages: Stages, first: Cost, result: Model) -> Cost:
    """The cost of the result: that of the last step, and the metadata's bytes."""
    last = stages.steps[-1].after if stages.steps else first
    return replace(last, bytes=result.nbytes)


def _blame(missed: Threshold, stages: Stages, words: Words, proof: _Proof, request: Request) -> str:
    """In words, the pass that cost most of what a missed threshold bounds."""
    passes = stages.models[2:]
    if len(passes) < 2:
        return f"; {passes[0][0]} did it" if passes else ""
    original, data = stages.models[0][1], proof.data
    assert data is not None
    feeds = first_feeds(original, request.input_shapes, data, request.seed, request.batch)

    def score(model: Model) -> float:
        if missed.name == "min_speedup":
            return -words.clock.measure(model, feeds).median_ms
        wanted = words.score if missed.name == "max_drop" else None
        found = compare_models(original, model, data, score=wanted, threads=words.clock.threads)
        if found.metric is not None:
            return found.metric.after
        # > not decibels, in which the first small error costs more than a large one after it
        return -(10 ** (-found.worst_sqnr / 10))

    scores = [(name, score(model)) for name, model in stages.models[1:]]
    return f"; {costliest(scores)} cost most"


def _copy(request: Request, words: Words, model: Model, watch: _Watch) -> Compressed:
    """The lossless copy: checked; neither prepared nor run, unless data or a threshold asks."""
    with watch("check"):
        check(model)
    proof, inputs = _Proof(), Inputs()
    if request.verify and (request.limits or request.eval is not None):
        with watch("data"):
            inputs = open_inputs(model, request)
        with watch("verify"):
            proof = _prove(model, model, words, inputs, request, watch.progress)
    return _finish(request, words, Stages([("original", model)]), model, proof, inputs, watch)


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
    words = read_words(request)
    watch = _Watch(progress or _silent)
    with watch("load"):
        first, second = load_model(before), load_model(after)
        check(second)
    with watch("data"):
        inputs = open_inputs(first, request)
    with watch("preflight"):
        found = preflight(
            first,
            input_shapes=request.input_shapes,
            data=inputs.data or inputs.eval,
            threads=words.clock.threads,
        )
        _check_inputs(first, second)
    if found.single:
        inputs = inputs.one_by_one()
    if not found.runs:
        raise InputError(found.warnings[0])
    inside: list[Inner] = []
    if layers:
        with watch("layers"):
            used = inputs.eval or inputs.data or _random(first, request, inputs)
            inside = compare_inside(first, second, used, threads=words.clock.threads)
    costs = cost_of(first, found.feeds), cost_of(second, found.feeds)
    stages = Stages(
        [("original", first)], [Step("verify", {}, 0.0, *costs)], [*inputs.warnings, *found.warnings]
    )
    with watch("verify"):
        proof = _prove(first, second, words, inputs, request, watch.progress)
        proof = _detailed(proof, stages, second, found.feeds, request, words)
    made = _finish(request, words, stages, second, proof, inputs, watch)
    made.report["passes"] = []
    if layers:
        made.report["layers"]["tensors"] = [asdict(item) for item in inside]
    return made.report


def _check_inputs(first: Model, second: Model) -> None:
    """Raises InputError where the second model needs another input or type."""
    taken = {spec.name: spec.dtype for spec in input_specs(first)}
    for spec in input_specs(second):
        if taken.get(spec.name) != spec.dtype:
            raise InputError(
                f"the models cannot be compared: the second takes {spec.name!r} ({spec.dtype}), "
                f"the first takes {', '.join(f'{name!r} ({dtype})' for name, dtype in taken.items())}"
            )


def _warnings(stages: Stages, result: Model, proof: _Proof) -> Iterator[str]:
    """What the reader of the report should know."""
    if proof.data is not None and proof.data.random:
        yield "there is no --data: agreement is of random inputs and proves little"
    if proof.verification.latency is not None or any(step.decisions for step in stages.steps):
        name = machine.environment()["processor"]
        yield f"timings, and what was decided by them, hold for this processor only ({name})"
    quantized = any(node.op_type in QUANTIZED for node in result.proto.graph.node)
    if quantized and machine.products_saturate():
        yield "8-bit products may saturate on this processor, which has no VNNI; int8:reduce_range=true avoids it"


def _stamped(model: Model, words: Words, original: Model) -> Model:
    """A copy of `model` that says what made it."""
    words_of = {
        "onnx_compress.version": machine.package_version("onnx-compress"),
        "onnx_compress.recipe": words.spec,
        "onnx_compress.input_sha256": _digest(original),
    }
    result = model.copy()
    kept = [entry for entry in result.proto.metadata_props if entry.key not in words_of]
    del result.proto.metadata_props[:]
    result.proto.metadata_props.extend(kept)
    for key, value in words_of.items():
        result.proto.metadata_props.add(key=key, value=value)
    return result


def _digest(model: Model) -> str:
    """SHA-256 of the model's file, or of its bytes where it has none."""
    if model.source is None:
        return hashlib.sha256(model.to_proto().SerializeToString(deterministic=True)).hexdigest()
    with model.source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Watch:
    """Seconds of each stage."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self._start

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.progress(0, 1, stage)
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
