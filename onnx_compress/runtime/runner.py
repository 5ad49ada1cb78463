"""Runs a model, and one beside it, over batches, several at once, and returns the tensors that are observed."""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.errors import InputError
from onnx_compress.runtime.requests import CrossGram, Gram
from onnx_compress.runtime.session import INLINE, Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import ThreadPoolExecutor

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.runtime.requests import Request

    Array = NDArray[Any]
    Tensors = tuple[dict[str, Array], dict[str, Array]]

LIVE = 256 * 2**20  # bytes of observed tensors that all runs under way may return,
ONE = 32 * 2**20  # and one of them, where a sample is no more than that
FEWEST = 16  # batches, where there are samples enough: so that cores do not wait for the last


class Runner:
    """Runs the model, and the reference where it is asked for, and returns the tensors that requests need."""

    def __init__(
        self, model: Model, reference: Model | None, requests: Sequence[Request], threads: int
    ) -> None:
        self.own = sorted({name for request in requests for name in _own(request)})
        self.other = sorted({request.target for request in requests if isinstance(request, CrossGram)})
        self.shared = reference is model
        if self.shared:
            names = sorted({*self.own, *self.other})
            self._model, self._reference = _opened(model, names, threads), None
        else:
            self._model = _opened(model, self.own, threads)
            self._reference = _opened(reference, self.other, threads) if reference and self.other else None

    def __call__(self, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
        """The model's and the reference's tensors for one batch."""
        own = _run(self._model, feeds, sorted({*self.own, *self.other}) if self.shared else self.own)
        if self.shared:
            return own, own
        return own, _run(self._reference, feeds, self.other) if self._reference else {}


def _opened(model: Model, names: Sequence[str], threads: int) -> Session:
    graph = model.proto.graph
    inputs = {value.name for value in graph.input}
    known = inputs | {name for node in graph.node for name in node.output}
    for name in names:
        if not name or name not in known:
            raise InputError(f"tensor {name!r} is not in the model's main graph, so it cannot be observed")
    wanted = [name for name in names if name not in inputs]
    # > of a large model, copying its weights and every observed tensor to another layout and back costs more than that saves
    return Session(model, threads=threads, outputs=wanted, trimmed=True, layout=model.nbytes <= INLINE)


def _run(session: Session, feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    made = [name for name in names if name not in feeds]
    values = session.run(feeds, made) if made else {}
    values.update((name, np.asarray(feeds[name])) for name in names if name in feeds)
    for name, value in values.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
            raise InputError(f"tensor {name!r} holds no numbers, so it cannot be observed")
    return values


def _own(request: Request) -> list[str]:
    """The tensors of the model itself that a request reads."""
    if isinstance(request, Gram):
        return [request.layer.tensor]
    if isinstance(request, CrossGram):
        return [request.layer.tensor] + ([request.minus] if request.minus else [])
    return [request.tensor]


def abreast(live: int, cores: int, most: int, samples: int | None) -> tuple[int, int]:
    """How many batches are run at once, and of how many samples, at most `most`.

    live: bytes of observed tensors of a sample. Batches that each have one core wait for no other: a third faster than all
    cores for one batch. Their size does not depend on the cores, so neither do sums over them.
    """
    size = min(most, ONE // max(live, 1))
    if samples is not None:
        size = min(size, -(-samples // FEWEST))
    size = max(1, size)
    return max(1, min(cores, LIVE // max(live * size, 1))), size


def ahead(
    runner: Runner, batches: Iterable[Mapping[str, Array]], pool: ThreadPoolExecutor, number: int
) -> Iterator[tuple[Mapping[str, Array], Tensors]]:
    """Each batch with the runner's tensors for it, in order; `number` of them are run while one is taken in."""
    rest = iter(batches)
    waiting = deque((feeds, pool.submit(runner, feeds)) for feeds in itertools.islice(rest, number))
    while waiting:
        feeds, running = waiting.popleft()
        values = running.result()
        waiting.extend((after, pool.submit(runner, after)) for after in itertools.islice(rest, 1))
        yield feeds, values


def rows_of(feeds: Mapping[str, Array]) -> int:
    """Samples in a batch: the size of the first axis of the first input that has one."""
    return next((len(value) for value in feeds.values() if np.ndim(value)), 1)
