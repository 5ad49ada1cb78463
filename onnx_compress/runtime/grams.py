"""Streamed Gram and cross-Gram matrices: float32 products of a few thousand columns, summed in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnx_compress.runtime.requests import CrossStat, GramStat
from onnx_compress.runtime.unfold import by_group, choose, gather, lines, positions, windows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from onnx_compress.runtime.layers import LayerInput

    Array = NDArray[Any]
    Index = NDArray[np.intp]

WIDE = 512  # inputs beyond which rounding's own arithmetic is in float32
WIDEST = 8192  # inputs of a full Gram matrix at most
PIECE = 4 * 2**20  # bytes of columns multiplied at once: what the caches hold
ROWS = (
    2048,
    8192,
)  # but not fewer columns, or adding the product up costs more than it; nor more, for float32's sake
COLUMNS = (
    20,
    256,
)  # times K: at least, if there are as many, and at most, since a fit is off by K/n of its error
NARROW = 32_768  # columns that are never too many: of a layer with few inputs they cost little, and pictures are uneven
_NARROW = 16  # a block below this many inputs tells no more than the diagonal
_MANY = 64  # inputs of a group up to which all groups are multiplied in one call


@dataclass(frozen=True)
class Plan:
    """How much of a layer's Gram matrix is kept. width: of a block, in inputs; channels: in channels of the input."""

    kind: Literal["full", "block", "diagonal"]
    inputs: int
    width: int
    channels: int
    nbytes: int


