"""Progress bars, on a terminal."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def show_progress() -> Iterator[Callable[[int, int, str], None]]:
    """Inside the block, a function (done, total, what) that keeps one line on stderr; it is gone afterwards."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from onnx_compress.report.words import plain

    start, stage = time.monotonic(), ""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[elapsed]}"),
        TimeRemainingColumn(compact=True),  # of what is being done now
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=None, elapsed="")

        def tell(done: int, total: int, what: str) -> None:
            nonlocal stage
            known = total if total > 1 else None
            if what != stage:
                progress.reset(task, total=known)
                stage = what
            seconds = f"{time.monotonic() - start:.0f} s"  # > not rich's: it is that of the whole run
            progress.update(task, completed=done, total=known, description=plain(what), elapsed=seconds)

        yield tell
