"""One model, observed once, quantized as often as a search asks: all of it, without some layers, only some."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.model.surgery import Surgery
from onnx_compress.numerics import rounding
from onnx_compress.numerics.adaround import adaround
from onnx_compress.passes.int8 import ranges
from onnx_compress.passes.int8.emit import emit
from onnx_compress.passes.int8.kinds import FIXED
from onnx_compress.passes.int8.placement import ORT, Placement, place, scaled_groups, sources
from onnx_compress.passes.int8.weights import (
    LayerWeight,
    channel_axis,
    float_weight,
    nearest,
    weight_scale,
)
from onnx_compress.runtime.layers import LayerInput, layer_input, weight_from_rows, weight_rows
from onnx_compress.runtime.observe import Gram, Histogram, Moments, Observed, Range, observe, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.passes.int8.ranges import Affine, Codes
    from onnx_compress.passes.int8.targets import Rules
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]

POSITIONS = (
    64  # of each sample in a Gram matrix: observe takes more where columns would be few, fewer where many
)
GRAMS = 2**30  # bytes of Gram matrices held at once: as many as observe sums in one sweep
HUGE = 1e18  # trace of a Gram matrix beyond which float32 may not hold what is made of it


def silent(done: int, total: int, what: str) -> None:
    """Progress goes nowhere."""


@dataclass(frozen=True)
class Choices:
    """How to quantize; the words are those of the options."""

    calibrate: str = "mse"
    per_channel: bool = True
    codes: Codes = ranges.UINT8  # of the activations
    rounding: str = "gptq"
    bias_correction: bool = True
    bits: int = 8  # of a weight: 7 where products may saturate
    rules: Rules = ORT


@dataclass
class Quantizer:
    """`model` (lowered), with what was seen of it on `data`, ready to be quantized.

    keep: nodes that stay in float in any case, and why; moved: what is added to the biases of some layers.
    """

    model: Model
    data: Data
    choices: Choices
    keep: dict[str, str]
    shapes: Mapping[str, Shape]
    threads: int = 0
    progress: Callable[[int, int, str], None] = silent
    seen: dict[str, ranges.Seen] = field(default_factory=dict)
    means: dict[str, Array] = field(default_factory=dict)
    moved: dict[str, Array] = field(default_factory=dict)
    rounded: dict[str, tuple[Array, Array, Array]] = field(default_factory=dict)
    made: dict[tuple[str, float], LayerWeight] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph = Surgery(self.model).graph
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.layers = self.place().layers

    def place(self, keep: Mapping[str, str] | None = None, *, followers: bool = True) -> Placement:
        """What would run in integers; `keep` names more nodes that stay in float."""
        return place(self.graph, {**self.keep, **(keep or {})}, followers=followers, rules=self.choices.rules)

    def quantized(
        self, keep: Mapping[str, str] | None = None, *, followers: bool = True
    ) -> tuple[Model, Placement]:
        """The model in int8, and where; `keep` names more nodes that stay in float."""
        placement = self.place(keep, followers=followers)
        if not placement.layers:
            return self.model, placement
        scales = self._scales(placement)
        weights = {
            name: self._weight(name, scales[placement.group[self._source(name)]]) for name in placement.layers
        }
        return emit(self.model, placement, scales, weights), placement

    def observe(self) -> None:
        """Sees the ranges of all tensors that any placement may quantize, and rounds all weights."""
        wanted = set()
        for followers in (True, False):
            placement = self.place(followers=followers)
            wanted |= {name for names in sources(self.graph, placement).values() for name in names}
            wanted |= set(placement.group)
        parts = self._parts() if self.choices.rounding != "nearest" else []
        # > the first Gram matrices, mostly all, come from the run that shows the ranges
        found = self._see(sorted(wanted), [Gram(unfolded) for _, unfolded in parts[0]] if parts else [])
        if self.choices.rounding != "nearest":
            self._round(parts, found)
        elif self.choices.bias_correction:
            self._average()
        self.made.clear()

    def _see(self, names: list[str], grams: list[Gram] | None = None) -> Observed:
        """Sees the ranges of tensors, and what else is asked for in the same run; returns all that was found."""
        known = [name for name in names if name not in self.seen]
        counted = self.choices.calibrate != "minmax"
        requests = [Range(name) for name in known]
        found = observe(
            self.model,
            self.data,
            [*requests, *(Histogram(name) for name in known if counted), *(grams or [])],
            threads=self.threads,
            positions=POSITIONS,
            later=True,
        )
        for name in known:
            low, high = found[Range(name)]
            points = ranges.Seen(np.empty(0), np.empty(0), low, high)
            if counted:
                value = found[Histogram(name)]
                # > the histogram's ends are those of its bins
                points = replace(ranges.seen([(value.counts, value.low, value.high)]), low=low, high=high)
            self.seen[name] = points
        self.progress(1, 3, "int8: ranges")
        return found

    def _scales(self, placement: Placement) -> dict[str, Affine]:
        origins = sources(self.graph, placement)
        fixed = {
            tensor.name: FIXED[node.op]
            for node in self.graph.nodes
            if node.op in FIXED and node.name in placement.followers
            for tensor in node.outputs
        }
        alone = {names[0] for names in origins.values() if len(names) == 1}
        # > a known range that shares a scale is merged with the others, so it is seen like them
        known = self.seen.keys() | (fixed.keys() & alone)
        missing = {name for names in origins.values() for name in names} - known
        if missing:
            self._see(sorted(missing))
        found = {
            group: (
                ranges.affine(*fixed[names[0]], self.choices.codes)
                if len(names) == 1 and names[0] in fixed
                else ranges.choose(
                    ranges.merged([self.seen[name] for name in names]),
                    self.choices.calibrate,
                    self.choices.codes,
                )
            )
            for group, names in origins.items()
        }
        for group, (before, factor) in scaled_groups(self.graph, placement).items():
            found[group] = ranges.Affine(found[before].scale * factor, found[before].zero, self.choices.codes)
        return found

    def _source(self, name: str) -> str:
        source: str = self.nodes[name].inputs[0].name
        return source

    def _weight(self, name: str, source: Affine) -> LayerWeight:
        """The layer's weight in integers. Searches ask for it again and again: what the source's scale leaves as it was is kept."""
        key = name, source.scale
        if key not in self.made:
            self.made[key] = self._integers(name, source)
        made = self.made[key]
        if name not in self.moved:
            return made
        moved = self.moved[name]
        return replace(made, bias=moved if made.bias is None else made.bias + moved)

    def _integers(self, name: str, source: Affine) -> LayerWeight:
        node = self.nodes[name]
        weight, bias = float_weight(node)
        axis = channel_axis(node)
        scale = self._steps(node, weight, bias, source)
        known = self.rounded.get(name)
        if known is not None and np.array_equal(known[1], scale):
            codes = known[0]
        else:
            codes = nearest(weight, scale, axis, 2 ** (self.choices.bits - 1) - 1)
        made = LayerWeight(codes, scale, axis, bias)
        mean = self.means.get(name)
        if self.choices.bias_correction and mean is not None and node.op != "ConvTranspose":
            made.bias = _corrected(node, weight, made, mean)
            if node.op == "MatMul":
                made.bias, made.shift = None, made.bias
        return made

    def _steps(self, node: gs.Node, weight: Array, bias: Array | None, source: Affine) -> Array:
        rules = self.choices.rules
        return weight_scale(
            weight,
            channel_axis(node),
            limit=2 ** (self.choices.bits - 1) - 1,
            per_channel=self.choices.per_channel and node.op in rules.per_channel,
            bias=bias if rules.int32_bias else None,
            source=source.scale,
        )

    def _parts(self) -> list[list[tuple[str, LayerInput]]]:
        """The layers whose weights are rounded, in parts whose Gram matrices memory allows at a time."""
        parts: list[list[tuple[str, LayerInput]]] = []
        size = GRAMS
        for name in self.layers:
            unfolded = layer_input(self.nodes[name], self.shapes)
            if not isinstance(unfolded, LayerInput):
                continue
            if size >= GRAMS:
                parts.append([])
                size = 0
            parts[-1].append((name, unfolded))
            size += 8 * weight_rows(self.nodes[name], self.nodes[name].inputs[1].values).shape[2] ** 2
        return parts

    def _round(self, parts: list[list[tuple[str, LayerInput]]], found: Observed) -> None:
        """GPTQ for every layer; found: the Gram matrices of the first part."""
        placement = self.place()
        scales, groups = self._scales(placement), placement.group
        done = 0
        for number, part in enumerate(parts):
            layers: dict[LayerInput, list[str]] = {}
            for name, unfolded in part:
                layers.setdefault(unfolded, []).append(name)
            if number:
                asked = [Gram(unfolded) for unfolded in layers]
                found = observe(
                    self.model, self.data, asked, threads=self.threads, positions=POSITIONS, later=True
                )

            def work(unfolded: LayerInput, names: list[str], found: Observed = found) -> int:
                stat = found.take(Gram(unfolded))  # > finished here, and gone when its layers are rounded
                for name in names:
                    self._round_layer(name, stat, scales[groups[self._source(name)]])
                return len(names)

            with workers(self.threads) as pool:
                for count in pool.map(work, layers, layers.values()):
                    done += count
                    self.progress(done, len(self.layers), "int8: rounding")

    def _round_layer(self, name: str, stat: Any, source: Affine) -> None:
        node = self.nodes[name]
        weight, bias = float_weight(node)
        self.means[name] = stat.mean
        scale = self._steps(node, weight, bias, source)
        rows = weight_rows(node, weight)
        # > of a ConvTranspose, a channel has a row for each tap of its kernel
        steps = np.repeat(scale.reshape(-1), rows.shape[0] * rows.shape[1] // scale.size).reshape(
            rows.shape[:2]
        )
        codes = np.empty(rows.shape, np.int8)
        for where, grams in stat.blocks():
            for group in range(len(rows)):
                codes[group][:, where] = compensated(
                    rows[group][:, where],
                    grams[group],
                    steps[group].astype(np.float64),
                    self.choices.bits,
                    self.choices.rounding,
                )
        kernel = weight.shape[2:] if node.op.startswith("Conv") else ()
        self.rounded[name] = (weight_from_rows(node, codes, kernel), scale, stat.mean)

    def _average(self) -> None:
        """Means of the layers' inputs, for the bias correction."""
        asked = {}
        for name in self.layers:
            node = self.nodes[name]
            axis = 1 if node.op.startswith("Conv") else -1
            asked[name] = Moments(self._source(name), axis)
        found = observe(self.model, self.data, asked.values(), threads=self.threads)
        for name, request in asked.items():
            node = self.nodes[name]
            rows = weight_rows(node, node.inputs[1].values)
            mean = found[request].mean
            taps = rows.shape[0] * rows.shape[2] // max(len(mean), 1)
            if len(mean) * taps == rows.shape[0] * rows.shape[2]:
                self.means[name] = np.repeat(mean, taps).reshape(rows.shape[0], rows.shape[2])


