"""Samples from pieces: npz files, test data sets and feeds are each a few named arrays, read when they are needed."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.errors import InputError
from onnx_compress.runtime.data.batches import Data
from onnx_compress.runtime.data.fit import check_type, common_batch, convert, layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from onnx_compress.runtime.data.fit import Layout
    from onnx_compress.runtime.session import InputSpec

    Array = NDArray[Any]

KEPT = 256 * 2**20  # bytes of decompressed arrays kept between reads


@dataclass(frozen=True)
class Entry:
    """One array of a piece: its shape and type are known, its values are read by `load`.

    cheap: loading costs nothing (in memory, or mapped), so the result need not be kept.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    load: Callable[[], Array]
    cheap: bool = False


@dataclass(frozen=True)
class Piece:
    """Named arrays that belong together; `where` names them in messages."""

    where: str
    entries: dict[str, Entry]


class Pieces:
    """A reader over pieces, all laid out alike (see `fit.layout`).

    Raises InputError for the first piece that does not fit `specs`.
    """

    def __init__(self, specs: Sequence[InputSpec], pieces: Sequence[Piece]) -> None:
        self.specs = specs
        self.pieces = pieces
        kinds = [self._layout(piece) for piece in pieces]
        if len(set(kinds)) > 1:
            kinds = ["feed"] * len(kinds)
        self.kind: Layout = kinds[0] if kinds else "rows"
        self.fixed = common_batch(specs, kinds)
        counts = [self._count(piece) for piece in pieces]
        self.starts = np.cumsum([0, *counts])
        self.groups = self._groups(counts)
        self._kept: OrderedDict[tuple[int, str], Array] = OrderedDict()

    def read(self, rows: Array) -> dict[str, Array]:
        """The inputs of these samples, in the types the model takes."""
        owners = np.searchsorted(self.starts, rows, side="right") - 1
        feeds: dict[str, Array] = {}
        for spec in self.specs:
            parts = [
                self._part(spec, int(owner), rows[owners == owner] - self.starts[owner])
                for owner in dict.fromkeys(owners.tolist())
            ]
            feeds[spec.name] = parts[0] if len(parts) == 1 or not spec.shape else np.concatenate(parts)
        return feeds

    def targets(self) -> dict[str, Array]:
        """Arrays that are no input, count samples along axis 0, and are in every piece."""
        if self.kind == "feed" or not self.pieces:
            return {}
        inputs = {spec.name for spec in self.specs}
        names = [
            name
            for name in self.pieces[0].entries
            if name not in inputs and all(self._is_target(piece, name) for piece in self.pieces)
        ]
        return {name: np.concatenate([p.entries[name].load() for p in self.pieces]) for name in names}

    def check(self, rows: Array) -> None:
        """Reads these samples once; raises InputError where their values cannot be used."""
        for owner in dict.fromkeys((np.searchsorted(self.starts, rows, side="right") - 1).tolist()):
            inside = rows[(rows >= self.starts[owner]) & (rows < self.starts[owner + 1])]
            size = 64 if self.kind == "rows" else 1
            for at in range(0, len(inside), size):
                self.read(inside[at : at + size])

    def _layout(self, piece: Piece) -> Layout:
        kind = layout(self.specs, {name: entry.shape for name, entry in piece.entries.items()}, piece.where)
        for spec in self.specs:
            check_type(spec, piece.entries[spec.name].dtype, piece.where)
        return kind

    def _count(self, piece: Piece) -> int:
        if self.kind == "feed":
            return 1
        return next(entry.shape[0] for spec in self.specs if (entry := piece.entries[spec.name]).shape)

    def _groups(self, counts: Sequence[int]) -> Array:
        if self.kind != "rows":
            return np.arange(sum(counts))
        kinds = [self._kind_of(piece) for piece in self.pieces]
        number = {kind: at for at, kind in enumerate(dict.fromkeys(kinds))}
        return np.repeat(np.array([number[kind] for kind in kinds], int), counts)

    def _kind_of(self, piece: Piece) -> tuple[tuple[int, ...] | bytes, ...]:
        """What the samples of pieces that share a batch have in common: their shapes, and the scalars that go with all of them."""
        entries = [piece.entries[spec.name] for spec in self.specs]
        return tuple(entry.shape[1:] if entry.shape else entry.load().tobytes() for entry in entries)

    def _is_target(self, piece: Piece, name: str) -> bool:
        entry = piece.entries.get(name)
        return entry is not None and bool(entry.shape) and entry.shape[0] == self._count(piece)

    def _part(self, spec: InputSpec, owner: int, rows: Array) -> Array:
        piece = self.pieces[owner]
        values = self._values(owner, spec.name)
        if values.ndim and self.kind == "rows":
            values = values[rows]
        elif values.ndim and self.kind == "stacked":
            values = np.asarray(values[int(rows[0])])
        return convert(spec, values, piece.where)

    def _values(self, owner: int, name: str) -> Array:
        """The array, kept for the next batch where loading it is dear; the oldest go when too many are kept."""
        entry = self.pieces[owner].entries[name]
        if entry.cheap:
            return entry.load()
        key = (owner, name)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        self._kept[key] = value = entry.load()
        while sum(a.nbytes for a in self._kept.values()) > KEPT and len(self._kept) > len(self.specs):
            self._kept.popitem(last=False)
        return value


def from_pieces(
    source: str, pieces: Iterator[Piece], specs: Sequence[InputSpec], samples: int | None
) -> Data:
    """The first `samples` samples of `pieces`, which is read no further than needed.

    Raises InputError where they do not fit the model, or hold values that cannot be used.
    """
    kept: list[Piece] = []
    count = 0
    for piece in pieces:
        kept.append(piece)
        reader = Pieces(specs, [piece])
        count += len(reader.groups)
        if samples is not None and count >= samples:
            break
    if not kept:
        raise InputError(f"{source}: holds no samples")
    reader = Pieces(specs, kept)
    data = Data.of(source, reader, fixed=reader.fixed, samples=samples)
    reader.check(data.rows)
    return data
