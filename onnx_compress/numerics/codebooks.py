"""Codebooks for the rows of a layer: which value each weight takes, so that the layer's output moves least.

A layer is y = W x, W (N, K), G = E[x xᵀ]. Row r takes its values from book `of[r]`. The values of a book are
parameters times a basis: values = basis θ, so that k-means (basis I), evenly spaced values, ternary ones and sums of binary
ones are refitted by one formula.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.numerics.kmeans import codebook
from onnx_compress.numerics.leastsquares import output_error
from onnx_compress.numerics.rounding import feedback

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

DAMPING = 1e-2  # of the feedback
WORK = 5e10  # multiply-adds of one refit of the values, beyond which they stay
TURNS = 8  # of fitting the scales of residual bases
FEW = 17  # values of a book up to which all rows are looked at at once
AT_ONCE = 1 << 22  # numbers of what is worked on at once
RIDGE = 1e-6  # relative: values that hardly matter stay where they are


@dataclass(frozen=True)
class Books:
    """values: (books, clusters) float64; of: (N,) which book each row has; basis: (clusters, parameters)."""

    values: Array
    of: Array
    basis: Array

    @property
    def rows(self) -> Array:
        """The values of each row: (N, clusters)."""
        found: Array = self.values[self.of]
        return found

    def dense(self, indices: Array) -> Array:
        """The weight (N, K) of indices (N, K)."""
        return np.take_along_axis(self.rows, indices.astype(np.intp), axis=1)


def kmeans_books(weight: Array, mass: Array | None, of: Array, clusters: int, *, kind: str) -> Books:
    """Books of `clusters` values by k-means, or evenly spaced where kind is "linear"; zero is one where a weight is zero.

    weight (N, K); mass: of each weight's squared error, as `weight`, or None. A book with fewer values repeats its last.
    """
    rows = []
    for book in range(int(of.max()) + 1):
        mine = of == book
        values = codebook(weight[mine], clusters, None if mass is None else mass[mine], kind=kind)
        rows.append(np.pad(values.astype(np.float64), (0, clusters - len(values)), mode="edge"))
    basis = np.eye(clusters)
    if kind == "linear":
        basis = np.stack([np.ones(clusters), np.arange(clusters)], axis=1)
        if (weight == 0).any():  # > the grid goes through zero, at a place of its own in each book
            basis = np.eye(clusters)
    return Books(np.stack(rows), of, basis)


def ternary_books(weight: Array, mass: Array | None, of: Array) -> Books:
    """Books (−α, 0, α): α and the threshold that make Σ mass (w − w̃)² least.

    With the n largest |w| kept that is Σ mass w² − (Σ_n mass |w|)² / Σ_n mass, so the best n is found in one pass over the
    sorted weights. Li & Liu 2016 (TWN), arXiv:1605.04711, whose Δ = 0.7 E|w| approximates it.

    >>> ternary_books(np.array([[3.0, -3.0, 0.1, 0.0]]), None, np.zeros(1, int)).values
    array([[-3.,  0.,  3.]])
    """
    scales = []
    for book in range(int(of.max()) + 1):
        size = np.abs(weight[of == book]).reshape(-1)
        share = np.ones(size.size) if mass is None else mass[of == book].reshape(-1)
        order = np.argsort(-size, kind="stable")
        total, first = np.cumsum(share[order]), np.cumsum((share * size)[order])
        best = int(np.argmax(first * first / np.maximum(total, 1e-300)))
        scales.append(first[best] / max(total[best], 1e-300))
    basis = np.array([[-1.0], [0.0], [1.0]])
    return Books(np.array(scales)[:, np.newaxis] * basis.T, of, basis)


def binary_books(weight: Array, mass: Array | None, of: Array, bases: int) -> Books:
    """Books of all ± sums of `bases` scales, and zero where a weight is zero.

    Each scale is at first the mean size of what the ones before left; all are then fitted to the weights nearest to their sums.

    Rastegari et al. 2016 (XNOR-Net), arXiv:1603.05279; the residual bases of Lin, Zhao & Pan 2017, arXiv:1711.11294.

    >>> binary_books(np.array([[3.0, -1.0, 1.0, -3.0]]), None, np.zeros(1, int), 2).values
    array([[-3., -1.,  1.,  3.]])
    """
    signs = np.array([[1.0 if number >> b & 1 else -1.0 for b in range(bases)] for number in range(2**bases)])
    signs = signs[:, ::-1]  # the first scale is the largest
    if (weight == 0).any():
        half = len(signs) // 2
        signs = np.concatenate([signs[:half], np.zeros((1, bases)), signs[half:]])
    live = weight != 0
    share = np.where(live, 1.0 if mass is None else mass, 0.0)
    rest = weight.astype(np.float64)
    scales = np.zeros((int(of.max()) + 1, bases))
    for number in range(bases):
        total = np.bincount(of, share.sum(axis=1), len(scales))
        first = np.bincount(of, (share * np.abs(rest)).sum(axis=1), len(scales))
        scales[:, number] = first / np.maximum(total, 1e-300)
        rest = np.where(live, rest - np.sign(rest) * scales[of, number, np.newaxis], 0.0)
    books = Books(scales @ signs.T, of, signs)
    for _ in range(TURNS if bases > 1 else 0):
        books = _recentred(weight, share, books)
    return books


def _recentred(weight: Array, share: Array, books: Books) -> Books:
    """The books whose values make Σ share (w − w̃)² least where each weight is at its nearest value now."""
    clusters = books.values.shape[1]
    cells = (books.of[:, np.newaxis] * clusters + nearest(weight, books)).reshape(-1)
    size = books.values.size
    total = np.bincount(cells, share.reshape(-1), size).reshape(-1, clusters)
    first = np.bincount(cells, (share * weight).reshape(-1), size).reshape(-1, clusters)
    basis = books.basis
    left = basis.T @ (total[:, :, np.newaxis] * basis)
    return replace(books, values=_solved(left, first @ basis, basis, books.values))


def nearest(weight: Array, books: Books) -> Array:
    """The index of the nearest value for each weight (N, K): uint8."""
    if len(books.values) == 1:
        return _nearest(weight, books.values[0]).astype(np.uint8)
    if books.values.shape[1] > FEW:
        pairs = zip(weight, books.rows, strict=True)
        return np.stack([_nearest(line, values) for line, values in pairs]).astype(np.uint8)
    # > a pass over all rows for each value: as `searchsorted` of every row in its own middles
    order = np.argsort(books.rows, axis=1, kind="stable")
    ordered = np.take_along_axis(books.rows, order, axis=1)
    place = np.zeros(weight.shape, np.uint8)
    for middle in ((ordered[:, 1:] + ordered[:, :-1]) / 2).T:
        place += weight > middle[:, np.newaxis]
    return np.take_along_axis(order, place.astype(np.intp), axis=1).astype(np.uint8)


def _nearest(line: Array, values: Array) -> Array:
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    found: Array = order[np.searchsorted((ordered[1:] + ordered[:-1]) / 2, line, side="left")]
    return found


def fitted(
    weight: Array, grams: Array, books: Books, zero: Array, *, rounds: int = 2, damping: float = DAMPING
) -> tuple[Books, Array, float]:
    """The books refitted to the layer's output, the indices as `weight`, and E‖(W − W̃) x‖².

    Indices come from `feedback` against fixed values (van Baalen et al. 2024, GPTVQ, arXiv:2402.15319); the values
    then from least squares given the indices, in turn; the best of `rounds` is kept. weight (groups, N, K); grams (groups,
    K, K); books: of all groups' rows; zero: which weights stay zero.
    """
    flat = weight.reshape(-1, weight.shape[2])
    best: tuple[Books, Array, float] | None = None
    for _ in range(rounds):
        indices = _assigned(weight, grams, books, zero, damping)
        books = refit_values(weight, grams, books, indices)
        change = (flat - books.dense(indices)).reshape(weight.shape)
        error = sum(output_error(part, gram) for part, gram in zip(change, grams, strict=True))
        if best is not None and error >= best[2]:
            break
        best = books, indices.reshape(weight.shape), error
    assert best is not None
    return best


def _assigned(weight: Array, grams: Array, books: Books, zero: Array, damping: float) -> Array:
    """The indices (groups N, K) of every group's own feedback."""
    groups, outputs, inputs = weight.shape
    indices = np.empty((groups, outputs, inputs), np.uint8)
    alone = len(books.values) == 1
    every = books.rows.reshape(groups, outputs, -1)
    lanes = np.arange(outputs)
    for group, values in enumerate(every):
        zeros = np.abs(values).argmin(axis=1)

        def rounded(column: Array, at: int, group: int = group, values: Array = values) -> Array:
            if alone:
                index = _nearest(column, books.values[0])
            else:
                index = np.abs(column[:, np.newaxis] - values).argmin(axis=1)
            index = np.where(zero[group, :, at], zeros, index)  # noqa: B023 - called before the next group
            indices[group, :, at] = index
            found: Array = values[lanes, index]
            return found

        feedback(weight[group], grams[group], rounded, damping=damping, act_order=True)
    return indices.reshape(-1, inputs)


