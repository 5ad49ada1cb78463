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
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

_stream = constriction.stream


def encode(coder: str, runs: Sequence[tuple[int, Array]], levels: Sequence[Array]) -> bytes:
    """The symbols of all `runs` in bytes; a run is the number of its table in `levels`, of two symbols or more, and its symbols."""
    models = _Models(levels)
    if coder == "ans":
        stack = _stream.stack.AnsCoder()
        for table, run in reversed(runs):  # last in, first out
            stack.encode_reverse(run.astype(np.int32), models[table])
        words: Array = stack.get_compressed()
    else:
        queue = _stream.queue.RangeEncoder()
        for table, run in runs:
            queue.encode(run.astype(np.int32), models[table])
        words = queue.get_compressed()
    return words.astype("<u4").tobytes()


class Decoder:
    """Gives the runs of `encode` back, one by one."""

    def __init__(self, coder: str, data: memoryview, levels: Sequence[Array]) -> None:
        if len(data) % 4:
            raise damaged("a stream is no whole number of words")
        words = np.frombuffer(data, "<u4").astype(np.uint32)
        self._models = _Models(levels)
        try:
            known = _stream.stack.AnsCoder if coder == "ans" else _stream.queue.RangeDecoder
            self._coder: Any = known(words)
        except ValueError as error:
            raise damaged("a stream cannot be decoded") from error

    def run(self, table: int, length: int) -> Array:
        """The next `length` symbols, uint8. Raises InputError where the stream is nothing `encode` gives."""
        try:
            found: Array = self._coder.decode(self._models[table], length).astype(np.uint8)
        except (ValueError, AssertionError, IndexError) as error:
            raise damaged("a stream cannot be decoded") from error
        except BaseException as error:
            if type(error).__name__ == "PanicException":  # native code's own, no Exception
                raise damaged("a stream cannot be decoded") from None
            raise
        return found


class _Models:
    """The models of tables, each made once, when it is needed."""

    def __init__(self, levels: Sequence[Array]) -> None:
        self._levels = levels
        self._made: dict[int, Any] = {}

    def __getitem__(self, table: int) -> Any:
        if table not in self._made:
            found = weights(self._levels[table])
            self._made[table] = _stream.model.Categorical(found / found.sum(), perfect=False)
        return self._made[table]
