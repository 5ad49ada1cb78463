"""Refits every layer of a pruned model, in the order of the graph, to what the original made of the same samples.

The aim of a layer is the original's output; on a residual branch, the original's sum less today's shortcut, so that the
branch also corrects what drifted before it (He, Zhang & Sun 2017, section 3). Before a ReLU only what passes it matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.model.surgery import Surgery
from onnx_compress.numerics.through import OPEN, Clamp, Fit
from onnx_compress.passes.prune.consumers import Consumer, bias_add, consumers
from onnx_compress.passes.prune.cut import add_bias, has_bias, store
from onnx_compress.runtime.columns import Columns, clamp_after
from onnx_compress.runtime.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]

ROUNDS = 3  # of fitting through a clamp
WIDEST = 8192  # inputs of a layer that is refitted


@dataclass(frozen=True)
class Aim:
    """What the layer at `place` among the nodes is to make: `target` of the original, less `added` of the model itself,
    as `clamp` lets it through. kept: the target's channels that are left.
    """

    place: int
    reader: Consumer
    target: str
    added: str | None
    clamp: Clamp
    kept: Array


def refit(
    model: Model,
    original: Model,
    shapes: Mapping[str, Shape],
    units: Sequence[Unit],
    data: Data,
    *,
    threads: int,
    damping: float,
    progress: Callable[[int, int, str], None],
) -> Model:
    """`model` (already cut) with every layer that the cut touched, and can be refitted, refitted.

    shapes: of `original`, whose nodes and those of `model` run once on `data`.
    """
    model = _with_biases(model, units)
    surgery = Surgery(model)
    aims = _aims(surgery, _kept_outputs(original, shapes, units), _cut_weights(units), shapes)
    if not aims:
        return model
    makers = {name: i for i, node in enumerate(original.proto.graph.node) for name in node.output}
    present, past = _walks(model, original, data, aims, makers, threads)
    names = {aim.reader.name: _parameters(aim.reader) for aim in aims}
    fitted: dict[str, Array] = {}

    def edit(part: Model) -> Model:
        return _with_values(part, fitted)

    for done, aim in enumerate(aims):
        progress(done, len(aims), "refitting")
        present.advance(aim.place, edit)
        past.advance(makers[aim.target] + 1)
        columns = Columns(aim.reader.layer, aim.target, aim.added, aim.kept, present, past)
        _solve(surgery, aim, columns, damping)
        for tensor in names[aim.reader.name]:
            fitted[tensor.name] = np.asarray(tensor.values)
    return _with_values(model, fitted)


def _walks(
    model: Model,
    original: Model,
    data: Data,
    aims: Sequence[Aim],
    makers: Mapping[str, int],
    threads: int,
) -> tuple[Walk, Walk]:
    """Walks through the model and the original that hold what the aims need until it is needed."""
    own: dict[str, int] = {}
    other: dict[str, int] = {}
    reached = 0
    for aim in aims:
        reached = max(reached, makers[aim.target] + 1)
        other[aim.target] = reached
        for name in (aim.reader.layer.tensor, aim.added):
            if name is not None:
                own[name] = aim.place
    return Walk(model, data, own, threads=threads), Walk(original, data, other, threads=threads)


def _solve(surgery: Surgery, aim: Aim, columns: Columns, damping: float) -> None:
    """The weight, and the bias where there is one, that come closest to the aim."""
    reader = aim.reader
    rows, bias = reader.rows(), has_bias(reader)
    before = np.broadcast_to(_bias(reader), (rows.shape[0] * rows.shape[1],))
    fit = Fit(rows, before.reshape(rows.shape[:2]), bias=bias, damping=damping)
    fit.plain(columns)
    if aim.clamp != OPEN:
        for _ in range(ROUNDS):
            fit.round(columns, aim.clamp)
    store(reader, fit.weight)
    if bias:
        add_bias(surgery, reader, fit.shift.ravel() - before)


def _bias(reader: Consumer) -> Array:
    """The layer's bias as it is, (N,) or a scalar zero."""
    add = bias_add(reader.node)
    if add is not None:
        return np.asarray(next(t for t in add.inputs if isinstance(t, gs.Constant)).values, np.float64)
    if len(reader.node.inputs) > 2 and isinstance(reader.node.inputs[2], gs.Constant):
        beta = float(reader.node.attrs.get("beta", 1.0)) if reader.node.op == "Gemm" else 1.0
        return beta * np.asarray(reader.node.inputs[2].values, np.float64)
    return np.zeros(1)


