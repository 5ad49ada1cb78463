"""Codebooks for weights: which rows share values, the values, and how they are stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnx_compress.model.codebook import Codebook
from onnx_compress.numerics.codebooks import Books, binary_books, kmeans_books, nearest, ternary_books
from onnx_compress.runtime.layers import weight_from_rows, weight_rows

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from onnx_compress.passes.cluster.weights import Weight

    Array = NDArray[Any]

Kind = Literal["kmeans", "linear", "ternary", "binary"]
Granularity = Literal["tensor", "channel", "block", "all"]
BLOCK = 4096  # weights that share a codebook at least, where granularity is block
TERNARY = 3  # values of a ternary weight


@dataclass(frozen=True)
class Style:
    """What the user wants of codebooks. granularity: ternary and binary ones are a channel's unless it is "block" or "all"."""

    kind: Kind = "kmeans"
    granularity: Granularity = "tensor"

    @property
    def by_channel(self) -> bool:
        """Whether channels have values of their own."""
        return self.granularity == "channel" or (
            self.kind in ("ternary", "binary") and self.granularity == "tensor"
        )

    @property
    def whole(self) -> Style:
        """The same with one codebook for the whole weight."""
        return replace(self, granularity="all")


@dataclass(frozen=True)
class Layout:
    """A weight as rows (N, K), one after the other over groups, and the channel that each row belongs to.

    node: the layer whose rows they are, or None: then rows are lines along `axis` of the stored weight.
    """

    shape: tuple[int, ...]
    axis: int
    node: gs.Node | None
    channel: Array

    @classmethod
    def of(cls, weight: Weight) -> Layout:
        """The layout of a weight: that of its layer where one layer alone reads it and has matrices for it."""
        shape = tuple(weight.shape)
        node = weight.users[0][0]
        axis = channel_axis(weight)
        layered = len(weight.users) == 1 and (
            node.op in ("Conv", "ConvTranspose") or (node.op in ("Gemm", "MatMul") and len(shape) == 2)
        )
        if not layered or axis is None:
            axis = 0 if axis is None else axis
            return cls(shape, axis, None, np.arange(shape[axis]))
        numbers = np.arange(shape[axis]).reshape([-1 if at == axis else 1 for at in range(len(shape))])
        rows = weight_rows(node, np.broadcast_to(numbers, shape))
        return cls(shape, axis, node, np.ascontiguousarray(rows[:, :, 0]).reshape(-1))

    def rows(self, values: Array) -> Array:
        """(groups, N, K) of a stored weight."""
        if self.node is not None:
            return weight_rows(self.node, values)
        return np.moveaxis(values, self.axis, 0).reshape(1, values.shape[self.axis], -1)

    def stored(self, rows: Array) -> Array:
        """The stored form of rows (groups, N, K)."""
        if self.node is not None:
            kernel = self.shape[2:] if self.node.op.startswith("Conv") else ()
            return weight_from_rows(self.node, rows, kernel)
        moved = [size for at, size in enumerate(self.shape) if at != self.axis]
        return np.ascontiguousarray(np.moveaxis(rows.reshape(-1, *moved), 0, self.axis))

    def books(self, rows: Array, style: Style) -> Array:
        """Which book each row has: (N,)."""
        if style.by_channel:
            return self.channel
        if style.granularity != "block":
            return np.zeros(len(self.channel), np.int64)
        return self._blocks(rows.reshape(len(self.channel), -1))

    def _blocks(self, rows: Array) -> Array:
        """Channels of like spread share a book, as few of them as hold BLOCK weights."""
        size = self.shape[self.axis]
        energy = np.bincount(self.channel, np.square(rows, dtype=np.float64).sum(1), size)
        each = max(rows.size // size, 1)
        count = max(size * each // max(BLOCK, each), 1)
        place = np.empty(size, np.int64)
        place[np.argsort(energy, kind="stable")] = np.arange(size) * count // size
        return place[self.channel]


def make_books(rows: Array, mass: Array | None, of: Array, clusters: int, kind: Kind) -> Books:
    """Books for rows (groups, N, K). mass: of each weight's squared error, as `rows`."""
    flat = rows.reshape(-1, rows.shape[2])
    share = None if mass is None else mass.reshape(flat.shape)
    if kind == "ternary":
        return ternary_books(flat, share, of)
    if kind == "binary":
        return binary_books(flat, share, of, max(clusters - 1, 1).bit_length())
    return kmeans_books(flat, share, of, clusters, kind=kind)


def closest(layout: Layout, values: Array, mass: Array | None, style: Style, clusters: int) -> Codebook:
    """The codebook of a stored weight, every weight at its nearest value."""
    rows = layout.rows(values)
    share = None if mass is None else layout.rows(np.broadcast_to(mass, values.shape))
    books = make_books(rows, share, layout.books(rows, style), clusters, style.kind)
    indices = nearest(rows.reshape(-1, rows.shape[2]), books)
    return stored_book(layout, books, indices.reshape(rows.shape), values.dtype)


def stored_book(layout: Layout, books: Books, indices: Array, dtype: Any) -> Codebook:
    """How books and indices (groups, N, K) are stored: scales where one is all a channel has of its own."""
    places = layout.stored(indices)
    size = layout.shape[layout.axis]
    if len(books.values) == 1:
        return _compact(books.values[0].astype(dtype), places)
    channel_book = np.zeros(size, np.int64)
    channel_book[layout.channel] = books.of
    if books.basis.shape[1] == 1:
        pattern = books.basis[:, 0]
        largest = int(np.abs(pattern).argmax())
        scales = (books.values[:, largest] / pattern[largest]).astype(dtype)
        return Codebook(pattern.astype(dtype), places, layout.axis, scales=scales[channel_book])
    own = np.array_equal(channel_book, np.arange(size))
    values = books.values.astype(dtype)
    return Codebook(values, places, layout.axis, books=None if own else channel_book)


def _compact(values: Array, indices: Array) -> Codebook:
    """One sorted codebook of the values that are used."""
    used, places = np.unique(values, return_inverse=True)
    indices = places.reshape(-1)[indices]
    present = np.bincount(indices.reshape(-1), minlength=len(used)) > 0
    rank = np.cumsum(present) - 1
    return Codebook(used[present], rank[indices].astype(np.uint8))


def channel_axis(weight: Weight) -> int | None:
    """The axis of output channels."""
    node, index = weight.users[0]
    rank = len(weight.shape)
    match node.op:
        case "Conv":
            return 0
        case "ConvTranspose" | "LSTM" | "GRU" | "RNN":
            return 1
        case "Gemm":
            flipped = bool(node.attrs.get("transA" if index == 0 else "transB", 0))
            return int((index == 1) != flipped)
        case "MatMul":
            return rank - (1 if index == 1 else 2)
        case "Gather":
            return rank - 1
    return None
