"""What clustering each weight to so many values gives, and what it does to the model's outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.errors import CompressError
from onnx_compress.model.codebook import opset_of, unfold
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.numerics.codebooks import fitted
from onnx_compress.numerics.leastsquares import output_error
from onnx_compress.numerics.masked import refit_rows, refit_work
from onnx_compress.passes.cluster.aims import Ahead, find_aims
from onnx_compress.passes.cluster.bias import bias_constant, bias_of, correct_bias, set_bias
from onnx_compress.passes.cluster.palettes import Layout, closest, make_books, stored_book
from onnx_compress.passes.cluster.weights import OVERHEAD, find_weights, replace_dense, replace_stored
from onnx_compress.runtime.layers import layer_input, weight_from_rows, weight_rows
from onnx_compress.runtime.observe import observe
from onnx_compress.runtime.requests import Moments

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from onnx_compress.contract import Job
    from onnx_compress.model.codebook import Codebook, Shared, Storage
    from onnx_compress.model.document import Model
    from onnx_compress.passes.cluster.aims import Aim
    from onnx_compress.passes.cluster.palettes import Style
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]

DAMPING = 1e-2  # of the mean input energy, added to each: inputs that were silent so far count a little
PULL = 1e-3  # relative: how strongly a layer's aim is held to its present weight
WORK = 2e11  # multiply-adds of a refit around zeros, beyond which the feedback makes up for them


@dataclass
class Solution:
    """What each weight, by number, becomes: its codebook, the bias that goes with it where it was aimed, and its error.

    errors: E‖(W − W̃) x‖² over E‖W x‖² of an aimed layer.
    """

    books: dict[int, Codebook] = field(default_factory=dict)
    biases: dict[int, Array] = field(default_factory=dict)
    errors: dict[int, float] = field(default_factory=dict)


class Study:
    """The clusterable weights of the job's model, by number; codebooks are made when first asked for and kept.

    base: the model with every weight a plain constant, and a bias of its own for each layer that can have one.
    """

    def __init__(self, job: Job, style: Style, *, exclude: str | None, storage: Storage = "packed") -> None:
        self.job = job
        self.style = style
        self.exclude = exclude
        self.storage = storage
        self.opset = opset_of(job.model)
        self.threads = job.clock.threads if job.clock is not None else 0
        found, self.skips = find_weights(Surgery(job.model), exclude)
        self.before = [weight.book for weight in found]
        self.base = _base(job.model, exclude)
        self.surgery = Surgery(self.base)
        self.weights, _ = find_weights(self.surgery, exclude)
        self.layouts = [Layout.of(weight) for weight in self.weights]
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
        found = observe(self.base, data, requests, threads=self.threads)
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
        """The weight of this number with at most `clusters` values, each weight at the nearest."""
        key = (number, clusters)
        if key not in self._books:
            layout, mass = self.layouts[number], self.masses.get(number)
            values = self.weights[number].values
            book = closest(layout, values, mass, self.style, clusters)
            if book.axis is not None and book.nbytes(self.opset, self.storage) + OVERHEAD >= values.nbytes:
                book = closest(layout, values, mass, self.style.whole, clusters)
            self._books[key] = book
        return self._books[key]

    def error(self, number: int, clusters: int) -> float:
        """Σ g (w − w̃)² / Σ g w², g the mean square of the inputs: the error of a layer whose inputs are uncorrelated."""
        values = self.weights[number].values.astype(np.float64)
        change = values - self.book(number, clusters).dense()
        mass = self.masses.get(number, np.ones(1))
        whole = float((mass * values * values).sum())
        return float((mass * change * change).sum()) / whole if whole else 0.0

    def size(self, number: int, clusters: int | None) -> int:
        """Bytes of the weight in the file, with this many values or (None) as it is."""
        if clusters is None:
            before = self.before[number]
            return int(self.weights[number].values.nbytes) if before is None else before.nbytes(self.opset)
        book = self.book(number, clusters)
        return book.nbytes(self.opset, self.storage) + OVERHEAD

    def dense(self, clusters: Sequence[int | None], solution: Solution | None = None) -> Model:
        """The model with weight i of `clusters[i]` values (None: as it is), each as a plain constant: for trying.

        Each weight is at its nearest value, or as `solution` has it.
        """
        surgery = Surgery(self.base)
        weights, _ = find_weights(surgery, self.exclude)
        for number, (weight, count) in enumerate(zip(weights, clusters, strict=True)):
            if count is not None:
                book = self._correct(surgery, weight, number, count, solution)
                replace_dense(surgery, weight, book.dense())
        return surgery.commit()

    def stored(self, clusters: Sequence[int | None], solution: Solution | None = None) -> Model:
        """The job's model with weight i stored as a codebook of `clusters[i]` values (None: as it is)."""
        surgery = Surgery(self.job.model)
        weights, _ = find_weights(surgery, self.exclude)
        shared: Shared = {}
        # > from the last: every one goes to the front of its graph
        for number in reversed(range(len(weights))):
            count = clusters[number]
            if count is not None:
                book = self._correct(surgery, weights[number], number, count, solution)
                replace_stored(surgery, weights[number], book, shared, self.storage)
        return surgery.commit()

    def solve(self, clusters: Sequence[int | None], data: Data) -> Solution:
        """Weight i with `clusters[i]` values, layer after layer, so that each gives what the original's gave.

        The weight that does this best on today's inputs is fitted first; its values then follow, with each error made up for
        by the weights not yet done, and the bias takes what is left of the mean.
        """
        solution = Solution()
        nodes = list(self.surgery.graph.nodes)
        feeds = {name: value.shape for name, value in next(iter(data.batches(1))).items()}
        every = find_aims(
            self.surgery.graph, self.weights, infer(self.base, feeds), infer(self.job.original, feeds)
        )
        aims = [aim for number, aim in every.items() if self._aimed(number, clusters[number])]
        aims.sort(key=lambda aim: aim.place)
        if not aims:
            return solution
        ahead = Ahead(self.base, self.job.original, data, aims, threads=self.threads)
        aimed = {aim.number for aim in aims}
        for number, count in enumerate(clusters):
            if count is not None and number not in aimed:
                ahead.values[self.weights[number].tensor.name] = self.book(number, count).dense()
        for done, aim in enumerate(aims):
            self.job.progress(done, len(aims), "codebooks")
            count = clusters[aim.number]
            assert count is not None
            try:
                self._solve(aim, nodes[aim.place], count, ahead, solution)
            except CompressError as error:
                name = self.weights[aim.number].name
                self.job.warnings.append(f"cluster: {name} and the layers behind it are not aimed: {error}")
                break
        return solution

    def _aimed(self, number: int, count: int | None) -> bool:
        """Whether a weight is clustered, and not to the values it has already."""
        return count is not None and self.error(number, count) > 0

    def _solve(self, aim: Aim, node: gs.Node, clusters: int, ahead: Ahead, solution: Solution) -> None:
        weight, layout = self.weights[aim.number], self.layouts[aim.number]
        rows = layout.rows(weight.values).astype(np.float64)
        bias = bias_of(node, rows.shape[0] * rows.shape[1])
        wanted = ahead.wanted(aim, rows, bias, PULL)
        zero, target, grams = rows == 0, wanted.weight, wanted.grams
        if zero.any():
            few = refit_work(~zero) <= WORK
            target = refit_rows(target, ~zero, grams) if few else np.where(zero, 0.0, target)
        # > the variance of an input that is constant comes out a little below 0, too
        energy = np.maximum(np.diagonal(grams, axis1=1, axis2=2), 0.0)
        energy = energy + DAMPING * energy.mean() + 1e-30
        mass = np.broadcast_to(energy[:, np.newaxis], rows.shape)
        style = self.style if self.book(aim.number, clusters).axis is not None else self.style.whole
        books = make_books(target, mass, layout.books(rows, style), clusters, style.kind)
        books, indices, error = fitted(target, grams, books, zero)
        book = stored_book(layout, books, indices, weight.values.dtype)
        dense = book.dense()
        solution.books[aim.number] = book
        whole = sum(output_error(part, gram) for part, gram in zip(rows, grams, strict=True))
        solution.errors[aim.number] = error / whole if whole > 0 else 0.0
        ahead.values[weight.tensor.name] = dense
        total = wanted.bias_for(layout.rows(dense).astype(np.float64))
        if total is not None:
            solution.biases[aim.number] = total
            ahead.values.update([bias_constant(node, total)])

    def _correct(
        self, surgery: Surgery, weight: Any, number: int, clusters: int, solution: Solution | None
    ) -> Codebook:
        """The codebook of the weight; and the biases of the layers that read it, before it is replaced."""
        if solution is not None and number in solution.books:
            if number in solution.biases:
                node = weight.users[0][0]
                set_bias(surgery, node, solution.biases[number], weight.values.dtype)
            return solution.books[number]
        book = self.book(number, clusters)
        change = book.dense() - weight.values
        for user, (node, _) in enumerate(weight.users):
            if (number, user) in self.means and change.any():
                correct_bias(surgery, node, change, self.means[number, user])
        return book

    def _layers(self) -> list[tuple[int, int, str, int]]:
        """(weight, which of its users, tensor it multiplies, axis of that tensor) of the layers in the main graph."""
        shapes = infer(self.base)
        main = {id(node) for node in self.surgery.graph.nodes}
        found = []
        for number, weight in enumerate(self.weights):
            for user, (node, _) in enumerate(weight.users):
                layer = layer_input(node, shapes) if id(node) in main else "in a body"
                if not isinstance(layer, str):
                    found.append((number, user, layer.tensor, layer.channel_axis))
        return found


def _base(model: Model, exclude: str | None) -> Model:
    surgery = Surgery(model)
    unfold(surgery)
    weights, _ = find_weights(surgery, exclude)
    main = {id(node) for node in surgery.graph.nodes}
    for weight in weights:
        node = weight.users[0][0]
        layered = node.op == "Conv" or (node.op in ("Gemm", "MatMul") and len(weight.shape) == 2)
        if len(weight.users) == 1 and id(node) in main and layered:
            rows = weight_rows(node, np.empty(weight.shape, np.bool_))
            bias = bias_of(node, rows.shape[0] * rows.shape[1])
            if bias is not None:
                set_bias(surgery, node, bias, weight.values.dtype)
    return surgery.commit()


def _spread(node: gs.Node, weight: Array, energy: Array) -> Array:
    """The energy of each input channel at every element of `weight` that multiplies it."""
    rows = weight_rows(node, weight)
    by_group = energy.reshape(len(rows), -1)
    by_input = np.repeat(by_group, rows.shape[2] // by_group.shape[1], axis=1)
    kernel = weight.shape[2:] if node.op.startswith("Conv") else ()
    return weight_from_rows(node, np.broadcast_to(by_input[:, None, :], rows.shape), kernel)
