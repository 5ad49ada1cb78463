"""Small integers packed without gaps: the digits of larger numbers, several to a few bytes.

`group` integers below `radix` are the digits of one number, the first the least, and that number is `width` bytes, the least
first. Whole bits are the case radix = 2^bits; three values take 1.6 bits, five to a byte, since 3^5 <= 256.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnx_compress.model.walk import graphs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

WIDEST = 7  # bytes of a number: it must stay below 2^63
CHUNK = 1 << 16  # numbers worked on at once


@dataclass(frozen=True)
class Packing:
    """How integers below `radix` are packed: `group` of them in `width` bytes."""

    radix: int
    group: int
    width: int

    @classmethod
    def of(cls, radix: int) -> Packing:
        """The packing of integers below `radix` (2..256) in the fewest bytes, then in the smallest numbers.

        >>> Packing.of(32), Packing.of(3), Packing.of(16)
        (Packing(radix=32, group=8, width=5), Packing(radix=3, group=5, width=1), Packing(radix=16, group=2, width=1))
        """
        found = []
        for width in range(1, WIDEST + 1):
            group = 0
            while radix ** (group + 1) <= 256**width:
                group += 1
            if group:
                found.append(cls(radix, group, width))
        return min(found, key=lambda packing: (packing.width / packing.group, packing.width))

    @property
    def sound(self) -> bool:
        """Whether the digits fit in the bytes."""
        fits = self.group > 0 and 0 < self.width <= WIDEST and 1 < self.radix <= 256
        return fits and bool(self.radix**self.group <= 256**self.width)

    def size(self, count: int) -> int:
        """Bytes of `count` integers."""
        return -(-count // self.group) * self.width

    def pack(self, digits: Array) -> Array:
        """The packed form of `digits` (any shape): (numbers, width) uint8. The last number is filled up with zeros.

        >>> Packing.of(16).pack(np.uint8([1, 2, 3]))
        array([[33],
               [ 3]], dtype=uint8)
        """
        flat = digits.reshape(-1)
        numbers = -(-flat.size // self.group)
        padded = np.zeros(numbers * self.group, np.uint8)
        padded[: flat.size] = flat
        rows = padded.reshape(numbers, self.group)
        packed = np.empty((numbers, self.width), np.uint8)
        for start in range(0, numbers, CHUNK):
            number = rows[start : start + CHUNK].astype(np.int64) @ self.powers()
            for byte in range(self.width):
                packed[start : start + CHUNK, byte] = (number >> (8 * byte)) & 255
        return packed

    def unpack(self, packed: Array, count: int) -> Array:
        """The first `count` integers of `packed` (numbers, width): (count,) uint8.

        >>> Packing.of(3).unpack(Packing.of(3).pack(np.uint8([2, 0, 1, 1, 2, 2])), 6)
        array([2, 0, 1, 1, 2, 2], dtype=uint8)
        """
        digits = np.empty((len(packed), self.group), np.uint8)
        for start in range(0, len(packed), CHUNK):
            number = packed[start : start + CHUNK].astype(np.int64) @ self.places()
            digits[start : start + CHUNK] = number[:, np.newaxis] // self.powers() % self.radix
        found: Array = digits.reshape(-1)[:count]
        return found

    def powers(self) -> Array:
        """What each digit counts: (group,) int64."""
        return self.radix ** np.arange(self.group, dtype=np.int64)

    def places(self) -> Array:
        """What each byte counts: (width,) int64."""
        return 256 ** np.arange(self.width, dtype=np.int64)


def packed_tensors(proto: onnx.ModelProto) -> dict[str, tuple[Packing, int, int]]:
    """The initializers of `proto` that nodes unpack, each with its packing, and the weights in a row and in a kernel of what it stands for.

    Known by Mod(Div(bytes, powers), radix), `bytes` being Cast or MatMul(Cast, places) of the initializer; its bytes are not
    looked at.
    """
    found: dict[str, tuple[Packing, int, int]] = {}
    for graph in graphs(proto.graph):
        mods = [node for node in graph.node if node.op_type == "Mod"]
        if not mods:
            continue
        weights = {tensor.name: tensor for tensor in graph.initializer}
        makers = {name: node for node in graph.node for name in node.output}
        shapers = {node.input[0]: node for node in graph.node if node.op_type in ("Reshape", "Slice")}
        for mod in mods:
            source = _packed_by(mod, makers, weights)
            if source is None:
                continue
            tensor, powers = source
            if powers.size < 2 or len(tensor.dims) != 2:
                continue
            inner, taps, name = 1, 1, mod.output[0]
            while (
                name in shapers
            ):  # a Reshape, or one to a vector, a Slice and another where digits are left over
                shape = weights.get(shapers[name].input[1])
                if shape is not None and _is_small(shape):
                    sizes = onnx.numpy_helper.to_array(shape)
                    inner, taps = int(np.prod(sizes[1:])), int(np.prod(sizes[2:]))
                name = shapers[name].output[0]
            packing = Packing(int(powers[1]), powers.size, tensor.dims[1])
            found[tensor.name] = packing, max(inner, 1), max(taps, 1)
    return found


def _packed_by(mod: onnx.NodeProto, makers: Any, weights: Any) -> tuple[onnx.TensorProto, Array] | None:
    """The packed initializer behind a Mod, and the powers it is divided by."""
    if mod.input[0] not in makers:
        return None
    div = makers[mod.input[0]]
    if div.op_type != "Div" or not _is_small(weights.get(div.input[1])) or div.input[0] not in makers:
        return None
    node = makers[div.input[0]]
    if node.op_type == "MatMul" and node.input[0] in makers:
        node = makers[node.input[0]]
    if node.op_type != "Cast" or node.input[0] not in weights:
        return None
    return weights[node.input[0]], onnx.numpy_helper.to_array(weights[div.input[1]]).reshape(-1)


def _is_small(tensor: onnx.TensorProto | None) -> bool:
    """Whether the tensor is there, a vector of integers that holds its own bytes."""
    return (
        tensor is not None
        and tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
        and not tensor.external_data
        and len(tensor.dims) == 1
    )
