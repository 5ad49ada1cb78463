"""What takes the place of a layer's weight: the weights of the thinner layers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.passes.svd.forms import Method

    Array = NDArray[Any]


@dataclass(frozen=True)
class Factors:
    """The parts of a weight, each with the groups as its first axis g, in the order in which they are applied.

    svd: (g, r, K), (g, N / g, r); spatial: (g, r, C / g, k1), (g, N / g, r, k2..);
    tucker2: (g, i, C / g), (g, o, i, taps), (g, N / g, o); cp: (g, r, C / g), (g, r, k1), (g, r, k2).., (g, N / g, r);
    dense: another weight of the same shape, (g, N / g, K).
    shift: what is added to the layer's bias (N,), or None.
    """

    method: Method
    parts: tuple[Array, ...]
    shift: Array | None = None

    @property
    def first(self) -> Array:
        """The part that reads the layer's input."""
        return self.parts[0]

    def narrowed(self) -> Factors:
        """In float32, in which nearly all models hold them."""
        return replace(self, parts=tuple(part.astype(np.float32) for part in self.parts))

    @property
    def params(self) -> int:
        """Weights they hold."""
        return sum(int(part.size) for part in self.parts)

    def product(self) -> Array:
        """The weight they stand for, (g, N / g, K)."""
        if self.method == "dense":
            return self.parts[0]
        if self.method == "svd":
            return np.matmul(self.parts[1], self.parts[0])
        if self.method == "spatial":
            first, second = self.parts
            rows = second.reshape(*second.shape[:3], -1)
            product = np.einsum("gnrj,grci->gncij", rows, first, optimize=True)
        elif self.method == "tucker2":
            first, core, last = self.parts
            product = np.einsum("gno,goit,gic->gnct", last, core, first, optimize=True)
        else:
            rows = self.parts[0]
            for part in self.parts[1:-1]:
                rows = (rows[..., None] * part[:, :, None, :]).reshape(*part.shape[:2], -1)
            product = np.matmul(self.parts[-1], rows)
        return product.reshape(*product.shape[:2], -1)
