"""How far a model's outputs are from a reference's, on the same samples, streamed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.errors import InputError
from onnx_compress.runtime.session import INLINE, Session

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]

KEEP = 256 * 2**20  # bytes of a reference's outputs up to which they are kept instead of recomputed
FEW = 32  # samples
LIMIT_DB = 200.0  # equal outputs have no finite ratio; float32 cannot tell 150 dB from it


@dataclass(frozen=True)
class Agreement:
    """How well one output agrees with the reference's.

    sqnr_db: 10 log10(Σ y₀² / Σ (y − y₀)²), within ±LIMIT_DB; max_abs: the largest difference (infinite where only one of
    the two is finite); cosine: of all values as one vector; argmax: share of rows with the same winner, where the last
    axis looks like classes. An output that is no float tensor has only `argmax`: the share of equal values.
    """

    output: str
    sqnr_db: float | None
    max_abs: float | None
    cosine: float | None
    argmax: float | None
    samples: int


class Reference:
    """The outputs of `model` on `data`, kept in memory up to `keep` bytes, beyond that recomputed at each question.

    exact: of each `Session`.
    """

    def __init__(
        self,
        model: Model,
        data: Data,
        *,
        threads: int = 0,
        batch: int = 32,
        keep: int = KEEP,
        exact: bool = False,
    ) -> None:
        self.model = model
        self.data = data
        self._threads = threads
        self._batch = batch
        self._keep = keep
        self._exact = exact
        self._kept: list[dict[str, Any]] | None = None
        self._spread: dict[str, float] = {}

    def error(self, candidate: Model) -> float:
        """The worst of `errors`."""
        return max(self.errors(candidate).values(), default=0.0)

    def errors(self, candidate: Model) -> dict[str, float]:
        """The `Comparison.errors` of each output."""
        return self._compare(candidate).errors()

    def agreements(self, candidate: Model) -> list[Agreement]:
        """One row an output of the reference, in its order."""
        return self._compare(candidate).agreements()

    def _compare(self, candidate: Model) -> Comparison:
        session = self._opened(candidate)
        comparison = Comparison()
        for feeds, expected in self._pairs():
            comparison.add(expected, session.run(feeds), batch_rows(feeds))
        return comparison

    def _opened(self, model: Model) -> Session:
        # > of a large model, to lay the weights out in blocks takes longer than that saves on a few samples
        few = getattr(self.data, "samples", FEW + 1) <= FEW
        layout = not few or model.nbytes <= INLINE
        return Session(model, threads=self._threads, layout=layout, exact=self._exact)

    def _pairs(self) -> Iterator[tuple[Mapping[str, Array], dict[str, Any]]]:
        """Each batch of feeds, with the reference's outputs for it."""
        if self._kept is not None:
            yield from zip(self.data.batches(self._batch), self._kept, strict=True)
            return
        session = self._opened(self.model)
        kept: list[dict[str, Any]] = []
        size = 0
        for feeds in self.data.batches(self._batch):
            expected = session.run(feeds)
            size += sum(_nbytes(value) for value in expected.values())
            if size <= self._keep:
                kept.append(expected)
            else:
                kept.clear()
            yield feeds, expected
        if size <= self._keep:
            self._kept = kept


def output_error(reference: Model, candidate: Model, data: Data, *, threads: int = 0) -> float:
    """Σ‖y − y₀‖² / Σ‖y₀ − mean y₀‖² of the worst float output, y₀ the reference's: what `tolerance` bounds."""
    return Reference(reference, data, threads=threads).error(candidate)


