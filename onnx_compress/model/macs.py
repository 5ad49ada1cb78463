"""How many multiply-adds a node does, from the shapes around it; an unknown size counts as 1."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx

from onnx_compress.model.shapes import Shape

Look = Callable[[str], Shape | None]
Rule = Callable[[onnx.NodeProto, Look], int]


def _elements(shape: Shape | None) -> int:
    return math.prod(axis if isinstance(axis, int) else 1 for axis in shape or ())


def _size(shape: Shape | None, axis: int) -> int:
    """The size of one axis, 1 where it is unknown."""
    if not shape or not -len(shape) <= axis < len(shape):
        return 1
    size = shape[axis]
    return size if isinstance(size, int) else 1


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _convolution(node: onnx.NodeProto, shape: Look, weight: int = 1) -> int:
    """Every element of the output is a sum over one filter, a (C / group, k...)."""
    return _elements(shape(node.output[0])) * _elements((shape(node.input[weight]) or ())[1:])


def _transposed(node: onnx.NodeProto, shape: Look) -> int:
    """Every element of the input is multiplied into one filter, a (M / group, k...)."""
    return _elements(shape(node.input[0])) * _elements((shape(node.input[1]) or ())[1:])


def _gemm(node: onnx.NodeProto, shape: Look) -> int:
    axis = 0 if _attribute(node, "transA", 0) else 1
    return _elements(shape(node.output[0])) * _size(shape(node.input[0]), axis)


def _matmul(node: onnx.NodeProto, shape: Look, right: int = 1) -> int:
    """Contracts the last axis of A with the last but one of B (its only one where B is a vector)."""
    a, b = shape(node.input[0]), shape(node.input[right])
    inner = max(_size(a, -1), _size(b, -2 if b and len(b) > 1 else -1))
    return _elements(shape(node.output[0])) * inner


def _einsum(node: onnx.NodeProto, shape: Look) -> int:
    """One multiply-add for each operand after the first at each point of the space of all indices."""
    equation = next((a.s.decode() for a in node.attribute if a.name == "equation"), "").replace(" ", "")
    terms = equation.split("->")[0].split(",")
    sizes: dict[str | int, int] = {}
    for term, name in zip(terms, node.input, strict=False):
        known = shape(name) or ()
        head, dots, tail = term.partition("...")
        hidden = range(-max(0, len(known) - len(head) - len(tail)), 0) if dots else ()
        for letter, axis in zip([*head, *hidden, *tail], range(len(known)), strict=False):
            sizes[letter] = max(sizes.get(letter, 1), _size(known, axis))
    return math.prod(sizes.values()) * (len(terms) - 1)


def _recurrent(node: onnx.NodeProto, shape: Look) -> int:
    """Each step multiplies W (D, gates·H, I) with the input and R (D, gates·H, H) with the state."""
    steps = _size(shape(node.input[0]), 0) * _size(shape(node.input[0]), 1)
    return steps * (_elements(shape(node.input[1])) + _elements(shape(node.input[2])))


def _matmul_nbits(node: onnx.NodeProto, shape: Look) -> int:
    return _elements(shape(node.input[0])) * _attribute(node, "N", 1)


def _with(rule: Callable[[onnx.NodeProto, Look, int], int], operand: int) -> Rule:
    return lambda node, shape: rule(node, shape, operand)


MACS: dict[str, Rule] = {
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "FusedConv": _convolution,
    "DeformConv": _convolution,
    "QLinearConv": _with(_convolution, 3),
    "ConvTranspose": _transposed,
    "Gemm": _gemm,
    "QGemm": _gemm,
    "FusedGemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "FusedMatMul": _matmul,
    "QLinearMatMul": _with(_matmul, 3),
    "DynamicQuantizeMatMul": _matmul,
    "MatMulNBits": _matmul_nbits,
    "Einsum": _einsum,
    "RNN": _recurrent,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "DynamicQuantizeLSTM": _recurrent,
}
