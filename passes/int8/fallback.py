"""The fewest layers in float with which the quantized model keeps to a tolerance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnx_compress.model.document import Model
    from onnx_compress.passes.int8.placement import Placement
    from onnx_compress.passes.int8.quantizer import Quantizer

    Judge = Callable[[Model], float]


RETURNED = 12  # layers at most that are tried in integers again
LOADED = 4e8  # bytes of all models that rank the layers, and four times those that try them again


def sensitivities(quantizer: Quantizer, judge: Judge) -> dict[str, float]:
    """The output error of each layer when it alone is quantized; of a large model, with its neighbours, as their share."""
    found: dict[str, float] = {}
    layers = list(quantizer.layers)
    for part in np.array_split(layers, _looks(quantizer)):
        some = [str(name) for name in part]
        error = judge(quantizer.quantized({other: "" for other in layers if other not in some})[0])
        found |= dict.fromkeys(some, error / len(some))
        quantizer.progress(len(found), len(layers), "int8: sensitivity")
    return found


def _looks(quantizer: Quantizer) -> int:
    """How many models rank the layers: one a layer, fewer where each is large."""
    return min(len(quantizer.layers), max(1, int(LOADED / max(quantizer.model.nbytes, 1))))


def hold(
    quantizer: Quantizer, judge: Judge, quick: Judge, tolerance: float, *, followers: bool
) -> tuple[Model, Placement, float] | None:
    """The quantized model with the fewest layers kept in float whose error is within `tolerance`, or None.

    Layers are kept in float in the order of their sensitivity, which `quick` judges; how many is found by bisection. Then
    each but the last of them, the least sensitive first, goes back where the rest is enough.
    """
    ranked = sorted((-error, name) for name, error in sensitivities(quantizer, quick).items())

    alone = "alone" if _looks(quantizer) == len(ranked) else "with its neighbours, as its share,"

    def attempt(chosen: Sequence[tuple[float, str]]) -> tuple[Model, Placement, float]:
        keep = {
            name: f"in float to keep within the tolerance: {alone} in int8 it adds an output error of {-error:.2g}"
            for error, name in chosen
        }
        model, placement = quantizer.quantized(keep, followers=followers)
        return model, placement, judge(model)

    low, high, best = 0, len(ranked), None  # > low is known to miss
    while high - low > 1:
        # > doubled until it is enough: mostly a few layers are
        count = (low + high) // 2 if best is not None else min(max(2 * low, 1), high - 1)
        tried = attempt(ranked[:count])
        if tried[2] <= tolerance:
            high, best = count, tried
        else:
            low = count
    kept = ranked[:high]
    # > errors of layers do not add: one that matters alone may not matter beside those kept already
    tries = min(RETURNED, int(LOADED / 4 / max(quantizer.model.nbytes, 1)))
    for one in kept[::-1][1 : 1 + tries] if best is not None else ():
        tried = attempt([other for other in kept if other != one])
        if tried[2] <= tolerance:
            best, kept = tried, [other for other in kept if other != one]
    return best
