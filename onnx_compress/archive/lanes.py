"""Range asymmetric numeral systems on many lanes at once: every step takes one symbol of each lane, in whole arrays.

Duda 2013, arXiv:1311.2540; interleaved as by Giesen 2014, arXiv:1402.3392. A state x is in [2^16, 2^32); a symbol of frequency f
that starts at s among 2^12 slots takes x to (x div f) 2^12 + s + x mod f, after the low 16 bits went out where x would not
fit. Symbol i is in lane i mod lanes, so every symbol may have a table of its own without the order being changed.
All arithmetic is in integers, or exact in float64, so every machine gets the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.archive.fields import damaged

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.archive.fields import Reader

    Array = NDArray[Any]

BITS = 12  # of a slot
SLOTS = 1 << BITS
SYMBOLS = 256  # a table has room for
MOST = 4096  # lanes
LEAST = 320  # lanes below which a coder that goes symbol by symbol is as quick
SPARE = 2  # bytes of something else that a lane takes in for nothing
_BYTES = 0.6  # what a lane costs, about, beside what it takes in
_SHARE = 0.0015  # of the coded bytes that lanes may cost,
_FIXED = 600  # beside so many bytes, but
_MOST_SHARE = 0.003  # never more than this
_FEW, _FEW_SHARE = 1024, 0.005  # up to so many lanes that take something in may cost more
_STEP = 64  # lanes
_LOW = 1 << 16
_ABOVE = BITS + 8  # bits beside a symbol's frequency
_AT_ONCE = 1 << 14  # symbols


def lanes_for(nbytes: float, symbols: int, spare: int = 0) -> int:
    """How many lanes `nbytes` of so many coded symbols allow, with `spare` bytes to take in; 0 where it is too few.

    Lanes for which there is nothing else take in symbols as they are: they cost what these would have been less.
    """
    budget = min(nbytes * _SHARE + _FIXED, nbytes * _MOST_SHARE)
    budget = max(budget, min(nbytes * _FEW_SHARE, _FEW * _BYTES, spare / SPARE * _BYTES))
    filled = min(spare / SPARE, budget / _BYTES)
    more = SPARE * (1 - min(nbytes / max(symbols, 1), 1))
    most = filled + (budget - filled * _BYTES) / (_BYTES + more)
    lanes = min(int(most) // _STEP * _STEP, MOST)
    return lanes if lanes >= LEAST else 0


def frequencies(weights: Array) -> Array:
    """Weights (tables, symbols) int64 as frequencies with the sum SLOTS, or one less for a symbol that is alone, uint32; at least 1 where there was any.

    >>> frequencies(np.int64([[3, 1, 0]])).tolist()
    [[3072, 1024, 0]]
    """
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    # > a rare symbol has its one slot; the others share what is left, the rest goes to the largest remainders
    rare = (weights > 0) & (2 * SLOTS * weights < 3 * total)
    shared = np.where(rare, 0, weights)
    total = np.maximum(shared.sum(axis=1, keepdims=True), 1)
    spare = SLOTS - rare.sum(axis=1, keepdims=True)
    shared *= spare
    found = shared // total
    rest = np.where(shared > 0, shared - found * total, -1) * SYMBOLS - np.arange(found.shape[1])
    found += rare
    missing = SLOTS - found.sum(axis=1)
    rows, most = np.arange(len(found)), weights.argmax(axis=1)
    found += rest > np.sort(rest, axis=1)[rows, found.shape[1] - 1 - missing, np.newaxis]
    found[rows, most] = np.minimum(found[rows, most], SLOTS - 1)  # > what twelve bits hold
    return found.astype(np.uint32)


def start(lanes: int, spare: bytes = b"") -> Array:
    """The states before the first symbol is encoded, and after the last is decoded: they hold `spare`, which `spared` gives back."""
    held = np.frombuffer(spare.ljust(SPARE * lanes, b"\0"), "<u2", lanes)
    return held.astype(np.uint32) | np.uint32(_LOW)


def spared(state: Array) -> Array:
    """The bytes that states hold after the last symbol is decoded. Raises InputError where they are not such states."""
    if (state >> np.uint32(16) != 1).any():
        raise damaged("a stream does not end where it should")
    return state.astype("<u2").view(np.uint8)


def dump(state: Array) -> bytes:
    """States in bytes: for each in four bits how many it has above sixteen, then these without the first."""
    high = np.frexp(state.astype(np.float64))[1] - 1
    lengths = np.unpackbits((high - 16).astype(np.uint8)[:, np.newaxis], axis=1)[:, 4:]
    bits = np.unpackbits(state.astype("<u4").view(np.uint8).reshape(-1, 4), axis=1, bitorder="little")
    kept = bits[np.arange(32) < high[:, np.newaxis]]
    return np.packbits(lengths).tobytes() + np.packbits(kept).tobytes()


def load(body: Reader, lanes: int) -> Array:
    """What `dump` wrote of so many lanes."""
    packed = np.frombuffer(body.raw((lanes + 1) // 2), np.uint8)
    high = 16 + np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:lanes].astype(np.int64)
    total = int(high.sum())
    kept = np.unpackbits(np.frombuffer(body.raw(-(-total // 8)), np.uint8), count=total)
    bits = np.zeros((lanes, 32), np.uint8)
    bits[np.arange(32) < high[:, np.newaxis]] = kept
    bits[np.arange(lanes), high] = 1
    return np.packbits(bits, axis=1, bitorder="little").view("<u4")[:, 0].astype(np.uint32)


def encode(symbols: Array, tables: Array, freq: Array, state: Array) -> tuple[bytes, Array]:
    """`symbols` (n,) uint8, each by the table of its number in `tables` (n,), in bytes; and the states that decoding begins with.

    freq: (tables, symbols), of `frequencies`; state: of the lanes, what decoding will end with: those with which it then begins
    on what was encoded before, so that a chain of streams pays for its lanes once. States and quotients are whole numbers below 2^53, so float64 holds them exactly.
    """
    wide, lanes = _padded(freq), state.size
    first = (np.cumsum(wide, axis=1) - wide).astype(np.float64).reshape(-1)
    frequency = wide.astype(np.float64).reshape(-1)
    whole = state.astype(np.float64)
    words: list[Array] = []
    # > what does not depend on the states is found for many steps at once
    many = lanes * max(1, _AT_ONCE // lanes)
    for begin in range((max(symbols.size, 1) - 1) // many * many, -1, -many):
        part = slice(begin, begin + many)
        keys = tables[part].astype(np.intp)
        keys *= SYMBOLS
        keys += symbols[part]
        words += _backwards(whole, frequency.take(keys), first.take(keys))
    sent = np.concatenate([*words[::-1], np.empty(0, np.uint32)])
    return sent.astype("<u2").tobytes(), whole.astype(np.uint32)  # > the low halves


def _backwards(states: Array, frequency: Array, first: Array) -> list[Array]:
    """Takes symbols of these frequencies and first slots into the states, the last first; the words that go out, in the low halves."""
    lanes = states.size
    limit, rest = frequency * float(1 << (32 - BITS)), float(SLOTS) - frequency
    space, above, half = np.empty(lanes), np.empty(lanes, bool), np.uint32(16)
    words = []
    for begin in range((max(frequency.size, 1) - 1) // lanes * lanes, -1, -lanes):
        end = begin + lanes
        f = frequency[begin:end]
        state, quotient, full = states, space, above
        if f.size < lanes:  # > the last step may have fewer symbols than there are lanes
            state, quotient, full = states[: f.size], space[: f.size], above[: f.size]
        np.greater_equal(state, limit[begin:end], full)
        at = full.nonzero()[0]
        low = state.take(at).astype(np.uint32)
        words.append(low)
        state[at] = low >> half
        np.divide(state, f, quotient)
        np.floor(quotient, quotient)
        np.multiply(quotient, rest[begin:end], quotient)
        np.add(state, quotient, state)
        np.add(state, first[begin:end], state)
    return words


def lookup(freq: Array) -> Array:
    """For every slot of every table how many its symbol has, the symbol, and the slot's place among these: in 12, 8 and 12 bits of uint32."""
    tables, symbols = freq.shape
    wide = np.zeros((tables, symbols + 1), np.uint32)
    wide[:, :symbols] = freq
    wide[:, symbols] = SLOTS - freq.sum(axis=1)  # > a slot that no symbol has
    value = (wide << np.uint32(_ABOVE)) | (np.arange(symbols + 1, dtype=np.uint32) << np.uint32(BITS))
    value[:, symbols] = 1 << _ABOVE
    value -= np.cumsum(wide, axis=1, dtype=np.uint32) - wide
    found = np.repeat(value.reshape(-1), wide.reshape(-1)).reshape(tables, SLOTS)
    found += np.arange(SLOTS, dtype=np.uint32)
    return found.reshape(-1)


