"""The last step: layer after layer is made sparse on what it is now fed, towards what the original gave there.

So each layer corrects what those before it do wrong. Where its output is added to a shortcut, the target is the original's sum
less today's shortcut. He, Zhang & Sun 2017, arXiv:1707.06168, section 3.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.errors import CompressError
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.numerics.masked import refit_rows, refit_work
from onnx_compress.numerics.through import OPEN, Clamp, Fit
from onnx_compress.passes.sparsify.brain import DAMPING, WORK, Inputs
from onnx_compress.passes.sparsify.layers import put
from onnx_compress.passes.sparsify.solve import Sparse, solve
from onnx_compress.runtime.columns import Columns, Target, Targets
from onnx_compress.runtime.layers import own_bias
from onnx_compress.runtime.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_compress.contract import Job
    from onnx_compress.model.document import Model
    from onnx_compress.passes.sparsify.study import Study
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]

ROUNDS = 2  # of fitting through a clamp
BUDGET = 1 << 30  # bytes of activations held while walking


def aimed(study: Study, zeros: Mapping[int, int], job: Job, data: Data) -> tuple[Model, dict[int, Sparse]]:
    """The job's model with this many zeros in each of these layers, and what became of each layer.

    Layers behind the first of them that get no more zeros are refitted with those they have. A layer that cannot be aimed
    is made sparse as its own input alone says.
    """
    targets = {number: target for number, target in _targets(study, job).items() if number >= min(zeros)}
    data = data.take(max(BUDGET // _live_bytes(study), 32))
    present, original = _walks(study, job, targets, data)
    found: dict[str, Sparse] = {}
    done: dict[int, Sparse] = {}
    for number in sorted({*zeros, *targets}):
        layer, target = study.layers[number], targets.get(number)
        job.progress(number, len(study.layers), "sparsify")
        if target is not None:
            try:
                present.advance(layer.place, lambda part: _with(part, found))
                original.advance(_place(job.original, target.tensor) + 1)
            except CompressError as error:
                job.warnings.append(f"sparsify: {layer.name} and the layers behind it are not aimed: {error}")
                targets, target = {}, None
        if target is not None:
            columns = Columns(layer.input, target.tensor, target.added, None, present, original)
            sparse: Sparse | None = _solve(
                study, number, zeros.get(number, layer.zeros), columns, target.clamp
            )
        else:
            sparse = study.solved(number, zeros[number]) if number in zeros else None
        if sparse is not None:
            found[layer.node.outputs[0].name] = done[number] = sparse
    return _with(job.model, found), done


def _solve(study: Study, number: int, zeros: int, columns: Columns, clamp: Clamp) -> Sparse:
    """The layer with `zeros` zeros whose output is nearest to the target, as far as the clamp behind it lets it through."""
    layer = study.layers[number]
    alpha = float(layer.node.attrs.get("alpha", 1.0)) if layer.node.op == "Gemm" else 1.0
    groups, outputs, _ = layer.rows.shape
    bias = own_bias(layer.node, groups * outputs)
    assert bias is not None
    before = bias.reshape(groups, outputs)
    fit = Fit(alpha * layer.rows, before, bias=layer.shifts, damping=DAMPING)
    fit.plain(columns)
    grams = np.stack(fit.grams)
    mean = fit.mean if layer.shifts else np.zeros_like(fit.mean)
    inputs = Inputs(grams, np.diagonal(grams, axis1=1, axis2=2), mean, study.matters[number])
    dense, free = fit.weight, layer.rows != 0
    if not free.all():
        dense = refit_rows(dense, free, grams)
    sparse = Sparse(dense, None, 0.0)
    if zeros > layer.zeros or study.pattern.fixed:
        aim = replace(layer, rows=dense)
        sparse = solve(aim, inputs, study.pattern, zeros, criterion=study.criterion, repair=True)
    rows = sparse.rows
    if clamp != OPEN and refit_work(rows != 0) < WORK:
        for _ in range(ROUNDS):
            fit.shift = fit.shift + np.einsum("gnk,gk->gn", fit.weight - rows, mean)
            fit.weight = rows
            fit.round(columns, clamp)
            rows = refit_rows(fit.weight, rows != 0, grams)
    fit.shift = fit.shift + np.einsum("gnk,gk->gn", fit.weight - rows, mean)
    shift = ((fit.shift - before) / alpha).reshape(-1) if layer.shifts else None
    return Sparse(rows / alpha, shift, sparse.error)


def _with(model: Model, found: Mapping[str, Sparse]) -> Model:
    """`model`, or a part of it, with the weights of `found`, by the layers' outputs."""
    surgery = Surgery(model)
    for node in list(surgery.graph.nodes):
        sparse = found.get(node.outputs[0].name) if node.outputs else None
        if sparse is not None:
            put(surgery, node, sparse.rows, sparse.shift)
    return surgery.commit()


def _walks(study: Study, job: Job, targets: Mapping[int, Target], data: Data) -> tuple[Walk, Walk]:
    """Walks through the model and the original that hold what the layers need until they need it."""
    own: dict[str, int] = {}
    other: dict[str, int] = {}
    reached = 0
    for number, target in targets.items():
        layer = study.layers[number]
        for name in (layer.input.tensor, target.added):
            if name is not None:
                own[name] = max(own.get(name, 0), layer.place)
        reached = max(reached, _place(job.original, target.tensor) + 1)
        other[target.tensor] = reached
    threads = job.clock.threads
    return Walk(job.model, data, own, threads=threads), Walk(job.original, data, other, threads=threads)


def _place(model: Model, tensor: str) -> int:
    return next(i for i, node in enumerate(model.proto.graph.node) if tensor in node.output)


def _targets(study: Study, job: Job) -> dict[int, Target]:
    """What each layer is to give, for those of which it can be said."""
    known = infer(job.original)
    made = {name for node in job.original.proto.graph.node for name in node.output}
    known = {name: shape for name, shape in known.items() if name in made}
    graph = job.model.proto.graph
    written = {name: place for place, node in enumerate(graph.node) for name in node.output}
    targets = Targets(known, study.shapes, written, {tensor.name for tensor in graph.output})
    found = {}
    for number, layer in enumerate(study.layers):
        if layer.input.kind == "transpose" or layer.rows.shape[2] > study.widest:
            continue
        if own_bias(layer.node, layer.rows.shape[0] * layer.rows.shape[1]) is None:
            continue  # > what it gives is not its product alone
        target = targets.of(layer.node.outputs[0], layer.place)
        if target is not None:
            found[number] = target
    return found


def _live_bytes(study: Study) -> int:
    """Bytes a sample of what two walks hold at once: the two largest tensors in each, about."""
    names = {name for node in study.model.proto.graph.node for name in node.output}
    sizes = sorted(
        math.prod(size for size in shape if isinstance(size, int))
        for name, shape in study.shapes.items()
        if name in names
    )
    return 16 * sum(sizes[-2:]) or 1
