"""How much each layer is to shrink: tables of error against rank, and the share-out of one budget among layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.passes.svd.factors import factored_macs, factored_params
from onnx_compress.passes.svd.lowrank import decompose, energy
from onnx_compress.passes.svd.spatial import spatial_factors, spatial_product, spectrum

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from onnx_compress.passes.svd.layers import Layer

    Array = NDArray[Any]

ANCHORS = 4  # ranks at which a spatial table is computed in full; between them it follows the spectrum
CHOICES = 48  # ranks of one method in a table
STEPS = 4096  # of the budget in the share-out


@dataclass(frozen=True)
class Option:
    """One way to factor a layer. error: its output's squared error over the output's energy, 0..1."""

    method: str
    rank: int
    macs: int
    params: int
    error: float


def table(
    layer: Layer,
    grams: Array | None,
    methods: Iterable[str],
    multiple: int,
    *,
    by: str = "macs",
    only: int | None = None,
) -> list[Option]:
    """Every way worth knowing to factor `layer` with ranks that are multiples of `multiple` and save `by`.

    grams: (groups, K, K) of its input, or None.
    """
    options: list[Option] = []
    for method in methods:
        if method == "spatial" and not layer.spatial:
            continue
        ranks = candidate_ranks(layer, method, multiple, by=by, only=only)
        if ranks:
            errors = _svd_errors if method == "svd" else _spatial_errors
            options += [
                Option(
                    method,
                    rank,
                    factored_macs(layer, method, rank),
                    factored_params(layer, method, rank),
                    error,
                )
                for rank, error in zip(ranks, errors(layer, grams, ranks), strict=True)
            ]
    return pareto(options, by)


def candidate_ranks(
    layer: Layer, method: str, multiple: int, *, by: str = "macs", only: int | None = None
) -> list[int]:
    """Multiples of `multiple` at which factoring saves work (or weights), thinned to CHOICES; or just `only`."""
    saves: Callable[[int], bool]
    if by == "macs":
        saves = lambda rank: factored_macs(layer, method, rank) < layer.macs  # noqa: E731
    else:
        saves = lambda rank: factored_params(layer, method, rank) < layer.params  # noqa: E731
    most = full_rank(layer, method)
    wanted = range(multiple, most + 1, multiple) if only is None else [min(only, most)]
    ranks = [rank for rank in wanted if saves(rank)]
    if len(ranks) <= CHOICES:
        return ranks
    return [ranks[i] for i in np.unique(np.linspace(0, len(ranks) - 1, CHOICES).round().astype(int))]


def full_rank(layer: Layer, method: str) -> int:
    """The rank (a group) that reproduces any weight."""
    _, n, k = layer.weight.shape
    return min(n, k) if method == "svd" else min(k // layer.kernel[1], n * layer.kernel[1])


def pareto(options: Sequence[Option], by: str = "macs") -> list[Option]:
    """The options that no other beats in cost and error both, cheapest first."""
    best: list[Option] = []
    for option in sorted(options, key=lambda o: (getattr(o, by), o.error)):
        if not best or option.error < best[-1].error:
            best.append(option)
    return best


def _svd_errors(layer: Layer, grams: Array | None, ranks: Sequence[int]) -> list[float]:
    tails, total = np.zeros(len(ranks)), 0.0
    for group, weight in enumerate(layer.weight):
        gram = None if grams is None else grams[group]
        energies = decompose(weight, gram).energies
        tails += [float(energies[rank:].sum()) for rank in ranks]
        total += energy(weight, gram)
    return [float(tail) for tail in tails / max(total, np.finfo(float).tiny)]


def _spatial_errors(layer: Layer, grams: Array | None, ranks: Sequence[int]) -> list[float]:
    """The whitened spectrum's tails, corrected by what alternating least squares reaches at a few ranks."""
    filters = layer.filters()
    gram = None if grams is None else grams[0]
    energies, rows = spectrum(filters, gram)
    total = max(energy(layer.weight[0], gram), np.finfo(float).tiny)
    tails = np.array([float(energies[rank:].sum()) for rank in ranks]) / total
    if gram is None:
        return [float(tail) for tail in tails]
    picks = np.unique(np.linspace(0, len(ranks) - 1, ANCHORS).round().astype(int))
    ratios = []
    for pick in picks:
        first, second = spatial_factors(filters, gram, ranks[pick], sweeps=2, start=rows)
        rest = layer.weight[0] - spatial_product(first, second).reshape(layer.weight[0].shape)
        ratios.append(energy(rest, gram) / total / max(tails[pick], 1e-12))
    return [float(e) for e in tails * np.interp(np.arange(len(ranks)), picks, ratios)]


class ShareOut:
    """The choices that lose least for every budget, by dynamic programming.

    tables: for each layer (cost, error) of its choices, the first being to leave it alone. Costs are rounded up to
    1/STEPS of their range, so a budget is never exceeded.
    """

    def __init__(self, tables: Sequence[Sequence[tuple[float, float]]]) -> None:
        self.least = sum(min(cost for cost, _ in rows) for rows in tables)
        self.most = sum(max(cost for cost, _ in rows) for rows in tables)
        self._unit = max(self.most - self.least, 1e-9) / STEPS
        best = np.zeros(STEPS + len(tables) + 1)
        self._picks: list[tuple[Array, list[int]]] = []
        for rows in tables:
            low = min(cost for cost, _ in rows)
            steps = [int(np.ceil((cost - low) / self._unit - 1e-9)) for cost, _ in rows]
            trials = np.full((len(rows), len(best)), np.inf)
            for row, (step, (_, error)) in enumerate(zip(steps, rows, strict=True)):
                if step < len(best):
                    trials[row, step:] = best[: len(best) - step] + error
            pick = trials.argmin(0)
            best = np.take_along_axis(trials, pick[None], 0)[0]
            self._picks.append((pick, steps))
        self.errors = best

    def choose(self, budget: float) -> list[int] | None:
        """The choice for each layer with the least total error at a cost of at most `budget`; None where none fits."""
        at = int(np.floor((budget - self.least) / self._unit + 1e-9))
        if at < 0:
            return None
        at = min(at, len(self.errors) - 1)
        chosen = []
        for pick, steps in reversed(self._picks):
            chosen.append(int(pick[at]))
            at -= steps[chosen[-1]]
        return chosen[::-1]
