"""The straight line: words -> recipe -> document -> preflight -> prepare -> passes -> verify -> report."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from onnx_compress.account import close
from onnx_compress.contract import silent
from onnx_compress.model import prepare as preparation
from onnx_compress.model.check import check
from onnx_compress.model.lossless import copy_checked
from onnx_compress.model.order import sort_nodes
from onnx_compress.proof import Proof, agree, prove
from onnx_compress.report.build import Step
from onnx_compress.request import Request, Words, load_model, open_inputs, read_words
from onnx_compress.run import Run, Watch
from onnx_compress.runtime import machine
from onnx_compress.stages import Line, Stages, cost_of, examine, run_passes, skip_all

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from onnx_compress.model.document import Model
    from onnx_compress.preflight import Preflight

    Progress = Callable[[int, int, str], None]

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
    return run(request, progress or silent)


def run(request: Request, progress: Progress = silent) -> Compressed:
    """The result of a request, computed in this process."""
    words, watch = read_words(request), Watch(progress)
    with watch("load"):
        model, notes = load_model(request.model), list[str]()
        if words.passes:
            model, notes = sort_nodes(model)
    this = Run(request, words, watch, Stages([("original", model)]))
    if not words.passes:
        return _copy(this)
    with watch("data"):
        this.inputs = open_inputs(model, request)
    this.stages.warnings += notes
    found = this.try_out(model)
    line = _line(this, found)
    with watch("prepare"):
        _prepare(this.stages, found, line, freeze=request.freeze_inputs)
    with watch("passes"):
        if found.runs:
            run_passes(words.passes, this.stages, replace(line, original=this.stages.model))
        else:
            skip_all(words.passes, this.stages, NOT_RUN)
    result = _stamped(this.stages.model, words, model)
    proof = Proof()
    if request.verify and found.runs:
        with watch("verify"):
            proof = prove(this, result, found.feeds)
    return Compressed(result, close(this, result, proof))


def _line(this: Run, found: Preflight) -> Line:
    """What the passes share."""
    inputs = this.inputs
    alike = inputs.data and inputs.eval and inputs.eval.targets.keys() <= inputs.data.targets.keys()
    return Line(
        this.stages.model,
        inputs.data,
        found.feeds,
        this.request.seed,
        this.words.clock,
        this.watch.progress,
        this.request.input_shapes,
        this.words.replay,
        this.request.batch,
        this.request.min_sqnr,
        this.request.max_drop,
        this.words.score[1] if this.words.score and alike else None,
    )


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
    if found.runs and (frozen or prepared.changes):  # > else preflight ran the same model
        examine(prepared.model, "prepare", stages, line)
    stages.models.append(("prepare", prepared.model))


def _copy(this: Run) -> Compressed:
    """The lossless copy: checked; neither prepared nor run, unless data or a threshold asks."""
    model, proof = this.stages.model, Proof()
    with this.watch("check"):
        check(model)
    if this.request.verify and (this.request.limits or this.request.eval is not None):
        with this.watch("data"):
            this.inputs = open_inputs(model, this.request)
        this.try_out(model)
        with this.watch("verify"):
            proof = agree(this, model, model)
    return Compressed(model, close(this, model, proof), lossless=True)


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
