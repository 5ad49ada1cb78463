"""The weights of a model in blocks of 4 or 8 bits, rounded once, put in as a search asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.numerics.blocks import Blocks, block_near, compensate, dearer, grid, row_errors
from onnx_compress.passes.int4.bias import add_to_bias
from onnx_compress.passes.int4.forms import declare, form_of, store
from onnx_compress.passes.int4.weights import find_weights
from onnx_compress.runtime.observe import observe
from onnx_compress.runtime.opset import opset
from onnx_compress.runtime.requests import Gram

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.contract import Skip
    from onnx_compress.model.document import Model
    from onnx_compress.passes.int4.forms import Form
    from onnx_compress.passes.int4.weights import Weight
    from onnx_compress.runtime.data import Data
    from onnx_compress.runtime.requests import GramStat

    Array = NDArray[Any]

POSITIONS = 64  # of each sample in a Gram matrix: observe takes more where columns would be few
GRAMS = 512 * 2**20  # bytes of Gram matrices held at once
WIDEST = 2048  # inputs up to which codes of 8 bits are worth GPTQ, too


def silent(done: int, total: int, what: str) -> None:
    """Progress goes nowhere."""


@dataclass(frozen=True)
class Coded:
    """A weight in blocks; error: E‖(W − W̃) x‖² / E‖W x‖², of the weight alone where its inputs are unknown;
    shift: (N,) what the layer's output loses on average, or None.
    """

    blocks: Blocks
    error: float
    shift: Array | None


class Study:
    """The weights of `model` by number, each rounded when first asked for; `levels` says how many bits each gets.

    A level is 4, 8 or 0: left in float. slow: forms that are not to be used, since the clock found them slow.
    """

    def __init__(
        self,
        model: Model,
        block: int,
        exclude: str | None,
        progress: Callable[[int, int, str], None] = silent,
    ) -> None:
        self.model = model
        self.block = block
        self.exclude = exclude
        self.progress = progress
        self.opset = opset(model)
        self.shapes = infer(model)
        self.weights, self.skips = self._find(Surgery(model))
        self.slow: set[Form] = set()
        self._data: Data | None = None
        self._threads = 0
        self._coded: dict[tuple[int, int, int], Coded] = {}

    def look(self, data: Data, threads: int) -> None:
        """From now on weights are rounded for the inputs that `data` gives them."""
        self._data, self._threads = data, threads

    def form(self, number: int) -> Form:
        """How the weight is stored."""
        return form_of(self.weights[number], self.opset, self.slow)

    def coded(self, number: int, bits: int) -> Coded:
        """The weight in this many bits."""
        key = (number, bits, self._block(number))
        if key not in self._coded:
            self.round([number], bits)
        return self._coded[key]

    def round(self, numbers: Collection[int], bits: int) -> None:
        """Rounds these weights, as many Gram matrices at a time as memory allows."""
        waiting = [n for n in numbers if (n, bits, self._block(n)) not in self._coded]
        total, done = len(waiting), 0
        while waiting:
            part: list[int] = []
            size = 0
            while waiting and (not part or size < GRAMS):
                part.append(waiting.pop(0))
                groups, _, inputs = self._rows_shape(part[-1])
                size += 8 * groups * inputs**2
            grams = self._observe(part)
            for number in part:
                self._coded[number, bits, self._block(number)] = self._round(number, bits, grams.get(number))
                done += 1
                self.progress(done, total, f"{bits} bits")

    def stored(self, levels: Sequence[int]) -> Model:
        """The model with weight i in levels[i] bits (0: as it is)."""
        for bits in set(levels) - {0}:
            self.round([n for n, level in enumerate(levels) if level == bits], bits)
        surgery = Surgery(self.model)
        weights, _ = self._find(surgery)
        forms: set[Form] = set()
        for number, (weight, bits) in enumerate(zip(weights, levels, strict=True)):
            if not bits:
                continue
            coded = self.coded(number, bits)
            if coded.shift is not None and len(weight.users) == 1:
                add_to_bias(surgery, weight.users[0][0], coded.shift)
            forms.add(self.form(number))
            store(surgery, weight, coded.blocks, self.form(number))
        model = surgery.commit()
        declare(model.proto, forms)
        return model

    def _find(self, surgery: Surgery) -> tuple[list[Weight], list[Skip]]:
        return find_weights(surgery, self.shapes, self.exclude)

    def _block(self, number: int) -> int:
        """Inputs that share a scale: what onnxruntime unfolds needs blocks of one size."""
        inputs = self._rows_shape(number)[2]
        return block_near(inputs, self.block) if self.form(number) == "unfolded" else self.block

    def _rows_shape(self, number: int) -> tuple[int, int, int]:
        weight = self.weights[number]
        groups, height, width = weight.grid
        return (groups, width, height) if weight.swapped else (groups, height, width)

    def _observe(self, numbers: Sequence[int]) -> Mapping[int, GramStat]:
        """The Gram matrix of each of these weights' inputs, of the first of its readers where there are several."""
        if self._data is None:
            return {}
        asked = {n: Gram(self.weights[n].inputs[0]) for n in numbers if self.weights[n].inputs}
        if not asked:
            return {}
        found = observe(
            self.model, self._data, asked.values(), threads=self._threads, positions=POSITIONS, budget=GRAMS
        )
        return {number: found[request] for number, request in asked.items()}

    def _round(self, number: int, bits: int, stat: GramStat | None) -> Coded:
        rows = self.weights[number].rows().astype(np.float32)
        groups, _, inputs = rows.shape
        block = self._block(number)
        fits = stat is not None and stat.mean.shape == (groups, inputs)
        energy = stat.diagonal() if stat is not None and fits else None
        parts = [
            _best_grid(rows[g], bits, block, None if energy is None else energy[g]) for g in range(groups)
        ]
        # > one type for the whole weight
        if len({part.zeros is None for part in parts}) > 1:
            parts = [grid(rows[g], bits, block, symmetric=False, energy=None if energy is None else energy[g]) for g in range(groups)]  # fmt: skip
        if stat is not None and fits and (bits == 4 or inputs <= WIDEST):
            parts = [_compensated(rows[g], parts[g], stat, g) for g in range(groups)]
        zeros = None if parts[0].zeros is None else np.concatenate([part.zeros for part in parts])
        blocks = Blocks(
            np.concatenate([part.codes for part in parts]),
            np.concatenate([part.scales for part in parts]),
            zeros,
            bits,
            block,
        )
        dense = np.stack([part.dense() for part in parts])
        shift = None
        if stat is not None and fits:
            shift = np.einsum("gnk,gk->gn", rows.astype(np.float64) - dense, stat.mean).reshape(-1)
            node, index = self.weights[number].users[0]
            if node.op == "ConvTranspose" or index != 1:
                shift = None  # > at the borders fewer taps meet; a weight on the left has its outputs along another axis
        return Coded(blocks, _error(rows, parts, stat if fits else None, energy), shift)


