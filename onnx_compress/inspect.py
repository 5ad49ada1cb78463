"""What a model is made of, and what each pass could do with it: nothing is changed, nothing is timed."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from onnx_compress.model.channels import Channels
from onnx_compress.model.cost import cost
from onnx_compress.model.document import Model
from onnx_compress.model.prepare import freeze_inputs as freeze
from onnx_compress.model.prepare import prepare
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes import known_passes
from onnx_compress.preflight import preflight, shapes_at
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import input_specs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx

    from onnx_compress.contract import Pass
    from onnx_compress.model.cost import Cost
    from onnx_compress.model.shapes import Shape

    Progress = Callable[[int, int, str], None]


def _silent(_done: int, _total: int, _what: str) -> None:
    """Progress goes nowhere."""


def inspect(
    model: str | os.PathLike[str] | Model,
    *,
    data: Any = None,
    preprocess: str | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    freeze_inputs: bool = False,
    progress: Progress = _silent,
) -> dict[str, Any]:
    """Layers, channel units and cost of a model, and what each known pass could do with it and why not.

    The layers are those of the prepared model, which is what passes see; `data` only gives the sizes of symbolic axes.
    Raises InputError where the model or `data` cannot be read or used.
    """
    progress(0, 3, "load")
    loaded = model if isinstance(model, Model) else Model.load(model)
    if freeze_inputs:
        loaded = loaded.copy()
        freeze(loaded)
    opened = None if data is None else open_data(data, input_specs(loaded), samples=1, preprocess=preprocess)
    progress(1, 3, "preflight")
    flight = preflight(loaded, input_shapes=input_shapes, data=opened)
    ready = prepare(loaded, flight.shapes)
    progress(2, 3, "inspect")
    shapes = {**flight.shapes, **infer(ready.model)}
    sizes = shapes_at(ready.model, flight.feeds) if flight.runs else shapes
    total = cost(ready.model, sizes)
    proto = loaded.proto
    return {
        "schema": 1,
        "model": os.fspath(model) if isinstance(model, str | os.PathLike) else "",
        "bytes": loaded.nbytes,
        "params": total.params,
        "macs": total.macs,
        "nodes": total.nodes,
        "ir_version": proto.ir_version,
        "opsets": {item.domain or "ai.onnx": item.version for item in proto.opset_import},
        "producer": f"{proto.producer_name} {proto.producer_version}".strip(),
        "inputs": [
            {"name": spec.name, "dtype": spec.dtype.name, "shape": list(spec.shape)}
            for spec in input_specs(loaded)
        ],
        "outputs": [
            {"name": value.name, "shape": list(shapes.get(value.name, ()))} for value in proto.graph.output
        ],
        "prepared": dict(Counter(edit.what for edit in ready.changes)),
        "barriers": [{"node": left.node, "why": left.why} for left in ready.skips],
        "layers": _layers(ready.model, total, sizes),
        "units": _units(ready.model, shapes),
        "passes": [_survey(kind, ready.model, shapes) for kind in known_passes()],
        "warnings": list(flight.warnings),
    }


def _layers(model: Model, total: Cost, sizes: Mapping[str, Shape]) -> list[dict[str, Any]]:
    """Every layer with its shapes and cost, in graph order."""
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
            }
        )
    return found


def _units(model: Model, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The kinds of channel units that can go whole, and the weight axes of which none can.

    A kind's `places` are the weight axes ("name[axis]") that a unit of it takes from, with the indices one takes.
    """
    units, pinned = Channels(Surgery(model), dict(shapes)).units()
    kinds: dict[frozenset[tuple[str, int]], list[Any]] = defaultdict(list)
    for unit in units:
        kinds[unit.kind].append(unit)
    return {
        "kinds": [
            {
                "units": len(members),
                "places": {
                    f"{name}[{axis}]": len(indices) for (name, axis), indices in members[0].places.items()
                },
            }
            for members in kinds.values()
        ],
        "pinned": [{"axis": axis, "why": why} for axis, why in pinned.items()],
    }


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
