"""Whether a factored layer is faster: proposed by a micro-model of the layer, decided on the whole model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnx_compress.errors import CompressError
from onnx_compress.passes.svd.edits import apply_factors
from onnx_compress.passes.svd.factors import Factors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_compress.contract import Job
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.passes.svd.forms import Form
    from onnx_compress.passes.svd.layers import Layer
    from onnx_compress.runtime.decision import Decision

    Array = NDArray[Any]

QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


def propose(job: Job, layer: Layer, form: Form, shapes: Mapping[str, Shape]) -> Decision | None:
    """Whether `layer` alone, factored so and as later passes will leave it, is faster; None where it cannot run
    alone.
    """
    made = micro_model(job.model, layer, shapes)
    if made is None:
        return None
    dense, feeds = made
    thin = apply_factors(dense, {layer.output: any_factors(layer, form)})
    try:
        return job.clock.propose(layer.node, job.finish(dense), job.finish(thin), feeds)
    except CompressError:
        if job.clock.replaying:
            raise
        return None


def any_factors(layer: Layer, form: Form) -> Factors:
    """Factors of the right shapes: the clock does not care for their values."""
    rng = np.random.default_rng(0)
    groups, n, k = layer.weight.shape
    rank, kernel = form.rank, layer.kernel
    channels = k // math.prod(kernel)
    shapes: dict[str, list[tuple[int, ...]]] = {"svd": [(rank, k), (n, rank)]}
    if form.method != "svd":
        shapes["spatial"] = [(rank, channels, kernel[0]), (n, rank, *kernel[1:])]
        shapes["tucker2"] = [(form.inner, channels), (rank, form.inner, math.prod(kernel)), (n, rank)]
        shapes["cp"] = [(rank, channels), *((rank, size) for size in kernel), (n, rank)]
    parts = [rng.standard_normal((groups, *shape)) / channels for shape in shapes[form.method]]
    return Factors(form.method, tuple(parts))


def micro_model(
    model: Model, layer: Layer, shapes: Mapping[str, Shape]
) -> tuple[Model, dict[str, Array]] | None:
    """A model of this layer alone, and one sample for it; None where the shape of an input is not known, or it looks rows up.

    What else the node reads, as the first states of an LSTM, is random like its input.
    """
    micro = model.copy()
    graph = micro.proto.graph
    node = next(node for node in graph.node if layer.output in node.output)
    weights = [tensor for tensor in graph.initializer if tensor.name in node.input]
    constant = {tensor.name for tensor in weights}
    read = [name for name in dict.fromkeys((layer.input, *node.input)) if name and name not in constant]
    if layer.op == "Gather" or any(not _sized(shapes.get(name)) for name in read):
        return None
    kind = next((t.data_type for t in weights if len(t.dims) > 1), onnx.TensorProto.FLOAT)
    bare = onnx.GraphProto(name="layer", node=[node], initializer=weights)
    rng = np.random.default_rng(0)
    feeds = {}
    for name in read:
        sizes = [size if isinstance(size, int) else 1 for size in shapes[name]]
        bare.input.append(onnx.helper.make_tensor_value_info(name, kind, sizes))
        feeds[name] = rng.standard_normal(sizes).astype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    bare.output.append(onnx.helper.make_tensor_value_info(layer.output, kind, None))
    micro.proto.graph.CopyFrom(bare)
    del micro.proto.functions[:]
    micro.collect()
    return micro, feeds


def _sized(shape: Shape | None) -> bool:
    return shape is not None and all(isinstance(size, int) for size in shape[1:])


def quantizes(job: Job) -> bool:
    """Whether a later pass of the recipe quantizes."""
    finished = job.finish(job.model)
    return finished is not job.model and any(node.op_type in QUANTIZED for node in finished.proto.graph.node)
