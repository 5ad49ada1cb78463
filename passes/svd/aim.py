"""The least-squares problem of one layer, and its solution in each form."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.numerics.cp import cp_factors, largest_components
from onnx_compress.numerics.lowrank import decompose, energy, even_scale, even_scale_of, times
from onnx_compress.numerics.spatial import Alternation, spatial_factors, spectrum
from onnx_compress.numerics.tucker import tucker_factors
from onnx_compress.passes.svd.factors import Factors

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from onnx_compress.numerics.lowrank import LowRank
    from onnx_compress.passes.svd.forms import Form, Method
    from onnx_compress.passes.svd.layers import Layer
    from onnx_compress.runtime.requests import GramStat

    Array = NDArray[Any]

DAMPING = 1e-4  # of the mean diagonal of a Gram matrix: directions that the data hardly shows stay with the plain norm
SHRINKAGE = 0.02  # of the same, times inputs over columns: few samples say little about many inputs
CP_EFFORT = 4  # sweeps of cp for one of the others: its parts see less of each other
NARROW = 500  # inputs of a layer up to which what is prepared for its fits is kept for the whole run
MIDDLING = 2000  # inputs of a layer up to which trials are refitted in turn
SWEEP_WORK = 1e10  # rank times inputs², over all sweeps of one fit: large layers are given fewer
RIDGE = 1e-2  # of the same: how strongly the target weight is held to the present one


@dataclass(frozen=True)
class Problem:
    """One layer's least-squares problem: min tr[(W − W̃) G (W − W̃)ᵀ] over factors W̃, and the bias that goes with it.

    weight (groups, N / groups, K): the best dense one; grams (groups, K, K), or (groups, K) their diagonals, float32 where they
    are wide, centred where the layer has a bias to rewrite; count: columns behind them; mean_x (groups, K) and mean_y (groups, N / groups): what the
    bias must reconcile, None without one. products: of the weight of a group with its Gram matrix, as far as it is known.
    """

    weight: Array
    grams: Array | None
    mean_x: Array | None = None
    mean_y: Array | None = None
    count: int = 0
    products: dict[int, Array] = field(default_factory=dict, compare=False, repr=False)
    _metrics: dict[int, Array] = field(default_factory=dict, compare=False, repr=False)
    _between: dict[int, Array] = field(default_factory=dict, compare=False, repr=False)
    alternations: dict[tuple[Method, int], Alternation] = field(
        default_factory=dict, compare=False, repr=False
    )

    def gram(self, group: int) -> Array | None:
        """The Gram matrix of one group's input."""
        return None if self.grams is None else self.grams[group]

    def metric(self, group: int) -> Array | None:
        """The damped Gram matrix of one group: what factors are fitted by."""
        if self.grams is None:
            return None
        if group in self._metrics:
            return self._metrics[group]
        metric = damped(self.grams[group], self.share)
        if self.weight.shape[2] <= MIDDLING:  # wide ones are asked for seldom, and take gigabytes together
            self._metrics[group] = metric
        return metric

    @property
    def share(self) -> float:
        """What is added to the diagonals of the Gram matrices, of their mean."""
        return max(DAMPING, SHRINKAGE * scarcity(self.weight, self.count))

    def product(self, group: int) -> Array:
        """The weight of one group times its Gram matrix."""
        if group not in self.products:
            self.products[group] = times(self.weight[group], self.gram(group))
        return self.products[group]

    def damped_product(self, group: int) -> Array:
        """The weight of one group times its metric."""
        if self.grams is None:
            return self.weight[group]
        product: Array = self.product(group) + damping(self.grams[group], self.share) * self.weight[group]
        return product

    @cached_property
    def parts(self) -> list[LowRank]:
        """The low-rank decomposition of each group, good for every rank."""
        return [
            decompose(weight, product=self.damped_product(group)) for group, weight in enumerate(self.weight)
        ]

    def between(self, group: int) -> Array:
        """The energy of each channel between the factors of `parts`."""
        if group not in self._between:
            self._between[group] = self.parts[group].between(self.product(group))
        return self._between[group]

    def release(self) -> None:
        """Lets go what solving a wide layer needs: it can be made again, and of all layers it takes gigabytes together."""
        if self.weight.shape[2] > NARROW:
            self.alternations.clear()
            self._metrics.clear()

    @cached_property
    def energy(self) -> float:
        """The energy of the layer's output."""
        whole = sum(float(np.vdot(self.product(group), part)) for group, part in enumerate(self.weight))
        return max(whole, np.finfo(float).tiny)

    def lost(self, product: Array) -> float:
        """The squared error of the output with `product` (groups, N / groups, K) for the weight."""
        rest = self.weight - product
        return sum(energy(part, self.gram(group)) for group, part in enumerate(rest))


