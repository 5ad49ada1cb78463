"""Sums over channels: one of the operands is zeroed where its channels are dead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_graphsurgeon as gs

from onnx_compress.model.rules.einsum import spelled
from onnx_compress.model.rules.movement import operand

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx_compress.model.masks import Mask


def _conv(mask: Mask, node: gs.Node) -> None:
    mask.operand(node, 1, 1)


def _conv_transpose(mask: Mask, node: gs.Node) -> None:
    mask.operand(node, 1, 0)


def _gemm(mask: Mask, node: gs.Node) -> None:
    mask.operand(node, 1, 1 if node.attrs.get("transB", 0) else 0)


def _matmul(mask: Mask, node: gs.Node) -> None:
    if isinstance(node.inputs[1], gs.Constant):
        matrix = len(node.inputs[1].shape) > 1
        mask.operand(node, 1, -2 if matrix and not node.attrs.get("transB", 0) else -1)
    else:
        mask.operand(node, 0, -2 if node.attrs.get("transA", 0) else -1)


def _einsum(mask: Mask, node: gs.Node) -> None:
    terms, result = spelled(node, [len(mask.channels.axes(tensor)) for tensor in node.inputs])
    done: set[str] = set(result)
    for index, letters in enumerate(terms):
        for axis, letter in enumerate(letters):
            if letter not in done and len(mask.kept(node.inputs[index], axis)) > 1:
                mask.operand(node, index, axis)
                done.add(letter)


def _recurrent(mask: Mask, node: gs.Node) -> None:
    mask.operand(node, 1, 2)
    mask.operand(node, 2, 2)


def _attention(mask: Mask, node: gs.Node) -> None:
    """Queries that are zero take nothing from the keys; a bias that is added to them is zero there too."""
    mask.operand(node, 0, -1)
    if node.domain and len(node.inputs) > 3 and not node.inputs[3].is_empty():
        mask.operand(node, 3, 0)


def _packed_attention(mask: Mask, node: gs.Node) -> None:
    mask.weight(node, 1, 0)
    mask.weight(node, 1, 1)
    if len(node.inputs) > 2 and not node.inputs[2].is_empty():
        mask.weight(node, 2, 0)


def _reduce(mask: Mask, node: gs.Node) -> None:
    """The dead add nothing; a mean divides by the number that stays."""
    data = node.inputs[0]
    rank = len(mask.channels.axes(data))
    axes: Any = operand(node, 1, "axes")
    if axes is None:
        axes = [] if node.attrs.get("noop_with_empty_axes", 0) else range(rank)
    for axis in axes:
        keep = mask.kept(data, int(axis) % rank)
        scale = len(keep) / keep.sum() if node.op == "ReduceMean" else 1.0
        mask.activation(node, 0, int(axis) % rank, scale)


def _unit_norm(mask: Mask, node: gs.Node) -> None:
    mask.operand(node, 0, int(node.attrs.get("axis", -1)))


_SUMS = ("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare")

CONTRACTIONS: dict[str, Callable[[Mask, gs.Node], None]] = {
    **dict.fromkeys(("Conv", "DeformConv", "com.microsoft.FusedConv"), _conv),
    "ConvTranspose": _conv_transpose,
    **dict.fromkeys(("Gemm", "com.microsoft.FusedGemm"), _gemm),
    **dict.fromkeys(("MatMul", "com.microsoft.FusedMatMul"), _matmul),
    "Einsum": _einsum,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("Attention", "com.microsoft.MultiHeadAttention"), _attention),
    "com.microsoft.Attention": _packed_attention,
    **dict.fromkeys(_SUMS, _reduce),
    "LpNormalization": _unit_norm,
}
