"""Whether pruning is sound on this very model: removed equals masked, in numbers."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.model.channels import Channels
from onnx_compress.model.selftest import masked
from onnx_compress.model.surgery import Surgery
from onnx_compress.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape

    Array = NDArray[Any]

# A sum of K terms in another order moves by about sqrt(K) · 2^-24 of their norm, some 1e-6 for the widest layers; a
# hundred layers may amplify that a hundredfold. A wrong channel moves an output by its own size.
TOLERANCE = 1e-3
FLOOR = 1e-3  # of the scale: a sigmoid near 0 is exact to 1e-7 only, however small it is


def self_test(
    model: Model,
    shapes: Mapping[str, Shape],
    feeds: Mapping[str, Array],
    seed: int,
    *,
    share: float = 0.3,
) -> float:
    """The largest difference, relative to the original's largest output, between `model` without a random `share` of every
    kind of unit and `model` with the same channels zeroed at their consumers; 0 where no unit can go.

    Both run in onnxruntime, unoptimized, in the model's own precision: up to TOLERANCE is rounding.
    """
    surgery = Surgery(model)
    channels = Channels(surgery, dict(shapes))
    units, _ = channels.units()
    chosen = draw(units, share, np.random.default_rng(seed))
    if not chosen:
        return 0.0
    chosen = channels.remove(chosen)
    original = Session(model, optimize=False).run(dict(feeds))
    expected = Session(masked(model, shapes, chosen), optimize=False).run(dict(feeds))
    actual = Session(surgery.commit(), optimize=False).run(dict(feeds))
    return difference(expected, actual, original)


def draw(units: Sequence[Unit], share: float, rng: np.random.Generator) -> list[Unit]:
    """A random `share` of every kind of unit, at least one where two or more are there, never all."""
    kinds: dict[frozenset[tuple[str, int]], list[Unit]] = defaultdict(list)
    for unit in units:
        kinds[unit.kind].append(unit)
    chosen = []
    for members in kinds.values():
        count = max(1, int(len(members) * share)) if len(members) > 1 else 0
        chosen += [members[i] for i in rng.permutation(len(members))[:count]]
    return chosen


def difference(
    expected: Mapping[str, Array], actual: Mapping[str, Array], original: Mapping[str, Array]
) -> float:
    """The largest |expected − actual| of any output, relative to the largest finite value of it or of the original.

    > not of `expected` alone: a sigmoid that was near 1 may be near 0 without its channels, where it is not exact
    """
    worst = 0.0
    for name, value in expected.items():
        a, b = np.asarray(value), np.asarray(actual[name])
        if a.shape != b.shape:
            return float("inf")
        if a.dtype.kind not in "fiub" or not a.size:
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(a)
        if not np.array_equal(finite, np.isfinite(b)):
            return float("inf")
        whole = np.asarray(original[name]).astype(np.float64)
        sizes = (np.abs(values[np.isfinite(values)]).max(initial=0.0) for values in (a, whole))
        scale = max(*sizes, FLOOR)
        worst = max(worst, float(np.abs(a[finite] - b[finite]).max(initial=0.0)) / scale)
    return worst
