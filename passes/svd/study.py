"""What is known about the layers of one model: their inputs' statistics, their tables, and how much each one matters."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.model.cost import cost
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.svd.aim import Problem, behind, output_problem, plain_problem, solve, trial_sweeps
from onnx_compress.passes.svd.edits import apply_factors
from onnx_compress.passes.svd.inputs import WIDEST, input_of, looked_up, output_of
from onnx_compress.passes.svd.layers import Layer, find_layers, name_of
from onnx_compress.passes.svd.ranks import Option, table
from onnx_compress.runtime.agreement import Reference
from onnx_compress.runtime.observe import Gram, Histogram, observe, workers
from onnx_compress.runtime.workload import first_feeds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.contract import Job, Skip
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.passes.svd.factors import Factors
    from onnx_compress.passes.svd.forms import Form, Method
    from onnx_compress.runtime.data import Data
    from onnx_compress.runtime.requests import Request

    Array = NDArray[Any]

PROBE_WORK = (
    3e11,
    1e12,
)  # multiply-adds that all sensitivity probes together may take; the more where nothing else is measured
POSITIONS = 64  # of a sample's output positions that a Gram matrix takes
PROBES = (0.75, 0.5, 0.25, 0.1)  # shares of a layer's work (or weights) at which its harm is measured
FEW, LEAST = (
    8,
    2,
)  # samples from which each layer is probed at two shares only, and that it is probed on at least
LIGHT = 4_000_000  # weights up to which a session for a probe takes less than its runs, and trials are kept in float64
MINIMUM = 48  # samples that are used whatever the model's size
DATA_WORK = 4e11  # multiply-adds of one run over all samples: of a larger model fewer samples are used
HELD_OUT = 0.25  # of the data


@dataclass
class Study:
    """One model under study.

    data, fit, held: all of the data, and its parts to fit on and to judge by; None without data.
    By a layer's output: problems, its least squares; tables, its options; harms, (error, what it does to the model's outputs)
    of a few options;
    refits, the factors of whole plans;
    overheads, the share of its time that a layer factored by a method takes beyond its share of multiply-adds;
    gains, the time that a form saves by a micro-model, in multiply-adds of the dense layer;
    projected, the layers whose problem is posed on their outputs alone.
    """

    job: Job
    layers: list[Layer]
    skips: list[Skip]
    shapes: dict[str, Shape]
    macs: int
    params: int
    data: Data | None
    fit: Data | None
    held: Data | None
    problems: dict[str, Problem] = field(default_factory=dict)
    tables: dict[str, list[Option]] = field(default_factory=dict)
    harms: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    overheads: dict[tuple[str, Method], float] = field(default_factory=dict)
    gains: dict[str, dict[Form, float]] = field(default_factory=dict)
    refits: dict[frozenset[tuple[str, Form]], dict[str, Factors]] = field(default_factory=dict)
    projected: set[str] = field(default_factory=set)
    _factors: dict[tuple[str, Form], Factors] = field(default_factory=dict)
    _reference: Reference | None = None
    _prepared: str = ""

    @classmethod
    def of(cls, job: Job, *, exclude: str | None, data_aware: bool) -> Study:
        """The study of `job.model`, its layers found."""
        shapes = infer(job.model, first_shapes(job))
        layers, skips = find_layers(Surgery(job.model), shapes, exclude)
        total = cost(job.model, shapes)
        data = job.data if data_aware else None
        if data is not None and data.samples * total.macs > DATA_WORK:
            count = min(max(int(DATA_WORK / total.macs), MINIMUM), data.samples)
            job.warnings.append(
                f"svd: {count} of {data.samples} samples are used: a run of this model takes long"
            )
            data = data.take(count)
        fit, held = (None, None) if data is None else data.split(HELD_OUT, job.seed)
        return cls(job, layers, skips, shapes, total.macs, total.params, data, fit, held)

    def observe(self, layers: Sequence[Layer], *, by_output: bool = False) -> None:
        """Poses the problem of each layer: the Gram matrices of their inputs, in one sweep.

        by_output: those of their outputs, where those are the smaller; enough for method svd, and all that is needed of K inputs.
        """
        if self.fit is None:
            self.problems = {layer.output: plain_problem(layer, None) for layer in layers}
            return
        wanted = {
            layer.output: layer
            for layer in layers
            if by_output or layer.weight.shape[2] <= WIDEST or layer.op == "Gather"
        }
        requests: dict[str, Request] = {}
        for node in Surgery(self.job.model).graph.nodes:
            layer = wanted.get(name_of(node))
            if layer is None:
                continue
            if layer.op == "Gather":
                requests[layer.output] = Histogram(layer.input, 2 * layer.weight.shape[2])
                continue
            given = input_of(node, layer, self.shapes)
            if isinstance(given, str):
                continue
            own = output_of(layer, given) if by_output else None
            if own is not None:
                self.projected.add(layer.output)
            if own is not None or layer.weight.shape[2] <= WIDEST:
                requests[layer.output] = Gram(own or given)
        found = observe(
            self.job.model, self.fit, requests.values(), threads=self.job.clock.threads, positions=POSITIONS
        )
        last = {requests.get(layer.output): layer.output for layer in layers}
        for layer in layers:
            request = requests.get(layer.output)
            stat: Any = found[request] if request else None
            if request and last[request] == layer.output:
                del found[request]  # with the centred matrix beside it, a layer would be held twice
            if isinstance(request, Histogram):
                self.problems[layer.output] = looked_up(layer, stat)
            elif layer.output in self.projected:
                self.problems[layer.output] = output_problem(layer, stat)
            else:
                self.problems[layer.output] = plain_problem(layer, stat)

    def tabulate(
        self,
        layers: Sequence[Layer],
        methods: Mapping[str, Iterable[Method]],
        multiple: int,
        *,
        by: str,
        only: int | None,
    ) -> None:
        """The table of each layer, whose methods are given by its output; as many layers at a time as there are threads."""

        def tabulated(layer: Layer) -> list[Option]:
            problem = self.problems[layer.output]
            options = table(layer, problem, methods[layer.output], multiple, by=by, only=only)
            problem.release()
            return options

        with workers(self.job.clock.threads) as pool:
            for number, (layer, options) in enumerate(zip(layers, pool.map(tabulated, layers), strict=True)):
                self.job.progress(number, len(layers), "ranks")
                self.tables[layer.output] = options

    def probe(self, layers: Sequence[Layer], enough: float = math.inf, by: str = "macs") -> None:
        """Measures how far an error of each layer's output moves the model's: each layer alone, at a few ranks.

        Not at one: averaged away while it is noise, an error tells once it is more (the last Conv before a global pool
        on resnet20: a tenfold error does 140 times the harm). No smaller rank is tried once the harm is over `enough`.
        """
        if self.held is None:
            return
        work = self.macs * max(len(layers), 1)
        affordable = PROBE_WORK[enough == math.inf] / max(work, 1)  # runs of one sample for each layer
        many = affordable >= FEW * len(PROBES) and self.params <= LIGHT
        shares = PROBES if many else PROBES[1:3]
        held = self.held.take(min(max(int(affordable / len(shares)), LEAST), 128))
        reference = Reference(self.job.model, held, threads=self.job.clock.threads)
        for number, layer in enumerate(layers):
            self.job.progress(number, len(layers), "sensitivity")
            points: dict[float, float] = {}
            for share in shares:
                option = min(
                    self.tables[layer.output], key=lambda o: abs(getattr(o, by) - share * getattr(layer, by))
                )
                if option.error not in points:
                    points[option.error] = reference.error(self.build({layer.output: option}))
                if points[option.error] > enough:
                    break
            self.harms[layer.output] = sorted(points.items())

    def harm(self, output: str, error: float) -> float:
        """What an error of one layer's output does to the model's outputs, as far as the probes tell."""
        return extrapolated(self.harms.get(output, []), error)

    def problem(self, output: str) -> Problem:
        """The problem of one layer to be solved. What another one had prepared for that is let go, where it is large."""
        if self._prepared not in ("", output):
            self.problems[self._prepared].release()
        self._prepared = output
        return self.problems[output]

    def factors(self, output: str, option: Option) -> Factors:
        """The factors of one layer at `option`, made once."""
        key = (output, option.form)
        if key not in self._factors:
            layer = next(layer for layer in self.layers if layer.output == output)
            made = solve(self.problem(output), layer, option.form, sweeps=trial_sweeps(layer))
            made = behind(made, layer.weight) if output in self.projected else made
            self._factors[key] = made.narrowed() if self.params > LIGHT else made
        return self._factors[key]

    def build(self, plan: Mapping[str, Option]) -> Model:
        """The model with these layers factored, each fitted to its own input."""
        return apply_factors(self.job.model, {name: self.factors(name, plan[name]) for name in plan})

    @cached_property
    def live_bytes(self) -> int:
        """Bytes a sample of the tensors held at once on a walk through the model and the original: a rough bound."""
        weights = {tensor.name for tensor in self.job.model.proto.graph.initializer}
        sizes = sorted(
            math.prod(size for size in shape if isinstance(size, int))
            for name, shape in self.shapes.items()
            if name not in weights
        )
        # two tensors live at a time in each of the two models: a block's inner one and its shortcut
        return 16 * sum(sizes[-2:]) or 1

    def error(self, candidate: Model) -> float:
        """What `candidate` adds to the original's outputs on held-out data."""
        assert self.held is not None
        if self._reference is None:
            self._reference = Reference(self.job.original, self.held, threads=self.job.clock.threads)
        return self._reference.error(candidate)


