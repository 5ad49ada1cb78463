"""The account of a run: the report it ends with, once what came of it is proved."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from onnx_compress.errors import ThresholdError
from onnx_compress.proof import blame
from onnx_compress.report.build import DataUsed, Outcome, report
from onnx_compress.runtime import machine
from onnx_compress.stages import cost_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx_compress.model.cost import Cost
    from onnx_compress.model.document import Model
    from onnx_compress.proof import Proof
    from onnx_compress.run import Run
    from onnx_compress.stages import Stages

QUANTIZED = {"DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger"}


def close(run: Run, result: Model, proof: Proof) -> dict[str, Any]:
    """The report of `run`, which made `result`. Raises ThresholdError, with the report, where a limit is missed."""
    thresholds = proof.verification.thresholds(run.request.limits)
    missed = [threshold for threshold in thresholds if not threshold.met]
    # the costliest pass is looked for before the report closes: it takes time too
    culprit = blame(missed[0], run, proof) if missed and proof.data else ""
    stages = run.stages
    feeds = {} if proof.data is None else next(iter(proof.data.batches(1)))
    first = stages.steps[0].before if stages.steps else cost_of(stages.model, feeds)
    used = run.inputs.data or proof.data
    outcome = Outcome(
        input=str(run.request.model) if stages.models[0][1].source else None,
        output=None,
        recipe=run.words.spec,
        arguments=run.request.arguments,
        seed=run.request.seed,
        before=first,
        after=_after(stages, first, result),
        environment=machine.environment(),
        seconds=run.watch.elapsed,
        peak_rss_bytes=machine.peak_resident(),
        stages=run.watch.seconds,
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
        error = ThresholdError(f"{'; '.join(map(str, missed))}{culprit}; nothing was written")
        error.report = found  # type: ignore[attr-defined]
        raise error
    return found


def _after(stages: Stages, first: Cost, result: Model) -> Cost:
    """The cost of the result: that of the last step, and the metadata's bytes."""
    last = stages.steps[-1].after if stages.steps else first
    return replace(last, bytes=result.nbytes)


def _warnings(stages: Stages, result: Model, proof: Proof) -> Iterator[str]:
    """What the reader of the report should know."""
    if proof.data is not None and proof.data.random:
        yield "there is no --data: agreement is of random inputs and proves little"
    lost = [row for row in proof.verification.agreement if row.sqnr_db is not None and row.sqnr_db < 0]
    if lost:
        worst = min(lost, key=lambda row: row.sqnr_db or 0.0)
        yield (
            f"output {worst.output!r} has more error than signal ({worst.sqnr_db:.1f} dB SQNR): the result does not compute "
            "what the input does; --data lets passes repair, a tolerance bounds them, --min-sqnr refuses such a result"
        )
    latency = proof.verification.latency
    if latency is not None and latency.ratio.high < 1:
        yield (
            f"the result is slower than the input here: {latency.ratio.median:.2f} of its speed; widths of round_to=auto "
            "and keep_if=faster avoid it, --min-speedup 1 refuses it"
        )
    if latency is not None or any(step.decisions for step in stages.steps):
        name = machine.environment()["processor"]
        yield f"timings, and what was decided by them, hold for this processor only ({name})"
    quantized = any(node.op_type in QUANTIZED for node in result.proto.graph.node)
    if quantized and machine.products_saturate():
        yield "8-bit products may saturate on this processor, which has no VNNI; int8:reduce_range=true avoids it"
