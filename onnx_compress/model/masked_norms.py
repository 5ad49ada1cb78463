"""Means and variances over channels, spelled out in plain ops and taken over those that stay.

x ↦ (x − mean) / √(var + ε), with mean = Σ m x / Σ m for the mask m of what stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.model.masks import Steps

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from onnx_compress.model.masks import Mask

    Array = NDArray[Any]


def _share(mask: Mask, tensor: gs.Tensor, axes: list[int]) -> tuple[Array, float]:
    """The mask over these axes, broadcasting onto the tensor, and one over the share that stays."""
    rank = len(mask.channels.axes(tensor))
    share = np.ones([1] * rank)
    for axis in axes:
        shape = [1] * rank
        shape[axis] = -1
        share = share * mask.kept(tensor, axis).reshape(shape)
    return share, share.size / max(float(share.sum()), 1.0)


def _normalised(
    steps: Steps, x: gs.Tensor, share: Array, factor: float, axes: list[int], *, centre: bool
) -> gs.Tensor:
    """`x` normalised over `axes` where `share` is 1."""
    node = steps.node
    scale, kept = steps.constant(factor), steps.constant(share)
    if centre:
        mean = steps.op("Mul", steps.reduce("ReduceMean", steps.op("Mul", x, kept), axes), scale)
        x = steps.op("Sub", x, mean)
    x = steps.op("Mul", x, kept)
    variance = steps.op("Mul", steps.reduce("ReduceMean", steps.op("Mul", x, x), axes), scale)
    epsilon = steps.constant(_epsilon(node))
    return steps.op("Div", x, steps.op("Sqrt", steps.op("Add", variance, epsilon)))


def _epsilon(node: gs.Node) -> float:
    """As the node has it, in float32 though all else is float64: a default of 1e-5 is 9.99999975e-6 there."""
    return float(np.float32(node.attrs.get("epsilon", 1e-12 if node.domain else 1e-5)))


def _layer(mask: Mask, node: gs.Node) -> None:
    data = node.inputs[0]
    rank = len(mask.channels.axes(data))
    axes = list(range(int(node.attrs.get("axis", -1)) % rank, rank))
    share, factor = _share(mask, data, axes)
    if share.all():
        return
    steps = Steps(mask, node)
    y = _normalised(steps, data, share, factor, axes, centre=node.op == "LayerNormalization")
    for kind, parameter in zip(("Mul", "Add"), node.inputs[1:], strict=False):
        if not parameter.is_empty():
            y = steps.op(kind, y, parameter)
    steps.finish({0: y})


def _instance(mask: Mask, node: gs.Node) -> None:
    data, scale, shift = node.inputs
    rank = len(mask.channels.axes(data))
    axes = list(range(2, rank))
    share, factor = _share(mask, data, axes)
    if share.all():
        return
    steps = Steps(mask, node)
    y = _normalised(steps, data, share, factor, axes, centre=True)
    shape = steps.constant([-1, *[1] * (rank - 2)], np.int64)
    y = steps.op("Mul", y, steps.op("Reshape", scale, shape))
    steps.finish({0: steps.op("Add", y, steps.op("Reshape", shift, shape))})


def _group(mask: Mask, node: gs.Node) -> None:
    """Each group in turn is reshaped to one axis; as many channels stay in each group that stays."""
    data, scale, shift = node.inputs
    rank, groups = len(mask.channels.axes(data)), int(node.attrs["num_groups"])
    keep = mask.kept(data, 1)
    if keep.all():
        return
    steps = Steps(mask, node)
    kept = steps.constant(keep.reshape(-1, *[1] * (rank - 2)))
    size = len(keep) // groups
    factor = steps.constant(size / max(float(keep.reshape(groups, size).sum(axis=1).max()), 1.0))
    apart, together = steps.constant([0, groups, -1], np.int64), steps.op("Shape", data)

    def mean(x: gs.Tensor) -> gs.Tensor:
        return steps.op("Mul", steps.reduce("ReduceMean", steps.op("Reshape", x, apart), [2]), factor)

    def each(kind: str, x: gs.Tensor, statistic: gs.Tensor) -> gs.Tensor:
        return steps.op("Reshape", steps.op(kind, steps.op("Reshape", x, apart), statistic), together)

    x = steps.op("Mul", data, kept)
    x = steps.op("Mul", each("Sub", x, mean(x)), kept)
    epsilon = steps.constant(_epsilon(node))
    y = each("Div", x, steps.op("Sqrt", steps.op("Add", mean(steps.op("Mul", x, x)), epsilon)))
    for kind, parameter in (("Mul", scale), ("Add", shift)):
        value = np.asarray(parameter.values)
        value = np.repeat(value, len(keep) // len(value)).reshape(-1, *[1] * (rank - 2))
        y = steps.op(kind, y, steps.constant(value))
    steps.finish({0: y})


def _skip_layer(mask: Mask, node: gs.Node) -> None:
    simple = node.op == "SkipSimplifiedLayerNormalization"
    x, skip, gamma, *rest = node.inputs
    beta, bias = [*([None] if simple else []), *rest, None, None][:2]
    steps = Steps(mask, node)
    total = steps.op("Add", x, skip)
    if bias is not None and not bias.is_empty():
        total = steps.op("Add", total, bias)
    _scaled(mask, steps, total, gamma, beta)


def _embed_layer(mask: Mask, node: gs.Node) -> None:
    ids, segments, word, position, table, gamma, beta, *rest = node.inputs
    if mask.kept(word, 1).all():
        return
    steps = Steps(mask, node)
    total = steps.op("Gather", word, ids)
    if not table.is_empty():
        total = steps.op("Add", total, steps.op("Gather", table, segments))
    if len(rest) > 1:
        places = steps.op("Gather", position, rest[1])
    else:
        zero, one = steps.constant([0], np.int64), steps.constant([1], np.int64)
        length = steps.op("Slice", steps.op("Shape", ids), one, steps.constant([2], np.int64), zero)
        places = steps.op("Slice", position, zero, length, zero)
    total = steps.op("Add", total, places)
    _scaled(mask, steps, total, gamma, beta, sums=2)


def _scaled(mask: Mask, steps: Steps, total: gs.Tensor, gamma: gs.Tensor, beta: Any, sums: int = 3) -> None:
    """`total` normalised over its last axis, which has the channels of `gamma`; the sum itself may be an output."""
    keep = mask.kept(gamma, 0)
    if keep.all():
        return
    simple = steps.node.op.startswith("SkipSimplified")
    y = _normalised(steps, total, keep, len(keep) / max(keep.sum(), 1.0), [-1], centre=not simple)
    y = steps.op("Mul", y, gamma)
    if beta is not None and not beta.is_empty():
        y = steps.op("Add", y, beta)
    steps.finish({0: y, sums: total})


NORMALISATIONS: dict[str, Callable[[Mask, gs.Node], None]] = {
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _layer),
    "InstanceNormalization": _instance,
    "GroupNormalization": _group,
    "com.microsoft.SkipLayerNormalization": _skip_layer,
    "com.microsoft.SkipSimplifiedLayerNormalization": _skip_layer,
    "com.microsoft.EmbedLayerNormalization": _embed_layer,
}
