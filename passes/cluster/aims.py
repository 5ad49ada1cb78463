"""What each clustered layer is to give: the original's output, seen through what today's model feeds it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.model.shapes import infer
from onnx_compress.numerics.through import OPEN, Clamp, Fit
from onnx_compress.passes.cluster.bias import adder, bias_of
from onnx_compress.runtime.columns import Columns, Targets
from onnx_compress.runtime.layers import LayerInput, layer_input, own_bias, weight_index, weight_rows
from onnx_compress.runtime.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.passes.cluster.weights import Weight
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]

WIDEST = 4096  # inputs of a layer that is aimed
GRAMS = 1 << 28  # bytes of a layer's Gram matrices
BUDGET = 1 << 30  # bytes of activations held while walking
FEWEST = 32  # samples, whatever their size
ROUNDS = 2  # of fitting through a clamp


@dataclass(frozen=True)
class Aim:
    """The layer of weight `number`, at `place` among the nodes: it is to give `target` of the original less `added` of today's
    model, as `clamp` lets it through.
    """

    number: int
    place: int
    layer: LayerInput
    target: str
    added: str | None
    clamp: Clamp


@dataclass(frozen=True)
class Wanted:
    """The dense weight that a layer is to be clustered from. weight (groups, N, K); bias (groups, N), None where it has none.

    grams (groups, K, K): of today's inputs, centred where there is a bias; means (groups, K).
    """

    weight: Array
    bias: Array | None
    grams: Array
    means: Array

    def bias_for(self, weight: Array) -> Array | None:
        """The bias that goes with another weight, (outputs,): b + (W − W̃) E[x]."""
        if self.bias is None:
            return None
        found: Array = self.bias + np.einsum("gnk,gk->gn", self.weight - weight, self.means)
        return found.reshape(-1)


def find_aims(
    graph: gs.Graph,
    weights: Sequence[Weight],
    shapes: Mapping[str, Shape],
    original: Mapping[str, Shape],
) -> dict[int, Aim]:
    """The aims, by number, of the weights with one reader, a layer of the main graph whose output the original has too."""
    places = {id(node): place for place, node in enumerate(graph.nodes)}
    written = {tensor.name: place for place, node in enumerate(graph.nodes) for tensor in node.outputs}
    targets = Targets(original, shapes, written, {tensor.name for tensor in graph.outputs})
    aims: dict[int, Aim] = {}
    for number, weight in enumerate(weights):
        node = weight.users[0][0]
        if len(weight.users) > 1 or id(node) not in places:
            continue
        layer = layer_input(node, shapes)
        if isinstance(layer, str) or layer.kind == "transpose" or float(node.attrs.get("alpha", 1.0)) != 1.0:
            continue
        rows = weight_rows(node, np.empty(weight.tensor.shape, np.bool_))
        if rows.shape[2] > WIDEST or 8 * rows.shape[0] * rows.shape[2] ** 2 > GRAMS:
            continue
        outputs = rows.shape[0] * rows.shape[1]
        added = own_bias(node, outputs)
        if bias_of(node, outputs) is None and (added is None or added.any()):
            continue  # > what it gives is not its product alone
        place = places[id(node)]
        target = targets.of(_output(node, shapes), place)
        if target is not None and weight.users[0][1] == weight_index(node):
            aims[number] = Aim(number, place, layer, target.tensor, target.added, target.clamp)
    return aims


def _output(node: gs.Node, shapes: Mapping[str, Shape]) -> gs.Tensor:
    """What the layer gives: behind the Add that holds a MatMul's bias."""
    own = node.outputs[0]
    add = adder(node)
    size = shapes.get(own.name, (None,))[-1]
    biased = add is not None and isinstance(size, int) and bias_of(node, size) is not None
    return add.outputs[0] if add is not None and biased else own


class Ahead:
    """Walks through the model, as it is clustered so far, and the original, that stop at each aim in turn."""

    def __init__(
        self, model: Model, original: Model, data: Data, aims: Sequence[Aim], *, threads: int
    ) -> None:
        data = data.take(_affordable(model, data))
        self._makers = {name: i for i, node in enumerate(original.proto.graph.node) for name in node.output}
        own: dict[str, int] = {}
        other: dict[str, int] = {}
        reached = 0
        for aim in aims:
            reached = max(reached, self._makers[aim.target] + 1)
            other[aim.target] = reached
            for name in (aim.layer.tensor, aim.added):
                if name is not None:
                    own[name] = aim.place
        self._present = Walk(model, data, own, threads=threads)
        self._past = Walk(original, data, other, threads=threads)
        self.values: dict[str, Array] = {}  # of weights and biases, by name, as they are from now on

    def wanted(self, aim: Aim, rows: Array, bias: Array | None, damping: float) -> Wanted:
        """The weight that comes closest to the aim; `rows` (groups, N, K) and `bias` (outputs,) are the present ones."""
        self._present.advance(aim.place, self._edit)
        self._past.advance(self._makers[aim.target] + 1)
        columns = Columns(aim.layer, aim.target, aim.added, None, self._present, self._past)
        shift = np.zeros(rows.shape[:2]) if bias is None else bias.reshape(rows.shape[:2])
        fit = Fit(rows, shift, bias=bias is not None, damping=damping)
        fit.plain(columns)
        for _ in range(0 if aim.clamp == OPEN else ROUNDS):
            fit.round(columns, aim.clamp)
        return Wanted(fit.weight, None if bias is None else fit.shift, np.stack(fit.grams), fit.mean)

    def _edit(self, part: Model) -> Model:
        edited = part.copy()
        for tensor in edited.proto.graph.initializer:
            if tensor.name in self.values:
                edited.set_array(tensor, self.values[tensor.name])
        return edited


def _affordable(model: Model, data: Data) -> int:
    """Samples whose activations both walks can hold: each holds about the three largest tensors."""
    feeds = next(iter(data.batches(1)))
    shapes = infer(model, {name: value.shape for name, value in feeds.items()})
    weights = {tensor.name for tensor in model.proto.graph.initializer}
    sizes = sorted(
        math.prod(axis for axis in shape if isinstance(axis, int))
        for name, shape in shapes.items()
        if name not in weights
    )
    return max(BUDGET // (2 * 4 * max(sum(sizes[-3:]), 1)), FEWEST)
