"""Takes units out of a model, and lets what remains of each consumer make up for them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.model.channels import Channels
from onnx_compress.model.surgery import Surgery
from onnx_compress.numerics.leastsquares import centred
from onnx_compress.numerics.leastsquares import refit as fitted
from onnx_compress.numerics.ridge import evidence
from onnx_compress.passes.prune.consumers import Consumer, bias_add, consumers
from onnx_compress.passes.prune.curves import dense
from onnx_compress.runtime.layers import own_bias, weight_from_rows, weight_index

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.runtime.layers import LayerInput
    from onnx_compress.runtime.requests import GramStat

    Array = NDArray[Any]

Repair = Literal["least-squares", "bias", "none"]


def cut(
    model: Model,
    shapes: Mapping[str, Shape],
    units: Sequence[Unit],
    grams: Mapping[LayerInput, GramStat],
    repair: Repair,
    damping: float,
) -> Model:
    """`model` without `units`, each consumer of theirs refitted on the statistics of the whole model's activations."""
    surgery = Surgery(model)
    channels = Channels(surgery, dict(shapes))
    units = channels.removable(units)
    if repair != "none":
        for reader in consumers(surgery, shapes):
            gone = [unit for unit in units if (reader.weight.name, reader.inner) in unit.places]
            if gone and reader.layer in grams:
                _absorb(surgery, reader, gone, grams[reader.layer], repair, damping)
                _label_bias(channels, reader)
    channels.remove(units)
    return surgery.commit()


def _absorb(
    surgery: Surgery, reader: Consumer, gone: Sequence[Unit], stat: GramStat, repair: Repair, damping: float
) -> None:
    """The columns of `gone` become zero, those that stay and the bias take over what can be taken over."""
    dead = np.unique(np.concatenate([reader.columns(unit) for unit in gone]))
    rows = reader.rows()
    keep = np.setdiff1d(np.arange(rows.shape[2]), dead)
    alone = len(reader.weight.outputs) == 1  # a tied weight serves another layer too
    shift = np.zeros(rows.shape[:2])
    for group, (gram, mean) in enumerate(zip(dense(stat), stat.mean, strict=True)):
        before = rows[group].copy()
        rows[group][:, dead] = 0
        if repair == "least-squares" and alone:
            covariance = centred(gram, mean) if has_bias(reader) else gram
            level = evidence(before, covariance, keep, stat.count, damping)
            rows[group][:, keep] = fitted(before, covariance, keep, level)
        shift[group] = (before - rows[group]) @ mean
    if alone:
        store(reader, rows)
        add_bias(surgery, reader, shift.ravel())


def _label_bias(channels: Channels, reader: Consumer) -> None:
    """A bias that the repair made or un-shared has the labels of the layer's outputs."""
    node = bias_add(reader.node) or reader.node
    for tensor in node.inputs:
        if (
            isinstance(tensor, gs.Constant)
            and tensor.name not in channels.constants
            and len(tensor.shape) == 1
        ):
            channels.tie(channels.axes(tensor)[0], channels.axes(reader.weight)[reader.outer])


def store(reader: Consumer, rows: Array) -> None:
    """Writes `rows` (groups, N/groups, K) back as the stored weight."""
    before = reader.weight.values
    if reader.node.op in ("LSTM", "GRU", "RNN"):
        value = rows[0].reshape(before.shape)
    else:
        alpha = float(reader.node.attrs.get("alpha", 1.0)) if reader.node.op == "Gemm" else 1.0
        value = weight_from_rows(reader.node, rows / (alpha or 1.0), before.shape[2:])
    reader.weight.values = np.ascontiguousarray(value, np.float32)


def has_bias(reader: Consumer) -> bool:
    """Whether a constant can be added to the layer's output without another node."""
    if reader.node.op == "ConvTranspose" and (reader.group > 1 or math.prod(reader.weight.shape[2:]) > 1):
        return (
            False  # its outputs are not an axis of its weight, or each pixel takes its own part of the kernel
        )
    if reader.node.op not in ("Conv", "ConvTranspose", "Gemm"):
        return bias_add(reader.node) is not None
    unused = len(reader.node.inputs) > 2 and reader.node.attrs.get("beta", 1.0) == 0
    return weight_index(reader.node) == 1 and bias_of(reader) is not None and not unused


def bias_of(reader: Consumer) -> Array | None:
    """What the layer adds on each of its outputs, an Add right after it included; None where that is computed or no vector."""
    outputs = int(reader.weight.shape[reader.outer])
    if reader.node.op in ("LSTM", "GRU", "RNN"):
        return np.zeros(1)
    add = bias_add(reader.node)
    if add is None:
        return own_bias(reader.node, outputs * (reader.group if reader.node.op == "ConvTranspose" else 1))
    value = np.asarray(next(t for t in add.inputs if isinstance(t, gs.Constant)).values, np.float64)
    return np.broadcast_to(value.reshape(-1), (outputs,))


def add_bias(surgery: Surgery, reader: Consumer, shift: Array) -> None:
    """Adds `shift` (N,) to the layer's bias, which is made where there is none; a layer that can have none is left."""
    add = bias_add(reader.node)
    if not has_bias(reader):
        return
    if add is not None:
        index = next(i for i, tensor in enumerate(add.inputs) if isinstance(tensor, gs.Constant))
        _shift_input(surgery, add, index, shift, 1.0)
    else:
        beta = float(reader.node.attrs.get("beta", 1.0)) if reader.node.op == "Gemm" else 1.0
        if len(reader.node.inputs) < 3 or reader.node.inputs[2].is_empty():
            zero = surgery.constant(f"{reader.name}_bias", np.zeros(len(shift), np.float32))
            reader.node.inputs = [*list(reader.node.inputs)[:2], zero]
        _shift_input(surgery, reader.node, 2, shift, beta)


def _shift_input(surgery: Surgery, node: gs.Node, index: int, shift: Array, scale: float) -> None:
    bias = node.inputs[index]
    value = np.asarray(np.asarray(bias.values) + shift / scale, np.float32)
    if len(bias.outputs) > 1:
        node.inputs[index] = surgery.constant(bias.name, value)
    else:
        bias.values = value
