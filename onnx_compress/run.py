"""A run as far as it has come: what was asked, the data, the model after each stage, and the seconds of each."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnx_compress.request import Inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from onnx_compress.request import Request, Words
    from onnx_compress.stages import Stages

    Progress = Callable[[int, int, str], None]


class Watch:
    """Seconds of each stage, and the progress that is told of them."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._start

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measures `stage`."""
        self.progress(0, 1, stage)
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass
class Run:
    """A run as far as it has come. inputs: its data, opened; stages: the model after each stage."""

    request: Request
    words: Words
    watch: Watch
    stages: Stages
    inputs: Inputs = field(default_factory=Inputs)
