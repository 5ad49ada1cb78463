"""How much one run of a model is, at the sizes that its samples have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_compress.model.cost import cost
from onnx_compress.model.shapes import infer
from onnx_compress.runtime.data import random_data
from onnx_compress.runtime.runner import rows_of
from onnx_compress.runtime.session import input_specs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]


def first_feeds(
    model: Model,
    input_shapes: Mapping[str, tuple[int, ...]] | None,
    data: Data | None,
    seed: int = 0,
    batch: int = 1,
) -> dict[str, Array]:
    """A batch of `data`, or of random inputs of these sizes, for a model that runs: what is timed, and what shapes are told by."""
    if data is not None:
        return next(iter(data.batches(batch)))
    specs = input_specs(model)
    shapes = [*(spec.shape for spec in specs), *(input_shapes or {}).values()]
    rows = max([batch, *(shape[0] for shape in shapes if shape and isinstance(shape[0], int))])
    return next(iter(random_data(specs, rows, seed, input_shapes, model).batches(rows)))


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