class Comparison:
    """Sums over the outputs of two models, batch by batch."""

    def __init__(self) -> None:
        self._outputs: dict[str, _Floats | _Equality] = {}
        self._names: dict[str, str] = {}

    def add(self, expected: Mapping[str, Any], actual: Mapping[str, Any], rows: int) -> None:
        """The outputs of the reference and of the other for a batch of `rows` samples.

        Raises InputError where the other lacks an output.
        """
        self._names = self._names or matching(list(expected), list(actual))
        for name, value in expected.items():
            if name not in self._outputs:
                self._outputs[name] = _Floats() if _is_float(value) else _Equality()
            self._outputs[name].add(value, actual[self._names[name]], rows)

    def errors(self) -> dict[str, float]:
        """Σ‖y − y₀‖² / Σ‖y₀ − mean y₀‖² of each float output, the mean over samples.

        An output that is the same for every sample is measured against its energy Σ‖y₀‖². A model without float outputs
        has the share of unequal values instead.
        """
        floats = {name: value for name, value in self._outputs.items() if isinstance(value, _Floats)}
        if floats:
            return {name: value.error() for name, value in floats.items()}
        return {name: 1.0 - value.share() for name, value in self._outputs.items()}

    def agreements(self) -> list[Agreement]:
        """One row an output of the reference, in its order."""
        return [value.agreement(name) for name, value in self._outputs.items()]


class _Floats:
    """Streamed sums over one float output. Values that are not finite are compared, not summed."""

    def __init__(self) -> None:
        self.samples = 0
        self.energy = self.other = self.product = self.noise = 0.0
        self.largest = 0.0
        self.winners = self.same_winners = 0
        self.spread = _Spread()

    def add(self, expected: Array, actual: Any, rows: int) -> None:
        """One batch; where the shapes differ nothing agrees."""
        self.samples += rows
        if not isinstance(actual, np.ndarray) or actual.shape != expected.shape:
            self.noise = self.largest = math.inf
            return
        y0, y = expected.astype(np.float64), actual.astype(np.float64)
        self._count_winners(y0, y)
        finite = np.isfinite(y0) & np.isfinite(y)
        if not finite.all():
            alike = (y0 == y) | (np.isnan(y0) & np.isnan(y))
            if not (alike | finite).all():
                self.noise = self.largest = math.inf
            y0, y = np.where(finite, y0, 0.0), np.where(finite, y, 0.0)
        difference = y - y0
        self.energy += float(np.vdot(y0, y0))
        self.other += float(np.vdot(y, y))
        self.product += float(np.vdot(y, y0))
        self.noise += float(np.vdot(difference, difference))
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))
        self.spread.add(y0, rows)

    def _count_winners(self, y0: Array, y: Array) -> None:
        scores = _class_scores(y0)
        if scores is None or not scores.size:
            return
        winner, found = scores.argmax(-1), y.reshape(scores.shape).argmax(-1)
        # a tie has several right winners
        best = np.take_along_axis(scores, winner[..., None], -1)
        chosen = np.take_along_axis(scores, found[..., None], -1)
        self.winners += winner.size
        self.same_winners += int(((winner == found) | (best == chosen)[..., 0]).sum())

    def error(self) -> float:
        return _relative(self.noise, self.spread.total() or self.energy)

    def share(self) -> float:
        return self.same_winners / self.winners if self.winners else float(self.noise == 0)

    def agreement(self, name: str) -> Agreement:
        ratio = _relative(self.noise, self.energy)
        decibel = -10 * math.log10(ratio) if 0 < ratio < math.inf else LIMIT_DB if ratio == 0 else -LIMIT_DB
        norm = math.sqrt(self.energy * self.other)
        return Agreement(
            name,
            sqnr_db=min(max(decibel, -LIMIT_DB), LIMIT_DB),
            max_abs=self.largest,
            cosine=min(1.0, self.product / norm) if norm else None,
            argmax=self.same_winners / self.winners if self.winners else None,
            samples=self.samples,
        )


