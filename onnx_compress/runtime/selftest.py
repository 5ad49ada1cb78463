"""Whether pruning is sound on this very model: removed equals masked, in numbers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnx_compress.errors import CompressError
from onnx_compress.model.channels import Channels
from onnx_compress.model.doubled import doubled
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
# hundred layers may amplify that a hundredfold. A wrong channel moves an output by its own size. In float64 the same is 2^-53.
TOLERANCE = 1e-3
TOLERANCE_DOUBLE = 1e-11
FLOOR = 1e-3  # of the scale: a sigmoid near 0 is exact to 1e-7 only, however small it is


@dataclass(frozen=True)
class Proof:
    """The largest difference of any output, relative to the original's largest; what it may be; units removed.

    precision: "float64" where onnxruntime has kernels for all of the model in it, else "float32", the model's own.
    """

    difference: float
    allowed: float
    precision: Literal["float64", "float32"]
    units: int

    @property
    def sound(self) -> bool:
        """Whether the difference is rounding."""
        return self.difference <= self.allowed


def prove(
    model: Model,
    shapes: Mapping[str, Shape],
    feeds: Mapping[str, Array],
    seed: int,
    *,
    share: float = 0.3,
) -> Proof:
    """How far `model` without a random `share` of every kind of unit is from `model` with the same channels zeroed at their
    consumers. Both run in onnxruntime, unoptimized.
    """
    surgery = Surgery(model)
    channels = Channels(surgery, dict(shapes))
    units, _ = channels.units()
    chosen = channels.remove(draw(units, share, np.random.default_rng(seed)))
    if not chosen:
        return Proof(0.0, TOLERANCE_DOUBLE, "float64", 0)
    pruned, wide_model = surgery.commit(), doubled(model)
    precision: Literal["float64", "float32"] = "float64"
    try:
        wide = {name: _wide(value) for name, value in feeds.items()}
        models = [wide_model, masked(wide_model, shapes, chosen, np.float64), doubled(pruned)]
        original, expected, actual = (Session(m, optimize=False).run(wide) for m in models)
    except CompressError:
        # > onnxruntime has no float64 kernel for some op, Conv and LSTM among them
        models = [model, masked(model, shapes, chosen), pruned]
        original, expected, actual = (Session(m, optimize=False).run(dict(feeds)) for m in models)
        precision = "float32"
    allowed = TOLERANCE_DOUBLE if precision == "float64" else TOLERANCE
    return Proof(difference(expected, actual, original), allowed, precision, len(chosen))


def self_test(
    model: Model,
    shapes: Mapping[str, Shape],
    feeds: Mapping[str, Array],
    seed: int,
    *,
    share: float = 0.3,
) -> float:
    """The difference that `prove` finds."""
    return prove(model, shapes, feeds, seed, share=share).difference


def _wide(value: Array) -> Array:
    return np.asarray(value, np.float64) if value.dtype == np.float32 else value


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
