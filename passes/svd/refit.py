"""The last step: every kept layer refitted in topological order, aimed at the original's outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx

from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.svd.aim import Target, aimed_problem, solve, target_of
from onnx_compress.passes.svd.factors import apply_factors
from onnx_compress.passes.svd.study import first_shapes
from onnx_compress.runtime.layers import layer_input
from onnx_compress.runtime.observe import CrossGram, observe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from onnx_compress.model.document import Model
    from onnx_compress.passes.svd.factors import Factors
    from onnx_compress.passes.svd.ranks import Option
    from onnx_compress.passes.svd.study import Study
    from onnx_compress.runtime.layers import LayerInput

REFIT_WORK = 1e13  # multiply-adds that all sweeps together may take


def refit(study: Study, plan: Mapping[str, Option]) -> dict[str, Factors]:
    """The factors of `plan`, each fitted on what the layers before it now give, towards what the original gave.

    The layers come in the order of the graph. A layer that cannot be aimed keeps the factors fitted to its own input.
    """
    job, fit = study.job, study.fit
    made = {output: study.factors(output, option) for output, option in plan.items()}
    if fit is None:
        return made
    aims = _aims(study)
    work = study.macs * max(len(plan), 1)
    fit = fit.take(max(int(REFIT_WORK / work), 64))
    done: dict[str, Factors] = {}
    for number, layer in enumerate(layer for layer in study.layers if layer.output in plan):
        job.progress(number, len(plan), "refit")
        if layer.output in aims and layer.aims and study.problems[layer.output].grams is not None:
            unfolded, target = aims[layer.output]
            request = CrossGram(unfolded, target.tensor, target.minus)
            present = apply_factors(job.model, done)
            reads = [unfolded.tensor, *([target.minus] if target.minus else [])]
            stat = observe(
                until(present, reads), fit, [request], reference=until(job.original, [target.tensor])
            )[request]
            option = plan[layer.output]
            problem = aimed_problem(layer, stat)
            made[layer.output] = solve(problem, layer, option.method, option.rank, made[layer.output])
        done[layer.output] = made[layer.output]
    return made


def _aims(study: Study) -> dict[str, tuple[LayerInput, Target]]:
    """How each layer reads its input and what it should give, where the original has such a tensor."""
    sizes = first_shapes(study.job)
    original = infer(study.job.original, sizes)
    nodes = Surgery(study.job.model).graph.nodes
    written = {tensor.name: place for place, node in enumerate(nodes) for tensor in node.outputs}
    aims = {}
    known = {layer.output for layer in study.layers}
    for node in nodes:
        if not node.outputs or node.outputs[0].name not in known:
            continue
        unfolded = layer_input(node, study.shapes)
        target = target_of(node, original, study.shapes, written)
        if target is not None and not isinstance(unfolded, str):
            aims[node.outputs[0].name] = unfolded, target
    return aims


def until(model: Model, tensors: Iterable[str]) -> Model:
    """The part of `model` that computes `tensors`, its only outputs."""
    wanted = list(dict.fromkeys(tensors))
    part = model.copy()
    graph = part.proto.graph
    needed = set(wanted)
    keep = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            keep.append(node)
            needed.update(_reads(node))
    if not keep:
        return part  # an input: nothing to cut
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(keep)]
    del graph.node[:]
    graph.node.extend(nodes)
    inputs = {value.name for value in graph.input}
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in inputs)
    return part


def _reads(node: onnx.NodeProto) -> set[str]:
    """The tensors of the outer graph that `node` reads, those of its bodies included."""
    names = set(node.input)
    for attribute in node.attribute:
        for body in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            for inner in body.node:
                names |= _reads(inner)
            names |= {value.name for value in body.output}
    return names