def extrapolated(points: Sequence[tuple[float, float]], at: float) -> float:
    """The value at `at` of the curve through `points` (x, y), sorted, linear in the logarithms; y = x without points.

    Outside the points it goes on with a slope of at least 1, the slope of small errors.

    >>> round(extrapolated([(0.01, 0.001), (0.1, 0.1)], 0.03), 6)
    0.009
    >>> round(extrapolated([(0.01, 0.001)], 0.02), 6)
    0.002
    """
    if not points or at <= 0:
        return max(at, 0.0)
    x, y = np.log(np.maximum(np.array(points), 1e-15)).T
    where = math.log(max(at, 1e-15))
    slopes = np.maximum(np.diff(y) / np.maximum(np.diff(x), 1e-9), 1.0) if len(x) > 1 else np.ones(1)
    if where < x[0]:
        return float(np.exp(y[0] + slopes[0] * (where - x[0])))
    if where > x[-1]:
        return float(np.exp(y[-1] + slopes[-1] * (where - x[-1])))
    return float(np.exp(np.interp(where, x, y)))


def first_shapes(job: Job) -> dict[str, tuple[int, ...]]:
    """Concrete sizes of every input: those given, else those of the first sample."""
    if job.input_shapes:
        return job.input_shapes
    feeds = one_batch(job)
    return {name: tuple(value.shape) for name, value in feeds.items()}


def one_batch(job: Job) -> dict[str, Array]:
    """What the model is timed on."""
    return first_feeds(job.model, job.input_shapes, job.data, job.seed, job.batch)
