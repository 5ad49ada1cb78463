"""How much each layer is to shrink: tables of error against rank, and the share-out of one budget among layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.numerics.cp import cp_factors, cp_product
from onnx_compress.numerics.lowrank import energy
from onnx_compress.numerics.spatial import spatial_factors
from onnx_compress.numerics.tucker import tucker_factors
from onnx_compress.numerics.vbmf import vbmf_rank
from onnx_compress.passes.svd.aim import MIDDLING, alternation, folded, spectrum_of, trial_sweeps
from onnx_compress.passes.svd.forms import Form, candidates, form_macs, form_params, full_form, thinned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from onnx_compress.passes.svd.aim import Problem
    from onnx_compress.passes.svd.forms import Method
    from onnx_compress.passes.svd.layers import Layer

    Array = NDArray[Any]

ANCHORS = 4  # forms (two of a wide layer) at which an estimated table is computed in full; between them it follows the estimate
CP_SWEEPS = 4  # the same of cp, which starts further away
CP_ANCHORS = 3  # whose errors fall smoothly with the rank
STEPS = 4096  # of the budget in the share-out


@dataclass(frozen=True)
class Option:
    """One way to factor a layer. error: its output's squared error over the output's energy, 0..1."""

    form: Form
    macs: int
    params: int
    error: float


def table(
    layer: Layer,
    problem: Problem,
    methods: Iterable[Method],
    multiple: int,
    *,
    by: str = "macs",
    only: int | None = None,
) -> list[Option]:
    """Every way worth knowing to factor `layer` with ranks that are multiples of `multiple` and save `by`.

    Of each method those that no other of it beats: between methods, time may have the say.
    """
    options: list[Option] = []
    for method in methods:
        forms = candidates(layer, method, multiple, by=by, only=only)
        if not forms:
            continue
        errors = _ERRORS[method](layer, problem, forms)
        options += pareto(
            [
                Option(form, form_macs(layer, form), form_params(layer, form), error)
                for form, error in zip(forms, errors, strict=True)
                if np.isfinite(error)
            ],
            by,
        )
    return sorted(options, key=lambda option: (getattr(option, by), option.error))


def option_of(layer: Layer, problem: Problem, form: Form) -> Option:
    """`layer` factored in just this form."""
    (error,) = _ERRORS[form.method](layer, problem, [form])
    return Option(form, form_macs(layer, form), form_params(layer, form), error)


def pareto(options: Sequence[Option], by: str = "macs") -> list[Option]:
    """The options that no other beats in cost and error both, cheapest first."""
    best: list[Option] = []
    for option in sorted(options, key=lambda o: (getattr(o, by), o.error)):
        if not best or option.error < best[-1].error:
            best.append(option)
    return best


def _svd_errors(_layer: Layer, problem: Problem, forms: Sequence[Form]) -> list[float]:
    """The whitened spectrum's tails, exactly."""
    tails = np.zeros(len(forms))
    for group, parts in enumerate(problem.parts):
        lost = parts.lost(problem.product(group))
        tails += [float(lost[form.rank :].sum()) for form in forms]
    return [float(tail) for tail in tails / problem.energy]


def _spatial_errors(layer: Layer, problem: Problem, forms: Sequence[Form]) -> list[float]:
    tails = np.zeros(len(forms))
    for group in range(layer.groups):
        energies, _ = spectrum_of(layer, problem, group, "spatial")
        tails += [float(energies[form.rank :].sum()) for form in forms]

    def lost(form: Form) -> float:
        total = 0.0
        for group in range(layer.groups):
            filters = folded(layer, problem, group, "spatial")
            known = alternation(layer, problem, group, "spatial")
            assert known is not None  # without data the tails are what is known
            parts = spatial_factors(
                filters,
                problem.gram(group),
                form.rank,
                sweeps=trial_sweeps(layer),
                problem=known,
            )
            total += known.lost(parts[0].reshape(form.rank, -1), parts[1])
        return total

    return _corrected(problem, tails, forms, lost)


