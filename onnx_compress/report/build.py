"""The report of a run as plain data: schema 1."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx_compress.model.cost import Cost
    from onnx_compress.runtime.agreement import Agreement
    from onnx_compress.verify import Latency, Metric, Threshold

SCHEMA = 1


@dataclass(frozen=True)
class Step:
    """One pass as it ran (prepare is the first). changes, skips, decisions: dataclasses with the fields of the report."""

    name: str
    options: Mapping[str, Any]
    seconds: float
    before: Cost
    after: Cost
    changes: Sequence[Any] = ()
    skips: Sequence[Any] = ()
    decisions: Sequence[Any] = ()
    curves: Sequence[Any] = ()


@dataclass(frozen=True)
class DataUsed:
    """What the passes were calibrated on and the result compared on."""

    source: str | None = None
    samples: int = 0
    random: bool = False


@dataclass(frozen=True)
class Outcome:
    """Everything a run found out."""

    input: str | None
    output: str | None
    recipe: str
    seed: int
    before: Cost
    after: Cost
    environment: Mapping[str, Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)
    steps: Sequence[Step] = ()
    agreement: Sequence[Agreement] = ()
    metric: Metric | None = None
    latency: Latency | None = None
    detail: Mapping[str, Any] | None = None
    data: DataUsed = DataUsed()
    thresholds: Sequence[Threshold] = ()
    warnings: Sequence[str] = ()


def report(outcome: Outcome) -> dict[str, Any]:
    """The report; beside the words of schema 1, `arguments` are those that were not left at their defaults, `layers` lists the cost of each layer before and after, and what
    `onnx_compress.detail` found: each layer's `ms`, the `kernels`, histograms of `weights` and `errors`, and the `channels`
    that go together.
    """
    plain: dict[str, Any] = _plain(
        {
            "schema": SCHEMA,
            "input": outcome.input,
            "output": outcome.output,
            "recipe": outcome.recipe,
            "seed": outcome.seed,
            "seconds": outcome.seconds,
            "peak_rss_bytes": outcome.peak_rss_bytes,
            "before": _totals(outcome.before),
            "after": _totals(outcome.after),
            "stages": dict(outcome.stages),
            "passes": [_step(step) for step in outcome.steps],
            "agreement": [dataclasses.asdict(row) for row in outcome.agreement],
            "metric": None if outcome.metric is None else _metric(outcome.metric),
            "latency": None if outcome.latency is None else _latency(outcome.latency),
            "data": dataclasses.asdict(outcome.data),
            "thresholds": [dataclasses.asdict(threshold) for threshold in outcome.thresholds],
            "environment": dict(outcome.environment),
            "warnings": list(outcome.warnings),
            "layers": _both(outcome),
            "arguments": dict(outcome.arguments),
        }
    )
    return plain


def _step(step: Step) -> dict[str, Any]:
    return {
        "name": step.name,
        "options": dict(step.options),
        "seconds": step.seconds,
        "before": _totals(step.before),
        "after": _totals(step.after),
        "changes": [_fields(change, "node", "what", "before", "after", "error") for change in step.changes],
        "skips": [_fields(skip, "node", "why") for skip in step.skips],
        "decisions": [
            _fields(decision, "node", "what", "value", "kept", "ratio", "low", "high")
            for decision in step.decisions
        ],
        "curves": [_fields(curve, "where", "shares", "errors", "kept") for curve in step.curves],
    }


def _fields(record: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(record, name, None) for name in names}


def _totals(cost: Cost) -> dict[str, int]:
    return {
        "bytes": cost.bytes,
        "memory": cost.memory,
        "params": cost.params,
        "macs": cost.macs,
        "nodes": cost.nodes,
    }


def _both(outcome: Outcome) -> dict[str, Any]:
    layers: dict[str, Any] = {"before": _layers(outcome.before), "after": _layers(outcome.after)}
    if outcome.detail is None:
        return layers
    for side in ("before", "after"):
        times = outcome.detail["ms"][side]
        layers[side] = [{**layer, "ms": times.get(layer["name"])} for layer in layers[side]]
    return layers | {key: outcome.detail[key] for key in ("kernels", "weights", "errors", "channels")}


def _layers(cost: Cost) -> list[dict[str, Any]]:
    return [
        {"name": layer.node, "op": layer.op, "macs": layer.macs, "params": layer.params, "bytes": layer.bytes}
        for layer in cost.layers
    ]


def _metric(metric: Metric) -> dict[str, Any]:
    return {
        "name": metric.name,
        "before": metric.before,
        "after": metric.after,
        "drop": metric.drop,
        "samples": metric.samples,
    }


def _latency(latency: Latency) -> dict[str, Any]:
    first, second, ratio = latency.ratio.first, latency.ratio.second, latency.ratio
    return {
        "threads": latency.threads,
        "batch": latency.batch,
        "runs": first.runs,
        "before_ms": {"median": first.median_ms, "p95": first.p95_ms},
        "after_ms": {"median": second.median_ms, "p95": second.p95_ms},
        "speedup": {"median": ratio.median, "low": ratio.low, "high": ratio.high},
    }


def _plain(value: Any) -> Any:
    """Numbers, strings, lists and dicts only; what is not finite becomes None, which JSON has a word for."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # a numpy number or array
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
