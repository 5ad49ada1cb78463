"""Refits every layer of a pruned model, in topological order, to what the original made of the same samples.

The aim of a layer is the original's output; on a residual branch, the original's sum less today's shortcut, so that the
branch also corrects what drifted before it. He, Zhang & Sun 2017, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_compress.model.surgery import Surgery
from onnx_compress.numerics.leastsquares import solve, solve_with_bias
from onnx_compress.passes.prune.consumers import Consumer, bias_add, consumers
from onnx_compress.passes.prune.curves import dense
from onnx_compress.passes.prune.cut import add_bias, has_bias, store
from onnx_compress.runtime.observe import observe
from onnx_compress.runtime.requests import CrossGram, CrossStat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]


@dataclass(frozen=True)
class Aim:
    """What a layer is to make: `target` of the original, less `minus` of the model as it now is."""

    layer: str
    target: str
    minus: str | None


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
    """`model` (already cut) with every layer that can be refitted, refitted; one sweep over `data` for each depth.

    shapes: of `original`. The layers of one depth do not feed each other, so they share a sweep.
    """
    kept = _kept_outputs(original, shapes, units)
    stages = _stages(model, kept, {name for unit in units for name, _ in unit.places})
    for done, aims in enumerate(stages):
        progress(done, len(stages), "refitting")
        reference = _narrowed(original, aims, kept)
        model = _refit_stage(model, reference, aims, data, threads, damping)
    return model


def _refit_stage(
    model: Model, reference: Model, aims: Sequence[Aim], data: Data, threads: int, damping: float
) -> Model:
    surgery = Surgery(model)
    readers = {reader.name: reader for reader in consumers(surgery, {})}
    requests = {aim.layer: CrossGram(readers[aim.layer].layer, _aimed(aim), aim.minus) for aim in aims}
    found = observe(model, data, requests.values(), reference=reference, threads=threads)
    for name, request in requests.items():
        _solve(surgery, readers[name], found[request], damping)
    return surgery.commit()


def _solve(surgery: Surgery, reader: Consumer, stat: CrossStat, damping: float) -> None:
    """The weight, and the bias where there is one, that come closest to the aim."""
    rows = reader.rows()
    bias = np.zeros(rows.shape[:2])
    for group, gram in enumerate(dense(stat)):
        mean, mean_y, cross = stat.mean[group], stat.mean_y[group], stat.cross[group]
        # few columns for many inputs: the fit is drawn to the weight as it is
        level = damping + len(gram) / max(stat.count, 1)
        if has_bias(reader):
            rows[group], bias[group] = solve_with_bias(gram, mean, cross, mean_y, rows[group], damping=level)
        else:
            rows[group] = solve(gram, cross, rows[group], level)
    store(reader, rows)
    if has_bias(reader):
        add_bias(surgery, reader, bias.ravel() - _bias(reader))


def _bias(reader: Consumer) -> Array:
    """The layer's bias as it is, (N,) or a scalar zero."""
    add = bias_add(reader.node)
    if add is not None:
        return np.asarray(next(t for t in add.inputs if isinstance(t, gs.Constant)).values, np.float64)
    if len(reader.node.inputs) > 2 and isinstance(reader.node.inputs[2], gs.Constant):
        beta = float(reader.node.attrs.get("beta", 1.0)) if reader.node.op == "Gemm" else 1.0
        return beta * np.asarray(reader.node.inputs[2].values, np.float64)
    return np.zeros(1)


def _kept_outputs(
    original: Model, shapes: Mapping[str, Shape], units: Sequence[Unit]
) -> dict[str, tuple[Array, int]]:
    """For every layer of the original that can be aimed at: which of its output channels stay, and on which axis."""
    kept = {}
    for reader in consumers(Surgery(original), shapes):
        if reader.output and reader.node.op != "ConvTranspose":
            mask = reader.kept(list(units), reader.outer)
            kept[reader.name] = (np.flatnonzero(mask), reader.layer.output_axis)
    return kept


def _stages(model: Model, kept: Mapping[str, Any], cut_weights: set[str]) -> list[list[Aim]]:
    """The layers that a cut changed, themselves or what they read, by depth: how many such layers stand before each."""
    surgery = Surgery(model)
    readers = {id(reader.node): reader for reader in consumers(surgery, {}) if reader.name in kept}
    depth: dict[str, int] = {}
    drifted: set[str] = set()
    stages: dict[int, list[Aim]] = {}
    for node in surgery.graph.nodes:
        level = max((depth.get(tensor.name, 0) for tensor in node.inputs), default=0)
        changed = any(tensor.name in drifted or tensor.name in cut_weights for tensor in node.inputs)
        if changed:
            drifted.update(tensor.name for tensor in node.outputs)
        reader = readers.get(id(node)) if changed else None
        if reader is not None and len(reader.weight.outputs) == 1:
            aim, wait = _aim(reader, depth)
            level = max(level, wait)
            stages.setdefault(level, []).append(aim)
            level += 1
        for tensor in node.outputs:
            depth[tensor.name] = level
    return [stages[level] for level in sorted(stages)]


def _aim(reader: Consumer, depth: Mapping[str, int]) -> tuple[Aim, int]:
    """The layer's aim, and the depth from which on its shortcut has its final value."""
    output = next(t for t in (reader.node.outputs[0], *_next(reader.node)) if t.name == reader.output)
    if len(output.outputs) == 1 and output.outputs[0].op == "Add":
        add = output.outputs[0]
        others = [t for t in add.inputs if t is not output and not isinstance(t, gs.Constant)]
        # a shortcut not yet met in graph order is refitted after this branch, and corrects it in turn
        if len(others) == 1 and others[0].name in depth:
            return Aim(reader.name, add.outputs[0].name, others[0].name), depth[others[0].name]
    return Aim(reader.name, output.name, None), 0


def _next(node: gs.Node) -> list[gs.Tensor]:
    return [tensor for reader in node.outputs[0].outputs for tensor in reader.outputs]


def _aimed(aim: Aim) -> str:
    return f"{aim.layer}:aim"


def _narrowed(original: Model, aims: Sequence[Aim], kept: Mapping[str, tuple[Array, int]]) -> Model:
    """The original with every target cut to the channels that stay, as tensors of their own."""
    model = original.copy()
    graph = model.proto.graph
    for aim in aims:
        index, axis = kept[aim.layer]
        name = f"{_aimed(aim)} index"
        graph.initializer.append(model.tensor(index.astype(np.int64), name))
        graph.node.append(onnx.helper.make_node("Gather", [aim.target, name], [_aimed(aim)], axis=axis))
    return model
