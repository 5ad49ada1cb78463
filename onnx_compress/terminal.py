"""What the command says: reports on stdout, one line of failure and a line of progress on stderr."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any

from onnx_compress.errors import LimitError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


LONGEST = 1000  # letters of a failure: onnxruntime's own words go on and on, and a name may have a megabyte


def progress_line(*, show: bool) -> contextlib.AbstractContextManager[Callable[[int, int, str], None] | None]:
    """Inside the block, what tells of progress; None where stderr is no terminal or nothing is to be shown."""
    if not (show and sys.stderr.isatty()):
        return contextlib.nullcontext(None)
    from onnx_compress.report.bars import show_progress

    return show_progress()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP end the command as Ctrl-C does; one that is ignored (nohup) stays so."""
    numbers = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))]
    before = {}
    with contextlib.suppress(ValueError):  # > in a thread, where no handler can be set
        for number in numbers:
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def terminal() -> dict[str, Any]:
    """Width and colour of stdout."""
    import shutil

    is_terminal = sys.stdout.isatty()
    width = max(shutil.get_terminal_size((100, 24)).columns, 60) if is_terminal else 120
    return {"width": width, "color": is_terminal and not os.environ.get("NO_COLOR")}


def show(text: str) -> None:
    """Prints to stdout; a reader that went away (`| head`) is no failure."""
    try:
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except OSError as error:
        failure = unwritable(error)
        if not isinstance(error, BrokenPipeError):
            raise failure from error


def archive_line(found: dict[str, Any]) -> str:
    r"""What `pack` or `unpack` did, in one line.

    >>> found = {"input": "a.onnx", "output": "a.ocz", "seconds": 0.26}
    >>> archive_line({**found, "before": {"bytes": 3_000_000}, "after": {"bytes": 2_000_000}})
    'a.onnx 3.000 MB, a.ocz 2.000 MB (66.7 %), 0.3 s\n'
    """
    before, after = found["before"]["bytes"], found["after"]["bytes"]
    share = 100 * after / before
    return (
        f"{found['input']} {before / 1e6:.3f} MB, {found['output']} {after / 1e6:.3f} MB ({share:.1f} %), "
        f"{found['seconds']:.1f} s\n"
    )


def unwritable(error: OSError) -> LimitError:
    """The error of a stdout that cannot be written; what is buffered is thrown away."""
    # > it would fail again when the interpreter ends
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return LimitError(f"the output cannot be written: {error.strerror}")


def failed(message: str, code: int, error: BaseException | None) -> int:
    """One line on stderr, after the traceback where `error` is given."""
    from onnx_compress.report.words import plain

    text = ""
    if error is not None:
        text = getattr(error, "details", None) or "".join(traceback.format_exception(error))
    line = plain(" ".join(message.split()))
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    text += f"onnx-compress: {line}\n"
    with contextlib.suppress(OSError):  # > nobody to tell: the exit code still does
        sys.stderr.write(text.encode("utf-8", "backslashreplace").decode())
        sys.stderr.flush()
    return code
