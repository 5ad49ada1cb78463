"""From all in int8 to what tolerance and clock leave of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from onnx_compress.contract import Change, Skip
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.int8.fallback import hold
from onnx_compress.passes.int8.guard import asked
from onnx_compress.passes.int8.kinds import FLOAT_ONLY, LAYERS, weight_of
from onnx_compress.passes.int8.migrate import SAMPLES, balanced
from onnx_compress.passes.int8.opset import raised
from onnx_compress.passes.int8.quantizer import Choices
from onnx_compress.passes.int8.storage import Stored, store
from onnx_compress.runtime.agreement import Reference
from onnx_compress.runtime.observe import Moments, observe
from onnx_compress.runtime.workload import affordable, macs_of_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from onnx_compress.contract import Decision, Job
    from onnx_compress.model.document import Model
    from onnx_compress.passes.int8.int8 import Int8
    from onnx_compress.passes.int8.placement import Placement
    from onnx_compress.passes.int8.quantizer import Quantizer
    from onnx_compress.runtime.data import Data

    Build = Callable[[set[str]], tuple[Model, list[Stored]]]

LOOKED = 16  # samples on which ranges are seen for a quick look, and as many that judge it
SENSED = 32  # held-out samples by which layers are ranked
LOOK_WORK = 1.6e10  # multiply-adds of one such look: of a larger model fewer samples
FEWEST = 3  # samples of a look all the same
AIM_WORK = 4e10  # multiply-adds of a run over the samples that the means of outputs are taken from
LITTLE = 0.02  # of a model: less is not stored in int8 where it runs in float
WIDE = 2**16 - 1  # steps of activations in 16 bits
MIXING = {"MatMul", "Softmax"}  # followers that may or may not pay: products of activations


@dataclass(frozen=True)
class Found:
    """A model and what became of its layers; placement: of those in integers, None where none is."""

    model: Model
    placement: Placement | None = None
    changes: tuple[Change, ...] = ()
    skips: tuple[Skip, ...] = ()


@dataclass(frozen=True)
class Made:
    """What a quantizer made. error: as judged, None where nobody asked; followers: whether more than layers are in integers."""

    quantizer: Quantizer
    model: Model
    placement: Placement
    error: float | None
    followers: bool


@dataclass
class Search:
    """One run of the pass. judge: a model's output error against the original, bound: how large it may be;
    given: bytes of the model before the pass, which may be smaller than job.model: codebooks are unfolded there.
    """

    options: Int8
    job: Job
    fit: Data
    held: Data
    judge: Callable[[Model], float]
    bound: float
    given: int
    decisions: list[Decision] = field(default_factory=list)
    macs: float | None = None
    looks: dict[int, Reference] = field(default_factory=dict)

    def integer(self) -> Found:
        """The most of the model in integers that is within the bound."""
        job = self.job
        model = self.raised(job.model)
        if isinstance(model, str):
            return self.in_float(model)
        model = self._balanced(model)
        quantizer = self.options.quantizer(model, self.fit, job)
        if not quantizer.layers:
            return self.in_float(None, quantizer.quantized()[1])
        quantizer.observe()
        full, placement = quantizer.quantized()
        mixing = any(quantizer.nodes[name].op in MIXING for name in placement.followers)
        if math.isinf(self.bound) and not mixing:
            return self._found(Made(quantizer, full, placement, None, followers=True))
        error = self.judge(full)
        if error <= self.bound and not mixing:
            return self._found(Made(quantizer, full, placement, error, followers=True))
        fewer, layered = quantizer.quantized(followers=False)
        less = self.judge(fewer)
        if error <= self.bound and (less > self.bound or self._faster(fewer, full)):
            return self._found(Made(quantizer, full, placement, error, followers=True))
        if less <= self.bound:
            return self._found(Made(quantizer, fewer, layered, less, followers=False))
        if self.options.rules.widens and self.options.codes.steps < WIDE:
            return replace(self, options=replace(self.options, activations="uint16")).integer()
        best = hold(quantizer, self.judge, self._quick(SENSED), self.bound, followers=error <= less)
        if best is None:
            return self.in_float(f"with any layer in int8 it misses {asked(job, self.options.tolerance)}")
        return self._found(Made(quantizer, *best, followers=error <= less))

    def raised(self, model: Model) -> Model | str:
        """`model` in the opset that the codes need, or why that cannot be."""
        same = Reference(model, self.held.take(4), threads=self.job.clock.threads)
        return raised(model, same.error, self.options.opset)

    def affordable(self, samples: int, work: float) -> int:
        """How many of so many samples the model runs with no more than `work` multiply-adds."""
        if self.macs is None:
            self.macs = macs_of_sample(self.job.model, next(iter(self.held.batches(1))))
        return affordable(samples, self.macs, work, FEWEST)

    def _quick(self, samples: int) -> Callable[[Model], float]:
        """The output error on so many held-out samples, or what a look affords of them."""
        count = self.affordable(samples, LOOK_WORK)
        if count not in self.looks:
            look = self.held.take(count)
            self.looks[count] = Reference(
                self.job.original, look, threads=self.job.clock.threads, exact=not self.options.rules.timed
            )
        return self.looks[count].error

    def _balanced(self, model: Model) -> Model:
        """The model after equalization and smoothing: which of them, quantized quickly, has the smaller error."""
        options, threads = self.options, self.job.clock.threads
        quick = self._quick(LOOKED)
        fit = self.fit.take(self.affordable(LOOKED, LOOK_WORK))
        choices = Choices(
            options.calibrate,
            options.weights == "per-channel",
            options.codes,
            "nearest",
            bias_correction=False,
            rules=options.rules,
        )

        def error(candidate: Model) -> float:
            return quick(options.quantizer(candidate, fit, self.job, choices).quantized()[0])

        wanted = {True: options.smooth, False: options.equalize}
        looked = self.fit.take(self.affordable(SAMPLES, 2 * LOOK_WORK))
        return balanced(model, looked, set(options.kept(self.job.model)), wanted, error, threads)[0]

    def in_time(self, found: Found) -> Found:
        """What was found, unless the clock prefers float."""
        rule = self.options.keep_if
        if rule == "not-slower" and found.model.nbytes >= self.given:
            rule = "faster"  # > it saves no size: tied weights that run in float and in int8 are stored twice
        job = self.job
        feeds, before = next(iter(self.held.batches(job.batch))), len(job.clock.decisions)
        decision = job.clock.settle(
            "int8", "keep", job.finish(job.model), job.finish(found.model), feeds, rule
        )
        self.decisions += job.clock.decisions[before:]
        if decision.kept:
            return found
        speed = "" if decision.ratio is None else f": {decision.ratio:.2f} of float's speed"
        return self.in_float(
            f"the model is {'slower' if rule == 'not-slower' else 'not faster'} in int8 here{speed}"
        )

    def stored(self, found: Found) -> Found:
        """With the weights of what runs in float stored in int8, those of layers kept for the tolerance last."""
        excluded = set(self.options.kept(self.job.model))
        sensitive = set(found.placement.left) if found.placement is not None else set()
        saved = 3 * sum(math.prod(weight.shape) for weight in store(found.model, excluded)[1])
        if saved < LITTLE * found.model.nbytes:
            return found  # > not worth a search and a clock
        model, weights = self.most(found.model, lambda out: store(found.model, excluded | out), sensitive)
        if not weights:
            return found
        if not self.decide("int8 storage", found.model, model, "not-slower").kept:
            return found
        changes = [
            Change(
                weight.node,
                "store",
                f"{weight.op} {size(weight.shape)} float32",
                f"{size(weight.shape)} int8 in the file, dequantized by the runtime",
            )
            for weight in weights
        ]
        return replace(found, model=model, changes=(*found.changes, *changes))

    def most(self, model: Model, build: Build, last: set[str]) -> tuple[Model, list[Stored]]:
        """As many weights changed as the bound allows, the largest first, those of nodes in `last` at the end.

        build: the model with all weights changed but those of some nodes.
        """
        every, weights = build(set())
        if not weights or self.judge(every) <= self.bound:
            return every, weights
        sizes: dict[str, int] = {}
        for weight in weights:
            sizes[weight.node] = sizes.get(weight.node, 0) + math.prod(weight.shape)
        order = sorted(sizes, key=lambda name: (name in last, -sizes[name], name))
        best: tuple[Model, list[Stored]] = model, []
        low, high = 0, len(order)  # > `high` weights are known to miss
        while high - low > 1:
            count = (low + high) // 2
            tried = build(set(order[count:]))
            if self.judge(tried[0]) <= self.bound:
                low, best = count, tried
            else:
                high = count
        return best

    def decide(self, node: str, before: Model, after: Model, rule: str) -> Decision:
        """Whether `after` may replace `before`, by the clock, both as later passes will leave them."""
        feeds = next(iter(self.held.batches(self.job.batch)))
        finish = self.job.finish
        decision = self.job.clock.decide(node, "keep", finish(before), finish(after), feeds, rule)  # type: ignore[arg-type]
        self.decisions.append(decision)
        return decision

    def _faster(self, fewer: Model, full: Model) -> bool:
        return (
            self.options.keep_if == "always"
            or not self.options.rules.timed
            or self.decide("int8 between layers", fewer, full, "faster").kept
        )

    def _found(self, made: Made) -> Found:
        placement = made.placement
        model = self._aimed(made)
        changes = tuple(_change(made.quantizer, name, self.options.codes.name) for name in placement.layers)
        skips = (*(Skip(name, why) for name, why in placement.left.items()), *_in_bodies(self.job.model))
        return Found(model, placement, changes, skips)

    def _aimed(self, made: Made) -> Model:
        """The model whose last layers have the means of the original's outputs, if that lowers its error."""
        quantizer, model, placement = made.quantizer, made.model, made.placement
        outputs = {value.name for value in self.job.original.proto.graph.output}
        ends = {}
        for name in placement.layers:
            node = quantizer.nodes[name]
            if node.op in ("Conv", "Gemm") and node.outputs[0].name in outputs:
                ends[name] = Moments(node.outputs[0].name, 1)
        if not self.options.bias_correction or not ends:
            return model
        threads = self.job.clock.threads
        fit = self.fit.take(self.affordable(self.fit.samples, AIM_WORK))
        wanted = observe(self.job.original, fit, ends.values(), threads=threads)
        present = observe(model, fit, ends.values(), threads=threads)
        quantizer.moved = {name: wanted[ask].mean - present[ask].mean for name, ask in ends.items()}
        moved = quantizer.quantized(placement.left, followers=made.followers)[0]
        before = self.judge(model) if made.error is None else made.error
        return moved if self.judge(moved) <= before else model

    def in_float(self, why: str | None, placement: Placement | None = None) -> Found:
        """The model as it came."""
        left = dict(placement.left) if placement is not None else {}
        for name in _layers(self.job.model):
            left.setdefault(name, why or "it is no layer that runs in integers")
        skips = (*(Skip(name, reason) for name, reason in left.items()), *_in_bodies(self.job.model))
        return Found(self.job.model, None, (), skips)


def _layers(model: Model) -> Iterator[str]:
    """Names of the main graph's layers."""
    for node in Surgery(model).graph.nodes:
        if (node.op in LAYERS or node.op in FLOAT_ONLY) and weight_of(node) is not None:
            yield node.name


def _in_bodies(model: Model) -> Iterator[Skip]:
    surgery = Surgery(model)
    main = {id(node) for node in surgery.graph.nodes}
    for node in surgery.nodes():
        if (
            id(node) not in main
            and (node.op in LAYERS or node.op in FLOAT_ONLY)
            and weight_of(node) is not None
        ):
            yield Skip(node.name, "it runs in float: it stands in a body of an If, Loop or Scan")


def _change(quantizer: Quantizer, name: str, activations: str) -> Change:
    node = quantizer.nodes[name]
    shape = size(tuple(node.inputs[1].shape))
    return Change(name, "quantize", f"{node.op} {shape} float32", f"{shape} int8, {activations} activations")


def size(shape: tuple[int, ...]) -> str:
    """In words: 3x3."""
    return "x".join(str(size) for size in shape)
