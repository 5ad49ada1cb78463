"""How each layer reads its input, and what the data says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.passes.svd.aim import Problem
from onnx_compress.passes.svd.layers import RECURRENT, is_left, source_of
from onnx_compress.runtime.layers import LayerInput, layer_input

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from onnx_compress.model.shapes import Shape
    from onnx_compress.passes.svd.layers import Layer
    from onnx_compress.runtime.requests import HistogramStat

    Array = NDArray[Any]

WIDEST = 5000  # inputs of a layer up to which their Gram matrix is worth its time
UNSEEN = 0.5  # of one look-up: what each row of a table counts for beside those seen


def input_of(node: gs.Node, layer: Layer, shapes: Mapping[str, Shape]) -> LayerInput | str:
    """How `node` reads the columns that its matrix multiplies, or why that is not known."""
    if node.op in RECURRENT:
        samples = 0 if node.attrs.get("layout", 0) else 1
        return LayerInput(node.inputs[0].name, "matmul", channel_axis=-1, output_axis=-1, sample_axis=samples)
    if node.op == "MatMul" and layer.groups > 1:
        return _stacked(node, shapes)
    return layer_input(node, shapes)


def _stacked(node: gs.Node, shapes: Mapping[str, Shape]) -> LayerInput | str:
    """Of a stack of matrices: all matrices see the columns of all, one Gram matrix serves them."""
    source = source_of(node)
    shape = shapes.get(source.name)
    if shape is None or len(shape) < 2:
        return "the shape of its input is not known"
    axis = -2 if is_left(node) else -1
    return LayerInput(source.name, "matmul", channel_axis=axis, output_axis=axis, sample_axis=0)


def output_of(layer: Layer, given: LayerInput) -> LayerInput | None:
    """The layer's output, read as columns of what it gives at each position; None where its input tells as much for less.

    given: how it reads its input.
    """
    groups, n, k = layer.weight.shape
    if not layer.aims or n > min(k, WIDEST // groups):
        return None
    if not layer.kernel:
        return replace(given, tensor=layer.output, channel_axis=given.output_axis)
    ones = (1,) * len(layer.kernel)
    return LayerInput(layer.output, "conv", ones, ones, (0,) * (2 * len(ones)), ones, groups)


def looked_up(layer: Layer, counts: HistogramStat) -> Problem:
    """The problem of a table: rows count as often as they were looked up, and all a little."""
    size = layer.weight.shape[2]
    if not len(counts.counts):
        return Problem(layer.weight, None)
    width = (counts.high - counts.low) / len(counts.counts)
    places = np.rint(counts.low + width * np.arange(len(counts.counts))).astype(np.int64) % size
    seen = np.bincount(places, counts.counts, minlength=size)
    weights = seen + UNSEEN
    return Problem(layer.weight, (weights / weights.sum())[None], count=int(seen.sum()))
