"""How much one run of a model is, at the sizes that its samples have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_compress.errors import InputError
from onnx_compress.model.cost import cost
from onnx_compress.model.shapes import infer
from onnx_compress.runtime.data import random_data
from onnx_compress.runtime.runs import rows_of
from onnx_compress.runtime.session import input_specs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]


def first_feeds(
    model: Model,
    data: Data | None,
    input_shapes: Mapping[str, tuple[int, ...]],
    *,
    seed: int = 0,
    batch: int = 1,
) -> dict[str, Array]:
    """A batch of `data`; where there is none, or sizes are given, random inputs of these.

    Raises InputError where there are no samples.
    """
    if data is None or input_shapes:
        specs = input_specs(model)
        least = max((size for spec in specs for size in spec.shape[:1] if isinstance(size, int)), default=1)
        data = random_data(specs, least, seed, input_shapes, model=model)
    feeds = next(iter(data.batches(batch)), None)
    if feeds is None:
        raise InputError("there are no samples")
    return dict(feeds)


def macs_of_sample(model: Model, feeds: Mapping[str, Array]) -> float:
    """Multiply-adds of one sample like those of `feeds`: a symbolic size is what it is there."""
    shapes = infer(model, {name: tuple(value.shape) for name, value in feeds.items()})
    return cost(model, shapes).macs / max(rows_of(feeds), 1)


def affordable(samples: int, macs: float, work: float, least: int) -> int:
    """How many of so many samples, each of `macs` multiply-adds, are no more than `work` in all; `least` all the same.

    >>> affordable(16, 2e9, 1e10, 3), affordable(16, 1e10, 1e10, 3), affordable(16, 0.0, 1e10, 3)
    (5, 3, 16)
    """
    return min(samples, max(least, int(work / max(macs, 1.0))))
