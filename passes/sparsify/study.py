"""What zeros do to each layer of a model and to its outputs, measured once and kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from onnx_compress.contract import Skip
from onnx_compress.model.cost import cost
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.sparsify.allocate import LEVELS, Curve
from onnx_compress.passes.sparsify.brain import Inputs
from onnx_compress.passes.sparsify.layers import find_layers, put
from onnx_compress.passes.sparsify.patterns import reason_against
from onnx_compress.passes.sparsify.probe import matters, probes
from onnx_compress.passes.sparsify.solve import Sparse, solve
from onnx_compress.runtime.agreement import Reference
from onnx_compress.runtime.grams import WIDEST
from onnx_compress.runtime.observe import observe
from onnx_compress.runtime.requests import Gram

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.passes.sparsify.layers import Layer
    from onnx_compress.passes.sparsify.patterns import Pattern
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]
    Progress = Callable[[int, int, str], None]

PROBES = 64  # samples that show how much one layer matters
PROBE = 0.5  # share of zeros with which it does
FEW = 1e-6  # of the most sensitive layer: what the least sensitive counts at least


def _silent(done: int, total: int, what: str) -> None:
    """Progress goes nowhere."""


class Study:
    """The layers of `model` that can take the pattern, by number; a layer is solved when first asked for.

    data: to fit on, or None: then every input counts the same.
    """

    def __init__(
        self,
        model: Model,
        pattern: Pattern,
        data: Data | None,
        *,
        criterion: str,
        repair: bool,
        exclude: str | None,
        threads: int,
        seed: int = 0,
        progress: Progress = _silent,
    ) -> None:
        self.model = model
        self.pattern = pattern
        self.criterion = criterion
        self.repair = repair
        self.threads = threads
        self.shapes = infer(model)
        layers, self.skips = find_layers(Surgery(model), self.shapes, exclude)
        self.layers: list[Layer] = []
        for layer in layers:
            why = reason_against(pattern, layer.rows, layer.taps)
            if why is None:
                self.layers.append(layer)
            else:
                self.skips.append(Skip(layer.name, why))
        self.size = sum(layer.size for layer in self.layers)
        self.widest = WIDEST
        self.matters = [np.ones(layer.rows.shape[:2]) for layer in self.layers]
        if data is not None and criterion == "obs" and self.layers:
            feeds = next(iter(data.batches(1)))
            macs = cost(model, infer(model, {name: value.shape for name, value in feeds.items()})).macs
            self.matters = matters(
                model,
                self.layers,
                data,
                probes(self.layers, macs),
                seed,
                lambda number: progress(number, len(self.layers), "probe"),
            )
        self._inputs = [_plain(layer) for layer in self.layers] if data is None else self._look(data)
        self._solved: dict[tuple[int, int, bool], Sparse] = {}

    def _look(self, data: Data) -> list[Inputs]:
        found = observe(self.model, data, {Gram(layer.input) for layer in self.layers}, threads=self.threads)
        inputs = []
        for layer, matter in zip(self.layers, self.matters, strict=True):
            stat = found[Gram(layer.input)]
            mean = stat.mean if layer.shifts and self.repair else np.zeros_like(stat.mean)
            energy = np.maximum(stat.diagonal() - mean * mean, 0.0)
            gram = stat.gram - mean[:, :, np.newaxis] * mean[:, np.newaxis] if stat.kind == "full" else None
            inputs.append(Inputs(gram, energy, mean, matter))
        return inputs

    def solved(self, number: int, zeros: int, *, rough: bool = False) -> Sparse | None:
        """The layer with this many zeros; None where it has as many already. rough: quicker, for comparing layers."""
        layer = self.layers[number]
        if not self.pattern.fixed and zeros <= layer.zeros:
            return None
        key = (number, 0 if self.pattern.fixed else zeros, rough)
        if key not in self._solved:
            self._solved[key] = solve(
                layer,
                self._inputs[number],
                self.pattern,
                zeros,
                criterion=self.criterion,
                repair=self.repair,
                rough=rough,
            )
        return self._solved[key]

    def solve_all(
        self, wanted: Sequence[tuple[int, int]], progress: Progress, *, rough: bool = False
    ) -> None:
        """Solves these (layer, zeros), layers side by side."""
        with (
            threadpool_limits(1, "blas"),
            ThreadPoolExecutor(self.threads or None) as pool,
        ):
            for done, _ in enumerate(pool.map(lambda pair: self.solved(*pair, rough=rough), wanted)):
                progress(done + 1, len(wanted), "sparsify")

    def sparse(self, zeros: Mapping[int, int], progress: Progress, *, rough: bool = False) -> Model:
        """The model with this many zeros in each of these layers."""
        self.solve_all(list(zeros.items()), progress, rough=rough)
        surgery = Surgery(self.model)
        nodes = list(surgery.graph.nodes)
        for number, count in zeros.items():
            found = self.solved(number, count, rough=rough)
            if found is not None:
                put(surgery, nodes[self.layers[number].place], found.rows, found.shift)
        return surgery.commit()

    def forget(self) -> None:
        """Drops what was solved: weights of trials that are over."""
        self._solved.clear()

    def curves(self, held: Data | None, progress: Progress) -> list[Curve]:
        """What each share of zeros in each layer costs: the layer's error, times how much such errors reach the outputs."""
        levels = (PROBE,) if self.pattern.fixed else LEVELS
        pairs = [(n, int(s * layer.size)) for n, layer in enumerate(self.layers) for s in levels]
        self.solve_all(pairs, progress, rough=True)
        matters = np.ones(len(self.layers)) if held is None else self._matters(held, progress)
        curves = []
        for number, layer in enumerate(self.layers):
            found = [self.solved(number, int(s * layer.size), rough=True) for s in levels]
            shares = [0.0 if sparse is None else sparse.zeros / layer.size for sparse in found]
            errors = [0.0 if sparse is None else sparse.error for sparse in found]
            curves.append(
                Curve(layer.size, layer.zeros, np.array(shares), np.array(errors) * matters[number])
            )
        self.forget()
        return curves

    def _matters(self, held: Data, progress: Progress) -> Array:
        """The error of the outputs for each layer's own, by one layer made sparse at a time."""
        reference = Reference(self.model, held.take(PROBES), threads=self.threads)
        ratios = np.zeros(len(self.layers))
        for number, layer in enumerate(self.layers):
            progress(number, len(self.layers), "sensitivity")
            count = int(PROBE * layer.size)
            found = self.solved(number, count, rough=True)
            if found is not None and found.error > 0:
                ratios[number] = (
                    reference.error(self.sparse({number: count}, _silent, rough=True)) / found.error
                )
        finite = np.where(np.isfinite(ratios), ratios, 0.0)
        top = finite.max(initial=0.0) or 1.0
        worst: Array = np.where(np.isfinite(ratios), np.maximum(finite, FEW * top), top)
        return worst


def _plain(layer: Layer) -> Inputs:
    """Inputs of which nothing is known: uncorrelated, all of one size."""
    groups, outputs, width = layer.rows.shape
    return Inputs(None, np.ones((groups, width)), np.zeros((groups, width)), np.ones((groups, outputs)))
