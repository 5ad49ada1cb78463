"""Milliseconds of every layer at every width, measured where the layer stands: in the model as it will be shipped.

A convolution alone in a model is timed with the reordering of its input and output, and int8 with its rounding; inside,
neighbours share them. So whole models are run under the profiler, with the kinds of units in two colours, such that a
layer's inputs and outputs differ in colour, each colour at each of SHARES: every layer is then seen at every pair of
widths. (SPDY, Frantar & Alistarh 2022, has such a table for each layer; alignment makes it anything but proportional.)
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.model.shapes import infer
from onnx_compress.passes.prune.cost import removed
from onnx_compress.passes.prune.cut import cut
from onnx_compress.runtime.profile import by_layer, profile

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.contract import Job
    from onnx_compress.model.channels import Unit
    from onnx_compress.model.shapes import Shape
    from onnx_compress.passes.prune.consumers import Consumer
    from onnx_compress.passes.prune.cost import Gone
    from onnx_compress.passes.prune.curves import Curve

    Array = NDArray[Any]
    Place = tuple[str, int]

SHARES = (1.0, 0.75, 0.5, 0.25)  # of an axis at which layers are timed; between them time is taken as linear
RUNS = 12  # of each model under the profiler: a table forgives what a decision would not


@dataclass(frozen=True)
class Milliseconds:
    """For each layer its ms at SHARES of its inputs (rows) and outputs (columns); what could not be timed has no part.

    rest: the ms of everything else at SHARES of all outputs.
    """

    tables: dict[str, Array]
    readers: dict[str, Consumer]
    rest: Array

    def only(self, layers: Collection[str]) -> Milliseconds:
        """Of a model that has none but these layers, and as much of everything else for each."""
        tables = {name: table for name, table in self.tables.items() if name in layers}
        return replace(self, tables=tables, rest=self.rest * len(tables) / max(len(self.tables), 1))

    def of(self, gone: Gone) -> Any:
        """Milliseconds of the model."""
        total: Any = 0.0
        outputs: Any = 0.0
        for name, table in self.tables.items():
            reader = self.readers[name]
            inner, outer = (
                1 - np.asarray(gone.get((reader.weight.name, axis), 0)) / reader.weight.shape[axis]
                for axis in (reader.inner, reader.outer)
            )
            total = total + bilinear(table, inner, outer)
            outputs = outputs + outer / len(self.tables)
        return total + np.interp(outputs, SHARES[::-1], self.rest[::-1])


def bilinear(table: Array, inner: Array, outer: Array) -> Any:
    """`table`, given at SHARES along both axes, at any shares; below the least as at the least.

    >>> round(float(bilinear(np.outer(SHARES, SHARES), np.array(0.6), np.array(0.3))), 6)
    0.18
    """
    places = [np.interp(share, SHARES[::-1], np.arange(len(SHARES))[::-1]) for share in (inner, outer)]
    (low_i, part_i), (low_j, part_j) = ((np.minimum(p.astype(int), len(SHARES) - 2), p) for p in places)
    part_i, part_j = part_i - low_i, part_j - low_j
    rows = [
        table[low_i + step, low_j] * (1 - part_j) + table[low_i + step, low_j + 1] * part_j for step in (0, 1)
    ]
    return rows[0] * (1 - part_i) + rows[1] * part_i


def measure(
    job: Job, readers: Sequence[Consumer], shapes: Mapping[str, Shape], curves: Sequence[Curve]
) -> Milliseconds:
    """Times the layers of the whole model with its kinds at every pair of SHARES; layers alike in all but their weights
    share what was found. shapes: at the batch that is timed.
    """
    layers: dict[str, Consumer] = {}
    for reader in readers:
        layers.setdefault(reader.name, reader)
    colours = _colours(curves, list(layers.values()))
    points = [(i, j) for i in range(len(SHARES)) for j in range(len(SHARES))]
    sets = [_narrowed(curves, colours, point) for point in points]
    times = _profiled(job, sets, list(layers))
    seen: dict[str, dict[tuple[int, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    names: dict[str, str] = {}
    alike = {name: names.setdefault(_signature(reader, shapes), name) for name, reader in layers.items()}
    for units, found in zip(sets, times, strict=True):
        gone = removed(units)
        for name, reader in layers.items():
            seen[alike[name]][_levels(reader, gone)].append(found.get(name, np.nan))
    tables = {name: _table(job, name, cells) for name, cells in seen.items()}
    rest = [
        job.clock.note(f"the rest at {SHARES[i]}", found.get("", 0.0))
        for (i, j), found in zip(points, times, strict=True)
        if i == j
    ]
    known = {name: tables[alike[name]] for name in layers if tables[alike[name]][0, 0] > 0}
    return Milliseconds(known, layers, np.array(rest))


def _profiled(job: Job, sets: Sequence[list[Unit]], layers: Sequence[str]) -> list[dict[str, float]]:
    """For each set of units the ms of each layer that can be told apart without them, and under "" of all else."""
    if job.clock.replaying:
        return [{} for _ in sets]
    assert job.data is not None
    feeds = next(iter(job.data.batches(job.batch)))
    shapes = infer(job.model)
    models = []
    for done, units in enumerate(sets):
        job.progress(done, len(sets), "timing widths")
        models.append(job.finish(cut(job.model, shapes, units, {}, "none", 0.0) if units else job.model))
    found = []
    for model, kernels in zip(
        models, profile(models, feeds, threads=job.clock.threads, runs=RUNS), strict=True
    ):
        times = by_layer(model, kernels, layers)
        times[""] = sum(kernel.ms for kernel in kernels) - sum(times.values())
        found.append(times)
    return found


def _table(job: Job, name: str, cells: Mapping[tuple[int, int], Sequence[float]]) -> Array:
    """The layer's ms at all pairs of SHARES; those not seen as if its two sides did not meet. All 0: not known."""
    seen = {}
    for (i, j), times in sorted(cells.items()):
        known = [ms for ms in times if not np.isnan(ms)]
        ms = job.clock.note(f"{name} at {SHARES[i]}x{SHARES[j]}", statistics.median(known) if known else 0.0)
        if ms > 0:
            seen[i, j] = ms
    whole = seen.get((0, 0), 0.0)
    table = np.zeros((len(SHARES), len(SHARES)))
    if not whole:
        return table
    # > a square root: what is known of both sides together is shared between them
    rows = [seen.get((i, 0)) or (seen.get((i, i), whole) * whole) ** 0.5 for i in range(len(SHARES))]
    columns = [seen.get((0, j)) or (seen.get((j, j), whole) * whole) ** 0.5 for j in range(len(SHARES))]
    for i, j in itertools.product(range(len(SHARES)), repeat=2):
        table[i, j] = seen.get((i, j)) or rows[i] * columns[j] / whole
    return table


