"""A pass of another package: what it takes to add a word to `--passes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from onnx_compress.contract import Change, Job, Result, Skip
from onnx_compress.recipe import option

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALLEST = 64  # weights in a tensor worth the trouble


def rounded(weight: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """`weight` with `bits` bits behind the leading one.

    >>> rounded(np.array([1.3, -5.2], np.float32), 2).tolist()
    [1.25, -5.0]
    """
    fraction, exponent = np.frexp(weight)
    return np.ldexp(np.round(np.ldexp(fraction, bits + 1)), exponent - bits - 1).astype(np.float32)


@dataclass(frozen=True)
class RoundWeights:
    """Rounds float weights to few binary digits."""

    name: ClassVar[str] = "round_weights"

    bits: int = option(7, "binary digits kept behind the leading one", low=1, high=22)

    def apply(self, job: Job) -> Result:
        """The model with its large float32 initializers rounded."""
        model = job.model.copy()
        changes: list[Any] = []
        skips: list[Any] = []
        for tensor in model.proto.graph.initializer:
            weight = model.array(tensor)
            if weight.dtype != np.float32 or weight.size < SMALLEST:
                skips.append(Skip(tensor.name, "no float32 tensor, or a small one"))
                continue
            model.set_array(tensor, rounded(weight, self.bits))
            changes.append(Change(tensor.name, "round", "23 bits", f"{self.bits} bits"))
        return Result(model, changes, skips)
