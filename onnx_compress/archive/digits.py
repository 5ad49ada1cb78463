"""Small integers that stand several to a byte, or to a few, each as a symbol of its own; and back.

So are the indices of clustered weights stored (see `model.packing`), and ONNX's own types of 4 and 2 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from onnx_compress.model.packing import Packing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import onnx
    from numpy.typing import NDArray

    Array = NDArray[Any]

_SMALL: dict[int, tuple[int, bool]] = {  # type: bits, signed
    TensorProto.UINT4: (4, False), TensorProto.INT4: (4, True),
    TensorProto.UINT2: (2, False), TensorProto.INT2: (2, True),
}  # fmt: skip
_TAKES_APART = ("Cast", "MatMul", "Div", "Mod", "Slice", "Reshape")


@dataclass(frozen=True)
class Digits:
    """How a tensor's bytes hold digits. columns: digits in a row of the weight; signed: the upper half is negative."""

    packing: Packing
    columns: int
    signed: bool = False

    def unpack(self, data: Array) -> Array | None:
        """The digits of `data` (n,) uint8, flat; None where they do not give `data` back."""
        packing = self.packing
        bits = _whole_bits(packing)
        if data.size % packing.width:
            return None
        if bits:
            flags = np.unpackbits(data, bitorder="little").reshape(-1, bits)
            found = np.packbits(flags, axis=1, bitorder="little").reshape(-1)
        elif packing.width == 1:
            if int(data.max(initial=0)) >= packing.radix**packing.group:
                return None
            every = np.arange(256)[:, np.newaxis] // packing.powers() % packing.radix
            found = every.astype(np.uint8)[data].reshape(-1)
        else:
            rows = data.reshape(-1, packing.width)
            found = packing.unpack(rows, len(rows) * packing.group)
            if not np.array_equal(packing.pack(found), rows):
                return None
        return found ^ np.uint8(packing.radix // 2) if self.signed else found

    def pack(self, digits: Array) -> Array:
        """The bytes of `digits`, of which there are whole numbers."""
        packing = self.packing
        if self.signed:
            digits = digits ^ np.uint8(packing.radix // 2)
        bits = _whole_bits(packing)
        if bits:
            flags = np.unpackbits(digits.reshape(-1, 1), axis=1, count=bits, bitorder="little")
            return np.packbits(flags.reshape(-1), bitorder="little")
        if packing.width == 1:
            found = np.zeros(digits.size // packing.group, np.uint8)
            for place, power in enumerate(packing.powers().tolist()):
                found += digits[place :: packing.group] * np.uint8(power)
            return found
        return packing.pack(digits).reshape(-1)


def typed_digits(data_type: int, dims: tuple[int, ...]) -> Digits | None:
    """The digits of a tensor of a type of less than a byte."""
    if data_type not in _SMALL:
        return None
    bits, signed = _SMALL[data_type]
    count = int(np.prod(dims, dtype=np.int64))
    columns = count // dims[0] if len(dims) > 1 and dims[0] > 0 else count
    return Digits(Packing(1 << bits, 8 // bits, 1), max(columns, 1), signed)


def packed_digits(graphs: Iterable[onnx.GraphProto]) -> dict[str, Digits]:
    """By name the uint8 initializers that nodes of their graph take apart into digits: Cast, MatMul, Div, Mod, Reshape."""
    found: dict[str, Digits] = {}
    for graph in graphs:
        consumers = {name: node for node in graph.node for name in node.input[:1]}
        constants = {tensor.name: tensor for tensor in graph.initializer}
        for tensor in graph.initializer:
            if tensor.data_type == TensorProto.UINT8 and len(tensor.dims) == 2:
                digits = _taken_apart(tensor, consumers, constants)
                if digits is not None:
                    found[tensor.name] = digits
    return found


def _taken_apart(
    tensor: onnx.TensorProto,
    consumers: Mapping[str, onnx.NodeProto],
    constants: Mapping[str, onnx.TensorProto],
) -> Digits | None:
    shape: tuple[int, ...] = ()
    radix, name = 0, tensor.name
    for _ in range(8):
        node = consumers.get(name)
        if node is None or node.op_type not in _TAKES_APART:
            break
        other = constants.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type in ("Mod", "Reshape") and other is not None:
            values = _integers(other)
            if node.op_type == "Mod" and len(values) == 1:
                radix = values[0]
            if node.op_type == "Reshape":
                shape = tuple(values)
        name = node.output[0]
    if not 2 <= radix <= 256 or not shape:
        return None
    packing = Packing.of(radix)
    if packing.width != tensor.dims[1]:
        return None
    count = int(np.prod(shape, dtype=np.int64))
    return Digits(packing, max(count // shape[0], 1) if len(shape) > 1 and shape[0] > 0 else max(count, 1))


def _integers(tensor: onnx.TensorProto) -> list[int]:
    """The values of a small int32 or int64 initializer that is not kept elsewhere."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return []
    if tensor.data_type == TensorProto.INT64:
        return np.frombuffer(tensor.raw_data, "<i8").tolist() or list(tensor.int64_data)
    if tensor.data_type == TensorProto.INT32:
        return np.frombuffer(tensor.raw_data, "<i4").tolist() or list(tensor.int32_data)
    return []


def _whole_bits(packing: Packing) -> int:
    """The bits of a digit where it has whole ones that fill its bytes; else 0."""
    bits = packing.radix.bit_length() - 1
    fits = packing.radix == 1 << bits and bits * packing.group == 8 * packing.width
    return bits if fits else 0
