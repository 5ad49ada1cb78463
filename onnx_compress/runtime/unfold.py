"""The columns a layer's input unfolds to, gathered at chosen output positions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.runtime.layers import LayerInput

    Array = NDArray[Any]
    Index = NDArray[np.intp]


def unfold(x: Array, layer: LayerInput) -> Array:
    """All columns of `x`: (groups, K, samples · positions), exactly what the layer's weight multiplies.

    >>> from onnx_compress.runtime.layers import LayerInput
    >>> layer = LayerInput("x", "conv", (2,), (1,), (0, 0), (1,))
    >>> unfold(np.arange(4.0).reshape(1, 1, 4), layer)
    array([[[0., 1., 2.],
            [1., 2., 3.]]])
    """
    view = windows(x, layer, len(x))
    total = math.prod(positions(view))
    sample, position = np.divmod(np.arange(len(view) * total), max(total, 1))
    rows = gather(view, sample, position)
    return np.ascontiguousarray(np.moveaxis(by_group(rows, layer.group), 1, 2))


def windows(x: Array, layer: LayerInput, samples: int) -> Array:
    """A read-only view (samples, *positions, *kernel, channels) of the padded input, channels last.

    As many axes of positions as of the kernel; for a matmul one of each, the kernel's of size 1.
    """
    if layer.kind == "matmul":
        return lines(x, layer.channel_axis, layer.sample_axis, samples)[:, :, np.newaxis]
    axes = len(layer.kernel)
    spatial = x.shape[2:]
    pairs = layer.padding(spatial)
    padded = [size + sum(pair) for size, pair in zip(spatial, pairs, strict=True)]
    make = np.zeros if any(map(sum, pairs)) else np.empty
    source = make((len(x), *padded, x.shape[1]), x.dtype)
    inner = tuple(slice(begin, begin + size) for size, (begin, _) in zip(spatial, pairs, strict=True))
    source[(slice(None), *inner)] = np.moveaxis(x, 1, -1)
    out = layer.positions(spatial)
    steps = source.strides[1 : 1 + axes]
    strides = (
        source.strides[0],
        *(step * stride for step, stride in zip(steps, layer.strides, strict=True)),
        *(step * dilation for step, dilation in zip(steps, layer.dilations, strict=True)),
        source.strides[-1],
    )
    shape = (len(x), *out, *layer.kernel, x.shape[1])
    return np.lib.stride_tricks.as_strided(source, shape, strides, writeable=False)


def lines(x: Array, axis: int, sample_axis: int, samples: int) -> Array:
    """`x` as (samples, positions, size of `axis`); one sample of all positions where `samples` does not divide it."""
    moved = np.moveaxis(x, axis, -1)
    if moved.ndim == 1:
        return moved.reshape(1, 1, -1)
    moved = np.moveaxis(moved, sample_axis, 0)
    count = samples if len(moved) and len(moved) % samples == 0 else 1
    return moved.reshape(count, moved.size // moved.shape[-1] // count, moved.shape[-1])


def positions(view: Array) -> tuple[int, ...]:
    """The sizes of the axes of positions of a view that `windows` made."""
    return view.shape[1 : view.ndim // 2]


def gather(view: Array, sample: Index, position: Index) -> Array:
    """The columns at these flat positions of these samples, as rows: (columns, taps, channels)."""
    picked: Array = view[(sample, *np.unravel_index(position, positions(view)))]
    return picked.reshape(len(sample), math.prod(picked.shape[1:-1]), view.shape[-1])


def by_group(rows: Array, group: int) -> Array:
    """Rows (columns, taps, channels) as (groups, columns, K), K in a Conv weight's order: channel, then tap."""
    columns, taps, channels = rows.shape
    split = rows.reshape(columns, taps, group, channels // group)
    return split.transpose(2, 0, 3, 1).reshape(group, columns, -1)


def choose(total: int, wanted: int, first: int, samples: int) -> Index:
    """`wanted` of `total` positions for each sample first..first+samples: (samples, wanted), ascending.

    A golden-section lattice that each sample starts elsewhere: spread evenly, the same whatever the batch size,
    and over the samples every position comes up equally often.
    """
    if wanted >= total:
        return np.broadcast_to(np.arange(total, dtype=np.intp), (samples, total))
    step = _coprime(round(total * 0.6180339887), total)
    start = (
        np.arange(first, first + samples, dtype=np.int64) * _coprime(round(total * 0.7548776662), total)
    ) % total
    chosen = (start[:, np.newaxis] + np.arange(wanted, dtype=np.int64) * step) % total
    return np.sort(chosen, axis=1).astype(np.intp)


def _coprime(start: int, total: int) -> int:
    """The first number from `start` on that shares no factor with `total`."""
    value = max(start, 1)
    while math.gcd(value, total) != 1:
        value += 1
    return value
