"""What a layer reads today, column by column, and what the original made of the same columns: held by two walks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.numerics.through import OPEN, Clamp, Piece
from onnx_compress.runtime import unfold

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.shapes import Shape
    from onnx_compress.runtime.layers import LayerInput
    from onnx_compress.runtime.walk import Walk

    Array = NDArray[Any]

LEAST = 16_384  # columns, if there are as many: of a layer with few inputs
MOST = 96  # columns an input: a fit is off by K/n of its error
BYTES = 96 * 2**20  # of columns that are kept; more are gathered again at each look


@dataclass
class Columns:
    """The columns of `layer` in the model of `present` and its aim, `target` of the model of `original`, as pieces.

    added: the tensor of `present` that is added to the layer's output before it meets the target, or None;
    kept: which channels of the target are aimed at (None: all); share: of the columns that are otherwise taken.
    """

    layer: LayerInput
    target: str
    added: str | None
    kept: Array | None
    present: Walk
    original: Walk
    share: float = 1.0
    _held: list[Piece] = field(default_factory=list)

    def __iter__(self) -> Iterator[Piece]:
        """The pieces, in the order of the samples; the same at each look."""
        if self._held:
            yield from self._held
            return
        held: list[Piece] | None = []
        size, first = 0, 0
        for number, samples in enumerate(self.present.sizes):
            piece = self._piece(number, samples, first)
            first += samples
            size += piece.x.nbytes + piece.y.nbytes * (1 if piece.added is None else 2)
            if size > BYTES:
                held = None
            if held is not None:
                held.append(piece)
            yield piece
        self._held = held or []

    def _piece(self, number: int, samples: int, first: int) -> Piece:
        own, other = self.present.batches[number], self.original.batches[number]
        layer = self.layer
        view = unfold.windows(_float32(own[layer.tensor]), layer, samples)
        total = math.prod(unfold.positions(view))
        inputs = layer.taps * view.shape[-1] // layer.group
        wanted = self.share * enough(layer.group, inputs) / sum(self.present.sizes)
        position = unfold.choose(total, min(total, math.ceil(wanted)), first, len(view))
        sample = np.repeat(np.arange(len(view)), position.shape[1])
        place = sample, position.ravel()
        x = unfold.by_group(unfold.gather(view, *place), layer.group)
        y = self._outputs(other[self.target], samples, place, self.kept)
        added = None if self.added is None else self._outputs(own[self.added], samples, place, None)
        return _finite(Piece(x, y, added))

    def _outputs(self, y: Array, samples: int, place: tuple[Array, Array], kept: Array | None) -> Array:
        layer = self.layer
        picked = unfold.lines(_float32(y), layer.output_axis, layer.sample_axis, samples)[place]
        if kept is not None:
            picked = picked[:, kept]
        return np.ascontiguousarray(picked.reshape(len(picked), layer.group, -1).swapaxes(0, 1))


def enough(groups: int, inputs: int) -> float:
    """How many columns a fit takes, if there are as many, of `inputs` each.

    Every group takes its own: of many groups each needs fewer, and their errors even out.
    """
    return max(LEAST / math.sqrt(groups), MOST * inputs)


@dataclass(frozen=True)
class Target:
    """What a layer is to give: tensor `tensor` of the original, less tensor `added` of the present model, through `clamp`."""

    tensor: str
    added: str | None
    clamp: Clamp


@dataclass(frozen=True)
class Targets:
    """What the layers of one model are to give.

    original, present: the shapes of the tensors that each of the two models has; written: the place of the node that
    writes each tensor of the present one; exits: the outputs of its graph.
    """

    original: Mapping[str, Shape]
    present: Mapping[str, Shape]
    written: Mapping[str, int]
    exits: Collection[str]

    def of(self, output: gs.Tensor, place: int) -> Target | None:
        """For the layer at `place` that gives `output`; None where the original has no such tensor of the same shape.

        Where that is added to a shortcut that is there by then, the sum: of two branches the later corrects both.
        """
        shortcut = self._shortcut(output, place)
        if shortcut is not None:
            total = output.outputs[0].outputs[0]
            return Target(total.name, shortcut, self._clamp(total))
        return Target(output.name, None, self._clamp(output)) if self._known(output) else None

    def _shortcut(self, output: gs.Tensor, place: int) -> str | None:
        users = output.outputs
        if output.name in self.exits or len(users) != 1 or users[0].op not in ("Add", "Sum"):
            return None
        others = [tensor for tensor in users[0].inputs if tensor is not output]
        if len(users[0].inputs) != 2 or len(others) != 1 or isinstance(others[0], gs.Constant):
            return None
        (other,), (total,) = others, users[0].outputs
        sizes = {self.present.get(tensor.name) for tensor in (output, other, total)}
        there = self.written.get(other.name, -1) < place
        return other.name if there and len(sizes) == 1 and self._known(total) else None

    def _known(self, tensor: gs.Tensor) -> bool:
        return tensor.name in self.original and self.original[tensor.name] == self.present.get(
            tensor.name, ()
        )

    def _clamp(self, tensor: gs.Tensor) -> Clamp:
        return OPEN if tensor.name in self.exits else clamp_after(tensor)


def clamp_after(tensor: gs.Tensor) -> Clamp:
    """The range to which a Relu or Clip, the only user of the tensor, clips it; without one, all values."""
    users = tensor.outputs
    if len(users) != 1:
        return OPEN
    if users[0].op == "Relu":
        return 0.0, math.inf
    if users[0].op != "Clip":
        return OPEN
    bounds = [users[0].attrs.get("min", -math.inf), users[0].attrs.get("max", math.inf)]
    for place, bound in enumerate(users[0].inputs[1:3]):
        if bound.name and not isinstance(bound, gs.Constant):
            return OPEN
        if bound.name:
            bounds[place] = float(bound.values)
    return float(bounds[0]), float(bounds[1])


def _finite(piece: Piece) -> Piece:
    """Without the columns that hold NaN or infinity."""
    parts = [part for part in (piece.x, piece.y, piece.added) if part is not None]
    with np.errstate(invalid="ignore", over="ignore"):
        if all(
            np.isfinite(part.sum()) for part in parts
        ):  # > a sum is infinite or NaN if any of its terms is
            return piece
    good = np.logical_and.reduce([np.isfinite(part).all(axis=(0, 2)) for part in parts])
    return Piece(*(part[:, good] for part in parts))


def _float32(x: Array) -> Array:
    return np.asarray(x, np.float32)