def _parameters(reader: Consumer) -> list[gs.Constant]:
    """The weight of a layer, and the bias that belongs to it."""
    node = bias_add(reader.node)
    extra = list(node.inputs) if node is not None else list(reader.node.inputs)[2:]
    return [reader.weight, *(tensor for tensor in extra if isinstance(tensor, gs.Constant))]


def _with_biases(model: Model, units: Sequence[Unit]) -> Model:
    """Every layer that a cut touched with a bias of its own, zero where it had none."""
    surgery = Surgery(model)
    for reader in _touched(surgery, _cut_weights(units)):
        if has_bias(reader) and len(reader.weight.outputs) == 1:
            outputs = reader.rows().shape
            add_bias(surgery, reader, np.zeros(outputs[0] * outputs[1]))
    return surgery.commit()


def _with_values(model: Model, values: Mapping[str, Array]) -> Model:
    """`model` with other values in these of its weights."""
    edited = model.copy()
    for tensor in edited.proto.graph.initializer:
        if tensor.name in values:
            edited.set_array(tensor, values[tensor.name])
    return edited


def _cut_weights(units: Sequence[Unit]) -> set[str]:
    return {name for unit in units for name, _ in unit.places}


def _kept_outputs(original: Model, shapes: Mapping[str, Shape], units: Sequence[Unit]) -> dict[str, Array]:
    """For every layer of the original that can be aimed at: which of its output channels stay."""
    return {
        reader.name: np.flatnonzero(reader.kept(list(units), reader.outer))
        for reader in consumers(Surgery(original), shapes)
        if reader.output and reader.node.op != "ConvTranspose" and reader.rows().shape[2] <= WIDEST
    }


def _touched(surgery: Surgery, cut_weights: set[str]) -> list[Consumer]:
    """The layers that a cut changed, themselves or what they read, in the order of the graph."""
    readers = {id(reader.node): reader for reader in consumers(surgery, {})}
    drifted: set[str] = set()
    found = []
    for node in surgery.graph.nodes:
        if any(tensor.name in drifted or tensor.name in cut_weights for tensor in node.inputs):
            drifted.update(tensor.name for tensor in node.outputs)
            if id(node) in readers:
                found.append(readers[id(node)])
    return found


def _aims(
    surgery: Surgery, kept: Mapping[str, Array], cut_weights: set[str], shapes: Mapping[str, Shape]
) -> list[Aim]:
    """The aims of the layers that a cut touched; a tied weight serves another layer too, and stays."""
    places = {id(node): place for place, node in enumerate(surgery.graph.nodes)}
    written = {tensor.name: places[id(node)] for node in surgery.graph.nodes for tensor in node.outputs}
    exits = {tensor.name for tensor in surgery.graph.outputs}
    aims = []
    for reader in _touched(surgery, cut_weights):
        if reader.name not in kept or len(reader.weight.outputs) > 1:
            continue
        place = places[id(reader.node)]
        output = (bias_add(reader.node) or reader.node).outputs[0]
        target, added = output, None
        shortcut = None if output.name in exits else _shortcut(output, shapes)
        # a shortcut not yet met in graph order is refitted after this branch, and corrects it in turn
        if shortcut is not None and written.get(shortcut.name, place) < place:
            target, added = output.outputs[0].outputs[0], shortcut.name
        clamp = OPEN if target.name in exits else clamp_after(target)
        aims.append(Aim(place, reader, target.name, added, clamp, kept[reader.name]))
    return aims


def _shortcut(output: gs.Tensor, shapes: Mapping[str, Shape]) -> gs.Tensor | None:
    """The tensor of the same shape that the Add after a layer, its output's only reader, adds to it."""
    if len(output.outputs) != 1 or output.outputs[0].op != "Add":
        return None
    others = [t for t in output.outputs[0].inputs if t is not output and not isinstance(t, gs.Constant)]
    if len(others) == 1 and shapes.get(others[0].name) == shapes.get(output.name) is not None:
        return others[0]
    return None
