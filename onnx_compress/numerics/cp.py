"""A convolution as thin ones (CP, canonical polyadic): 1 x 1, one depthwise along each axis of the kernel, 1 x 1.

    W[n, c, i, j] ≈ Σ_r last[n, r] · second[r, j] · first[r, i] · narrow[r, c]

Each part alone is a linear least-squares problem, so they are refitted in turn (Lebedev et al. 2015), here in the norm of the
unfolded input's Gram matrix. A best CP of a given rank need not exist: components may grow without bound while they
cancel (De Silva & Lim 2008). So each refit is held to the part as it is, and what still degenerates is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.numerics.lowrank import energy
from onnx_compress.numerics.spatial import Alternation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

RIDGE = 1e-7  # of the mean diagonal of a part's normal equations: how far it is held to what it is
CANCELLING = 1e4  # the components' energy over that of their sum: two digits are lost in adding them up
STEPS = 4  # of conjugate gradients towards the best channel part


def cp_factors(
    weight: Array,
    gram: Array | None,
    rank: int,
    *,
    sweeps: int = 20,
    start: Sequence[Array] | None = None,
) -> list[Array] | None:
    """The parts of a (N, C, k1, ..., kd) filter at `rank`: (rank, C), (rank, k1), ..., (rank, kd), (N, rank).

    gram: (C·k1..kd, C·k1..kd) float64, of the unfolded input, or None for the Frobenius norm; start: parts to start from.
    None where the components cancel each other: such a layer amplifies every rounding error, and no rank is safe.
    Raises ValueError unless rank >= 1.
    """
    if rank < 1:
        raise ValueError(f"rank {rank} is not positive")
    size = weight[0].size
    gram = np.eye(size) if gram is None else gram
    starts = [list(start)] if start is not None else _starts(weight, rank)
    if len(starts) > 1:  # the more promising one, after a sweep, is followed
        starts = sorted(
            (_refitted(parts, weight, gram, 1) for parts in starts), key=lambda p: _lost(weight, p, gram)
        )
        sweeps -= 1
    best = _refitted(starts[0], weight, gram, sweeps)
    return None if _cancelling(best, gram) else best


def cp_product(parts: Sequence[Array]) -> Array:
    """The (N, C, k1, ..., kd) filter that the parts stand for."""
    last, shape = parts[-1], tuple(part.shape[1] for part in parts[:-1])
    product: Array = (last @ _columns(parts)).reshape(len(last), *shape)
    return product


def _columns(parts: Sequence[Array]) -> Array:
    """The inner filters of the components, one a row: (rank, C·k1..kd)."""
    rows = parts[0]
    for part in parts[1:-1]:
        rows = (rows[:, :, None] * part[:, None, :]).reshape(len(part), -1)
    return rows


def _lost(weight: Array, parts: Sequence[Array], gram: Array) -> float:
    return energy((weight - cp_product(parts)).reshape(len(weight), -1), gram)


def _cancelling(parts: Sequence[Array], gram: Array) -> bool:
    rows, last = _columns(parts), parts[-1]
    apart = float((np.einsum("rk,rk->r", rows @ gram, rows) * np.einsum("nr,nr->r", last, last)).sum())
    return not np.isfinite(apart) or apart > CANCELLING * max(energy(last @ rows, gram), np.finfo(float).tiny)


def _refitted(parts: list[Array], weight: Array, gram: Array, sweeps: int) -> list[Array]:
    """Every part refitted in turn, `sweeps` times."""
    parts = _balanced(parts)
    n, c = weight.shape[:2]
    alternation = Alternation(weight.reshape(n, c, 1, -1), gram)
    target = weight.reshape(n, -1) @ gram
    for _ in range(sweeps):
        rows = _columns(parts)
        parts[-1] = _nudged(parts[-1].T, rows @ gram @ rows.T, rows @ target.T).T
        for axis in range(1, len(parts) - 1):
            parts[axis] = _axis(parts, axis, gram, target, weight.shape[1:])
        kernels = _columns([np.ones((len(parts[0]), 1)), *parts[1:]])
        wide = parts[-1][:, :, None] * kernels[None]
        parts[0] = alternation.first(parts[0], wide, STEPS)
        parts = _balanced(parts)
    rows = _columns(parts)
    parts[-1] = _nudged(parts[-1].T, rows @ gram @ rows.T, rows @ target.T).T
    return parts


def _axis(parts: list[Array], axis: int, gram: Array, target: Array, shape: tuple[int, ...]) -> Array:
    """The part (r, k) along one axis of the kernel, refitted."""
    rank, size = parts[axis].shape
    one = np.zeros((size, rank, int(np.prod(shape))))
    for tap in range(size):  # the components with this tap alone, and 1 for its value
        here = [*parts]
        here[axis] = np.zeros((rank, size))
        here[axis][:, tap] = 1.0
        one[tap] = _columns(here)
    rows = one.transpose(1, 0, 2).reshape(rank * size, -1)
    outputs = np.repeat(parts[-1], size, axis=1)
    normal = (rows @ gram @ rows.T) * (outputs.T @ outputs)
    right = np.einsum("rk,nk,nr->r", rows, target, outputs, optimize=True)
    return _nudged(parts[axis].reshape(-1, 1), normal, right[:, None]).reshape(rank, size)


def _nudged(part: Array, normal: Array, right: Array) -> Array:
    """The least-squares part, held a little to the present one, which keeps it from running away."""
    from scipy.linalg import cho_factor, cho_solve

    size = len(normal)
    ridge = RIDGE * max(float(np.trace(normal)) / size, np.finfo(float).tiny)
    damped = normal + ridge * np.eye(size)
    wanted = right - normal @ part
    try:
        step: Array = cho_solve(cho_factor(damped, check_finite=False), wanted, check_finite=False)
    except np.linalg.LinAlgError:
        step = np.linalg.pinv(damped, hermitian=True) @ wanted
    return part + step


def _balanced(parts: Sequence[Array]) -> list[Array]:
    """The same components, the norm of each shared evenly by its parts."""
    norms = np.array(
        [np.linalg.norm(part, axis=1) for part in parts[:-1]] + [np.linalg.norm(parts[-1], axis=0)]
    )
    norms = np.maximum(norms, np.finfo(float).tiny)
    mean = np.exp(np.log(norms).mean(axis=0))
    scaled = [part * (mean / norm)[:, None] for part, norm in zip(parts[:-1], norms[:-1], strict=True)]
    return [*scaled, parts[-1] * (mean / norms[-1])]


def _starts(weight: Array, rank: int) -> list[list[Array]]:
    found = [largest_components(weight, rank)]
    if rank <= min(weight.shape[:2]):
        found.append(_simultaneous(weight, rank))
    return found


def largest_components(weight: Array, rank: int) -> list[Array]:
    """The largest components of the filter's nested singular value decompositions: exact once all are taken."""
    n, c = weight.shape[:2]
    kernel = weight.shape[2:]
    u, s, v = np.linalg.svd(weight.reshape(n, -1), full_matrices=False)
    few = min(len(s), rank)
    found: list[tuple[float, Array, list[Array]]] = []
    for index in range(few):
        pieces: list[tuple[float, list[Array], Array]] = [(s[index], [], v[index].reshape(c, -1))]
        for axis in range(len(kernel)):
            pieces = [
                (size * t[at], [*done, left[:, at]], right[at].reshape(kernel[axis], -1))
                for size, done, rest in pieces
                for left, t, right in [np.linalg.svd(rest, full_matrices=False)]
                for at in range(min(len(t), rank))
            ]
        found += [(size, u[:, index], [*done, rest.ravel()]) for size, done, rest in pieces]
    found = sorted(found, key=lambda item: -item[0])[:rank]
    found += [found[-1]] * (rank - len(found))
    columns = [np.stack([item[2][axis] for item in found]) for axis in range(len(kernel) + 1)]
    return [*columns, np.stack([item[0] * item[1] for item in found], axis=1)]


