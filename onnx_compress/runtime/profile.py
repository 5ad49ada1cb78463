"""Where the time of a run goes, by onnxruntime's own profiler."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_compress.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx
    from numpy.typing import NDArray

    from onnx_compress.model.document import Model

    Array = NDArray[Any]

RUNS = 20
_AFFIX = re.compile(
    "^fused |(_nchwc|_token_[0-9]+)$"
)  # what onnxruntime adds to names: of tensors, and of nodes


@dataclass(frozen=True)
class Kernel:
    """A node of the graph that onnxruntime made of the model, and the median ms it took in one run."""

    name: str
    op: str
    ms: float


def profile(
    models: Sequence[Model], feeds: Mapping[str, Array], *, threads: int = 0, runs: int = RUNS
) -> list[list[Kernel]]:
    """For each model the kernels of one run on `feeds`, in the order in which they start; a kernel that runs often is
    one, summed. The models run in turns, so that what else the machine does slows all alike.

    The profiler costs time itself, some microseconds a kernel: the sum is more than the latency.
    """
    with tempfile.TemporaryDirectory(prefix="onnx-compress-") as folder:
        prefix = str(Path(folder) / "trace")
        sessions = [
            Session(model, threads=threads, profile=f"{prefix}{place}") for place, model in enumerate(models)
        ]
        for _ in range(runs + 1):
            for session in sessions:
                session.run_raw(feeds)
        traces = [Path(session.end_profile()).read_bytes() for session in sessions]
    return [_kernels(json.loads(trace)) for trace in traces]


def _kernels(events: Iterable[Mapping[str, Any]]) -> list[Kernel]:
    """Medians over all runs but the first, which warms up."""
    events = list(events)
    turns = sorted(
        (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("cat") == "Session" and event["name"] == "model_run"
    )[1:]
    took: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * len(turns))
    timed = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX)]
    for event in sorted(timed, key=lambda event: event["ts"]):
        for place, (start, end) in enumerate(turns):
            if start <= event["ts"] <= end:
                key = event["name"].removesuffix(_SUFFIX), event["args"].get("op_name", "")
                took[key][place] += event["dur"] / 1000
    return [Kernel(name, op, statistics.median(times)) for (name, op), times in took.items()]


_SUFFIX = "_kernel_time"


def by_layer(model: Model, kernels: Sequence[Kernel], layers: Iterable[str]) -> dict[str, float]:
    """The ms of each of `layers`, nodes of `model`, as far as the kernels' names tell which of them they compute."""
    nodes = {node.name: node for node in model.proto.graph.node if node.name}
    makers = {name: node for node in model.proto.graph.node for name in node.output}
    names = set(layers)
    found: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        plain = _AFFIX.sub("", kernel.name)
        node = nodes.get(kernel.name) or nodes.get(plain) or makers.get(plain)
        kind = kernel.op.removeprefix("Fused").removeprefix("QLinear")
        origin = None if node is None else _layer(node, kind, names, makers)
        if origin is not None:
            found[origin] += kernel.ms
    return dict(found)


def _layer(
    node: onnx.NodeProto, kind: str, names: set[str], makers: Mapping[str, onnx.NodeProto]
) -> str | None:
    """The layer that a kernel of `kind` bearing the name of `node` computes: `node`, or what comes before it.

    A fused Conv bears the name of the last node in it, of its Relu say.
    """
    at: onnx.NodeProto | None = node
    for _ in range(_LONGEST):
        if at is None:
            break
        if at.op_type == kind and at.name in names:
            return at.name
        at = makers.get(at.input[0]) if at.input else None
    return node.name if node.name in names else None


_LONGEST = 4  # nodes in one kernel: Conv, BatchNormalization, Add, Relu
