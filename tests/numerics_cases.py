"""Weights and inputs that the tests of the shared mathematics draw."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

Array = NDArray[Any]
SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)


def problem(seed: int, outputs: int = 4, inputs: int = 9, columns: int = 60) -> tuple[Array, Array]:
    """A weight, and inputs (K, n) that are correlated and not centred."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((inputs, inputs)) + np.eye(inputs)
    x = mix @ rng.standard_normal((inputs, columns)) + rng.standard_normal((inputs, 1))
    return rng.standard_normal((outputs, inputs)), x


def gram_of(x: Array) -> Array:
    gram: Array = x @ x.T / x.shape[1]
    return gram


def mean_square(y: Array) -> float:
    return float(np.square(y).sum() / y.shape[1])


def damped(gram: Array, damping: float) -> Array:
    whole: Array = gram + damping * np.trace(gram) / len(gram) * np.eye(len(gram))
    return whole
