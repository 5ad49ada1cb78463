"""Judges one case after another in a process of its own."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.corpus.models import Item

SECONDS = 900.0  # a case that takes longer has failed


class Child:
    """A process that judges one case after another, begun anew when it dies or hangs."""

    def __init__(self) -> None:
        self.process: Any = None
        self.pipe: Any = None

    def ask(self, item: Item, spec: str) -> tuple[str, str, bool]:
        """The verdict, in words that can be written down."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=_serve, args=(other,), daemon=True)
            self.process.start()
            other.close()
        try:
            self.pipe.send((str(item.path), spec, item.feeds))
            if self.pipe.poll(SECONDS):
                found: tuple[str, str, bool] = self.pipe.recv()
                return found
            said = f"no end after {SECONDS:g} s"
        except (EOFError, OSError):
            self.process.join(10)
            said = f"the process died: exit code {self.process.exitcode}"
        self.end()
        return "failed", said, False

    def end(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
        self.process = None


def _serve(pipe: Any) -> None:
    from onnx_compress.runtime import race
    from tests.oracle import judge

    race.SAMPLE = 0.0002  # > what the clock decides is not the question here
    while True:
        try:
            path, spec, feeds = pipe.recv()
        except EOFError:
            return
        found = judge(Path(path), spec, feeds)
        pipe.send((found.kind, found.words, found.changed))
