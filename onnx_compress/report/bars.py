"""Progress bars, on a terminal."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def show_progress() -> Iterator[Callable[[int, int, str], None]]:
    """Inside the block, a function (done, total, what) that keeps one line on stderr; it is gone afterwards."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from onnx_compress.report.words import plain

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def tell(done: int, total: int, what: str) -> None:
            # > not progress.reset: the time shown is that of the whole run
            progress.tasks[0].total = total if total > 1 else None
            progress.update(task, completed=done, description=plain(what))

        yield tell
