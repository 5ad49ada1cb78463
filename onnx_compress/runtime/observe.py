"""Streamed statistics of the tensors of a model while it runs; activations are never stored."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from onnx_compress.errors import InputError
from onnx_compress.runtime.grams import Crosses, LayerSums, Sums, plan
from onnx_compress.runtime.requests import (
    CrossGram,
    CrossStat,
    Extremes,
    Gram,
    GramStat,
    Histogram,
    HistogramStat,
    Moments,
    MomentStat,
    Observed,
    Range,
    Request,
    ZeroFraction,
)
from onnx_compress.runtime.runner import Runner, abreast, ahead, rows_of
from onnx_compress.runtime.statistics import Statistic, Values, statistic

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.runtime.layers import LayerInput

    Array = NDArray[Any]

__all__ = [
    "CrossGram",
    "CrossStat",
    "Extremes",
    "Gram",
    "GramStat",
    "Histogram",
    "HistogramStat",
    "MomentStat",
    "Moments",
    "Observed",
    "Range",
    "Request",
    "ZeroFraction",
    "observe",
    "workers",
]


class Batches(Protocol):
    """Anything that gives batches of feeds again and again, such as runtime.data.Data."""

    def batches(self, size: int = 32) -> Iterable[Mapping[str, Array]]:
        """Batches of `size` samples, the last may be smaller; in the same order each time."""
        ...


def observe(
    model: Model,
    data: Batches,
    requests: Iterable[Request],
    *,
    reference: Model | None = None,
    budget: int = 1 << 30,
    batch: int = 32,
    threads: int = 0,
    positions: int | None = 256,
    later: bool = False,
) -> Observed:
    """The statistics asked for, each over all samples of `data`, by request.

    reference: the model whose tensors a CrossGram aims at; it runs on the same samples.
    budget: bytes of sums held at once: where they are more, the data is swept again. A Gram matrix wider than 8,192 or
    than the budget becomes block-diagonal or diagonal, and says so.
    batch: samples in one run at most; fewer where the observed tensors are large. No answer depends on it.
    positions: output positions of each sample that a Gram matrix takes (None: all), evenly spread; where `data` says how
    many samples it has, more for fewer than 20 K columns in all, and fewer for more than 256 K (and 32,768).
    later: Gram matrices are left for `Observed.take`, so that no two need be finished at once.
    Raises InputError where a tensor is not there to be observed, ValueError where a target does not fit its layer.
    """
    found = Observed()
    wanted = list(dict.fromkeys(requests))
    if not wanted:
        return found
    if reference is None and any(isinstance(request, CrossGram) for request in wanted):
        raise ValueError("a CrossGram needs a reference model")
    feeds = next(iter(data.batches(1)), None)
    if feeds is None:
        raise InputError("there are no samples to observe the model on")
    everything = Runner(model, reference, wanted, 1)
    own, other = everything(feeds)
    looked, samples = rows_of(feeds), getattr(data, "samples", None)
    cores = threads or os.cpu_count() or 1
    with workers(threads) as pool:
        for part in _sweeps(_jobs(wanted), own, other, budget):
            runner = everything if len(part) == len(wanted) else Runner(model, reference, part, 1)
            sweep = _Sweep(part, own, budget, positions, samples)
            live = [own[name].nbytes for name in runner.own] + [other[name].nbytes for name in runner.other]
            number, size = abreast(sum(live) // looked, cores, batch, samples)
            if cores // number > 1:
                runner = Runner(model, reference, part, cores // number)
            for feeds, values in ahead(runner, data.batches(size), pool, number):
                sweep.update(*values, rows_of(feeds), pool)
            sweep.finish(found, pool, later=later)
    return found


@contextlib.contextmanager
def workers(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that each take a tensor or layer, while BLAS uses one thread in each.

    So gathering runs in parallel too, the sums do not depend on the number of threads, and nothing spins: OpenBLAS's own two threads
    took ten times the processor time where other processes were at work.
    """
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        yield pool


def _jobs(requests: Sequence[Request]) -> list[list[Request]]:
    """The requests, those of one layer together: they share its columns."""
    jobs: dict[Any, list[Request]] = {}
    for request in requests:
        key = request.layer if isinstance(request, Gram | CrossGram) else request
        jobs.setdefault(key, []).append(request)
    return list(jobs.values())


def _sweeps(
    jobs: Sequence[list[Request]], own: Mapping[str, Array], other: Mapping[str, Array], budget: int
) -> list[list[Request]]:
    """The requests in as many sweeps as the budget needs, first fit."""
    sweeps: list[list[Request]] = []
    left: list[int] = []
    for job in jobs:
        size = _nbytes(job, own, other, budget)
        at = next((index for index, room in enumerate(left) if size <= room), len(left))
        if at == len(left):
            sweeps.append([])
            left.append(budget)
        sweeps[at] += job
        left[at] -= size
    return sweeps


