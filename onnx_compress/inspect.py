"""What a model is made of, where its time goes, and what each pass could do with it: nothing is changed."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from onnx_compress.contract import Job, silent
from onnx_compress.errors import UsageError
from onnx_compress.model.cost import cost
from onnx_compress.model.groups import groups
from onnx_compress.model.prepare import freeze_inputs as freeze
from onnx_compress.model.prepare import prepare
from onnx_compress.model.shapes import infer
from onnx_compress.passes import known_passes
from onnx_compress.preflight import preflight, shapes_at
from onnx_compress.request import load_model
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import open_data, random_data
from onnx_compress.runtime.machine import physical_cores
from onnx_compress.runtime.profile import by_layer, profile
from onnx_compress.runtime.selftest import prove
from onnx_compress.runtime.session import input_specs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx

    from onnx_compress.contract import Pass
    from onnx_compress.model.cost import Cost
    from onnx_compress.model.document import Model
    from onnx_compress.model.prepare import Prepared
    from onnx_compress.model.shapes import Shape
    from onnx_compress.preflight import Preflight
    from onnx_compress.runtime.data import Data
    from onnx_compress.runtime.profile import Kernel

    Progress = Callable[[int, int, str], None]


RUNS = 5  # that are profiled
RANDOM_SAMPLES = 32  # for a sensitivity without data
QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulNBits"}
QUANTIZED |= {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantizeLSTM"}


def inspect(
    model: Any,
    *,
    data: Any = None,
    preprocess: str | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    freeze_inputs: bool = False,
    samples: int = 512,
    self_test: bool = False,
    sensitivity: str | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Layers, channel units and cost of a model, and what each known pass could do with it and why not.

    model: as `compress` takes it: a path, a ModelProto, a Model, or anything with `.model_proto`.
    The layers are those of the prepared model, which is what passes see; `data` gives the sizes of symbolic axes, and
    `samples` of it what `sensitivity` is measured on. `ms` is the time a layer takes in one run, where its name tells it.
    self_test: also whether channels removed are channels masked, on this very model; sensitivity: the name of a pass
    that has a method `sensitivity(job)`, which is called.
    Raises UsageError where there is no such pass, InputError where the model or `data` cannot be read or used.
    """
    asked = None if sensitivity is None else _sensitive(sensitivity)
    progress(0, 3, "load")
    loaded = load_model(model)
    if freeze_inputs:
        freeze(loaded)
    wanted = 1 if asked is None else samples
    opened = (
        None if data is None else open_data(data, input_specs(loaded), samples=wanted, preprocess=preprocess)
    )
    progress(1, 3, "preflight")
    flight = preflight(loaded, input_shapes=input_shapes, data=opened)
    ready = prepare(loaded, flight.shapes)
    shapes = {**flight.shapes, **infer(ready.model)}
    progress(2, 3, "inspect")
    named = os.fspath(model) if isinstance(model, str | os.PathLike) else ""
    found = {"schema": 1, "model": named, **_described(loaded, shapes), **_looked_into(ready, flight, shapes)}
    if self_test and flight.runs:
        proof = prove(ready.model, shapes, flight.feeds, 0)
        found["self_test"] = {**asdict(proof), "sound": proof.sound}
    if asked is not None and flight.runs:
        found["sensitivity"] = _sensitivity(asked, ready.model, opened, flight, progress)
    return found


def _described(model: Model, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """What the model says of itself."""
    proto = model.proto
    return {
        "bytes": model.nbytes,
        "ir_version": proto.ir_version,
        "opsets": {item.domain or "ai.onnx": item.version for item in proto.opset_import},
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        "inputs": [
            {"name": spec.name, "dtype": spec.dtype.name, "shape": list(spec.shape)}
            for spec in input_specs(model)
        ],
        "outputs": [
            {"name": value.name, "shape": list(shapes.get(value.name, ()))} for value in proto.graph.output
        ],
        "quantized": any(node.op_type in QUANTIZED for node in proto.graph.node),
    }


def _looked_into(ready: Prepared, flight: Preflight, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """What the prepared model costs, its layers and units, and what passes could do with it."""
    sizes = shapes_at(ready.model, flight.feeds) if flight.runs else shapes
    total = cost(ready.model, sizes)
    kernels = profile([ready.model], flight.feeds, runs=RUNS)[0] if flight.runs else []
    return {
        "params": total.params,
        "macs": total.macs,
        "nodes": total.nodes,
        "prepared": dict(Counter(edit.what for edit in ready.changes)),
        "barriers": [{"node": left.node, "why": left.why} for left in ready.skips],
        "ms": sum(kernel.ms for kernel in kernels) if kernels else None,
        "layers": _layers(ready.model, total, sizes, kernels),
        "units": groups(ready.model, shapes),
        "passes": [_survey(kind, ready.model, shapes) for kind in known_passes()],
        "warnings": list(flight.warnings),
    }


def _sensitive(name: str) -> Any:
    """The pass `name`, with its default options. Raises UsageError unless it measures a sensitivity."""
    able = {kind.name: kind for kind in known_passes() if callable(getattr(kind, "sensitivity", None))}
    if name not in able:
        raise UsageError(f"--sensitivity {name}: passes that measure it: {', '.join(able)}")
    return able[name]()


def _sensitivity(
    asked: Any,
    model: Model,
    data: Data | None,
    flight: Preflight,
    progress: Progress,
) -> dict[str, Any]:
    """What the pass measured, on `data` or on random inputs, at sizes that the model runs with."""
    shapes = flight.input_shapes
    used = data or random_data(input_specs(model), RANDOM_SAMPLES, 0, shapes, model)
    used = replace(used, fixed=1) if flight.single else used
    job = Job(model, model, used, 0, Clock(physical_cores(), 0), progress=progress, input_shapes=shapes)
    rows = asked.sensitivity(job)
    return {"pass": asked.name, "samples": used.samples, "random": used.random, "rows": rows}


def _layers(
    model: Model, total: Cost, sizes: Mapping[str, Shape], kernels: Sequence[Kernel]
) -> list[dict[str, Any]]:
    """Every layer with its shapes, cost and time, in graph order."""
    times = by_layer(model, kernels, [layer.node for layer in total.layers])
    nodes: dict[str, onnx.NodeProto] = {node.name: node for node in model.proto.graph.node}
    found = []
    for layer in total.layers:
        node = nodes.get(layer.node)
        tensors = [] if node is None else [*node.input[:2], *node.output[:1]]
        before, weight, after = (
            [list(sizes.get(name, ())) for name in tensors] if len(tensors) == 3 else ([], [], [])
        )
        found.append(
            {
                "name": layer.node,
                "op": layer.op,
                "input": before,
                "weight": weight,
                "output": after,
                "params": layer.params,
                "macs": layer.macs,
                "bytes": layer.bytes,
                "ms": times.get(layer.node),
            }
        )
    return found


def _survey(kind: type[Pass], model: Model, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """What a pass says it could change, from its `survey(model, shapes) -> Result`, where it has one."""
    survey = getattr(kind(), "survey", None)
    if survey is None:
        return {"name": kind.name, "could": None, "skips": []}
    found = survey(model, shapes)
    return {
        "name": kind.name,
        "could": [{"node": change.node, "what": change.what} for change in found.changes],
        "skips": [{"node": skip.node, "why": skip.why} for skip in found.skips],
    }
