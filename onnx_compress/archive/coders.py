"""The entropy coders: runs of symbols, each run with its own frequency table, to bytes and back.

ANS and range coder of constriction (Bamler 2022, arXiv:2201.01741), for streams too short for many lanes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import constriction
import numpy as np

from onnx_compress.archive.fields import damaged
from onnx_compress.archive.tables import weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

_stream = constriction.stream


def encode(coder: str, runs: Sequence[Array], levels: Sequence[Array]) -> bytes:
    """The symbols of all `runs` in bytes; run i has the table levels[i], of two symbols or more."""
    words: Array = _ENCODERS[coder](runs, levels)
    return words.astype("<u4").tobytes()


def decode(coder: str, data: memoryview, lengths: Sequence[int], levels: Sequence[Array]) -> list[Array]:
    """The runs of `encode`, uint8. Raises InputError where `data` is nothing `encode` gives."""
    if len(data) % 4:
        raise damaged("a stream is no whole number of words")
    words = np.frombuffer(data, "<u4").astype(np.uint32)
    try:
        runs: list[Array] = _DECODERS[coder](words, lengths, levels)
    except (ValueError, AssertionError, IndexError) as error:
        raise damaged("a stream cannot be decoded") from error
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # native code's own, no Exception
            raise damaged("a stream cannot be decoded") from None
        raise
    return runs


def _model(levels: Array) -> Any:
    found = weights(levels)
    return _stream.model.Categorical(found / found.sum(), perfect=False)


def _encode_ans(runs: Sequence[Array], levels: Sequence[Array]) -> Array:
    coder = _stream.stack.AnsCoder()
    for run, row in zip(reversed(runs), levels[::-1], strict=True):  # a stack: last in, first out
        if run.size:
            coder.encode_reverse(run.astype(np.int32), _model(row))
    words: Array = coder.get_compressed()
    return words


def _decode_ans(words: Array, lengths: Sequence[int], levels: Sequence[Array]) -> list[Array]:
    coder = _stream.stack.AnsCoder(words)
    return [_symbols(coder, length, row) for length, row in zip(lengths, levels, strict=True)]


def _encode_range(runs: Sequence[Array], levels: Sequence[Array]) -> Array:
    coder = _stream.queue.RangeEncoder()
    for run, row in zip(runs, levels, strict=True):
        if run.size:
            coder.encode(run.astype(np.int32), _model(row))
    words: Array = coder.get_compressed()
    return words


def _decode_range(words: Array, lengths: Sequence[int], levels: Sequence[Array]) -> list[Array]:
    coder = _stream.queue.RangeDecoder(words)
    return [_symbols(coder, length, row) for length, row in zip(lengths, levels, strict=True)]


def _symbols(coder: Any, length: int, levels: Array) -> Array:
    if not length:
        return np.empty(0, np.uint8)
    found: Array = coder.decode(_model(levels), length).astype(np.uint8)
    return found


_ENCODERS: dict[str, Callable[[Sequence[Array], Sequence[Array]], Array]] = {
    "ans": _encode_ans,
    "range": _encode_range,
}
_DECODERS: dict[str, Callable[[Array, Sequence[int], Sequence[Array]], list[Array]]] = {
    "ans": _decode_ans,
    "range": _decode_range,
}
