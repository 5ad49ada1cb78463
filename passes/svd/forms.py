"""The forms a layer can be factored into, and what each costs.

svd: k x k to r channels, then 1 x 1; of a matrix (N, K) two thin ones. spatial: along the first axis of the kernel, then along
the others; the rank is that of a (C·k1, N·k2..) matrix. tucker2: 1 x 1, core, 1 x 1; a rank for each side. cp: 1 x 1, a
depthwise one along each axis, 1 x 1; as many components as ranks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx_compress.passes.svd.layers import Layer

Method = Literal["svd", "spatial", "tucker2", "cp", "dense"]

CHOICES = 48  # ranks of one method in a table
CP_WORK = (
    1e8  # rank times inputs², what one step of a fit takes: above that cp is taken only where it is asked for
)


class Form(NamedTuple):
    """A method and its rank (a group); inner: the rank of the input side of tucker2."""

    method: Method
    rank: int
    inner: int = 0

    def __str__(self) -> str:
        return f"{self.inner} and {self.rank}" if self.method == "tucker2" else f"{self.rank}"


def can(layer: Layer, method: Method) -> bool:
    """Whether `layer` can take this form."""
    if method == "svd":
        return True
    taps = math.prod(layer.kernel)
    if method == "spatial":
        return len(layer.kernel) > 1 and 1 < layer.kernel[0] < taps
    return taps > 1


def form_macs(layer: Layer, form: Form) -> int:
    """Multiply-adds of one sample with `layer` factored so."""
    groups, n, k = layer.weight.shape
    rank, taps = form.rank, math.prod(layer.kernel)
    if form.method == "svd":
        read = 0 if layer.op == "Gather" else k
        return layer.positions * groups * rank * (n + read)
    before, after = layer.sizes[0], layer.positions
    if form.method == "spatial":
        rest = taps // layer.kernel[0]
        return groups * rank * (layer.sizes[1] * (k // rest) + after * n * rest)
    if form.method == "tucker2":
        core = after * form.inner * rank * taps
        return groups * (before * form.inner * (k // taps) + core + after * rank * n)
    thin = sum(size * length for size, length in zip(layer.sizes[1:], layer.kernel, strict=True))
    return groups * rank * (before * (k // taps) + thin + after * n)


def form_params(layer: Layer, form: Form) -> int:
    """Weights of `layer` factored so."""
    groups, n, k = layer.weight.shape
    rank, taps = form.rank, math.prod(layer.kernel)
    if form.method == "svd":
        return groups * rank * (n + k)
    if form.method == "spatial":
        rest = taps // layer.kernel[0]
        return groups * rank * (k // rest + n * rest)
    if form.method == "tucker2":
        return groups * (form.inner * (k // taps) + form.inner * rank * taps + rank * n)
    return groups * rank * (k // taps + sum(layer.kernel) + n)


def form_cost(layer: Layer, form: Form, by: str) -> int:
    """`by` is "macs" or "params"."""
    return form_macs(layer, form) if by == "macs" else form_params(layer, form)


def full_form(layer: Layer, method: Method) -> Form:
    """The least rank that reproduces any weight (cp: any that this pass would try)."""
    _, n, k = layer.weight.shape
    taps = math.prod(layer.kernel)
    if method == "svd":
        return Form("svd", min(n, k))
    if method == "spatial":
        rest = taps // layer.kernel[0]
        return Form("spatial", min(k // rest, n * rest))
    channels = k // taps
    if method == "tucker2":
        return Form("tucker2", min(n, k), min(channels, n * taps))
    return Form("cp", min(k, n * channels, n * taps))


def candidates(
    layer: Layer, method: Method, multiple: int, *, by: str = "macs", only: int | None = None
) -> list[Form]:
    """Forms whose ranks are multiples of `multiple` that save work (or weights), cheapest first; or just `only`.

    Of tucker2 those near the diagonal: each side keeps about the same share of its ranks, or a step more or less.
    """
    if not can(layer, method):
        return []
    full = full_form(layer, method)
    least = layer.params if by == "params" else layer.macs
    if only is not None:
        form = Form(method, min(only, full.rank), min(only, full.inner))
        return [form] if form_cost(layer, form, by) < least else []
    ranks = range(multiple, full.rank + 1, multiple)
    forms = [Form(method, rank) for rank in ranks]
    if method == "tucker2":
        forms = _pairs(full, multiple)
    costs = {form: form_cost(layer, form, by) for form in forms}
    return thinned(sorted((form for form in forms if costs[form] < least), key=costs.__getitem__), CHOICES)


def thinned(forms: Sequence[Form], count: int) -> list[Form]:
    """`count` of the forms at most, evenly spread, the ends among them."""
    if len(forms) <= count:
        return list(forms)
    return [forms[i] for i in np.unique(np.linspace(0, len(forms) - 1, count).round().astype(int))]


def _pairs(full: Form, multiple: int) -> list[Form]:
    step = max(multiple, full.rank // 24 // multiple * multiple)
    pairs = set()
    for rank in range(multiple, full.rank + 1, step):
        even = rank * full.inner / full.rank
        for share in (0.6, 0.8, 1.0, 1.25, 1.6):
            inner = min(max(round(even * share / multiple), 1) * multiple, full.inner)
            pairs.add(Form("tucker2", rank, inner))
    return sorted(pairs)
