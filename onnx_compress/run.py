"""A run as far as it has come: what was asked, the data, the model after each stage, and the seconds of each."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from onnx_compress.preflight import preflight
from onnx_compress.request import Inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from onnx_compress.model.document import Model
    from onnx_compress.preflight import Preflight
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

    def try_out(self, model: Model) -> Preflight:
        """What one run of `model` shows; from here on its sizes hold, and batches of one where it takes no more."""
        request, inputs = self.request, self.inputs
        with self.watch("preflight"):
            found = preflight(
                model,
                input_shapes=request.input_shapes,
                data=inputs.data or inputs.eval,
                seed=request.seed,
                threads=self.words.clock.threads,
            )
        self.stages.warnings += [*inputs.warnings, *found.warnings]
        self.request = replace(request, input_shapes=found.input_shapes)
        if not found.single:
            return found
        if request.batch > 1:
            self.stages.warnings.append(
                f"the model takes one sample at a time, so it is timed on one, not on --batch {request.batch}"
            )
        self.request, self.inputs = replace(self.request, batch=1), inputs.one_by_one()
        return found
