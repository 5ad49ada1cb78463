"""The proof of a run: original and result on the same inputs, and the pass that a missed threshold is due to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from onnx_compress.detail import Side, try_detail
from onnx_compress.model.groups import groups
from onnx_compress.model.shapes import infer
from onnx_compress.runtime.agreement import batch_rows
from onnx_compress.runtime.data import random_data
from onnx_compress.runtime.session import input_specs
from onnx_compress.runtime.workload import first_feeds
from onnx_compress.verify import Verification, costliest, verify

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.run import Run
    from onnx_compress.runtime.data import Data
    from onnx_compress.verify import Threshold

    Array = NDArray[Any]

RANDOM_SAMPLES = 32  # for verification without data


@dataclass(frozen=True)
class Proof:
    """What verification found, and on which data. detail: a close look, where one was asked for."""

    verification: Verification = field(default_factory=Verification)
    data: Data | None = None
    detail: Mapping[str, Any] | None = None


def prove(run: Run, result: Model, feeds: Mapping[str, Array]) -> Proof:
    """The original of `run` beside `result`; with a close look at one batch, `feeds`, where the request asks for that."""
    proof = agree(run, run.stages.models[0][1], result)
    if not run.request.detail or proof.data is None:
        return proof
    before = Side(run.stages.models[0][1], run.stages.steps[0].before.layers)
    after = Side(result, run.stages.steps[-1].after.layers)
    found, warnings = try_detail(before, after, proof.data, feeds, threads=run.words.clock.threads)
    run.stages.warnings += warnings
    if found is not None:
        seen = run.stages.models[:2][-1][1]  # what passes saw: the prepared model, where there is one
        found["channels"] = groups(seen, infer(seen))
    return replace(proof, detail=found)


def agree(run: Run, before: Model, after: Model) -> Proof:
    """Agreement and metric on --eval, which no pass has seen, else on --data, else on random inputs; and latency."""
    given, request, clock = run.inputs.eval or run.inputs.data, run.request, run.words.clock
    data = given or sample(run, before)
    feeds = first_feeds(before, request.input_shapes, given, request.seed, request.batch)
    verification = verify(
        before,
        after,
        data,
        score=run.words.score,
        feeds=feeds,
        threads=clock.threads,
        batch=batch_rows(feeds),
        clock=clock.successor(),
        progress=run.watch.progress,
    )
    return Proof(verification, data)


def sample(run: Run, model: Model) -> Data:
    """Random inputs, for a run without data."""
    seed, shapes = run.request.seed, run.request.input_shapes
    data = random_data(input_specs(model), RANDOM_SAMPLES, seed, shapes, model)
    return replace(data, fixed=1) if run.inputs.single else data


def blame(missed: Threshold, run: Run, proof: Proof) -> str:
    """In words, the pass that cost most of what a missed threshold bounds."""
    passes = run.stages.models[2:]
    if len(passes) < 2:
        return f"; {passes[0][0]} did it" if passes else ""
    original, data, request = run.stages.models[0][1], proof.data, run.request
    assert data is not None
    feeds = first_feeds(original, request.input_shapes, data, request.seed, request.batch)

    def score(model: Model) -> float:
        if missed.name == "min_speedup":
            return -run.words.clock.measure(model, feeds).median_ms
        wanted = run.words.score if missed.name == "max_drop" else None
        found = verify(original, model, data, score=wanted, threads=run.words.clock.threads)
        if found.metric is not None:
            return found.metric.after
        # > not decibels, in which the first small error costs more than a large one after it
        return -(10 ** (-found.worst_sqnr / 10))

    scores = [(name, score(model)) for name, model in run.stages.models[1:]]
    return f"; {costliest(scores)} cost most"
