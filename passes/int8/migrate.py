"""Factors that move from an activation's channels into the weights that read them: what is computed stays the same.

x' = x / s and W' = W s, where s divides the rows of the layer before (cross-layer equalization, Nagel et al. 2019,
arXiv:1906.04721) or the scale of the normalisation before (SmoothQuant, Xiao et al. 2022, arXiv:2211.10438).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.model.domains import is_standard
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.int8.kinds import clip_bounds
from onnx_compress.runtime.layers import weight_rows
from onnx_compress.runtime.observe import Extremes, Moments, observe

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]

Wish = Literal["auto"] | bool
SAMPLES = 32  # on which channels are looked at
ALONE = 24  # layers at most that are each measured alone
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the activation's share in a factor; 0 alone with no factor at all
FARTHEST = 64.0  # a factor is between this and its reciprocal
BETTER = 0.95  # of the error without: less is what a few samples cannot tell
ROOM = 0.5  # of a Clip's bound, that a channel which never reached it may come to reach
STEPS = 255.0  # of an activation's range
LEVELS = 127.0  # of a weight's
WORTH = 0.7  # of the error foreseen without: factors that promise less are left alone
MOVED = {
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Dropout",
}  # act on each channel by itself, and scale with it


@dataclass(frozen=True)
class Chain:
    """A tensor whose channels may be scaled: who makes it, who reads it.

    maker: Conv, Gemm, MatMul or LayerNormalization; top: the bound of the Clip between, or infinity;
    axis: of the channels; readers: layers, each with the channels on its K.
    """

    maker: str
    tensor: str
    axis: int
    top: float
    readers: tuple[str, ...]
    smooth: bool


def chains(graph: gs.Graph) -> Iterator[Chain]:
    """Every such tensor of the main graph."""
    outputs = {id(tensor) for tensor in graph.outputs}
    named = Counter(node.name for node in graph.nodes)
    for node in graph.nodes:
        if not node.name or named[node.name] > 1:
            continue
        if (
            node.op not in ("Conv", "Gemm", "LayerNormalization")
            or not is_standard(node)
            or not _constant(node)
        ):
            continue
        if node.op == "Gemm" and (node.attrs.get("alpha", 1.0) != 1.0 or node.attrs.get("beta", 1.0) != 1.0):
            continue
        smooth = node.op == "LayerNormalization"
        if smooth and (node.attrs.get("axis", -1) != -1 or len(node.outputs) != 1):
            continue
        tensor, top = node.outputs[0], float("inf")
        while not smooth and id(tensor) not in outputs and len(tensor.outputs) == 1:
            after = tensor.outputs[0]
            if not is_standard(after):
                break
            if after.op == "Clip" and not all(
                isinstance(bound, gs.Constant) for bound in after.inputs[1:] if bound.name
            ):
                break
            if after.op in ("Relu", "Clip"):
                low, high = clip_bounds(after)
                if low != 0.0:
                    break
                top = min(top, high)
            elif after.op not in ("LeakyRelu", *MOVED) and not _pads_with_zeros(after):
                break
            tensor = after.outputs[0]
        axis = -1 if smooth else 1
        if (
            id(tensor) in outputs
            or not tensor.outputs
            or len({id(r) for r in tensor.outputs}) != len(tensor.outputs)
        ):
            continue
        if all(_reads(r, tensor, axis) and named[r.name] == 1 for r in tensor.outputs):
            yield Chain(node.name, tensor.name, axis, top, tuple(r.name for r in tensor.outputs), smooth)


def _pads_with_zeros(node: gs.Node) -> bool:
    """Whether a Pad adds nothing but zeros, and no channels."""
    if node.op != "Pad" or node.attrs.get("mode", "constant") != "constant":
        return False
    pads, *rest = node.inputs[1:] or [None]
    if not isinstance(pads, gs.Constant) or len(pads.shape) != 1 or any(tensor.name for tensor in rest[1:]):
        return False
    ends = np.asarray(pads.values).reshape(2, -1)
    zero = all(isinstance(t, gs.Constant) and not np.any(t.values) for t in rest if t.name)
    return zero and ends.shape[1] > 2 and not ends[:, :2].any()


def _constant(node: gs.Node) -> bool:
    """Whether all that a layer multiplies and adds is a float32 constant that nobody else reads."""
    parts = [tensor for tensor in node.inputs[1:] if tensor.name]
    return bool(parts) and all(
        isinstance(part, gs.Constant) and np.dtype(part.dtype) == np.float32 and len(part.outputs) == 1
        for part in parts
    )


def _reads(node: gs.Node, tensor: gs.Tensor, axis: int) -> bool:
    """Whether a layer multiplies the channels of `tensor` by a weight of its own."""
    if node.op not in ("Conv", "Gemm", "MatMul") or len(node.inputs) < 2 or node.inputs[0] is not tensor:
        return False
    if not is_standard(node):
        return False
    weight = node.inputs[1]
    if (
        not isinstance(weight, gs.Constant)
        or np.dtype(weight.dtype) != np.float32
        or len(weight.outputs) != 1
    ):
        return False
    if node.op == "Conv":
        return axis == 1
    if node.op == "Gemm" and (node.attrs.get("transA", 0) or axis not in (1, -1)):
        return False
    return len(weight.shape) == 2 and (node.op == "Gemm" or axis == -1)


def foreseen(scale: Array, reach: Array, energy: Array, weights: list[Array]) -> float:
    """The error of the readers' outputs that rounding is expected to make, up to a constant, with factors `scale`.

    Δ²/12 Σ_j ‖W_:j s_j‖² for the activation, whose step Δ is that of its widest channel, and Σ_n δ_n²/12 Σ_j E[x_j²]/s_j² for
    the weights, δ_n the step of row n. reach, energy (C,): max|x| and E[x²]; weights: |W| of each reader as (groups, N/groups,
    C/groups, taps).
    """
    step = float((reach / scale).max()) / STEPS
    total = 0.0
    for weight in weights:
        groups, _, each, taps = weight.shape
        scaled = weight * scale.reshape(groups, 1, each, 1)
        steps = scaled.max(axis=(2, 3)) / LEVELS
        total += step**2 * float(np.square(scaled).sum())
        total += taps * float(
            np.square(steps).sum(axis=1) @ (energy / scale**2).reshape(groups, each).sum(axis=1)
        )
    return total


def factors(chain: Chain, reach: Array, energy: Array, weights: list[Array]) -> Array | None:
    """The factors of least foreseen error, or None where none promises enough.

    They are max|x|^p / max|W|^(1−p), p of POWERS. Below a Clip, a channel that reaches its bound keeps its size, and no
    other may come to reach more than ROOM of it.
    """
    widest = np.max([weight.max(axis=(1, 3)).reshape(-1) for weight in weights], axis=0)
    alive = (reach > 0) & (widest > 0)
    if not alive.any():
        return None
    best, least = None, WORTH * foreseen(np.ones_like(reach), reach, energy, weights)
    for power in POWERS:
        scale = np.ones_like(reach)
        scale[alive] = reach[alive] ** power / widest[alive] ** (1 - power)
        scale = _bounded(scale, reach, alive, chain.top)
        error = foreseen(scale, reach, energy, weights)
        if error < least:
            best, least = scale, error
    return best


def _bounded(scale: Array, reach: Array, alive: Array, top: float) -> Array:
    """Factors around 1, and such that a Clip at `top` does what it did."""
    touching = alive & (reach >= top * (1 - 1e-6))
    middle = np.exp(np.log(scale[touching if touching.any() else alive]).mean())
    scale = np.clip(scale / middle, 1 / FARTHEST, FARTHEST)
    if np.isfinite(top):
        scale = np.maximum(scale, reach / (ROOM * top))
        scale[touching] = 1.0
    scale[~alive] = 1.0
    return np.asarray(scale.astype(np.float32), np.float64)


def migrated(
    model: Model, data: Data, chosen: Callable[[Chain], bool], threads: int = 0
) -> tuple[Model, list[str]]:
    """The model with factors moved along the chosen chains that promise less error, and the makers of these."""
    surgery = Surgery(model)
    nodes = {node.name: node for node in surgery.graph.nodes}
    found = [chain for chain in chains(surgery.graph) if chosen(chain)]
    asked = [(Extremes(chain.tensor, chain.axis), Moments(chain.tensor, chain.axis)) for chain in found]
    seen = (
        observe(model, data, [request for pair in asked for request in pair], threads=threads)
        if asked
        else {}
    )
    changed = []
    for chain, (extremes, moments) in zip(found, asked, strict=True):
        low, high = seen[extremes]
        energy = seen[moments].var + np.square(seen[moments].mean)
        readers = [nodes[name] for name in chain.readers]
        weights = [_by_channel(reader, len(low)) for reader in readers]
        if not all(np.isfinite(weight).all() for weight in weights):
            continue
        scale = factors(chain, np.maximum(-low, high), energy, weights)
        if scale is None:
            continue
        _divide(surgery, nodes[chain.maker], scale)
        for reader in readers:
            _multiply(surgery, reader, scale)
        changed.append(chain.maker)
    return (surgery.commit(), changed) if changed else (model, [])


def balanced(
    model: Model,
    data: Data,
    keep: Collection[str],
    wanted: Mapping[bool, Wish],
    error: Callable[[Model], float],
    threads: int = 0,
) -> tuple[Model, list[str]]:
    """The model after equalization and smoothing as they are wished for, and the makers of the tensors that were scaled.

    keep: nodes that are left alone; wanted: of smoothing (True) and equalization (False); error: what a model has once it is
    quantized. "auto": kept if that lowers it; smoothing layer by layer first.
    """
    names: list[str] = []
    for smooth, wish in wanted.items():
        if wish is False:
            continue

        def chosen(chain: Chain, smooth: bool = smooth) -> bool:
            return chain.smooth == smooth and not {chain.maker, *chain.readers} & set(keep)

        tried, found = migrated(model, data.take(SAMPLES), chosen, threads)
        if not found:
            continue
        if wish is True:
            model, names = tried, names + found
            continue
        before = error(model) * BETTER
        if smooth and 1 < len(found) <= ALONE:
            good = [name for name in found if error(_only(model, data, {name}, threads)[0]) < before]
            tried, found = _only(model, data, set(good), threads)
        if found and error(tried) < before:
            model, names = tried, names + found
    return model, names


def _only(model: Model, data: Data, makers: set[str], threads: int) -> tuple[Model, list[str]]:
    """The model with factors moved from these makers alone."""
    return migrated(model, data.take(SAMPLES), lambda chain: chain.maker in makers, threads)


def _by_channel(node: gs.Node, channels: int) -> Array:
    """|W| of a layer as (groups, N/groups, C/groups, taps)."""
    rows = np.abs(np.asarray(weight_rows(node, node.inputs[1].values), np.float64))
    return rows.reshape(*rows.shape[:2], channels // len(rows), -1)


def _divide(surgery: Surgery, node: gs.Node, scale: Array) -> None:
    """The node's outputs are divided by `scale`."""
    for at in (1, 2):
        if len(node.inputs) <= at or not node.inputs[at].name:
            continue
        value = np.asarray(node.inputs[at].values, np.float64)
        if at == 1 and node.op == "Conv":
            value = value / scale.reshape(-1, *[1] * (value.ndim - 1))
        elif at == 1 and node.op == "Gemm" and node.attrs.get("transB", 0):
            value = value / scale[:, np.newaxis]
        else:
            value = value / scale
        _put(surgery, node, at, value)


def _multiply(surgery: Surgery, node: gs.Node, scale: Array) -> None:
    """The columns of the node's weight are multiplied by `scale`."""
    value = np.asarray(node.inputs[1].values, np.float64)
    if node.op == "Conv":
        groups = int(node.attrs.get("group", 1))
        parts = value.reshape(groups, value.shape[0] // groups, value.shape[1], -1)
        value = (parts * scale.reshape(groups, 1, -1, 1)).reshape(value.shape)
    elif node.op == "Gemm" and node.attrs.get("transB", 0):
        value = value * scale
    else:
        value = value * scale[:, np.newaxis]
    _put(surgery, node, 1, value)


def _put(surgery: Surgery, node: gs.Node, at: int, value: Array) -> None:
    node.inputs[at] = surgery.constant(node.inputs[at].name, value.astype(np.float32))
