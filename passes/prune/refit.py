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
from onnx_compress.passes.prune.cut import add_bias, bias_of, has_bias, store
from onnx_compress.passes.prune.rescale import Scale, scale_of
from onnx_compress.runtime.columns import Columns, Target, Targets
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
QUICK = 0.33  # of the columns, where many fits are only compared
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

    def columns(self, present: Walk, original: Walk, share: float) -> Columns:
        """What the layer reads and should make."""
        return Columns(self.reader.layer, self.target, self.added, self.kept, present, original, share)


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
    quick: bool = False,
    variance: bool = False,
) -> Model:
    """`model` (already cut) with every layer that the cut touched, and can be refitted, refitted.

    shapes: of `original`, whose nodes and those of `model` run once on `data`; quick: on fewer columns, in one round;
    variance: each output of a refitted layer is scaled to vary as its aim does.
    """
    model = _with_biases(model, original, units)
    surgery = Surgery(model)
    steps = _steps(surgery, original, units, shapes)
    if not steps:
        return model
    makers = {name: i for i, node in enumerate(original.proto.graph.node) for name in node.output}
    present, past = _walks(model, original, data, steps, makers, threads)
    fitted: dict[str, Array] = {}

    def edit(part: Model) -> Model:
        return _with_values(part, fitted)

    for done, step in enumerate(steps):
        progress(done, len(steps), "refitting")
        past.advance(makers[step.target] + 1)
        if isinstance(step, Scale):
            present.advance(step.place + 1, edit)
            step.apply(present, past)
            changed = [tensor for tensor in (step.weight, step.shift) if tensor is not None]
        else:
            present.advance(step.place, edit)
            columns = step.columns(present, past, QUICK if quick else 1.0)
            _solve(surgery, step, columns, damping, 1 if quick else ROUNDS, variance=variance)
            changed = _parameters(step.reader)
        fitted.update((tensor.name, np.asarray(tensor.values)) for tensor in changed)
    return _with_values(model, fitted)


def _walks(
    model: Model,
    original: Model,
    data: Data,
    steps: Sequence[Aim | Scale],
    makers: Mapping[str, int],
    threads: int,
) -> tuple[Walk, Walk]:
    """Walks through the model and the original that hold what the steps need until it is needed."""
    own: dict[str, int] = {}
    other: dict[str, int] = {}
    reached = 0
    for step in steps:
        reached = max(reached, makers[step.target] + 1)
        other[step.target] = max(other.get(step.target, 0), reached)
        if isinstance(step, Scale):
            own[step.target] = max(own.get(step.target, 0), step.place + 1)
            continue
        for name in (step.reader.layer.tensor, step.added):
            if name is not None:
                own[name] = max(own.get(name, 0), step.place)
    return Walk(model, data, own, threads=threads), Walk(original, data, other, threads=threads)


def _solve(
    surgery: Surgery, aim: Aim, columns: Columns, damping: float, rounds: int, *, variance: bool
) -> None:
    """The weight, and the bias where there is one, that come closest to the aim."""
    reader = aim.reader
    rows, bias = reader.rows(), has_bias(reader)
    own = bias_of(reader)
    assert own is not None
    before = np.broadcast_to(own, (rows.shape[0] * rows.shape[1],))
    fit = Fit(rows, before.reshape(rows.shape[:2]), bias=bias, damping=damping)
    fit.plain(columns)
    if aim.clamp != OPEN:
        for _ in range(rounds):
            fit.round(columns, aim.clamp)
    if variance and bias:
        fit.spread(columns, aim.clamp)
    store(reader, fit.weight)
    if bias:
        add_bias(surgery, reader, fit.shift.ravel() - before)


def _outputs(reader: Consumer) -> int:
    """How many outputs the layer has."""
    return int(reader.weight.shape[reader.outer])


def _parameters(reader: Consumer) -> list[gs.Constant]:
    """The weight of a layer, and the bias that belongs to it."""
    node = bias_add(reader.node)
    extra = list(node.inputs) if node is not None else list(reader.node.inputs)[2:]
    return [reader.weight, *(tensor for tensor in extra if isinstance(tensor, gs.Constant))]


def _with_biases(model: Model, original: Model, units: Sequence[Unit]) -> Model:
    """Every layer that a cut touched with a bias of its own, zero where it had none."""
    surgery = Surgery(model)
    touched = {id(node) for node in _touched(surgery, original, _cut_weights(units))}
    for reader in consumers(surgery, {}):
        if id(reader.node) in touched and has_bias(reader) and len(reader.weight.outputs) == 1:
            add_bias(surgery, reader, np.zeros(_outputs(reader)))
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


def _touched(surgery: Surgery, original: Model, cut_weights: set[str]) -> list[gs.Node]:
    """The nodes that read what a cut changed, or whose output is added to it, in the order of the graph.

    A layer that only lost outputs makes the others as before. Where a branch is gone, another node than in the original
    makes a tensor, or reads one.
    """
    past = {node.name: (set(node.input), set(node.output)) for node in original.proto.graph.node}
    drifted: set[str] = set()
    for node in surgery.graph.nodes:
        read, made = past.get(node.name, (set(), set()))
        drifted.update(tensor.name for tensor in node.outputs if tensor.name not in made)
        drifted.update(tensor.name for tensor in node.inputs if tensor.inputs and tensor.name not in read)
    found = []
    for node in surgery.graph.nodes:
        reads = any(tensor.name in drifted for tensor in node.inputs)
        sums = [user for out in node.outputs for user in out.outputs if user.op == "Add"]
        beside = [tensor for user in sums for tensor in [*user.inputs, *user.outputs]]
        if reads or any(tensor.name in drifted for tensor in [*node.outputs, *beside]):
            found.append(node)
        if reads or any(tensor.name in cut_weights for tensor in node.inputs):
            drifted.update(tensor.name for tensor in node.outputs)
    return found


def _steps(
    surgery: Surgery, original: Model, units: Sequence[Unit], shapes: Mapping[str, Shape]
) -> list[Aim | Scale]:
    """What can be refitted or rescaled of what a cut touched; a tied weight serves another layer too, and stays."""
    kept = _kept_outputs(original, shapes, units)
    readers = {id(reader.node): reader for reader in consumers(surgery, {}) if reader.output}
    places = {id(node): place for place, node in enumerate(surgery.graph.nodes)}
    written = {
        tensor.name: place for place, node in enumerate(surgery.graph.nodes) for tensor in node.outputs
    }
    # > the names and the ties are the same in both models, the sizes of the original's
    targets = Targets(shapes, shapes, written, {tensor.name for tensor in surgery.graph.outputs})
    sizes = {tensor.name: list(tensor.dims) for tensor in original.proto.graph.initializer}
    made = {name for node in original.proto.graph.node for name in node.output}
    steps: list[Aim | Scale] = []
    for node in _touched(surgery, original, _cut_weights(units)):
        reader = readers.get(id(node))
        if reader is not None and (len(reader.weight.outputs) > 1 or bias_of(reader) is None):
            continue
        if reader is not None and reader.name in kept:
            output = (bias_add(reader.node) or reader.node).outputs[0]
            aim = targets.of(output, places[id(node)]) or Target(output.name, None, OPEN)
            steps.append(Aim(places[id(node)], reader, aim.tensor, aim.added, aim.clamp, kept[reader.name]))
        else:
            scale = scale_of(node, reader, places, units, sizes)
            if scale is not None and scale.target in made:
                steps.append(scale)
    return steps
