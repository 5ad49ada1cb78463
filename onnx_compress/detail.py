"""What a run shows of two models when someone will look closely: time a layer, and how weights and outputs moved."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.errors import CompressError
from onnx_compress.runtime.profile import by_layer, profile
from onnx_compress.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.cost import LayerCost
    from onnx_compress.model.document import Model
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]

WEIGHTS = 20  # layers whose weights are drawn
BINS = 40
SAMPLES = 128  # whose outputs are compared value by value
LARGEST = 64 * 2**20  # bytes of weights looked at


@dataclass(frozen=True)
class Side:
    """One of the two models, and its layers as its cost names them."""

    model: Model
    layers: Sequence[LayerCost]


def detail(
    before: Side, after: Side, data: Data, feeds: Mapping[str, Array], *, threads: int = 0
) -> dict[str, Any]:
    """`ms` a layer and `kernels` of one run of each model on `feeds`, `weights` of the layers that changed most, and
    the histogram of each output's `errors` on at most SAMPLES samples of `data`.
    """
    found: dict[str, Any] = {"ms": {}, "kernels": {}}
    traces = profile([before.model, after.model], feeds, threads=threads)
    for name, side, kernels in zip(("before", "after"), (before, after), traces, strict=True):
        found["kernels"][name] = [asdict(kernel) for kernel in kernels]
        found["ms"][name] = by_layer(side.model, kernels, [layer.node for layer in side.layers])
    found["weights"] = weights(before, after, feeds)
    found["errors"] = errors(before.model, after.model, data.take(SAMPLES), threads)
    return found


def weights(before: Side, after: Side, feeds: Mapping[str, Array]) -> list[dict[str, Any]]:
    """Histograms of the weights of the layers, in both models, whose distribution moved most.

    `moved`: the total variation distance of the two histograms, 0 to 1.
    """
    first, second = _effective(before, feeds), _effective(after, feeds)
    found: list[dict[str, Any]] = []
    for name in first.keys() & second.keys():
        old, new = first[name].ravel(), second[name].ravel()
        low, high = float(min(old.min(), new.min())), float(max(old.max(), new.max()))
        counts = [np.histogram(values, BINS, (low, high))[0] for values in (old, new)]
        moved = float(np.abs(counts[0] / old.size - counts[1] / new.size).sum() / 2)
        shapes = list(first[name].shape), list(second[name].shape)
        if moved > 0 or shapes[0] != shapes[1]:
            sides = zip(("before", "after"), counts, shapes, strict=True)
            drawn = {side: {"counts": count.tolist(), "shape": shape} for side, count, shape in sides}
            found.append({"name": name, "low": low, "high": high, "moved": moved, **drawn})
    return sorted(found, key=lambda item: (-item["moved"], item["name"]))[:WEIGHTS]


def _effective(side: Side, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The weights of each layer as its node multiplies with them, after dequantization and look-ups."""
    graph = side.model.proto.graph
    names = {layer.node for layer in side.layers if 0 < layer.params * 4 <= LARGEST}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    dynamic = _dynamic(side.model)
    found: dict[str, Array] = {}
    wanted: dict[str, str] = {}
    total = 0
    for node in graph.node:
        given = [name for name in node.input[1:2] if name and name not in dynamic]
        if node.name not in names or not given or total > LARGEST:
            continue
        if given[0] in initializers:
            found[node.name] = side.model.array(initializers[given[0]])
            if node.op_type == "DynamicQuantizeLSTM":
                scale, zero = (side.model.array(initializers[name]) for name in node.input[8:10])
                found[node.name] = _lstm_weight(found[node.name], scale, zero)
            total += found[node.name].nbytes
        else:
            wanted[node.name] = given[0]
    if wanted:
        # > computed by onnxruntime: a stored form has as many kinds as there are passes
        session = Session(side.model, optimize=False, outputs=list(wanted.values()), trimmed=True)
        computed = session.run(feeds)
        found |= {node: np.asarray(computed[name]) for node, name in wanted.items()}
    return {
        name: value.astype(np.float32)
        for name, value in found.items()
        if value.size and value.dtype.kind == "f" and np.isfinite(value).all()
    }


def _lstm_weight(codes: Array, scale: Array, zero: Array) -> Array:
    """The weight (directions, 4·hidden, inputs) of an LSTM from that of a DynamicQuantizeLSTM (directions, inputs, 4·hidden)."""
    directions = len(codes)
    centred = codes.astype(np.float32) - zero.astype(np.float32).reshape(directions, 1, -1)
    return (centred * scale.reshape(directions, 1, -1)).transpose(0, 2, 1)


def _dynamic(model: Model) -> set[str]:
    """The tensors that depend on an input."""
    graph = model.proto.graph
    constant = {tensor.name for tensor in graph.initializer}
    found = {value.name for value in graph.input} - constant
    for node in graph.node:
        if not found.isdisjoint(node.input) or any(attribute.HasField("g") for attribute in node.attribute):
            found |= set(node.output)
    return found


def errors(before: Model, after: Model, data: Data, threads: int = 0) -> list[dict[str, Any]]:
    """For each float output the histogram of (after - before) / rms(before), within four of its deviations."""
    first, second = Session(before, threads=threads), Session(after, threads=threads)
    pairs: dict[str, tuple[list[Array], list[Array]]] = {}
    for feeds in data.batches(32):
        expected, actual = first.run(feeds), second.run(feeds)
        for name, value in expected.items():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                kept = pairs.setdefault(name, ([], []))
                kept[0].append(value.ravel())
                kept[1].append(np.asarray(actual[name]).ravel())
    found: list[dict[str, Any]] = []
    for name, (old, new) in pairs.items():
        reference, other = np.concatenate(old), np.concatenate(new)
        if reference.shape == other.shape:
            found += _spread(name, reference.astype(np.float64), other.astype(np.float64), data.samples)
    return found


def _spread(name: str, reference: Array, other: Array, samples: int) -> Iterable[dict[str, Any]]:
    scale = float(np.sqrt(np.mean(reference**2))) if reference.size else 0.0
    difference = (other - reference) / scale if scale else np.zeros(0)
    if not difference.size or not np.isfinite(difference).all():
        return
    width = 4 * float(difference.std()) or 1e-12
    counts = np.histogram(difference.clip(-width, width), BINS, (-width, width))[0]
    yield {"output": name, "low": -width, "high": width, "counts": counts.tolist(), "samples": samples}


def try_detail(*arguments: Any, **options: Any) -> tuple[dict[str, Any] | None, list[str]]:
    """`detail`, or a warning where a model does not allow it: nothing that is saved depends on it."""
    try:
        return detail(*arguments, **options), []
    except CompressError as error:
        return None, [f"no times and histograms of layers: {error}"]
