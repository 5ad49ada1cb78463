"""Huffman's code on many lanes at once: the coder of the Deep Compression paper, for comparison.

Huffman 1952, doi:10.1109/JRPROC.1952.273898; codes are canonical and have at most LONGEST bits. Symbol i is in lane i mod lanes, whose
bits start at a byte of their own, so that a step decodes one symbol of every lane, in whole arrays.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.archive.fields import damaged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

LONGEST = 12  # bits of a code
SYMBOLS = 256  # a table has room for
MOST = 1024  # lanes
_PER_LANE = 2048  # bytes of a lane at least: what says where it starts takes four


def lanes_for(nbytes: float) -> int:
    """How many lanes to take for `nbytes` of coded symbols."""
    most = max(int(nbytes / _PER_LANE), 1)
    return min(1 << (most.bit_length() - 1), MOST)


def lengths(weights: Array) -> Array:
    """Bits of each symbol's code, for weights (symbols,) int64: 0 for a weight of 0, 1 for a symbol that is alone.

    >>> lengths(np.int64([4, 2, 1, 1, 0]))
    array([1, 2, 3, 3, 0], dtype=uint8)
    """
    found = np.zeros(weights.size, np.int64)
    heap: list[tuple[int, int, tuple[int, ...]]] = [
        (int(weights[symbol]), symbol, (symbol,)) for symbol in np.flatnonzero(weights).tolist()
    ]
    if len(heap) == 1:
        found[heap[0][1]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        one, two = heapq.heappop(heap), heapq.heappop(heap)
        both = one[2] + two[2]
        found[list(both)] += 1
        heapq.heappush(heap, (one[0] + two[0], min(one[1], two[1]), both))
    found = np.minimum(found, LONGEST)
    # > cut off, the codes are too many: the least frequent of the shorter ones grow until all fit
    order = np.argsort(weights, kind="stable")
    room = 1 << LONGEST
    while int((room >> found[found > 0]).sum()) > room:
        symbol = next(s for s in order.tolist() if 0 < found[s] < LONGEST)
        found[symbol] += 1
    return found.astype(np.uint8)


def codes(length: Array) -> Array:
    """The canonical code of each symbol: shorter ones first, then in the order of symbols."""
    found = np.zeros(length.size, np.uint32)
    code, last = 0, 0
    for symbol in np.lexsort((np.arange(length.size), length)).tolist():
        bits = int(length[symbol])
        if not bits:
            continue
        code <<= bits - last
        found[symbol], last = code, bits
        code += 1
    return found


def encode(symbols: Array, tables: Array, weights: Sequence[Array], lanes: int) -> bytes:
    """`symbols` (n,) uint8, each by the code for the weights of its number in `tables` (n,)."""
    length = np.zeros((len(weights), SYMBOLS), np.uint8)
    code = np.zeros((len(weights), SYMBOLS), np.uint16)
    for number, weight in enumerate(weights):
        length[number, : weight.size] = lengths(weight)
        code[number] = codes(length[number])
    steps = -(-symbols.size // lanes)
    pad = steps * lanes - symbols.size
    keys = tables.astype(np.int64) * SYMBOLS + symbols
    bits = np.concatenate([length.reshape(-1)[keys], np.zeros(pad, np.uint8)]).reshape(steps, lanes)
    words = np.concatenate([code.reshape(-1)[keys], np.zeros(pad, np.uint16)]).reshape(steps, lanes)
    ends = bits.cumsum(axis=0, dtype=np.int64)
    sizes = -(-ends[-1] // 8)
    starts = (ends - bits + 8 * (sizes.cumsum() - sizes)).reshape(-1)
    flags = np.zeros(8 * int(sizes.sum()), np.uint8)
    flat, word = bits.reshape(-1), words.reshape(-1)
    for place in range(LONGEST):
        at = np.flatnonzero(flat > place)
        flags[starts[at] + place] = (word[at] >> (flat[at] - 1 - place)) & 1
    return sizes.astype("<u4").tobytes() + np.packbits(flags).tobytes()


def decode(data: memoryview, count: int, tables: Array, weights: Sequence[Array], lanes: int) -> Array:
    """The `count` symbols of `encode`, uint8. Raises InputError where `data` is nothing it gives."""
    if len(data) < 4 * lanes:
        raise damaged("a stream is too short for its lanes")
    sizes = np.frombuffer(data, "<u4", lanes).astype(np.int64)
    if int(sizes.sum()) != len(data) - 4 * lanes:
        raise damaged("lanes have another length than they say")
    look = np.concatenate([_lookup(weight) for weight in weights])
    coded = np.concatenate([np.frombuffer(data, np.uint8, offset=4 * lanes), np.zeros(4, np.uint8)])
    last = 8 * (coded.size - 4)
    at = 8 * (sizes.cumsum() - sizes)
    out = np.empty(count, np.uint8)
    for begin in range(0, count, lanes):
        here = at[: min(lanes, count - begin)]
        byte = here >> 3
        word = coded[byte].astype(np.uint32) << 16 | coded[byte + 1].astype(np.uint32) << 8 | coded[byte + 2]
        slot = (word >> (24 - LONGEST - (here & 7)).astype(np.uint32)) & np.uint32((1 << LONGEST) - 1)
        found = look[(tables[begin : begin + here.size].astype(np.uint32) << np.uint32(LONGEST)) + slot]
        out[begin : begin + here.size] = found & 0xFF
        here += found >> 8
        if int(here.max()) > last:
            raise damaged("a stream is too short")
    if not np.array_equal(-(-at // 8), sizes.cumsum()):
        raise damaged("a stream does not end where it should")
    return out


def _lookup(weights: Array) -> Array:
    """For every LONGEST bits that may come next the symbol, and above it the bits of its code: uint16."""
    length = lengths(weights)
    code = codes(length).astype(np.int64)
    found = np.full(1 << LONGEST, LONGEST << 8, np.uint16)
    for symbol in np.flatnonzero(length).tolist():
        bits = int(length[symbol])
        start = int(code[symbol]) << (LONGEST - bits)
        found[start : start + (1 << (LONGEST - bits))] = bits << 8 | symbol
    return found
