"""The forms of int8 that need no calibrated ranges: scales found at run time, and weights alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.contract import Change, Skip
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.int8.bodies import branched
from onnx_compress.passes.int8.dynamic import candidates, dynamic
from onnx_compress.passes.int8.quantizer import POSITIONS, compensated
from onnx_compress.passes.int8.search import Found, size
from onnx_compress.passes.int8.weightonly import row_scale, weight_of_product, weight_only
from onnx_compress.runtime.layers import LayerInput, layer_input, weight_rows
from onnx_compress.runtime.observe import Gram, observe

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.passes.int8.search import Search
    from onnx_compress.passes.int8.storage import Stored
    from onnx_compress.runtime.race import Rule

    Array = NDArray[Any]


def at_run_time(search: Search, found: Found, rule: Rule) -> Found:
    """What was found, with float LSTMs and products whose activations are quantized as they come, where `rule` allows.

    As many as the tolerance allows, the largest first; the clock decides on the whole model.
    """
    kept = {*search.options.kept(search.job.model), *branched(search.job.model)}
    sizes = candidates(found.model, kept)
    model = search.raised(found.model) if sizes else "no LSTM, MatMul or Gemm by a constant is left in float"
    if isinstance(model, str):
        return found
    bits = search.options.bits

    def build(names: set[str]) -> tuple[Model, list[Stored]]:
        return dynamic(model, names, bits)

    _, within = search.most(model, lambda out: build(sizes.keys() - out), set())
    names = {weight.node for weight in within}
    if not names:
        return found
    job = search.job
    feeds = next(iter(search.held.batches(job.batch)))
    before = len(job.clock.decisions)
    chosen = job.clock.keep_best(
        job.finish(found.model),
        {name: float(sizes[name]) for name in names},
        lambda some: job.finish(build(some)[0]),
        feeds,
        rule,
    )
    search.decisions += job.clock.decisions[before:]
    if not chosen:
        return found
    changed, weights = build(chosen)
    changes = _changes(weights, "quantize", "int8, activations at run time")
    left = tuple(skip for skip in found.skips if skip.node not in chosen)
    return replace(found, model=changed, changes=(*found.changes, *changes), skips=left)


def recurrent(model: Model, keep: Collection[str], bits: int) -> Model:
    """`model` with its LSTMs in integers, as the clock mostly has them: for decisions of earlier passes."""
    kinds = {node.name: node.op_type for node in model.proto.graph.node}
    names = {name for name in candidates(model, keep) if kinds.get(name) == "LSTM"}
    return dynamic(model, names, bits)[0]


def weights_alone(search: Search) -> Found:
    """The model with products and tables that read int8 weights under float activations, as far as tolerance and clock allow."""
    job, options = search.job, search.options
    model = search.raised(job.model)
    if isinstance(model, str):
        return search.in_float(model)
    excluded = set(options.kept(model))
    limit = 2 ** (options.bits - 1) - 1
    rounded = _rounded(search, model, limit) if options.rounding != "nearest" else {}

    def build(out: set[str]) -> tuple[Model, list[Stored]]:
        return weight_only(model, excluded | out, rounded, limit)

    changed, weights = search.most(model, build, set())
    if not weights or not search.decide("int8 weights", job.model, changed, options.keep_if).kept:
        return Found(job.model, skips=(Skip("*", "weights in int8 are slower here, or over the tolerance"),))
    return Found(changed, changes=tuple(_changes(weights, "quantize", "int8 weights, float activations")))


def _rounded(search: Search, model: Model, limit: int) -> dict[str, Array]:
    """GPTQ codes (N, K) of the products of the main graph, for the inputs that the original sees."""
    shapes = infer(model)
    layers: dict[str, tuple[LayerInput, Any]] = {}
    for node in Surgery(model).graph.nodes:
        unfolded = layer_input(node, shapes) if weight_of_product(node) is not None else ""
        if isinstance(unfolded, LayerInput):
            layers[node.name] = unfolded, node
    asked = [Gram(unfolded) for unfolded, _ in layers.values()]
    seen = observe(model, search.fit, asked, threads=search.job.clock.threads, positions=POSITIONS)
    return {
        name: _rows(weight_rows(node, node.inputs[1].values)[0], seen[Gram(unfolded)], limit)
        for name, (unfolded, node) in layers.items()
    }


def _rows(rows: Array, stat: Any, limit: int) -> Array:
    scale = row_scale(rows, limit).astype(np.float64)
    codes = np.empty(rows.shape, np.int8)
    for where, grams in stat.blocks():
        codes[:, where] = compensated(rows[:, where], grams[0], scale, 8 if limit > 63 else 7)
    return codes


def _changes(weights: Sequence[Stored], what: str, how: str) -> list[Change]:
    """One line a node, with its largest weight."""
    largest: Mapping[str, Stored] = {
        weight.node: weight for weight in sorted(weights, key=lambda one: np.prod(one.shape))
    }
    return [
        Change(name, what, f"{weight.op} {size(weight.shape)} float32", f"{size(weight.shape)} {how}")
        for name, weight in sorted(largest.items())
    ]
