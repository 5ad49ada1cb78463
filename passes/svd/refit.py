"""The last step: every kept layer refitted in topological order, aimed at the original's outputs.

Each one is fed with what it is fed now, so it sees the errors of those before it, and corrects them. Where the layer's
output is added to a shortcut, the target is the original's sum less today's shortcut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_compress.errors import CompressError
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.numerics.through import OPEN
from onnx_compress.passes.svd.aim import solve
from onnx_compress.passes.svd.columns import aimed_problem, gather
from onnx_compress.passes.svd.edits import apply_factors
from onnx_compress.passes.svd.forms import Form
from onnx_compress.passes.svd.inputs import WIDEST
from onnx_compress.passes.svd.layers import name_of
from onnx_compress.passes.svd.study import first_shapes
from onnx_compress.runtime.columns import Target, Targets
from onnx_compress.runtime.layers import layer_input
from onnx_compress.runtime.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx_compress.model.document import Model
    from onnx_compress.passes.svd.columns import Gathered
    from onnx_compress.passes.svd.factors import Factors
    from onnx_compress.passes.svd.layers import Layer
    from onnx_compress.passes.svd.ranks import Option
    from onnx_compress.passes.svd.study import Study
    from onnx_compress.runtime.data import Data
    from onnx_compress.runtime.layers import LayerInput

LEAST = 4  # columns for each input from which a layer that stays dense is refitted
ROUNDS = 2  # of fitting through a clamp; one, and half the columns, where a fit is a trial among others
BYTES = 96 * 2**20  # of the columns of one layer
BUDGET = 1 << 30  # bytes of activations held while walking


def refit(
    study: Study, plan: Mapping[str, Option], data: Data | None, *, quick: bool = False
) -> dict[str, Factors]:
    """The factors of `plan`, each fitted on what the layers before it now give, towards what the original gave.

    So are the weights of the layers between and behind that stay dense. A layer that cannot be aimed keeps the factors
    fitted to its own input.
    """
    job = study.job
    made = {output: study.factors(output, option) for output, option in plan.items()}
    aims = {} if data is None else _aims(study, plan)
    if data is None or not aims:
        return made
    data = data.take(max(BUDGET // study.live_bytes, 32))
    places = {name: i for i, node in enumerate(job.model.proto.graph.node) for name in node.output}
    sources = {name: i for i, node in enumerate(job.original.proto.graph.node) for name in node.output}
    held: dict[str, int] = {}
    for output, (unfolded, target) in aims.items():
        for name in (unfolded.tensor, target.added or unfolded.tensor):
            held[name] = max(held.get(name, 0), places[output])
    threads = job.clock.threads
    present = Walk(job.model, data, held, threads=threads)
    original = Walk(
        job.original, data, {t.tensor: sources[t.tensor] + 1 for _, t in aims.values()}, threads=threads
    )

    def factored(model: Model) -> Model:
        return apply_factors(model, made)

    layers = [layer for layer in study.layers if layer.output in aims]
    for number, layer in enumerate(layers):
        job.progress(number, len(layers), "refit")
        unfolded, target = aims[layer.output]
        try:
            present.advance(places[layer.output], factored)
            original.advance(sources[target.tensor] + 1)
        except CompressError as error:
            job.warnings.append(f"svd: {layer.node} and the layers behind it were not refitted: {error}")
            break
        columns = gather(layer, unfolded, target, (present, original), BYTES // 2 if quick else BYTES)
        count = columns.x.shape[1]
        if not count or (layer.output not in plan and count < LEAST * layer.weight.shape[2]):
            continue  # > none where every column holds NaN
        option, start = plan.get(layer.output), made.get(layer.output)
        rounds = 1 if quick else ROUNDS
        made[layer.output] = fit_layer(layer, option, columns, target, start, rounds)
    return made


def fit_layer(
    layer: Layer,
    option: Option | None,
    columns: Gathered,
    target: Target,
    start: Factors | None,
    rounds: int,
) -> Factors:
    """The factors of `layer` (without an option: its weight) that give the target of `columns` best, through the clamp
    that follows.
    """
    form = option.form if option else Form("dense", 0)
    problem = aimed_problem(layer, columns, columns.targets(None, OPEN))
    factors = solve(problem, layer, form, start, sweeps=4)
    for _ in range(0 if target.clamp == OPEN else rounds):
        wanted = columns.targets(columns.predict(factors, layer.bias), target.clamp)
        problem = aimed_problem(layer, columns, wanted)
        factors = solve(problem, layer, form, factors, sweeps=1)
    return factors


def _aims(study: Study, plan: Mapping[str, Option]) -> dict[str, tuple[LayerInput, Target]]:
    """How each layer from the first of `plan` on reads its input and what it should give, in the order of the graph."""
    graph = Surgery(study.job.model).graph
    targets = Targets(
        original=infer(study.job.original, first_shapes(study.job)),
        present=study.shapes,
        written={tensor.name: place for place, node in enumerate(graph.nodes) for tensor in node.outputs},
        exits={tensor.name for tensor in graph.outputs},
    )
    layers = {layer.output: layer for layer in study.layers}
    aims: dict[str, tuple[LayerInput, Target]] = {}
    started = False
    for place, node in enumerate(graph.nodes):
        output = name_of(node)
        started = started or output in plan
        if not started or output not in layers or not _aimable(layers[output]):
            continue
        unfolded = layer_input(node, study.shapes)
        target = targets.of(node.outputs[0], place)
        if target is not None and not isinstance(unfolded, str):
            aims[output] = unfolded, target
    return aims


def _aimable(layer: Layer) -> bool:
    return layer.aims and layer.weight.shape[2] <= WIDEST