def _tucker_errors(layer: Layer, problem: Problem, forms: Sequence[Form]) -> list[float]:
    tails = np.zeros(len(forms))
    for group in range(layer.groups):
        inner, _ = spectrum_of(layer, problem, group, "tucker2")
        outer = problem.parts[group].energies
        tails += [float(inner[form.inner :].sum() + outer[form.rank :].sum()) for form in forms]

    def lost(form: Form) -> float:
        total = 0.0
        for group in range(layer.groups):
            cube = folded(layer, problem, group, "tucker2")[:, :, 0]
            known = alternation(layer, problem, group, "tucker2")
            assert known is not None
            parts = tucker_factors(
                cube,
                problem.gram(group),
                form.inner,
                form.rank,
                sweeps=trial_sweeps(layer),
                problem=known,
            )
            second = np.einsum("no,oit->nit", parts[2], parts[1], optimize=True)
            total += known.lost(parts[0], second)
        return total

    return _corrected(problem, tails, forms, lost)


def _cp_errors(layer: Layer, problem: Problem, forms: Sequence[Form]) -> list[float]:
    """Measured at a few ranks, between them a power of the rank; infinite where the components cancel each other."""
    picks = thinned(forms, CP_ANCHORS)
    errors = [_cp_error(layer, problem, form.rank) for form in picks]
    known = [(form.rank, error) for form, error in zip(picks, errors, strict=True) if np.isfinite(error)]
    if not known:
        return [np.inf] * len(forms)
    ranks, values = np.log(np.maximum(np.array(known), 1e-15)).T
    cancelling = {form.rank for form, error in zip(picks, errors, strict=True) if not np.isfinite(error)}
    return [
        np.inf if form.rank in cancelling else float(np.exp(np.interp(np.log(form.rank), ranks, values)))
        for form in forms
    ]


def _cp_error(layer: Layer, problem: Problem, rank: int) -> float:
    total = 0.0
    for group in range(layer.groups):
        filters = layer.filters(problem.weight, group)
        parts = cp_factors(filters, problem.metric(group), rank, sweeps=CP_SWEEPS)
        if parts is None:
            return np.inf
        total += energy((filters - cp_product(parts)).reshape(len(filters), -1), problem.gram(group))
    return total / problem.energy


_ERRORS: dict[str, Callable[[Layer, Problem, Sequence[Form]], list[float]]] = {
    "svd": _svd_errors,
    "spatial": _spatial_errors,
    "tucker2": _tucker_errors,
    "cp": _cp_errors,
}


def _corrected(
    problem: Problem, tails: Array, forms: Sequence[Form], lost: Callable[[Form], float]
) -> list[float]:
    """The spectrum's tails, corrected by what alternating least squares reaches at a few forms.

    In the order of the tails, so that what lies between two anchors follows them.
    """
    if problem.grams is None:
        return [float(tail) for tail in tails / problem.energy]
    order = np.argsort(-tails, kind="stable")
    # > of a wide layer not the ends: the largest form takes as long as all others, and says least of those in use
    spread = np.linspace(0, 1, ANCHORS) if problem.weight.shape[2] <= MIDDLING else np.array([0.2, 0.7])
    picks = order[np.unique((spread * (len(forms) - 1)).round().astype(int))]
    least = np.finfo(float).tiny
    ratios = [lost(forms[pick]) / max(tails[pick], 1e-12 * problem.energy, least) for pick in picks]
    places = np.empty(len(forms), int)
    places[order] = np.arange(len(forms))
    return [float(e) for e in tails * np.interp(places, places[picks], ratios) / problem.energy]


def vbmf_form(layer: Layer, method: Method, multiple: int) -> Form | None:
    """The ranks that stand out of the noise in the weight itself, the largest of all groups, rounded up; None where none do."""
    ranks: list[int] = []
    inner: list[int] = []
    for weight in layer.weight:
        matrix = weight
        if method == "spatial":
            _, c, first = (filters := layer.filters(layer.weight, len(ranks))).shape[:3]
            matrix = filters.reshape(len(weight), c, first, -1).transpose(1, 2, 0, 3).reshape(c * first, -1)
        ranks.append(_vbmf(matrix))
        if method == "tucker2":
            cube = weight.reshape(len(weight), -1, int(np.prod(layer.kernel)))
            inner.append(_vbmf(cube.transpose(1, 0, 2).reshape(cube.shape[1], -1)))
    sides = [-(-max(found, default=0) // multiple) * multiple for found in (ranks, inner)]
    full = full_form(layer, method)
    form = Form(method, min(sides[0], full.rank), min(sides[1], full.inner))
    return form if form.rank and (form.inner or not inner) else None


def _vbmf(matrix: Array) -> int:
    side = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    return vbmf_rank(np.sqrt(np.maximum(np.linalg.eigvalsh(side), 0.0)), *matrix.shape)


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
