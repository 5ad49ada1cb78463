"""Where two models part: their inner tensors of the same name, compared in the order of the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.runtime.agreement import Comparison, batch_rows
from onnx_compress.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx
    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]

SAMPLES = 32
BATCH = 4  # all inner tensors of a batch are held at once


@dataclass(frozen=True)
class Inner:
    """A tensor of both models and the node that makes it in the first.

    error: Σ‖y − y₀‖² / Σ‖y₀ − mean y₀‖²; added: how much more that is than of the worst tensor of both it is made from.
    """

    node: str
    op: str
    tensor: str
    sqnr_db: float | None
    error: float
    added: float


def compare_inside(before: Model, after: Model, data: Data, *, threads: int = 0) -> list[Inner]:
    """Every float tensor that both models compute, under one name and in one shape; both run unoptimized."""
    makers = _makers(before)
    names = [name for name in makers if name in _makers(after)]
    sessions = [Session(model, threads=threads, optimize=False, outputs=names) for model in (before, after)]
    comparison = Comparison()
    alike = set(names)
    for feeds in data.take(SAMPLES).batches(BATCH):
        expected, actual = (session.run(feeds, names) for session in sessions)
        alike = {name for name in alike if _comparable(expected[name], actual[name])}
        kept = [name for name in names if name in alike]
        comparison.add(
            {name: expected[name] for name in kept}, {name: actual[name] for name in kept}, batch_rows(feeds)
        )
    errors = {name: error for name, error in comparison.errors().items() if name in alike}
    decibels = {row.output: row.sqnr_db for row in comparison.agreements()}
    found = []
    for name in names:
        if name in errors:
            node = makers[name]
            added = errors[name] - _inherited(node, makers, errors)
            found.append(Inner(node.name, node.op_type, name, decibels[name], errors[name], added))
    return found


def _makers(model: Model) -> dict[str, onnx.NodeProto]:
    """The nodes of the main graph by the tensors they compute, in order."""
    return {name: node for node in model.proto.graph.node for name in node.output if name}


def _comparable(expected: Any, actual: Any) -> bool:
    return (
        isinstance(expected, np.ndarray)
        and isinstance(actual, np.ndarray)
        and expected.dtype.kind == "f"
        and expected.shape == actual.shape
        and expected.ndim > 0
    )


def _inherited(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], errors: Mapping[str, float]
) -> float:
    """The worst error of the nearest tensors before `node` that were compared."""
    worst, seen, at = 0.0, set(), list(node.input)
    while at:
        name = at.pop()
        if name in seen or name not in makers:
            continue
        seen.add(name)
        if name in errors:
            worst = max(worst, errors[name])
        else:
            at += makers[name].input
    return worst
