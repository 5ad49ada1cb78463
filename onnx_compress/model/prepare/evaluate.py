"""One node whose inputs are constants, computed by onnxruntime itself: bit for bit what it folds at load."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto

from onnx_compress.model.shapes import shape_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model

    Array = NDArray[Any]

WORK = 256 * 2**20  # bytes of inputs, and of outputs, up to which a node is evaluated
_GROWING = {"ConstantOfShape", "Expand", "Tile", "Range", "OneHot", "Pad", "Resize", "Upsample", "EyeLike"}
PLAIN = {
    *(TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL),
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
}


def evaluate(model: Model, node: onnx.NodeProto, given: Mapping[str, TensorProto]) -> dict[str, Array] | None:
    """The outputs of `node` by name, its inputs being `given`, tensors of `model`.

    None where they are of a type without a numpy type, too large, or onnxruntime cannot run the node.
    """
    if not all(tensor.data_type in PLAIN for tensor in given.values()):
        return None
    single = _single(model, node, given)
    return None if single is None else _run(single)


def size(tensor: TensorProto) -> int:
    """Bytes of the value of `tensor`, which has a PLAIN type."""
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(math.prod(tensor.dims) * itemsize)


def _single(model: Model, node: onnx.NodeProto, given: Mapping[str, TensorProto]) -> onnx.ModelProto | None:
    """A model of `node` alone, its inputs as initializers; None where it would be too large to evaluate."""
    if sum(size(tensor) for tensor in given.values()) > WORK:
        return None
    graph = onnx.GraphProto(name="fold", node=[node])
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name)
    single = onnx.ModelProto(ir_version=max(model.proto.ir_version, 4), graph=graph)
    single.opset_import.extend(model.proto.opset_import)
    for tensor in given.values():
        blob = model.blob(tensor)
        copy = single.graph.initializer.add()
        copy.CopyFrom(tensor)
        if blob is not None:
            copy.ClearField("external_data")
            copy.ClearField("data_location")
            copy.raw_data = blob.tobytes()
    try:
        inferred = onnx.shape_inference.infer_shapes(single, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError):
        return None
    shapes = [shape_of(value) for value in inferred.graph.output]
    elements = [math.prod(a for a in shape or () if isinstance(a, int)) for shape in shapes]
    unknown = any(shape is None or not all(isinstance(a, int) for a in shape) for shape in shapes)
    if max(elements) > WORK // 8 or (unknown and node.op_type in _GROWING):
        return None
    return single


def _run(single: onnx.ModelProto) -> dict[str, Array] | None:
    """What onnxruntime computes, by output name; None where it does not run or gives no plain tensors."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(
            single.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        values = session.run(None, {})
    except Exception:  # noqa: BLE001 - onnxruntime's own exceptions share no base class; what it cannot run stays
        return None
    names = [value.name for value in session.get_outputs()]
    if not all(hasattr(value, "dtype") and value.dtype.kind in "biuf" for value in values):
        return None
    return dict(zip(names, values, strict=True))