def refit_values(weight: Array, grams: Array, books: Books, indices: Array) -> Books:
    """The books whose values make E‖(W − W̃) x‖² least for these indices (groups N, K).

    Σ_r B_rᵀ G B_r θ = Σ_r B_rᵀ G w_r over the rows of a book, B_r the basis as the indices of row r pick it. A value of zero
    stays zero. Where that is too much work for the layer, books stay as they are.
    """
    clusters, parameters = books.basis.shape
    free = clusters == parameters  # > then every value is a parameter of its own, zero held by leaving it out
    width = weight.shape[2]
    if float(len(indices)) * width * width * parameters > WORK:
        return books
    values = books.values.copy()
    left = np.zeros((len(values), parameters, parameters))
    right = np.zeros((len(values), parameters))
    step = max(1, AT_ONCE // (max(width, parameters) * parameters))
    for group, gram in enumerate(grams):
        projected = weight[group] @ gram
        for start in range(0, len(projected), step):
            wanted = projected[start : start + step]
            rows = slice(group * len(projected) + start, group * len(projected) + start + len(wanted))
            picked = books.basis[indices[rows]]
            of = books.of[rows]
            if free:
                held = np.take_along_axis(values[of], indices[rows].astype(np.intp), axis=1) == 0
                picked = np.where(held[..., np.newaxis], 0.0, picked)
            weighed = (gram @ picked.transpose(1, 0, 2).reshape(width, -1)).reshape(width, len(wanted), -1)
            np.add.at(left, of, picked.transpose(0, 2, 1) @ weighed.transpose(1, 0, 2))
            np.add.at(right, of, (picked.transpose(0, 2, 1) @ wanted[..., np.newaxis])[..., 0])
    step = max(1, AT_ONCE // parameters**2)
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        values[part] = _solved(left[part], right[part], books.basis, values[part])
    return replace(books, values=values)


def _solved(left: Array, right: Array, basis: Array, before: Array) -> Array:
    """Basis θ for left θ = right, for each book; parameters that nothing depends on stay as they were.

    left (books, parameters, parameters); right (books, parameters); before (books, clusters): the values until now.
    """
    theta = before @ np.linalg.pinv(basis).T
    diagonal = np.diagonal(left, axis1=1, axis2=2)
    used = diagonal > 1e-12 * diagonal.max(axis=1, keepdims=True, initial=0.0)
    level = (diagonal * used).sum(axis=1, keepdims=True) / np.maximum(used.sum(axis=1, keepdims=True), 1)
    damped = np.where(used[:, :, np.newaxis] & used[:, np.newaxis, :], left, 0.0)
    every = np.arange(left.shape[1])
    damped[:, every, every] += np.where(used, RIDGE * level, 1.0)
    rest = np.where(used, right - (left @ theta[..., np.newaxis])[..., 0], 0.0)
    step = np.linalg.solve(damped, rest[..., np.newaxis])[..., 0]
    return np.where(used.any(axis=1, keepdims=True), (theta + step) @ basis.T, before)