def plan(channels: int, taps: int, group: int, budget: int) -> Plan:
    """The fullest Gram matrix that `budget` bytes allow; blocks are whole channels."""
    inputs = channels // group * taps
    per_column = 8 * group * inputs
    if inputs <= WIDEST and per_column * inputs <= budget:
        return Plan("full", inputs, inputs, channels // group, per_column * inputs)
    width = min(WIDEST, inputs, budget // per_column) // taps * taps
    if width < max(_NARROW, taps):
        return Plan("diagonal", inputs, 1, 1, per_column)
    # > twice: rounded up, the last block is filled with zeros
    return Plan("block", inputs, width, width // taps, per_column * width)


class Sums:
    """Sum of x xᵀ, of x and of y over the columns of one layer."""

    def __init__(self, layer: LayerInput, channels: int, budget: int) -> None:
        self.layer = layer
        self.plan = plan(channels, layer.taps, layer.group, budget)
        self.count = 0
        self.first = np.zeros(layer.taps * channels)
        self.blocks = self._empty()
        self.pieces = 0
        self.used, self.available = 0, 0

    def _empty(self) -> list[Array]:
        group, width = self.layer.group, self.plan.width
        if self.plan.kind == "diagonal":
            return [np.zeros(len(self.first))]
        sizes = [min(width, self.plan.inputs - at) for at in range(0, self.plan.inputs, width)]
        # > float32 until there is more than one product: most wide layers never have two
        return [np.zeros((group, size, size), np.float32) for size in sizes]

    def add(self, rows: Array, first: Array) -> None:
        """Takes in rows (columns, taps, channels), and their sum."""
        self.count += len(rows)
        self.first += first
        if self.plan.kind == "diagonal":
            flat = rows.reshape(len(rows), -1)
            self.blocks[0] += np.einsum("nk,nk->k", flat, flat, dtype=np.float64)
            return
        split = rows.reshape(*rows.shape[:2], self.layer.group, -1)
        for index, before in enumerate(self.blocks):
            start = index * self.plan.channels
            product = _all_products(split[..., start : start + self.plan.channels])
            if self.pieces == 0:
                self.blocks[index] = product
                continue
            if self.pieces == 1:
                self.blocks[index] = before.astype(np.float64, copy=False)
            self.blocks[index] += product
        self.pieces += 1

    def close(self, wide: type[np.floating[Any]] = np.float64) -> GramStat:
        """The statistic, in the order of a convolution's weight; the sums are let go, so that no layer is held twice.

        wide: type of a full matrix beyond WIDE inputs.
        """
        layer, count, blocks = self.layer, max(self.count, 1), self.blocks
        self.blocks = []
        mean = self._ordered(self.first) / count
        if self.plan.kind == "diagonal":
            gram = self._ordered(blocks[0]) / count
        elif self.plan.kind == "full":
            gram = _finished(blocks.pop(), layer.taps, count, wide if self.plan.inputs > WIDE else np.float64)
        else:
            width = self.plan.width
            gram = np.zeros((layer.group, len(blocks), width, width))
            for index, block in enumerate(blocks):
                size = block.shape[-1]
                gram[:, index, :size, :size] = _finished(block, layer.taps, count)
        return GramStat(gram, mean, self.count, self.plan.kind, self.used, self.available)

    def _ordered(self, flat: Array) -> Array:
        """A vector over (taps, channels) as (groups, K)."""
        return by_group(flat.reshape(1, self.layer.taps, -1), self.layer.group)[:, 0]


def _all_products(split: Array) -> Array:
    """Σ x xᵀ (groups, K, K) of columns (columns, taps, groups, channels)."""
    columns, taps, group, channels = split.shape
    if group > 1 and channels * taps <= _MANY:
        many = np.ascontiguousarray(split.transpose(2, 1, 3, 0)).reshape(group, taps * channels, columns)
        return _products(many.swapaxes(1, 2))
    if group == 1:
        return _products(np.ascontiguousarray(split[:, :, 0]).reshape(columns, -1))[np.newaxis]
    each = (np.ascontiguousarray(split[:, :, index]).reshape(columns, -1) for index in range(group))
    return np.stack([_products(x) for x in each])


def _products(x: Array) -> Array:
    """xᵀ x of one matrix or of many; numpy sees that both are one array and computes one triangle only."""
    with np.errstate(over="ignore", invalid="ignore"):
        product: Array = np.matmul(x.swapaxes(-1, -2), x)
    if np.isfinite(np.diagonal(product, axis1=-2, axis2=-1)).all():
        return product
    wide = x.astype(np.float64)  # > 1e20 is a float32, its square is none
    return np.matmul(wide.swapaxes(-1, -2), wide)


def _finished(block: Array, taps: int, count: int, dtype: type[np.floating[Any]] = np.float64) -> Array:
    """Symmetric matrices over `count` in `dtype`, their order (tap, channel) turned to (channel, tap)."""
    group, inputs = block.shape[:2]
    if inputs <= _MANY:  # > larger ones are symmetric: one triangle is the other's copy
        block = (block + block.swapaxes(1, 2)) / 2
    turned = block.reshape(group, taps, inputs // taps, taps, inputs // taps).transpose(0, 2, 1, 4, 3)
    whole = np.empty(turned.shape, dtype)
    with np.errstate(over="ignore"):
        np.divide(turned, count, out=whole, casting="same_kind")
    whole = whole.reshape(group, inputs, inputs)
    if dtype is not np.float64 and not np.isfinite(np.diagonal(whole, axis1=1, axis2=2)).all():
        return _finished(block, taps, count)
    return whole


def _column_sums(flat: Array) -> Array:
    """The sum of rows (n, K): float32 for 64 of them, float64 from there, twice as fast as float64 throughout."""
    even = len(flat) // 64 * 64
    first = flat[:even].reshape(-1, 64, flat.shape[1]).sum(axis=1)
    return first.sum(axis=0, dtype=np.float64) + flat[even:].sum(axis=0, dtype=np.float64)


class Crosses:
    """Sum of x yᵀ, of y and of y² over the columns of one layer and one target."""

    def __init__(self, layer: LayerInput, target: str, minus: str | None) -> None:
        self.layer, self.target, self.minus = layer, target, minus
        self.product: Array | None = None
        self.first: Any = 0.0
        self.second: Any = 0.0

    def add(self, rows: Array, y: Array) -> None:
        """Takes in rows (columns, taps, channels) and their targets (columns, outputs)."""
        group = self.layer.group
        x = rows.reshape(len(rows), rows.shape[1], group, -1)
        if self.product is None:
            self.product = np.zeros((group, rows[0].size // group, y.shape[1] // group))
        outputs = y.reshape(len(y), group, -1)
        for index in range(group):
            part = np.ascontiguousarray(x[:, :, index]).reshape(len(x), -1)
            self.product[index] += part.T @ np.ascontiguousarray(outputs[:, index])
        wide = y.astype(np.float64)
        self.first = self.first + wide.sum(axis=0)
        self.second = self.second + np.einsum("nk,nk->k", wide, wide)

    def stat(self, gram: GramStat) -> CrossStat:
        """The statistic beside that of the same columns."""
        group, taps, count = self.layer.group, self.layer.taps, max(gram.count, 1)
        product = np.zeros((group, gram.mean.shape[1], 0)) if self.product is None else self.product / count
        order = np.arange(product.shape[1]).reshape(taps, -1).T.ravel()
        mean = np.reshape(self.first / count, (group, -1))
        var = np.maximum(np.reshape(self.second / count, (group, -1)) - mean**2, 0.0)
        return CrossStat(**gram.__dict__, cross=product[:, order], mean_y=mean, var_y=var)


class LayerSums:
    """Everything asked of one layer's columns: they are gathered once."""

    def __init__(self, sums: Sums, cap: int | None, samples: int | None) -> None:
        self.sums, self.layer, self.cap, self.samples = sums, sums.layer, cap, samples
        self.crosses: list[Crosses] = []
        self.nonfinite: dict[str, int] = {}
        self.waiting: list[tuple[Array, ...]] = []  # rows, their sum and their targets

    def update(
        self, x: Array, own: Mapping[str, Array], reference: Mapping[str, Array], samples: int, before: int
    ) -> None:
        """Takes in one batch: the layer's input, the model's and the reference's tensors; `before`: samples before it."""
        view = windows(_floating(x), self.layer, samples)
        targets = [self._target(cross, own, reference, view, samples) for cross in self.crosses]
        for sample, position in self._places(view, samples, before):
            rows = gather(view, sample, position)
            ys = [_picked(target, sample, position) for target in targets]
            with np.errstate(invalid="ignore", over="ignore"):
                first = _column_sums(rows.reshape(len(rows), -1))
                # > a sum is infinite or NaN if any of its terms is
                fine = all(np.isfinite(total).all() for total in (first, *(y.sum() for y in ys)))
            if not fine:
                rows, ys = self._clean(rows, ys)
                if not len(rows):
                    continue
                first = rows.reshape(len(rows), -1).sum(axis=0, dtype=np.float64)
            self.waiting.append((rows, first, *ys))
            if sum(len(piece[0]) for piece in self.waiting) >= self._step(rows.itemsize):
                self.flush()

    def flush(self) -> None:
        """Adds up what waits: a wide layer's product costs more to add than to make of the few columns of a small batch."""
        if not self.waiting:
            return
        pieces, firsts, *targets = zip(*self.waiting, strict=True)
        self.waiting = []
        rows, *ys = (np.concatenate(parts) if len(parts) > 1 else parts[0] for parts in (pieces, *targets))
        self.sums.add(rows, sum(firsts))
        for cross, y in zip(self.crosses, ys, strict=True):
            cross.add(rows, y)

    def close(self) -> GramStat:
        """The layer's own statistic."""
        self.flush()
        return self.sums.close()

    def rough(self) -> GramStat:
        """As `close` gives it, but a wide matrix in float32."""
        self.flush()
        return self.sums.close(wide=np.float32)

    def _step(self, itemsize: int) -> int:
        """Columns multiplied at once."""
        return min(max(PIECE // (itemsize * len(self.sums.first)), ROWS[0]), ROWS[1])

    def _places(self, view: Array, samples: int, first: int) -> Iterator[tuple[Index, Index]]:
        """Which columns of this batch to take, in pieces: their samples and flat positions."""
        total = math.prod(positions(view))
        inputs = self.sums.plan.inputs
        wanted = total
        if self.cap is not None and len(view) == samples:
            least, most = (math.ceil(share * inputs / (self.samples or 1)) for share in COLUMNS)
            most = max(most, math.ceil(NARROW / (self.samples or 1)))
            wanted = min(total, max(min(self.cap, most), least) if self.samples else self.cap)
        self.sums.used, self.sums.available = max(self.sums.used, wanted), max(self.sums.available, total)
        position = choose(total, wanted, first, len(view)).ravel()
        sample = np.repeat(np.arange(len(view)), wanted)
        step = self._step(view.itemsize)
        for at in range(0, len(position), step):
            yield sample[at : at + step], position[at : at + step]

    def _target(
        self,
        cross: Crosses,
        own: Mapping[str, Array],
        reference: Mapping[str, Array],
        view: Array,
        samples: int,
    ) -> list[Array]:
        """What a target is made of, each as (samples, positions, outputs): the tensor, and what is taken off it."""
        found = [_floating(reference[cross.target])]
        if cross.minus is not None:
            found.append(_floating(own[cross.minus]))
        parts = []
        for y in found:
            part = lines(y, self.layer.output_axis, self.layer.sample_axis, samples)
            if part.shape[:2] != (len(view), math.prod(positions(view))):
                raise ValueError(
                    f"target {cross.target!r} of shape {y.shape} is not shaped as the output of the layer "
                    f"that reads {self.layer.tensor!r}"
                )
            parts.append(part)
        return parts

    def _clean(self, rows: Array, ys: list[Array]) -> tuple[Array, list[Array]]:
        """Without the columns that hold NaN or infinity, which are counted."""
        finite = np.isfinite(rows)
        keep = finite.all(axis=(1, 2))
        self._note(self.layer.tensor, int(finite.size - np.count_nonzero(finite)))
        for cross, y in zip(self.crosses, ys, strict=True):
            good = np.isfinite(y)
            self._note(cross.target, int(good.size - np.count_nonzero(good)))
            keep &= good.all(axis=1)
        return rows[keep], [y[keep] for y in ys]

    def _note(self, tensor: str, count: int) -> None:
        if count:
            self.nonfinite[tensor] = self.nonfinite.get(tensor, 0) + count


def _picked(target: list[Array], sample: Index, position: Index) -> Array:
    picked: Array = target[0][sample, position]
    return picked - target[1][sample, position] if len(target) == 2 else picked


def _floating(x: Array) -> Array:
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