def _best_grid(rows: Array, bits: int, block: int, energy: Array | None) -> Blocks:
    """The grid around 0, or with a zero for each block where that is worth its bits."""
    plain = grid(rows, bits, block, symmetric=True, energy=energy)
    shifted = grid(rows, bits, block, symmetric=False, energy=energy)
    mass = np.ones(rows.shape[1]) if energy is None else energy
    errors = [float((np.square(rows - blocks.dense()) @ mass).sum()) for blocks in (plain, shifted)]
    return shifted if errors[1] * dearer(bits, block) < errors[0] else plain


def _compensated(rows: Array, start: Blocks, stat: GramStat, group: int) -> Blocks:
    """GPTQ where the whole Gram matrix is known."""
    if stat.kind != "full" or not np.trace(stat.gram[group]) > 0:
        return start
    return compensate(rows, start, stat.gram[group])


def _error(rows: Array, parts: Sequence[Blocks], stat: GramStat | None, energy: Array | None) -> float:
    lost = whole = 0.0
    for group, part in enumerate(parts):
        if stat is not None and stat.kind == "full":
            gram = stat.gram[group]
            lost += float(row_errors(rows[group], part, gram).sum())
            whole += float(np.einsum("nk,nk->", rows[group] @ gram, rows[group]))
        else:
            mass = np.ones(rows.shape[2]) if energy is None else energy[group]
            lost += float((np.square(rows[group] - part.dense()) @ mass).sum())
            whole += float((np.square(rows[group]) @ mass).sum())
    return lost / whole if whole > 0 else 0.0