def plain_problem(layer: Layer, stat: GramStat | None) -> Problem:
    """To keep the layer's own output, on the input described by `stat` (or any input, without)."""
    if stat is None or stat.kind != "full":
        return Problem(layer.weight, None)
    if len(stat.gram) < layer.groups:  # stacked matrices that all read the same input
        gram = np.broadcast_to(stat.gram, (layer.groups, *stat.gram.shape[1:]))
        return Problem(layer.weight, gram, count=stat.count)
    if not layer.shifts:
        return Problem(layer.weight, _held(stat.gram), count=stat.count)
    mean_y = np.einsum("gnk,gk->gn", layer.weight, stat.mean)
    return Problem(layer.weight, _held(centred(stat)), stat.mean, mean_y, stat.count)


def _held(grams: Array) -> Array:
    """In float32 where they are wide: damped far above its rounding before they are inverted, in half the memory."""
    return grams.astype(np.float32) if grams.shape[-1] > MIDDLING else grams


def output_problem(layer: Layer, stat: GramStat) -> Problem:
    """To keep the layer's own output, described by `stat`: of the rank-r projections of it that which loses least.

    Input and weight need not be known: W G Wᵀ, whose eigenvectors U are those of the best factors U and Uᵀ W, is the Gram matrix of
    the output. `behind` makes factors of W of the projection's.
    """
    whole = np.broadcast_to(np.eye(layer.weight.shape[1]), stat.gram.shape)
    if not layer.shifts:
        return Problem(whole, stat.gram, count=stat.count)
    mean = stat.mean - layer.bias.reshape(stat.mean.shape)
    return Problem(whole, centred(stat), mean, mean, stat.count)


def behind(projection: Factors, weight: Array) -> Factors:
    """The factors of `projection` times `weight` (groups, N / groups, K)."""
    first, second = projection.parts
    return replace(projection, parts=(np.matmul(first, weight), second))


def solve(
    problem: Problem, layer: Layer, form: Form, start: Factors | None = None, sweeps: int = 2
) -> Factors:
    """The factors of this form that lose least; start: factors of it to begin from."""
    if form.method == "dense":
        factors = Factors("dense", (problem.weight,))
    else:
        found = []
        for group in range(layer.groups):
            begin = None if start is None else [part[group].astype(np.float64) for part in start.parts]
            found.append(_SOLVERS[form.method](problem, layer, form, group, begin, sweeps))
        factors = Factors(form.method, tuple(np.stack(side) for side in zip(*found, strict=True)))
    if problem.mean_x is None or problem.mean_y is None:
        return factors
    shift = problem.mean_y - np.einsum("gnk,gk->gn", factors.product(), problem.mean_x)
    return replace(factors, shift=shift.reshape(-1))


def relative_error(problem: Problem, factors: Factors) -> float:
    """The squared error of the layer's output over its energy, on the samples the problem was posed on."""
    return problem.lost(factors.product()) / problem.energy


def folded(layer: Layer, problem: Problem, group: int, method: Method) -> Array:
    """The filter of one group as (N, C, k1, k2·k3..), or for tucker2 as (N, C, 1, taps)."""
    filters = layer.filters(problem.weight, group)
    first = filters.shape[2] if method == "spatial" else 1
    return filters.reshape(*filters.shape[:2], first, -1)


def alternation(layer: Layer, problem: Problem, group: int, method: Method) -> Alternation | None:
    """The normal equations of one group, made once; None in the Frobenius norm."""
    key = method, group
    if problem.grams is not None and key not in problem.alternations:
        filters = folded(layer, problem, group, method)
        problem.alternations[key] = Alternation(filters, problem.metric(group), problem.damped_product(group))
    return problem.alternations.get(key)


def spectrum_of(layer: Layer, problem: Problem, group: int, method: Method) -> tuple[Array, Array]:
    """The whitened spectrum of the filter so folded, computed once where there is data."""
    known = alternation(layer, problem, group, method)
    return spectrum(folded(layer, problem, group, method), None) if known is None else known.spectrum


def trial_sweeps(layer: Layer) -> int:
    """The sweeps that a trial is given: of a wide layer the whitened start and one refit behind it must do."""
    return 2 if layer.weight.shape[2] <= MIDDLING else 0