def _nbytes(job: Sequence[Request], own: Mapping[str, Array], other: Mapping[str, Array], budget: int) -> int:
    """Bytes of sums that one job needs."""
    request = job[0]
    if isinstance(request, Histogram):
        return 16 * request.bins
    if not isinstance(request, Gram | CrossGram):
        return int(64 * max(own[request.tensor].shape, default=1))
    layer = request.layer
    kept = plan(_channels(layer, own), layer.taps, layer.group, budget)
    outputs = [other[cross.target].shape[layer.output_axis] for cross in job if isinstance(cross, CrossGram)]
    return int(kept.nbytes + 8 * kept.inputs * sum(outputs))


def _channels(layer: LayerInput, own: Mapping[str, Array]) -> int:
    x = own[layer.tensor]
    if x.ndim < max(
        layer.channel_axis + 1, -layer.channel_axis, 2 + len(layer.kernel) if layer.kernel else 1
    ):
        raise ValueError(f"{layer.tensor!r} of shape {x.shape} is no input of such a layer")
    channels: int = x.shape[layer.channel_axis]
    return channels


class _Sweep:
    """The sums of one sweep over the data."""

    def __init__(
        self,
        requests: Sequence[Request],
        own: Mapping[str, Array],
        budget: int,
        positions: int | None,
        samples: int | None,
    ) -> None:
        self.values: dict[str, dict[Any, Statistic]] = {}
        self.layers: dict[LayerInput, LayerSums] = {}
        self.crosses: dict[CrossGram, Crosses] = {}
        self.requests = requests
        self.nonfinite: dict[str, int] = {}
        self.first = 0
        for request in requests:
            if not isinstance(request, Gram | CrossGram):
                self.values.setdefault(request.tensor, {})[request] = statistic(request)
                continue
            layer = request.layer
            if layer not in self.layers:
                sums = Sums(layer, _channels(layer, own), budget)
                self.layers[layer] = LayerSums(sums, positions, samples)
            if isinstance(request, CrossGram):
                if layer.kind == "transpose":
                    raise ValueError("a ConvTranspose has no target before its products are summed")
                self.crosses[request] = Crosses(layer, request.target, request.minus)
                self.layers[layer].crosses.append(self.crosses[request])

    def update(
        self, own: Mapping[str, Array], other: Mapping[str, Array], samples: int, pool: ThreadPoolExecutor
    ) -> None:
        """Takes in one batch."""
        waiting = [
            pool.submit(sums.update, own[layer.tensor], own, other, samples, self.first)
            for layer, sums in self.layers.items()
        ]
        waiting += [
            pool.submit(self._look, tensor, own[tensor], samples)
            for tensor in self.values
            if own[tensor].size
        ]
        for future in waiting:
            future.result()
        self.first += samples

    def _look(self, tensor: str, x: Array, samples: int) -> None:
        values = Values.of(x, samples)
        for stat in self.values[tensor].values():
            stat.update(values)
        if values.finite is not None:
            bad = int(values.finite.size - np.count_nonzero(values.finite))
            self.nonfinite[tensor] = self.nonfinite.get(tensor, 0) + bad

    def finish(self, found: Observed, pool: ThreadPoolExecutor, *, later: bool) -> None:
        """Writes the answers down; later: but for Gram matrices that nothing else needs."""
        crossed = {request.layer for request in self.crosses}
        open_ones = {layer for layer in self.layers if later and layer not in crossed}
        # > the widest first: what is left at the end is short
        widest = sorted(
            self.layers.keys() - open_ones, key=lambda layer: -self.layers[layer].sums.plan.inputs
        )
        stats = pool.map(lambda layer: self.layers[layer].close(), widest)
        grams = dict(zip(widest, stats, strict=True))
        for request in self.requests:
            if isinstance(request, Gram) and request.layer in open_ones:
                found.open[request] = self.layers[request.layer].rough
            elif isinstance(request, Gram):
                found[request] = grams[request.layer]
            elif isinstance(request, CrossGram):
                found[request] = self.crosses[request].stat(grams[request.layer])
            else:
                found[request] = self.values[request.tensor][request].value()
        for counts in (self.nonfinite, *(sums.nonfinite for sums in self.layers.values())):
            for tensor, count in counts.items():
                found.nonfinite[tensor] = max(found.nonfinite.get(tensor, 0), count)