def decode(data: memoryview, tables: Array, slots: Array, state: Array) -> Array:
    """The symbols of `encode`, uint8; `state` goes from the states that it gave to those it was given. slots: of `lookup`.

    Raises InputError where `data` is nothing it gives.
    """
    if len(data) % 2:
        raise damaged("a stream is no whole number of words")
    words = np.frombuffer(data, "<u2").astype(np.uint32)
    out = np.empty(tables.size, np.uint8)
    at, many = 0, state.size * max(1, _AT_ONCE // state.size)
    for begin in range(0, out.size, many):
        base = tables[begin : begin + many].astype(np.uint32) << np.uint32(BITS)
        at = _steps(state, words, at, slots, base)
        np.right_shift(base, np.uint32(BITS), base)
        out[begin : begin + many] = base  # > the low eight bits
    if at != words.size:
        raise damaged("a stream does not end where it should")
    return out


def _steps(states: Array, words: Array, at: int, slots: Array, base: Array) -> int:
    """Replaces `base` by the entries of `slots`, step by step, with words from `at` on; returns where it came to.

    What numpy computes goes where something was, and what is the same for all lanes is there once for each: scalars take longer.
    """
    lanes = states.size
    space, below = np.empty(lanes, np.uint32), np.empty(lanes, bool)
    constants = np.array([SLOTS - 1, BITS, _ABOVE, _LOW], np.uint32).repeat(lanes).reshape(4, lanes)
    state, slot, low, (mask, bits, above, least) = states, space, below, constants
    half = np.uint32(16)
    for begin in range(0, base.size, lanes):
        found = base[begin : begin + lanes]
        if found.size < lanes:
            state, slot, low = states[: found.size], space[: found.size], below[: found.size]
            mask, bits, above, least = constants[:, : found.size]
        np.bitwise_and(state, mask, slot)
        np.bitwise_or(slot, found, slot)
        slots.take(slot, None, found, "clip")
        np.right_shift(state, bits, state)
        np.right_shift(found, above, slot)
        np.multiply(state, slot, state)
        np.bitwise_and(found, mask, slot)
        np.add(state, slot, state)
        np.less(state, least, low)
        short = low.nonzero()[0]
        end = at + short.size
        if end > words.size:
            raise damaged("a stream is too short")
        more = state.take(short)
        more <<= half
        more |= words[at:end]
        state[short] = more
        at = end
    return at


def _padded(freq: Array) -> Array:
    """The tables with room for SYMBOLS symbols each."""
    wide = np.zeros((len(freq), SYMBOLS), np.uint32)
    wide[:, : freq.shape[1]] = freq
    return wide