def _levels(reader: Consumer, gone: Mapping[Place, int]) -> tuple[int, int]:
    """Which of SHARES are nearest to what is left of the layer's inputs and outputs."""
    left = [
        1 - gone.get((reader.weight.name, axis), 0) / reader.weight.shape[axis]
        for axis in (reader.inner, reader.outer)
    ]
    first, second = (int(np.argmin(np.abs(np.array(SHARES) - share))) for share in left)
    return first, second


def _narrowed(curves: Sequence[Curve], colours: Sequence[int | None], point: tuple[int, int]) -> list[Unit]:
    """The units that leave each kind the share that its colour is at."""
    units: list[Unit] = []
    for curve, colour in zip(curves, colours, strict=True):
        if colour is not None:
            units += curve.units[: min(round(curve.size * (1 - SHARES[point[colour]])), curve.size - 1)]
    return units


def _colours(curves: Sequence[Curve], layers: Sequence[Consumer]) -> list[int | None]:
    """0 or 1 for each kind, so that the two sides of a layer differ where they can; None for a second kind on one axis."""
    at: dict[Place, int] = {}
    second = set()
    for number, curve in enumerate(curves):
        places = [place for place in curve.units[0].places if place in at]
        if places:
            second.add(number)
        else:
            at.update(dict.fromkeys(curve.units[0].places, number))
    near: dict[int, set[int]] = defaultdict(set)
    for layer in layers:
        pair = [at.get((layer.weight.name, axis)) for axis in (layer.inner, layer.outer)]
        if pair[0] is not None and pair[1] is not None and pair[0] != pair[1]:
            near[pair[0]].add(pair[1])
            near[pair[1]].add(pair[0])
    colours: dict[int, int] = {}
    for start in range(len(curves)):
        waiting = [start] if start not in colours else []
        while waiting:
            number = waiting.pop(0)
            if number in colours:
                continue
            taken = [colours[other] for other in near[number] if other in colours]
            colours[number] = int(taken.count(0) > taken.count(1))
            waiting += sorted(near[number] - colours.keys())
    return [None if number in second else colours[number] for number in range(len(curves))]


def _signature(reader: Consumer, shapes: Mapping[str, Shape]) -> str:
    """What tells layers apart that may take different times."""
    attributes = sorted((key, str(value)) for key, value in reader.node.attrs.items())
    return f"{reader.node.op} {attributes} {reader.weight.shape} {shapes.get(reader.layer.tensor)}"
