"""Range asymmetric numeral systems on many lanes at once: every step takes one symbol of each lane, in whole arrays.

Duda 2013, arXiv:1311.2540; interleaved as by Giesen 2014, arXiv:1402.3392. A state x is in [2^16, 2^32); a symbol of frequency f
that starts at s among 2^14 slots takes x to (x div f) 2^14 + s + x mod f, after the low 16 bits went out where x would not
fit. Symbol i is in lane i mod lanes, so every symbol may have a table of its own without the order being changed.
All arithmetic is in integers, or exact in float64, so every machine gets the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.archive.fields import damaged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

BITS = 14  # of a slot
SLOTS = 1 << BITS
SYMBOLS = 256  # a table has room for
MOST = 4096  # lanes
LEAST = 512  # lanes below which a coder that goes symbol by symbol is as quick
_BYTES = 3  # what a lane costs, about
_SHARE = 0.0025  # of the coded bytes that lanes may cost
_LOW = 1 << 16


def lanes_for(nbytes: float) -> int:
    """How many lanes `nbytes` of coded symbols allow; 0 where it is too few."""
    most = int(nbytes * _SHARE / _BYTES)
    lanes = 1 << max(most.bit_length() - 1, 0)
    return min(lanes, MOST) if lanes >= LEAST else 0


def frequencies(weights: Array) -> Array:
    """Weights (tables, symbols) int64 as frequencies with the sum SLOTS, uint32; at least 1 where there was any.

    >>> frequencies(np.int64([[3, 1, 0]])).tolist()
    [[12288, 4096, 0]]
    """
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    # > shares of what is left once each symbol has its one slot
    present = weights > 0
    spare = SLOTS - present.sum(axis=1, keepdims=True)
    found = np.where(present, 1 + weights * spare // total, 0)
    rows = np.arange(len(found))
    found[rows, weights.argmax(axis=1)] += SLOTS - found.sum(axis=1)
    return found.astype(np.uint32)


def start(lanes: int) -> Array:
    """The states before the first symbol is encoded, and after the last is decoded."""
    return np.full(lanes, _LOW, np.uint32)


def encode(symbols: Array, tables: Array, freq: Array, state: Array) -> tuple[bytes, Array]:
    """`symbols` (n,) uint8, each by the table of its number in `tables` (n,), in bytes; and the states that decoding begins with.

    freq: (tables, symbols), of `frequencies`; state: of the lanes, what decoding will end with: those with which it then begins
    on what was encoded before, so that a chain of streams pays for its lanes once. States and quotients are whole numbers below 2^53, so float64 holds them exactly.
    """
    wide, lanes = _padded(freq), state.size
    first = (np.cumsum(wide, axis=1) - wide).astype(np.float64).reshape(-1)
    frequency = wide.astype(np.float64).reshape(-1)
    steps = -(-symbols.size // lanes)
    keys = np.zeros(steps * lanes, np.int64)
    keys[: symbols.size] = tables
    keys *= SYMBOLS
    keys[: symbols.size] += symbols
    keys[symbols.size :] = int(wide[0].argmax())  # > a symbol that exists
    state = state.astype(np.float64)
    f, quotient, full = np.empty(lanes), np.empty(lanes), np.empty(lanes, bool)
    words: list[Array] = []
    for step in range(steps - 1, -1, -1):
        key = keys[step * lanes : (step + 1) * lanes]
        frequency.take(key, out=f, mode="clip")
        np.multiply(f, float(1 << (32 - BITS)), out=quotient)
        np.greater_equal(state, quotient, out=full)
        at = full.nonzero()[0]
        over = state[at].astype(np.uint32)
        words.append(over.astype("<u2"))  # > the low half
        state[at] = over >> np.uint32(16)
        np.divide(state, f, out=quotient)
        np.floor(quotient, out=quotient)
        np.subtract(float(SLOTS), f, out=f)
        np.multiply(quotient, f, out=f)
        np.add(state, f, out=state)
        first.take(key, out=quotient, mode="clip")
        np.add(state, quotient, out=state)
    return np.concatenate([*words[::-1], np.empty(0, "<u2")]).tobytes(), state.astype(np.uint32)


def decode(data: memoryview, count: int, tables: Array, freq: Array, state: Array) -> Array:
    """The `count` symbols of `encode`, uint8; `state` goes from the states that it gave to those it was given.

    Raises InputError where `data` is nothing it gives.
    """
    if len(data) % 2:
        raise damaged("a stream is no whole number of words")
    words = np.frombuffer(data, "<u2").astype(np.uint32)
    lanes = state.size
    wide = _padded(freq)
    which = np.empty(len(wide) * SLOTS, np.uint8)
    names = np.arange(SYMBOLS, dtype=np.uint8)
    for number, row in enumerate(wide):
        which[number * SLOTS : (number + 1) * SLOTS] = np.repeat(names, row)
    first = np.cumsum(wide, axis=1, dtype=np.uint32) - wide
    both = (wide << np.uint32(16) | first).reshape(-1)
    steps = -(-count // lanes)
    base = np.zeros(steps * lanes, np.uint16)
    base[:count] = tables
    out = np.empty(steps * lanes, np.uint8)
    if _steps(state, words, (which, both), base, out, lanes) != words.size:
        raise damaged("a stream does not end where it should")
    return out[:count]


def _steps(
    state: Array, words: Array, lookup: tuple[Array, Array], base: Array, out: Array, lanes: int
) -> int:
    """Fills `out`, step by step; returns how many words it took. What numpy computes goes where something was."""
    which, both = lookup
    slot, place, pair, table = (np.empty(lanes, np.uint32) for _ in range(4))
    low = np.empty(lanes, bool)
    mask, bits, half, least = np.uint32(SLOTS - 1), np.uint32(BITS), np.uint32(16), np.uint32(_LOW)
    room, under = np.uint32(SYMBOLS), np.uint32(0xFFFF)
    one = not base.any()
    at = 0
    for begin in range(0, out.size, lanes):
        symbol = out[begin : begin + lanes]
        np.bitwise_and(state, mask, out=slot)
        if one:
            which.take(slot, out=symbol, mode="clip")
            both.take(symbol, out=pair, mode="clip")
        else:
            np.copyto(table, base[begin : begin + lanes])
            np.left_shift(table, bits, out=place)
            np.bitwise_or(place, slot, out=place)
            which.take(place, out=symbol, mode="clip")
            np.multiply(table, room, out=place)
            np.add(place, symbol, out=place)
            both.take(place, out=pair, mode="clip")
        np.right_shift(state, bits, out=state)
        np.right_shift(pair, half, out=place)
        np.multiply(state, place, out=state)
        np.bitwise_and(pair, under, out=pair)
        np.add(state, slot, out=state)
        np.subtract(state, pair, out=state)
        np.less(state, least, out=low)
        short = low.nonzero()[0]
        end = at + short.size
        if end > words.size:
            raise damaged("a stream is too short")
        state[short] = (state[short] << half) | words[at:end]
        at = end
    return at


def _padded(freq: Array) -> Array:
    """The tables with room for SYMBOLS symbols each."""
    wide = np.zeros((len(freq), SYMBOLS), np.uint32)
    wide[:, : freq.shape[1]] = freq
    return wide
