"""Sizes that a graph computes from shapes: evaluated, so that the shapes that depend on them become known.

onnx propagates the commonest of these itself; Paddle's casts and slices, the Where and Equal of a traced Expand it does not.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Shape = tuple[int | str | None, ...]

SMALL = 64  # elements of a tensor that may hold sizes
_NAMES = (
    "Abs Add And Cast Ceil Concat ConstantOfShape Div Equal Expand Flatten Floor Gather Greater GreaterOrEqual Identity "
    "Less LessOrEqual Max Min Mod Mul Neg Not Or Pow Range ReduceMax ReduceMin ReduceProd ReduceSum Reshape Slice Split "
    "Sqrt Squeeze Sub Sum Tile Transpose Unsqueeze Where"
)
_OPS = frozenset(_NAMES.split())


def fold_sizes(proto: onnx.ModelProto, shapes: Mapping[str, Shape]) -> bool:
    """Replaces the nodes of `proto` that compute small tensors from known shapes by their values; whether any was."""
    graph = proto.graph
    known = _small_weights(graph)
    folded: list[onnx.NodeProto] = []
    gone: list[onnx.NodeProto] = []
    outputs = {value.name for value in graph.output}
    available = set(known)
    for node in graph.node:
        if node.domain or not node.output or any(name in outputs for name in node.output):
            continue
        shape = shapes.get(node.input[0]) if node.op_type == "Shape" else None
        if shape is not None and all(isinstance(size, int) for size in shape):
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            window = slice(attributes.get("start", 0), attributes.get("end"))
            known[node.output[0]] = np.array(shape[window], np.int64)
        elif node.op_type in _OPS and all(not name or name in available for name in node.input):
            if not all(_is_small(shapes.get(name)) for name in node.output):
                continue
            folded.append(node)
        else:
            continue
        gone.append(node)
        available.update(node.output)
    if not gone:
        return False
    values = _run(proto, folded, known)
    for node in gone:
        for name in node.output:
            value = values.get(name, known.get(name))
            if value is None:
                return False
            graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        graph.node.remove(node)
    return True


def _is_small(shape: Shape | None) -> bool:
    sizes = [size for size in shape or () if isinstance(size, int)]
    return shape is not None and len(sizes) == len(shape) and math.prod(sizes) <= SMALL


def _small_weights(graph: onnx.GraphProto) -> dict[str, Array]:
    held = list(graph.initializer)
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            held.append(type(value).FromString(value.SerializeToString()))
            held[-1].name = node.output[0]
    inputs = {value.name for value in graph.input}
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in held
        if math.prod(tensor.dims) <= SMALL
        and not tensor.external_data
        and tensor.data_type not in {tensor.STRING, tensor.UNDEFINED}
        and tensor.name not in inputs
    }


def _run(proto: onnx.ModelProto, nodes: list[onnx.NodeProto], known: dict[str, Array]) -> dict[str, Array]:
    """What `nodes` compute from `known`, by name; nothing where onnx's reference cannot."""
    from onnx.reference import ReferenceEvaluator

    if not nodes:
        return {}
    names = [name for node in nodes for name in node.output if name]
    read = {name for node in nodes for name in node.input if name in known}
    graph = helper.make_graph(
        nodes,
        "sizes",
        [],
        [onnx.ValueInfoProto(name=name) for name in names],
        [numpy_helper.from_array(known[name], name) for name in sorted(read)],
    )
    model = helper.make_model(graph, opset_imports=proto.opset_import)
    try:
        with np.errstate(all="ignore"):
            return dict(zip(names, ReferenceEvaluator(model).run(None, {}), strict=True))
    except Exception:  # noqa: BLE001 - the reference raises what it likes; sizes that it cannot compute stay unknown
        return {}
