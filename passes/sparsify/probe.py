"""How much an error in each output of a layer reaches the model's outputs: noise is put on it, and they are looked at."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto

from onnx_compress.errors import CompressError
from onnx_compress.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.passes.sparsify.layers import Layer
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]

MOST = 16  # probes of a channel
LEAST = 4  # fewer say too little
WORK = 2e11  # multiply-adds of all probes of a model, about
BATCH = 64
LEVEL = 0.1  # of the spread of the layer's output: noise this small acts linearly
EVEN = 0.02  # of the mean, added to each: a channel that was silent so far counts a little
NOISE = "onnx_compress_noise"


def probes(layers: Sequence[Layer], macs: float) -> int:
    """How many probes each channel gets; 0 where `macs` multiply-adds a sample make even a few too much work."""
    channels = sum(layer.rows.shape[0] * layer.rows.shape[1] for layer in layers)
    count = min(MOST, int(WORK / max(macs * channels, 1.0)))
    return count if count >= LEAST else 0


def matters(
    model: Model, layers: Sequence[Layer], data: Data, count: int, seed: int, progress: Callable[[int], None]
) -> list[Array]:
    """E‖Δoutputs‖² for noise of variance 1 on each output of each layer, over its mean in the layer: (groups, N/groups).

    The diagonal of what OBD carries back through a net as second derivatives (LeCun 1990), here measured: each sample of a
    batch has noise on another channel. Ones where `count` is 0 or a layer's output does not lie sample by sample.
    """
    feeds = next(iter(data.batches(BATCH)))
    samples = next((len(value) for value in feeds.values() if np.ndim(value)), 1)
    found = [np.ones(layer.rows.shape[:2]) for layer in layers]
    if count == 0 or samples < LEAST:
        return found
    for number, layer in enumerate(layers):
        progress(number)
        measured = _measure(model, layer, feeds, samples, count, np.random.default_rng(seed))
        if measured is None or not measured.mean() > 0:
            continue
        even = measured / measured.mean() * (1 - EVEN) + EVEN
        # > of a transposed convolution a row is one tap of a channel
        found[number] = np.repeat(even, found[number].size // len(even)).reshape(found[number].shape)
    return found


def _measure(
    model: Model, layer: Layer, feeds: dict[str, Array], samples: int, count: int, rng: np.random.Generator
) -> Array | None:
    """What each channel's noise does; None where it cannot be told."""
    name = layer.node.outputs[0].name
    try:
        session = Session(_noisy(model, layer.place), threads=1)
        shape = Session(model, outputs=[name], threads=1, trimmed=True).run(feeds, [name])[name]
    except CompressError:  # > a shape or type that noise does not fit: the channels count alike
        return None
    axis = layer.input.output_axis % shape.ndim
    if axis == 0 or len(shape) != samples or shape.dtype != np.float32:
        return None
    channels = shape.shape[axis]
    if layer.rows[..., 0].size % channels:
        return None
    level = LEVEL * float(shape.std())
    quiet = {**feeds, NOISE: np.zeros(shape.shape, np.float32)}
    base = session.run(quiet)
    order = np.concatenate([rng.permutation(channels) for _ in range(count)])
    total, seen = np.zeros(channels), np.zeros(channels)
    for start in range(0, len(order), samples):
        which = order[start : start + samples]
        noise = np.zeros(shape.shape, np.float32)
        lines = np.moveaxis(noise, axis, 1)
        at = np.arange(len(which))
        lines[at, which] = rng.standard_normal(lines[at, which].shape) * level
        effect = _effect(base, session.run({**feeds, NOISE: noise}), samples)
        if effect is None:
            return None
        np.add.at(total, which, effect[: len(which)])
        np.add.at(seen, which, 1)
    return total / np.maximum(seen, 1)


def _effect(base: dict[str, Any], now: dict[str, Any], samples: int) -> Array | None:
    """‖Δy‖² of each sample over the spread of the output, summed over the float outputs."""
    total = np.zeros(samples)
    for name, value in base.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            continue
        if value.ndim == 0 or len(value) != samples:
            return None
        wide = value.astype(np.float64).reshape(samples, -1)
        spread = float(np.square(wide - wide.mean(0)).sum())
        if spread > 0 and math.isfinite(spread):
            total += np.nan_to_num(np.square(now[name].reshape(samples, -1) - wide).sum(1)) / spread
    return total


def _noisy(model: Model, place: int) -> Model:
    """The model with the input NOISE added to the first output of the node at `place`."""
    noisy = model.copy()
    graph = noisy.proto.graph
    node = graph.node[place]
    name = node.output[0]
    node.output[0] = f"{name}_quiet"
    graph.node.insert(place + 1, onnx.helper.make_node("Add", [f"{name}_quiet", NOISE], [name]))
    graph.input.append(onnx.helper.make_tensor_value_info(NOISE, TensorProto.FLOAT, None))
    return noisy
