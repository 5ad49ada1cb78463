"""Whether a factored layer is faster: proposed by a micro-model of the layer, decided on the whole model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnx_compress.errors import CompressError
from onnx_compress.passes.svd.factors import Factors, apply_factors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_compress.contract import Job
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.passes.svd.layers import Layer
    from onnx_compress.runtime.decision import Decision

    Array = NDArray[Any]

QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


def propose(job: Job, layer: Layer, method: str, rank: int, shapes: Mapping[str, Shape]) -> Decision | None:
    """Whether `layer` alone, factored at `rank` and as later passes will leave it, is faster; None where it cannot run
    alone.
    """
    made = micro_model(job.model, layer, shapes)
    if made is None:
        return None
    dense, feeds = made
    thin = apply_factors(dense, {layer.output: any_factors(layer, method, rank)})
    try:
        return job.clock.propose(layer.node, job.finish(dense), job.finish(thin), feeds)
    except CompressError:
        if job.clock.replaying:
            raise
        return None


def any_factors(layer: Layer, method: str, rank: int) -> Factors:
    """Factors of the right shapes: the clock does not care for their values."""
    rng = np.random.default_rng(0)
    groups, n, k = layer.weight.shape
    if method == "svd":
        return Factors(
            "svd", rng.standard_normal((groups, rank, k)) / k, rng.standard_normal((groups, n, rank))
        )
    _, channels, height, width = layer.filters().shape
    first = rng.standard_normal((rank, channels, height)) / channels
    return Factors("spatial", first, rng.standard_normal((n, rank, width)))


def micro_model(
    model: Model, layer: Layer, shapes: Mapping[str, Shape]
) -> tuple[Model, dict[str, Array]] | None:
    """A model of this layer alone, and one sample for it; None where the shape of its input is not known."""
    shape = shapes.get(layer.input)
    if shape is None or not all(isinstance(size, int) for size in shape[1:]):
        return None
    sizes = [size if isinstance(size, int) else 1 for size in shape]
    micro = model.copy()
    graph = micro.proto.graph
    node = next(node for node in graph.node if layer.output in node.output)
    weights = [tensor for tensor in graph.initializer if tensor.name in node.input]
    kind = next((t.data_type for t in weights if len(t.dims) > 1), onnx.TensorProto.FLOAT)
    bare = onnx.GraphProto(name="layer", node=[node], initializer=weights)
    bare.input.append(onnx.helper.make_tensor_value_info(layer.input, kind, sizes))
    bare.output.append(onnx.helper.make_tensor_value_info(layer.output, kind, None))
    if {name for name in node.input if name} - {layer.input} - {tensor.name for tensor in weights}:
        return None
    micro.proto.graph.CopyFrom(bare)
    del micro.proto.functions[:]
    micro.collect()
    values = np.random.default_rng(0).standard_normal(sizes)
    return micro, {layer.input: values.astype(onnx.helper.tensor_dtype_to_np_dtype(kind))}


def quantizes(job: Job) -> bool:
    """Whether a later pass of the recipe quantizes."""
    finished = job.finish(job.model)
    return finished is not job.model and any(node.op_type in QUANTIZED for node in finished.proto.graph.node)
