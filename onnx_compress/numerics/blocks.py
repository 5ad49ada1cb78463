"""Weights of few bits with a scale for every few inputs of a row: blockwise quantization."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.numerics.rounding import feedback

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Array = NDArray[Any]

SHARES = np.linspace(1.1, 0.62, 9)  # of a block's range that the grids tried cover
ROWS = 1 << 20  # values worked on at once
RIDGE = 1e-6  # of a scale's own energy: blocks that no input reached keep their scale


@dataclass(frozen=True)
class Blocks:
    """A weight (N, K) as (codes − zeros) · scales, each row cut into blocks of `block` inputs, the last may be shorter.

    codes: (N, K) uint8 below 2^bits; scales: (N, blocks) float32, positive; zeros: (N, blocks) uint8, or None: 2^(bits−1)
    everywhere.
    """

    codes: Array
    scales: Array
    zeros: Array | None
    bits: int
    block: int

    @property
    def middle(self) -> int:
        """The code of 0 where there are no zeros."""
        return int(2 ** (self.bits - 1))

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zeros, packed."""
        zeros = 0 if self.zeros is None else self.zeros.size
        return -(-(self.codes.size + zeros) * self.bits // 8) + 4 * self.scales.size

    def dense(self) -> Array:
        """The weight: (N, K) float32, as DequantizeLinear computes it.

        >>> Blocks(np.uint8([[8, 10, 7]]), np.float32([[0.5, 2.0]]), None, 4, 2).dense()
        array([[ 0.,  1., -2.]], dtype=float32)
        """
        inputs = self.codes.shape[1]
        zeros = self.middle if self.zeros is None else spread(self.zeros, self.block, inputs).astype(np.int16)
        result: Array = (self.codes.astype(np.int16) - zeros).astype(np.float32)
        return result * spread(self.scales, self.block, inputs)


def spread(values: Array, block: int, inputs: int) -> Array:
    """One number a block (N, blocks) as one an input: (N, inputs)."""
    result: Array = np.repeat(values, block, axis=1)[:, :inputs]
    return result


def grid(weight: Array, bits: int, block: int, *, symmetric: bool, energy: Array | None = None) -> Blocks:
    """`weight` (N, K) rounded to the nearest codes, each block's scale the one of nine with the least Σ energy (w − w̃)².

    energy (K,): E[x²] of each input, or None: all alike. 0 stays 0 exactly.
    """
    parts = [_grid(weight[rows], bits, block, symmetric, energy) for rows in _chunks(weight)]
    zeros = None if symmetric else np.concatenate([part[2] for part in parts])
    codes, scales = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
    return Blocks(codes, scales, zeros, bits, block)


def _chunks(weight: Array) -> Iterator[slice]:
    rows = max(1, ROWS // max(weight.shape[1], 1))
    return (slice(at, at + rows) for at in range(0, max(len(weight), 1), rows))


def _grid(
    weight: Array, bits: int, block: int, symmetric: bool, energy: Array | None
) -> tuple[Array, Array, Array]:
    rows, inputs = weight.shape
    count = -(-inputs // block)
    padded = np.zeros((rows, count * block), np.float32)
    padded[:, :inputs] = weight
    cut = padded.reshape(rows, count, block)
    mass = None
    if energy is not None:
        mass = np.zeros(count * block, np.float32)
        mass[:inputs] = energy
        mass = mass.reshape(count, block)
    top = 2**bits - 1
    low, high = np.minimum(cut.min(axis=2), 0.0), np.maximum(cut.max(axis=2), 0.0)
    best = least = None
    for share in SHARES:
        if symmetric:
            # > half a step may be clipped above: there is one more code below 0 than above
            scale = np.maximum(-low, high) * share / (top / 2)
            zero = np.full_like(scale, 2 ** (bits - 1))
        else:
            scale = (high - low) * share / top
            zero = np.rint(-low * share / np.where(scale > 0, scale, 1.0)).clip(0, top)
        scale = np.where(scale > np.finfo(np.float32).tiny, scale, np.float32(1.0)).astype(np.float32)
        codes = (np.rint(cut / scale[..., np.newaxis]) + zero[..., np.newaxis]).clip(0, top)
        apart = (codes - zero[..., np.newaxis]) * scale[..., np.newaxis] - cut
        np.square(apart, out=apart)
        error = apart.sum(axis=2) if mass is None else np.einsum("rcb,cb->rc", apart, mass)
        if best is None or least is None:
            best, least = [codes, scale, zero], error
            continue
        better = error < least
        least = np.where(better, error, least)
        best[0] = np.where(better[..., np.newaxis], codes, best[0])
        best[1], best[2] = np.where(better, scale, best[1]), np.where(better, zero, best[2])
    assert best is not None
    codes, scale, zero = best
    return codes.reshape(rows, -1)[:, :inputs].astype(np.uint8), scale, zero.astype(np.uint8)


def compensate(weight: Array, start: Blocks, gram: Array, *, damping: float = 1e-2) -> Blocks:
    """`start` with codes whose E‖W x − W̃ x‖² is small: GPTQ on the same scales, inputs of the largest E[x²] first.

    Then each row's scales are refitted to its codes, and a row keeps whichever of the three has the least error: what it
    started from, GPTQ, and GPTQ refitted. weight (N, K), gram (K, K).
    Frantar et al. 2023, arXiv:2210.17323.
    """
    inputs = weight.shape[1]
    top = 2**start.bits - 1
    zeros = np.full(start.scales.shape, start.middle) if start.zeros is None else start.zeros.astype(np.int64)
    kept = weight == 0

    def rounded(column: Array, at: int) -> Array:
        scale, zero = start.scales[:, at // start.block].astype(np.float64), zeros[:, at // start.block]
        codes = (np.rint(column / scale) + zero).clip(0, top)
        return np.where(kept[:, at], 0.0, (codes - zero) * scale)

    values = feedback(weight, gram, rounded, damping=damping, act_order=True)
    steps = np.rint(values / spread(start.scales, start.block, inputs).astype(np.float64))
    codes = (steps + spread(zeros, start.block, inputs)).clip(0, top).astype(np.uint8)
    found = replace(start, codes=codes)
    candidates = [start, found, refitted(weight, found, gram)]
    errors = np.stack([row_errors(weight, blocks, gram) for blocks in candidates])
    best = errors.argmin(axis=0)
    scales = np.choose(best[:, np.newaxis], [blocks.scales for blocks in candidates])
    codes = np.choose(best[:, np.newaxis], [blocks.codes for blocks in candidates])
    return replace(start, codes=codes, scales=scales)


def row_errors(weight: Array, blocks: Blocks, gram: Array) -> Array:
    """E((w − w̃)·x)² of each row: (N,)."""
    apart = np.asarray(weight, np.float64) - blocks.dense()
    errors: Array = np.einsum("nk,nk->n", apart @ gram, apart)
    return errors


def refitted(weight: Array, blocks: Blocks, gram: Array) -> Blocks:
    """`blocks` with the scales that minimise each row's E((w − Σ_b s_b q_b)·x)², q_b the row's steps in block b.

    (q_aᵀ G q_b) s = q_aᵀ G w for each row; a scale that would turn negative, or more than double or halve, stays.
    """
    inputs = weight.shape[1]
    count = blocks.scales.shape[1]
    rows = max(1, ROWS // (count * count))
    parts = []
    for at in range(0, len(weight), rows):
        part = slice(at, at + rows)
        zeros: Any = blocks.middle
        if blocks.zeros is not None:
            zeros = spread(blocks.zeros[part], blocks.block, inputs).astype(np.float64)
        steps = blocks.codes[part].astype(np.float64) - zeros
        parts.append(
            _refitted(weight[part], steps, blocks.scales[part].astype(np.float64), gram, blocks.block)
        )
    return replace(blocks, scales=np.concatenate(parts).astype(np.float32))


def _refitted(weight: Array, steps: Array, scales: Array, gram: Array, block: int) -> Array:
    starts = np.arange(0, weight.shape[1], block)
    right = np.add.reduceat(steps * (np.asarray(weight, np.float64) @ gram), starts, axis=1)
    left = np.empty((*scales.shape, len(starts)))
    for number, start in enumerate(starts):
        seen = steps[:, start : start + block] @ gram[start : start + block]
        left[:, :, number] = np.add.reduceat(seen * steps, starts, axis=1)
    level = np.einsum("nbb->n", left) / len(starts)
    level = np.where(level > 0, level, 1.0)[:, np.newaxis]
    # > towards the scales they have: blocks of zeros alone, or that no input reached, tell nothing
    left += np.eye(len(starts)) * (RIDGE * level)[..., np.newaxis]
    step = np.linalg.solve(
        left, (right + RIDGE * level * scales - (left @ scales[..., np.newaxis])[..., 0])[..., np.newaxis]
    )
    solved = scales + step[..., 0]
    sound = np.isfinite(solved) & (solved > 0.5 * scales) & (solved < 2 * scales)
    return np.where(sound, solved, scales)


def block_near(inputs: int, block: int) -> int:
    """The divisor of `inputs` nearest to `block`, at least half and at most twice as large; all inputs where there is none.

    >>> block_near(144, 32), block_near(9, 32), block_near(64, 32), block_near(577, 32)
    (36, 9, 32, 577)
    """
    fit = [size for size in range(max(block // 2, 1), 2 * block + 1) if inputs % size == 0]
    return min(fit, key=lambda size: (abs(np.log(size / block)), size), default=inputs)


def dearer(bits: int, block: int) -> float:
    """By what an error must fall to be worth the zero of each block: 4^(bits/block), an error falls fourfold with each bit."""
    return float(4.0 ** (bits / block))