class _Spread:
    """Σ‖y₀ − mean y₀‖², the mean over samples where every sample has one shape, else over all values.

    Summed around the first batch's mean: outputs far from zero would cancel.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.shift: Array | None = None
        self.sums: Array | None = None
        self.squares = 0.0
        self.scalar_shift = self.scalar_sum = self.scalar_squares = 0.0
        self.count = 0

    def add(self, y0: Array, rows: int) -> None:
        """One batch of finite values."""
        if not y0.size:
            return
        if not self.count:
            self.scalar_shift = float(y0.mean())
        centred = y0 - self.scalar_shift
        self.scalar_sum += float(centred.sum())
        self.scalar_squares += float(np.vdot(centred, centred))
        axis = next((axis for axis, size in enumerate(y0.shape) if size == rows), None)
        samples = y0[None] if axis is None else np.moveaxis(y0, axis, 0)
        if not self.count:
            self.shift = samples.mean(0)
            self.sums = np.zeros_like(self.shift)
        self.count += y0.size
        if self.sums is None or self.shift is None or samples.shape[1:] != self.sums.shape:
            self.sums = None
            return
        centred = samples - self.shift
        self.rows += len(samples)
        self.sums += centred.sum(0)
        self.squares += float(np.vdot(centred, centred))

    def total(self) -> float:
        """Zero where the samples do not differ, to rounding."""
        if self.sums is None or self.rows < 2:
            sums, squares, rows = self.scalar_sum**2, self.scalar_squares, self.count
            level = self.scalar_shift**2 * self.count
        else:
            sums, squares, rows = float(np.vdot(self.sums, self.sums)), self.squares, self.rows
            level = float(np.vdot(self.shift, self.shift)) * rows if self.shift is not None else 0.0
        spread = squares - sums / max(rows, 1)
        # float32 outputs of equal samples differ by rounding only, (2^-24)² of their energy
        return spread if spread > 1e-13 * level else 0.0


class _Equality:
    """The share of equal values of an output that is no float tensor."""

    def __init__(self) -> None:
        self.samples = self.equal = self.count = 0

    def add(self, expected: Any, actual: Any, rows: int) -> None:
        self.samples += rows
        equal, count = _equal_values(expected, actual)
        self.equal += equal
        self.count += count

    def share(self) -> float:
        return self.equal / self.count if self.count else 1.0

    def agreement(self, name: str) -> Agreement:
        return Agreement(name, None, None, None, self.share(), self.samples)


def _equal_values(expected: Any, actual: Any) -> tuple[int, int]:
    """Equal values and all values; sequences and maps count their members."""
    if isinstance(expected, np.ndarray):
        if not isinstance(actual, np.ndarray) or actual.shape != expected.shape:
            return 0, max(1, expected.size)
        same = np.asarray(expected == actual)
        if expected.dtype.kind == "f":
            same = same | (np.isnan(expected) & np.isnan(actual))
        return int(same.sum()), expected.size
    if isinstance(expected, list):
        if not isinstance(actual, list) or len(actual) != len(expected):
            return 0, max(1, len(expected))
        pairs = [_equal_values(a, b) for a, b in zip(expected, actual, strict=True)]
        return sum(equal for equal, _ in pairs), sum(count for _, count in pairs)
    if isinstance(expected, dict) and isinstance(actual, dict):
        return _equal_values([expected.get(k) for k in expected], [actual.get(k) for k in expected])
    return int(expected == actual), 1


def _class_scores(y0: Array) -> Array | None:
    """(…, classes), where the last axis (trailing axes of size 1 aside) of a batch looks like classes."""
    shape = y0.shape
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return y0.reshape(shape) if len(shape) in (2, 3) and shape[-1] > 1 else None


def _relative(noise: float, signal: float) -> float:
    if noise == 0:
        return 0.0
    return noise / signal if signal > 0 else math.inf


def batch_rows(feeds: Mapping[str, Array]) -> int:
    """Samples in a batch."""
    return next((len(value) for value in feeds.values() if value.ndim), 1)


def _is_float(value: Any) -> bool:
    """Whether numpy's own or ml_dtypes' (bfloat16) floats."""
    if not isinstance(value, np.ndarray):
        return False
    return value.dtype.kind == "f" or (value.dtype.kind == "V" and "float" in value.dtype.name)


def _nbytes(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, list):
        return 64 + sum(_nbytes(item) for item in value)
    return 64


def matching(expected: list[str], actual: list[str]) -> dict[str, str]:
    """The other's name for each of the reference's outputs: the same, or by position where all names differ."""
    if set(expected) <= set(actual):
        return {name: name for name in expected}
    if len(expected) == len(actual) and not set(expected) & set(actual):
        return dict(zip(expected, actual, strict=True))
    missing = next(name for name in expected if name not in actual)
    raise InputError(f"the models cannot be compared: the second has no output {missing!r}")
