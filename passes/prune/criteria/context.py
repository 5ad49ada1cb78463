"""What a criterion may look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.errors import UsageError
from onnx_compress.passes.prune.criteria.gates import Gates
from onnx_compress.runtime.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.channels import Unit
    from onnx_compress.model.document import Model
    from onnx_compress.model.surgery import Surgery
    from onnx_compress.passes.prune.consumers import Consumer
    from onnx_compress.runtime.data import Data
    from onnx_compress.runtime.layers import LayerInput
    from onnx_compress.runtime.requests import GramStat

    Array = NDArray[Any]

LOOKED_AT = 128  # samples that criteria with a run for each unit look at


@dataclass(frozen=True, eq=False)
class Context:
    """The model and its layers, calibration data (None: none), the Gram matrix of each layer, and a source of chance."""

    model: Model
    surgery: Surgery
    readers: Sequence[Consumer]
    data: Data | None
    grams: dict[LayerInput, GramStat]
    threads: int
    rng: np.random.Generator
    damping: float
    weights: dict[str, Array] = field(default_factory=dict)

    def reading(self, units: Sequence[Unit]) -> list[Consumer]:
        """The layers that read channels of these units."""
        kind = units[0].kind
        return [r for r in self.readers if (r.weight.name, r.inner) in kind]

    def making(self, units: Sequence[Unit]) -> list[Consumer]:
        """The layers that make channels of these units."""
        kind = units[0].kind
        return [r for r in self.readers if r.output and (r.weight.name, r.outer) in kind]

    def samples(self) -> Data:
        """The calibration data. Raises UsageError where there is none."""
        if self.data is None:
            raise UsageError("prune: this criterion looks at activations and needs --data")
        return self.data

    @cached_property
    def gates(self) -> Gates:
        """The model with a gate on every channel that a layer reads."""
        return Gates(self.model, self.readers, self.samples().take(LOOKED_AT), self.threads)

    @cached_property
    def pooled(self) -> dict[tuple[str, int], Array]:
        """For each tensor a layer reads or makes and its channel axis: the mean activation (samples, channels)."""
        wanted = {(r.layer.tensor, r.layer.channel_axis) for r in self.readers}
        inputs = {value.name for value in self.model.proto.graph.input}
        names = sorted({name for name, _ in wanted} - inputs)
        session = Session(self.model, threads=self.threads, outputs=names)
        found: dict[tuple[str, int], list[Array]] = {key: [] for key in wanted}
        for feeds in self.samples().batches(32):
            values = {**feeds, **session.run(feeds, names)}
            for name, axis in wanted:
                found[name, axis].append(_pool(values[name], axis, _rows(feeds)))
        return {key: np.concatenate(parts) for key, parts in found.items()}

    @cached_property
    def classes(self) -> Array:
        """A class for each sample: its label, else what the model itself answers."""
        data = self.samples()
        if data.labels is not None and data.labels.ndim == 1:
            return np.asarray(data.labels)
        session = Session(self.model, threads=self.threads)
        answers = []
        for feeds in data.batches(32):
            value = np.asarray(session.run(feeds)[session.outputs[0]])
            answers.append(value.reshape(_rows(feeds), -1).argmax(axis=1))
        return np.concatenate(answers)


def _rows(feeds: Any) -> int:
    return max((len(value) for value in feeds.values() if np.ndim(value)), default=1)


def _pool(value: Array, axis: int, samples: int) -> Array:
    """(samples, channels): the mean over everything else; where no axis counts samples, every line is one."""
    moved = np.moveaxis(np.asarray(value, np.float64), axis, -1)
    if moved.shape[0] == samples:
        return moved.reshape(samples, -1, moved.shape[-1]).mean(axis=1)
    return moved.reshape(-1, moved.shape[-1])
