"""The process the command runs in: the child's side of `supervise.call`, and the jobs of the commands.

The parent keeps what must survive a crash: signals, limits, the rename of the finished file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import importlib
import os
import pickle
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_compress.errors import CompressError, LimitError, UsageError
from onnx_compress.supervise import out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnx_compress.recipe import Recipe

_PERIOD = 0.05  # s: between two reports of progress within one stage


def serve(descriptor: int, request: str) -> None:
    """Does the job in the file `request`, writes progress and the result to `descriptor`, and ends the process."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    sys.path.append(str(Path.cwd()))  # --metric package.module:function is often beside the data
    target, arguments, memory, parent = pickle.loads(Path(request).read_bytes())  # noqa: S301 - from our own parent
    if os.getppid() != parent:  # it was killed before this process could say that it wants to end with it
        os._exit(1)
    if memory is not None:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_DATA, (memory, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    tell = _Teller(descriptor)
    try:
        module, _, name = target.partition(":")
        function = getattr(importlib.import_module(module), name)
        result = function(**arguments, progress=tell.progress)
        tell.send("done", result)
    except BaseException as error:  # noqa: BLE001 - the parent must hear of everything
        tell.send("error", _told(error, memory, tell.stage))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # > not a return: teardown of native libraries may crash, and takes time


class _Teller:
    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.stage = "starting"
        self.last = 0.0

    def progress(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if what == self.stage and done < total and now - self.last < _PERIOD:
            return
        self.stage, self.last = what, now
        self.send("progress", (done, total, what))

    def send(self, kind: str, value: Any) -> None:
        message = pickle.dumps((kind, value))
        data = memoryview(len(message).to_bytes(8, "little") + message)
        while data:
            data = data[os.write(self.descriptor, data) :]


def _die_with_parent() -> None:
    """On Linux: a killed parent leaves no child."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _told(error: BaseException, memory: int | None, stage: str) -> CompressError:
    """The error as the parent is to raise it: its traceback in the attribute `details`, a missed run's `report`."""
    told = _classified(error, memory, stage)
    told.details = "".join(traceback.format_exception(error))  # type: ignore[attr-defined]
    told.report = getattr(error, "report", None)  # type: ignore[attr-defined]
    told.__cause__ = told.__context__ = None
    return told


def _classified(error: BaseException, memory: int | None, stage: str) -> CompressError:
    words = " ".join(str(error).split())
    if isinstance(error, SystemExit):
        return LimitError(f"a pass or the metric ended the process in {stage!r}; nothing was written")
    if isinstance(error, MemoryError) or "bad_alloc" in words or "Failed to allocate memory" in words:
        return out_of_memory(memory, f"in {stage!r}")
    if isinstance(error, CompressError):
        kind = next(kind for kind in type(error).__mro__ if kind.__module__ == CompressError.__module__)
        told: CompressError = kind(
            str(error)
        )  # > not the error itself: another package's class may not pickle
        return told
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = "the disk is full" if full else f"the system refused in {stage!r}: {error.strerror}"
        advice = "; make room, or set TMPDIR elsewhere" if full else ""
        return LimitError(f"{what}{where}; nothing was written{advice}")
    kind_words = type(error).__name__
    return LimitError(
        f"a bug in onnx-compress or a pass: {kind_words} in {stage!r}: {words}; nothing was written; -v tells where"
    )


def compress_to(
    *,
    source: str,
    target: str | None,
    passes: Recipe,
    keywords: dict[str, Any],
    places: Sequence[str] = (),
    progress: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """The job of `run`: the report; the result at `target`, unless that is None.

    places: the files that the command will write in the end.
    """
    from onnx_compress.pipeline import compress

    progress(0, 1, "load")
    spare_data(source, places)
    made = compress(source, passes, progress=progress, **keywords)
    if target is not None:
        progress(0, 1, "write")
        made.save(target)
    report: dict[str, Any] = made.report
    return report


def pack_to(
    *, source: str, places: Sequence[str], progress: Callable[[int, int, str], None], **arguments: Any
) -> Any:
    """The job of `pack`; places: the files that the command will write in the end."""
    from onnx_compress.archive import pack

    spare_data(source, places)
    return pack(source=source, progress=progress, **arguments)


def spare_data(source: str, places: Sequence[str]) -> None:
    """Raises UsageError where one of `places` holds weights of the model at `source`, InputError where that does not load."""
    from onnx_compress.model.document import Model
    from onnx_compress.model.lossless import data_files

    there = [place for place in places if Path(place).exists()]
    if not there or not Path(source).is_file():
        return
    Model.load(source)
    taken = data_files(source)
    for place in there:
        if os.path.realpath(place) in taken:
            raise UsageError(f"{place} holds weights of {source}; write to another file")