def effort(layer: Layer, form: Form, sweeps: int) -> int:
    """The sweeps that a layer of this size is given: one takes some rank times inputs² multiply-adds."""
    rank = form.inner or form.rank
    return min(sweeps, max(int(SWEEP_WORK / (rank * layer.weight.shape[2] ** 2)), 1))


def _solve_svd(
    problem: Problem, _layer: Layer, form: Form, group: int, _start: list[Array] | None, _sweeps: int
) -> list[Array]:
    first, second = problem.parts[group].at(form.rank)
    scale = even_scale_of(problem.between(group)[: form.rank], second)
    return [first * scale[:, None], second / scale]


def _solve_spatial(
    problem: Problem, layer: Layer, form: Form, group: int, start: list[Array] | None, sweeps: int
) -> list[Array]:
    filters, gram = folded(layer, problem, group, "spatial"), problem.gram(group)
    known = alternation(layer, problem, group, "spatial")
    first, second = spatial_factors(
        filters,
        gram,
        form.rank,
        start=None if start is None else start[0],
        sweeps=effort(layer, form, sweeps),
        problem=known,
    )
    n, size = len(filters), filters.shape[1] * filters.shape[2]
    mean = None if known is None else known.mean
    scale = even_scale(first.reshape(-1, size), second.transpose(0, 2, 1).reshape(-1, form.rank), mean)
    second = second / scale[:, None]
    return [first * scale[:, None, None], second.reshape(n, form.rank, *layer.kernel[1:])]


def _solve_tucker(
    problem: Problem, layer: Layer, form: Form, group: int, start: list[Array] | None, sweeps: int
) -> list[Array]:
    cube, gram = folded(layer, problem, group, "tucker2")[:, :, 0], problem.gram(group)
    known = alternation(layer, problem, group, "tucker2")
    first, core, last = tucker_factors(
        cube,
        gram,
        form.inner,
        form.rank,
        start=None if start is None else start[0],
        sweeps=effort(layer, form, sweeps),
        problem=known,
    )
    mean = None if known is None else known.mean
    inner = even_scale(first, core.transpose(0, 2, 1).reshape(-1, form.inner), mean)
    first, core = first * inner[:, None], core / inner[:, None]
    rows = np.einsum("oit,ic->oct", core, first, optimize=True).reshape(form.rank, -1)
    if known is None:
        outer = even_scale(rows, last, gram)
    else:  # the columns of `last` are at right angles, and core the best for them: as for LowRank.between
        target = known.target.reshape(len(last), -1)
        outer = even_scale_of(np.einsum("rk,rk->r", last.T @ target, rows), last)
    return [first, core * outer[:, None, None], last / outer]


def _solve_cp(
    problem: Problem, layer: Layer, form: Form, group: int, start: list[Array] | None, sweeps: int
) -> list[Array]:
    """Where the components come to cancel each other, those of fewer sweeps, or the start's."""
    filters, metric = layer.filters(problem.weight, group), problem.metric(group)
    tries = (cp_factors(filters, metric, form.rank, start=start, sweeps=n) for n in (CP_EFFORT * sweeps, 1))
    return next((parts for parts in tries if parts), None) or largest_components(filters, form.rank)


_SOLVERS: dict[str, Callable[..., list[Array]]] = {
    "svd": _solve_svd,
    "spatial": _solve_spatial,
    "tucker2": _solve_tucker,
    "cp": _solve_cp,
}


def scarcity(weight: Array, count: int) -> float:
    """Inputs of a layer (weight (groups, N / groups, K)) for each column that was seen."""
    return float(weight.shape[-1]) / max(count, 1)


def centred(stat: GramStat) -> Array:
    """The covariance matrices (groups, K, K)."""
    covariance: Array = stat.gram - stat.mean[:, :, None] * stat.mean[:, None, :]
    return covariance


def damped(gram: Array, share: float) -> Array:
    """`gram` with `share` of its mean diagonal added to the diagonal."""
    if gram.ndim == 1:
        return gram + damping(gram, share)
    total: Array = gram.astype(np.float64)
    total[np.diag_indices(len(gram))] += damping(gram, share)
    return total


def damping(gram: Array, share: float) -> float:
    """`share` of the mean of the diagonal of `gram` (K, K), or of `gram` (K,)."""
    mean = gram.mean() if gram.ndim == 1 else np.trace(gram) / len(gram)
    return max(share * float(mean), np.finfo(float).tiny)
