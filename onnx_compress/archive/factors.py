"""What of numbers in order follows from those before each: factors by least squares, in a byte each."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.archive.fields import Reader

    Array = NDArray[Any]


def regression(known: Array, ridge: float = 1e-3) -> Array:
    """Factors in 64ths that a signed byte holds, by which each row of `known` follows from those before it: lower triangular.

    known: (rows, n) float32; ridge: of the rows' mean square, more than float32 loses where rows are alike.
    """
    gram = (known @ known.T).astype(np.float64)
    diagonal = gram.reshape(-1)[:: len(gram) + 1]
    diagonal += ridge * max(float(diagonal.mean()), 1.0)
    # > the factor of a Gram matrix solves all of its leading parts
    root = np.linalg.cholesky(gram)
    found = np.linalg.inv(root / np.diag(root))
    found *= -64
    return np.tril(np.minimum(np.maximum(np.rint(found), -128), 127), -1).astype(np.int64)


@lru_cache(maxsize=64)
def _places_of(taps: int, more: int) -> tuple[Array, Array]:
    """Where factors are: for each of the taps, of those before it and `more`."""
    rows, columns = np.tril_indices(taps, more - 1)
    return rows, columns


def pack_factors(factors: Array, more: int) -> bytes:
    """Factors of each of the taps, of those before it and `more`."""
    return factors[_places_of(len(factors), more)].astype(np.int8).tobytes()


def unpack_factors(head: Reader, taps: int, more: int) -> Array:
    """What `pack_factors` was given: (taps, more + taps)."""
    found = np.zeros((taps, more + taps), np.int64)
    places = _places_of(taps, more)
    found[places] = np.frombuffer(head.raw(places[0].size), np.int8)
    return found
