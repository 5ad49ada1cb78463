"""What clustering each weight to so many values gives, and what it does to the model's outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.model.codebook import Codebook
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.cluster.bias import correct_bias
from onnx_compress.numerics.kmeans import assign, codebook
from onnx_compress.passes.cluster.weights import OVERHEAD, find_weights, replace_dense, replace_stored
from onnx_compress.runtime.layers import layer_input, weight_from_rows, weight_rows
from onnx_compress.runtime.observe import observe
from onnx_compress.runtime.requests import Moments

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.passes.cluster.weights import Weight
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]

DAMPING = 1e-2  # of the mean input energy, added to each: inputs that were silent so far count a little


class Study:
    """The clusterable weights of `model`, by number; codebooks are made when first asked for and kept.

    per_channel: a codebook for each output channel, where that is smaller than the weight.
    """

    def __init__(self, model: Model, *, kind: str, per_channel: bool, exclude: str | None) -> None:
        self.model = model
        self.kind = kind
        self.per_channel = per_channel
        self.exclude = exclude
        self.surgery = Surgery(model)
        self.weights, self.skips = find_weights(self.surgery, exclude)
        self.masses: dict[int, Array] = {}
        self.means: dict[tuple[int, int], Array] = {}
        self._books: dict[tuple[int, int], Codebook] = {}

    def look(self, data: Data, *, weigh: bool) -> None:
        """Learns the mean of each layer's input channels, to correct biases by.

        weigh: and gives each weight element the mean square of the input it multiplies, the diagonal of the layer's Gram
        matrix. (At the borders of padded pictures the true one is smaller; the channel's mean stands for all taps.)
        """
        layers = self._layers()
        requests = {Moments(tensor, axis) for *_, tensor, axis in layers}
        found = observe(self.model, data, requests)
        for number, user, tensor, axis in layers:
            stat = found[Moments(tensor, axis)]
            self.means[number, user] = stat.mean
            if not weigh:
                continue
            node = self.weights[number].users[user][0]
            energy = stat.var + stat.mean**2
            if energy.sum() > 0:
                weight = self.weights[number].values
                mass = _spread(node, weight, energy + DAMPING * energy.mean())
                self.masses[number] = self.masses[number] + mass if number in self.masses else mass

    def book(self, number: int, clusters: int) -> Codebook:
        """The weight of this number with at most `clusters` values (a codebook)."""
        key = (number, clusters)
        if key not in self._books:
            self._books[key] = self._make(number, clusters)
        return self._books[key]

    def error(self, number: int, clusters: int) -> float:
        """Σ g (w − w̃)² / Σ g w², g the mean square of the inputs: the error of a layer whose inputs are uncorrelated."""
        values = self.weights[number].values.astype(np.float64)
        change = values - self.book(number, clusters).dense()
        mass = self.masses.get(number, np.ones(1))
        whole = float((mass * values * values).sum())
        return float((mass * change * change).sum()) / whole if whole else 0.0

    def dense(self, clusters: Sequence[int | None]) -> Model:
        """The model with weight i of `clusters[i]` values (None: as it is), each as a plain constant: for trying."""
        surgery = Surgery(self.model)
        weights, _ = find_weights(surgery, self.exclude)
        for number, (weight, count) in enumerate(zip(weights, clusters, strict=True)):
            if count is not None:
                self._correct(surgery, weight, number, count)
                replace_dense(surgery, weight, self.book(number, count).dense())
        return surgery.commit()

    def stored(self, clusters: Sequence[int | None]) -> Model:
        """The model with weight i stored as a codebook of `clusters[i]` values (None: as it is)."""
        surgery = Surgery(self.model)
        weights, _ = find_weights(surgery, self.exclude)
        # > from the last: every one goes to the front of its graph
        for number in reversed(range(len(weights))):
            count = clusters[number]
            if count is not None:
                self._correct(surgery, weights[number], number, count)
                replace_stored(surgery, weights[number], self.book(number, count))
        return surgery.commit()

    def _correct(self, surgery: Surgery, weight: Weight, number: int, clusters: int) -> None:
        """The biases of the layers that read the weight; before it is replaced."""
        change = self.book(number, clusters).dense() - weight.values
        for user, (node, _) in enumerate(weight.users):
            if (number, user) in self.means:
                correct_bias(surgery, node, change, self.means[number, user])

    def _make(self, number: int, clusters: int) -> Codebook:
        weight = self.weights[number]
        values, mass = weight.values, self.masses.get(number)
        axis = _channel_axis(weight) if self.per_channel else None
        if axis is not None:
            book = self._by_channel(values, mass, clusters, axis)
            if book.nbytes + OVERHEAD < values.nbytes:
                return book
        centres = codebook(values, clusters, mass, kind=self.kind)
        return Codebook(centres, assign(values, centres))

    def _by_channel(self, values: Array, mass: Array | None, clusters: int, axis: int) -> Codebook:
        rows = np.moveaxis(values, axis, 0)
        weights = None if mass is None else np.moveaxis(np.broadcast_to(mass, values.shape), axis, 0)
        books = []
        for channel, row in enumerate(rows):
            centres = codebook(row, clusters, None if weights is None else weights[channel], kind=self.kind)
            books.append(np.pad(centres, (0, clusters - len(centres)), mode="edge"))
        indices = np.stack([assign(row, book) for row, book in zip(rows, books, strict=True)])
        return Codebook(np.stack(books), np.ascontiguousarray(np.moveaxis(indices, 0, axis)), axis)

    def _layers(self) -> list[tuple[int, int, str, int]]:
        """(weight, which of its users, tensor it multiplies, axis of that tensor) of the layers in the main graph."""
        shapes = infer(self.model)
        main = {id(node) for node in self.surgery.graph.nodes}
        found = []
        for number, weight in enumerate(self.weights):
            if weight.book is not None:
                continue
            for user, (node, _) in enumerate(weight.users):
                layer = layer_input(node, shapes) if id(node) in main else "in a body"
                if not isinstance(layer, str):
                    found.append((number, user, layer.tensor, layer.channel_axis))
        return found


def _spread(node: gs.Node, weight: Array, energy: Array) -> Array:
    """The energy of each input channel at every element of `weight` that multiplies it."""
    rows = weight_rows(node, weight)
    by_group = energy.reshape(len(rows), -1)
    by_input = np.repeat(by_group, rows.shape[2] // by_group.shape[1], axis=1)
    kernel = weight.shape[2:] if node.op.startswith("Conv") else ()
    return weight_from_rows(node, np.broadcast_to(by_input[:, None, :], rows.shape), kernel)


def _channel_axis(weight: Weight) -> int | None:
    """The axis of output channels."""
    node, index = weight.users[0]
    rank = len(weight.tensor.shape if weight.book is None else weight.book.indices.shape)
    match node.op:
        case "Conv":
            return 0
        case "ConvTranspose" | "LSTM" | "GRU" | "RNN":
            return 1
        case "Gemm":
            flipped = bool(node.attrs.get("transA" if index == 0 else "transB", 0))
            return int((index == 1) != flipped)
        case "MatMul":
            return rank - (1 if index == 1 else 2)
        case "Gather":
            return rank - 1
    return None