def _corrected(node: gs.Node, weight: Array, made: LayerWeight, mean: Array) -> Array:
    """The bias that restores the mean of the layer's output: b − (W̃ − W) E[x]. mean: (groups, K)."""
    drift = np.einsum("gnk,gk->gn", weight_rows(node, made.real().astype(np.float64) - weight), mean).reshape(
        -1
    )
    corrected: Array = -drift if made.bias is None else made.bias - drift
    return corrected


def compensated(rows: Array, gram: Array, scale: Array, bits: int, method: str = "gptq") -> Array:
    """The codes of GPTQ or AdaRound, but for rows (of N) where the nearest codes have the smaller E|(w − Q)ᵀ x|²."""
    near = rounding.nearest(rows, scale, bits)
    level = float(np.trace(gram))
    if not 0 < level < np.inf:
        return near
    if level > HUGE:  # > the codes are the same in any unit, and float32 must hold its products
        gram = gram / level
    if method == "adaround":
        found = adaround(rows, gram, scale, bits)
    else:
        found = rounding.gptq(rows, gram, scale, bits, act_order=True)
    first, second = (rows - codes * scale[:, np.newaxis] for codes in (found, near))
    # > aᵀ G a − bᵀ G b in one product, in float32 where that is dear
    apart, both = first - second, first + second
    exact = np.float32 if len(gram) > rounding.WIDE else np.float64
    less = np.einsum("nk,nk->n", apart.astype(exact) @ gram.astype(exact, copy=False), both) < 0
    better: Array = np.where(less[:, np.newaxis], found, near)
    return better