def _simultaneous(weight: Array, rank: int) -> list[Array]:
    """The components by eigenvectors of two mixtures of the kernel's slices: exact where `rank` is the filter's own.

    Leurgans, Ross & Abel 1993. Of complex ones the real part is taken: a start, no more.
    """
    n, c = weight.shape[:2]
    slices = weight.reshape(n, c, -1)
    u = np.linalg.svd(weight.reshape(n, -1), full_matrices=False)[0][:, :rank]
    v = np.linalg.svd(slices.transpose(1, 0, 2).reshape(c, -1), full_matrices=False)[0][:, :rank]
    small = np.einsum("nct,nr,cs->rst", slices, u, v, optimize=True)
    mix = np.random.default_rng(0).standard_normal((small.shape[2], 2))
    one, two = (small @ mix[:, at] for at in range(2))
    _, vectors = np.linalg.eig(one @ np.linalg.pinv(two))
    vectors = np.real(vectors * np.exp(-1j * np.angle((vectors**2).sum(0)) / 2))
    outputs = u @ vectors
    # the rest of each component, as (c, t), is then linear
    rests = (np.linalg.pinv(outputs) @ weight.reshape(n, -1)).reshape(rank, c, *weight.shape[2:])
    found = [_one(rest) for rest in rests]
    columns = [np.stack(part) for part in zip(*found, strict=True)]
    return [*columns, outputs]


def _one(rest: Array) -> list[Array]:
    """The leading component of a (C, k1, ...) array."""
    parts = []
    while rest.ndim > 1:
        u, s, v = np.linalg.svd(rest.reshape(len(rest), -1), full_matrices=False)
        parts.append(u[:, 0])
        rest = (s[0] * v[0]).reshape(rest.shape[1:])
    return [*parts, rest]
