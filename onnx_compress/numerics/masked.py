"""Weights of which only some entries may be other than zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.numerics.leastsquares import refit

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def refit_rows(rows: Array, keep: Array, gram: Array, damping: float = 1e-3) -> Array:
    """The weight (groups, N, K) on the entries of `keep` alone whose output is nearest to that of `rows`.

    Each row has its own least squares; rows with one mask share it.
    """
    result = np.zeros(rows.shape)
    for group, (weight, mask) in enumerate(zip(rows, keep, strict=True)):
        masks, which = np.unique(np.packbits(mask, axis=1), axis=0, return_inverse=True)
        which = which.reshape(-1)
        for number in range(len(masks)):
            members = np.flatnonzero(which == number)
            stay = np.flatnonzero(mask[members[0]])
            result[group][np.ix_(members, stay)] = refit(weight[members], gram[group], stay, damping)
    return result


def refit_work(keep: Array) -> float:
    """Multiply-adds of `refit_rows`, one mask a row."""
    return float((keep.sum(axis=2, dtype=np.float64) ** 3).sum() / 3)
