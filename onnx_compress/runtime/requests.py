"""What can be asked of `observe`, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from onnx_compress.runtime.layers import LayerInput

    Array = NDArray[Any]


@dataclass(frozen=True)
class Range:
    """The least and the greatest value of a tensor: (min, max), floats."""

    tensor: str


@dataclass(frozen=True)
class Extremes:
    """The least and the greatest value of a tensor for each index of `axis`: two arrays."""

    tensor: str
    axis: int = 1


@dataclass(frozen=True)
class Moments:
    """Mean and variance of a tensor for each index of `axis` (None: of all values)."""

    tensor: str
    axis: int | None = 1


@dataclass(frozen=True)
class Histogram:
    """A histogram of `bins` equal bins that covers a tensor's range exactly once."""

    tensor: str
    bins: int = 2048


@dataclass(frozen=True)
class ZeroFraction:
    """The share of exact zeros of a tensor for each index of `axis` (None: of all values)."""

    tensor: str
    axis: int | None = 1


@dataclass(frozen=True)
class Gram:
    """The Gram matrix of a layer's unfolded input."""

    layer: LayerInput


@dataclass(frozen=True)
class CrossGram:
    """A layer's unfolded input in the model against what its output should be.

    target: a tensor of the reference model, of the shape of the layer's output; minus: a tensor of the model itself, taken off
    the target (the original's sum less today's shortcut).
    """

    layer: LayerInput
    target: str
    minus: str | None = None


Request = Range | Extremes | Moments | Histogram | ZeroFraction | Gram | CrossGram


class MomentStat(NamedTuple):
    """Per index: mean, variance (of the population), both float64; number: values behind each."""

    mean: Array
    var: Array
    number: int


class HistogramStat(NamedTuple):
    """counts (bins,) int64 over low..high. A bin is a power of two wide and starts at a multiple of its width.

    At most HISTOGRAM_VALUES values a sample are counted, evenly spread; the range is that of all values.
    """

    counts: Array
    low: float
    high: float


@dataclass(frozen=True)
class GramStat:
    """G = E[x xᵀ] over `count` columns x of a layer's unfolded input, not centred; all float64.

    gram: (groups, K, K) where kind is "full"; (groups, blocks, width, width) where it is "block": the matrices along
    the diagonal, the last filled up with zeros; (groups, K) where it is "diagonal".
    mean: (groups, K). positions: columns taken of each sample at most, evenly spread, of `available`.
    """

    gram: Array
    mean: Array
    count: int
    kind: Literal["full", "block", "diagonal"]
    positions: int
    available: int

    def diagonal(self) -> Array:
        """E[x²]: (groups, K)."""
        if self.kind == "diagonal":
            return self.gram
        lines = np.diagonal(self.gram, axis1=-2, axis2=-1)
        return np.ascontiguousarray(lines.reshape(len(lines), -1)[:, : self.mean.shape[1]])

    def blocks(self) -> Iterator[tuple[slice, Array]]:
        """(which of the K inputs, their Gram matrices (groups, width, width)), whatever the kind."""
        inputs = self.mean.shape[1]
        if self.kind == "full":
            yield slice(0, inputs), self.gram
        elif self.kind == "diagonal":
            for at in range(inputs):
                yield slice(at, at + 1), self.gram[:, at, np.newaxis, np.newaxis]
        else:
            width = self.gram.shape[-1]
            for index, at in enumerate(range(0, inputs, width)):
                size = min(width, inputs - at)
                yield slice(at, at + size), self.gram[:, index, :size, :size]


@dataclass(frozen=True)
class CrossStat(GramStat):
    """GramStat of x, and beside it the target y: cross = E[x yᵀ] (groups, K, N/groups), not centred.

    mean_y, var_y: (groups, N/groups). The least-squares weight is cross.T G^-1.
    """

    cross: Array
    mean_y: Array
    var_y: Array

    @property
    def energy(self) -> float:
        """E‖y − E[y]‖²: what no error can pass without doing worse than a constant."""
        return float(self.var_y.sum())


class Observed(dict[Request, Any]):
    """Answers by request. nonfinite: how many NaN or infinite values each tensor held; they are in no statistic.

    open: Gram matrices that are finished by `take` alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nonfinite: dict[str, int] = {}
        self.open: dict[Request, Callable[[], GramStat]] = {}

    def take(self, request: Gram) -> GramStat:
        """The answer, held no longer. One that was left for later is in float32 where it is wide: in half the memory.

        To be called among `workers`, whose BLAS has one thread.
        """
        close = self.open.pop(request, None)
        found: GramStat = self.pop(request) if close is None else close()
        return found
