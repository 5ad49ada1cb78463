"""Factors refitted so that the layer, fed with what it is fed now, gives what the original gave there.

Layers are taken in topological order, so each one sees the errors of those before it, and corrects them. Where the
layer's output is added to a shortcut, the target is the original's sum less today's shortcut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.passes.svd.factors import Factors
from onnx_compress.passes.svd.lowrank import balanced, decompose, energy
from onnx_compress.passes.svd.spatial import spatial_factors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_compress.passes.svd.layers import Layer
    from onnx_compress.passes.svd.lowrank import LowRank
    from onnx_compress.runtime.requests import GramStat

    Array = NDArray[Any]
    Shape = tuple[int | str | None, ...]

DAMPING = 1e-4  # of the mean diagonal of a Gram matrix: directions that the data hardly shows stay with the plain norm
SHRINKAGE = 0.02  # of the same, times inputs over columns: few samples say little about many inputs
RIDGE = 1e-2  # of the same: how strongly the target weight is held to the present one


@dataclass(frozen=True)
class Target:
    """What a layer's output should be: tensor `tensor` of the original, less tensor `minus` of the present model.

    clamp: the range that the tensor is clipped to next, if it is used for nothing else.
    """

    tensor: str
    minus: str | None = None
    clamp: tuple[float, float] | None = None


@dataclass(frozen=True)
class Problem:
    """One layer's least-squares problem: min tr[(W − W̃) G (W − W̃)ᵀ] over factors W̃, and the bias that goes with it.

    weight (groups, N / groups, K): the best dense one; grams (groups, K, K), centred where the layer has a bias to
    rewrite; count: columns behind them; mean_x (groups, K) and mean_y (groups, N / groups): what the bias must reconcile, None without one.
    """

    weight: Array
    grams: Array | None
    mean_x: Array | None = None
    mean_y: Array | None = None
    count: int = 0

    def metric(self, group: int) -> Array | None:
        """The damped Gram matrix of one group."""
        if self.grams is None:
            return None
        return damped(self.grams[group], max(DAMPING, SHRINKAGE * scarcity(self.weight, self.count)))

    @cached_property
    def parts(self) -> list[LowRank]:
        """The low-rank decomposition of each group, good for every rank."""
        return [decompose(weight, self.metric(group)) for group, weight in enumerate(self.weight)]


def plain_problem(layer: Layer, stat: GramStat | None) -> Problem:
    """To keep the layer's own output, on the input described by `stat` (or any input, without)."""
    if stat is None or stat.kind != "full":
        return Problem(layer.weight, None)
    if not layer.shifts:
        return Problem(layer.weight, stat.gram, count=stat.count)
    mean_y = np.einsum("gnk,gk->gn", layer.weight, stat.mean)
    return Problem(layer.weight, centred(stat), stat.mean, mean_y, stat.count)


def solve(
    problem: Problem, layer: Layer, method: str, rank: int, start: Factors | None = None, sweeps: int = 2
) -> Factors:
    """The factors of `rank` that lose least; start: factors of the same form to begin from."""
    if method == "svd":
        pairs = [
            balanced(*parts.at(rank), problem.metric(group)) for group, parts in enumerate(problem.parts)
        ]
        first, second = (np.stack(side) for side in zip(*pairs, strict=True))
        factors = Factors("svd", first, second)
    elif method == "dense":
        factors = Factors("dense", np.zeros(0), problem.weight)
    else:
        filters, gram = problem.weight[0].reshape(layer.filters().shape), problem.metric(0)
        first, second = spatial_factors(
            filters, gram, rank, start=None if start is None else start.first, sweeps=sweeps
        )
        factors = Factors("spatial", *_balanced_spatial(first, second, gram))
    if problem.mean_x is None or problem.mean_y is None:
        return factors
    shift = problem.mean_y - np.einsum("gnk,gk->gn", factors.product(), problem.mean_x)
    return replace(factors, shift=shift.reshape(-1))


def relative_error(problem: Problem, factors: Factors) -> float:
    """The squared error of the layer's output over its energy, on the samples the problem was posed on."""
    rest = problem.weight - factors.product()
    grams = [None] * len(rest) if problem.grams is None else problem.grams
    lost = sum(energy(part, gram) for part, gram in zip(rest, grams, strict=True))
    total = sum(energy(part, gram) for part, gram in zip(problem.weight, grams, strict=True))
    return lost / max(total, np.finfo(float).tiny)


def _balanced_spatial(first: Array, second: Array, gram: Array | None) -> tuple[Array, Array]:
    rank, channels, height = first.shape
    n, _, width = second.shape
    size = channels * height
    mean = None
    if gram is not None:
        mean = np.einsum("ajbj->ab", gram.reshape(size, width, size, width)) / width
    one, two = balanced(first.reshape(rank, size), second.transpose(0, 2, 1).reshape(-1, rank), mean)
    return one.reshape(first.shape), two.reshape(n, width, rank).transpose(0, 2, 1)


def scarcity(weight: Array, count: int) -> float:
    """Inputs of a layer (weight (groups, N / groups, K)) for each column that was seen."""
    return float(weight.shape[-1]) / max(count, 1)


def centred(stat: GramStat) -> Array:
    """The covariance matrices (groups, K, K)."""
    covariance: Array = stat.gram - stat.mean[:, :, None] * stat.mean[:, None, :]
    return covariance


def damped(gram: Array, share: float) -> Array:
    """`gram` with `share` of its mean diagonal added to the diagonal."""
    size = len(gram)
    least = np.finfo(float).tiny
    total: Array = gram + max(share * float(np.trace(gram)) / size, least) * np.eye(size)
    return total


def target_of(
    node: gs.Node, original: Mapping[str, Shape], present: Mapping[str, Shape], written: Mapping[str, int]
) -> Target | None:
    """What the output of `node` should be, or None where the original has no such tensor of the same shape.

    written: for each tensor of the present model, the place of the node that writes it.
    """
    output = node.outputs[0]

    def known(name: str) -> bool:
        return name in original and original[name] == present.get(name, ())

    users = output.outputs
    if len(users) == 1 and users[0].op == "Add" and len(users[0].inputs) == 2:
        total = users[0].outputs[0].name
        other = next((tensor for tensor in users[0].inputs if tensor is not output), None)
        # the later of two branches corrects the sum; the shortcut must be there already
        if (
            other is not None
            and not isinstance(other, gs.Constant)
            and known(total)
            and present.get(other.name) == present.get(output.name) == present.get(total)
            and written.get(other.name, -1) < written[output.name]
        ):
            return Target(total, other.name, clamp_after(users[0]))
    return Target(output.name, None, clamp_after(node)) if known(output.name) else None


def clamp_after(node: gs.Node) -> tuple[float, float] | None:
    """The range to which a Relu or Clip, the only user of the node's output, clips it."""
    users = node.outputs[0].outputs
    if len(users) != 1:
        return None
    if users[0].op == "Relu":
        return 0.0, math.inf
    if users[0].op != "Clip":
        return None
    bounds = [users[0].attrs.get("min", -math.inf), users[0].attrs.get("max", math.inf)]
    for place, tensor in enumerate(users[0].inputs[1:3]):
        if tensor.name and not isinstance(tensor, gs.Constant):
            return None
        if tensor.name:
            bounds[place] = float(tensor.values)
    return float(bounds[0]), float(bounds[1])
