"""One layer made sparse: the mask, and the weight and bias that do best with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.numerics.masked import refit_rows, refit_work
from onnx_compress.passes.sparsify.brain import WORK, Inputs, scores, sweep
from onnx_compress.passes.sparsify.patterns import (
    Pattern,
    connectivity,
    kernels,
    largest,
    largest_in_rows,
    of_blocks,
    order,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.passes.sparsify.layers import Layer

    Array = NDArray[Any]

BLOCK = 64  # columns whose mask is chosen at once


@dataclass(frozen=True)
class Sparse:
    """A layer's new weight. rows: as the layer's; shift: what its bias gains, or None; error: E‖ΔW x‖² / E‖W x‖²."""

    rows: Array
    shift: Array | None
    error: float

    @property
    def zeros(self) -> int:
        """Entries that are zero."""
        return int((self.rows == 0).sum())


def solve(
    layer: Layer,
    inputs: Inputs,
    pattern: Pattern,
    zeros: int,
    *,
    criterion: str,
    repair: bool,
    rough: bool = False,
) -> Sparse:
    """The layer with at least `zeros` zero entries (a fixed pattern has its own number), fewest for whole kernels.

    inputs: in the order of the layer's rows. What is zero stays zero. rough: with the criterion's own update as the repair.
    """
    places = order(pattern, layer.rows.shape[2], layer.taps)
    turned = _turned(inputs, places) if pattern.kind == "nm" and layer.taps > 1 else inputs
    rows = layer.rows[..., places]
    found, keep = _masked(rows, turned, pattern, zeros, criterion, layer.taps)
    if not repair:
        found = np.where(keep, rows, 0.0)
    elif turned.gram is not None and not rough and refit_work(keep) <= WORK:
        found = refit_rows(rows, keep, turned.gram)
    elif turned.gram is not None and criterion != "obs":
        found, _ = sweep(rows, turned.upper, lambda _, start, end: keep[..., start:end])
    result = np.empty_like(rows)
    result[..., places] = found
    change = result - layer.rows
    whole = inputs.error(layer.rows)
    error = inputs.error(change) / whole if whole > 0 else 0.0
    shift = -np.einsum("gnk,gk->gn", change, inputs.mean).reshape(-1) if repair and layer.shifts else None
    return Sparse(result, shift, error)


def _masked(
    rows: Array, inputs: Inputs, pattern: Pattern, zeros: int, criterion: str, taps: int
) -> tuple[Array, Array]:
    """The weight with the zeros of the pattern, and the mask of what stays."""
    worth = scores(rows, inputs, criterion)
    if pattern.kind == "kernel":
        keep = kernels(worth, taps)
    elif pattern.kind == "connectivity":
        keep = connectivity(np.maximum(worth, 0.0), taps, zeros)
    elif pattern.kind == "nm":
        keep = of_blocks(worth, pattern.keep, pattern.of)
    else:
        choose = largest_in_rows if criterion == "wanda" else largest
        keep = choose(worth, max(zeros, int((rows == 0).sum())))
    keep &= rows != 0
    if criterion != "obs" or inputs.gram is None:
        return np.where(keep, rows, 0.0), keep
    if pattern.kind == "nm":
        block = max(BLOCK // pattern.of, 1) * pattern.of
        return sweep(rows, inputs.upper, lambda w, *_: of_blocks(w, pattern.keep, pattern.of), block)
    if pattern.kind != "unstructured":
        return sweep(rows, inputs.upper, lambda _, start, end: keep[..., start:end], BLOCK)

    # > as many in each block as the whole layer's ranking puts there: inputs differ in what they carry
    def chosen(now: Array, start: int, end: int) -> Array:
        worth = np.where(now < 0, now, now * inputs.matters[..., np.newaxis])
        return largest(worth, int((~keep[..., start:end]).sum()))

    return sweep(rows, inputs.upper, chosen, BLOCK)


def _turned(inputs: Inputs, places: Array) -> Inputs:
    gram = None if inputs.gram is None else inputs.gram[:, places][..., places]
    return Inputs(gram, inputs.energy[:, places], inputs.mean[:, places], inputs.matters)
