"""Runs a function in a process of its own, so that a crash, a hang or a bomb in native code is an error like any other.

The parent owns signals, the memory and time limits, and the child's scratch folder (its TMPDIR), which is gone when the
call ends, however it ends. The child is `onnx_compress.worker`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_compress.errors import CompressError, LimitError
from onnx_compress.model.staging import staging_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Progress = Callable[[int, int, str], None]

_TICK = 0.05  # s: how often limits and signals are looked at
_START = (
    "import sys; sys.path[:] = {path!r}; from onnx_compress.worker import serve; serve({fd}, {request!r})"
)


class SignalError(CompressError):
    """SIGINT, SIGTERM or SIGHUP came."""

    exit_code = 130


@dataclass
class Signals:
    """Whether a signal asked for the end; filled by `catch_signals`."""

    came: int = 0

    def check(self) -> None:
        """Raises SignalError where a signal came."""
        if self.came:
            raise SignalError("interrupted; nothing was written")


@contextlib.contextmanager
def catch_signals() -> Iterator[Signals]:
    """Inside the block SIGINT, SIGTERM and SIGHUP only leave a note; no code is cut short in an odd place."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def note(number: int, _frame: object) -> None:
        signals.came = number

    before = {number: signal.signal(number, note) for number in _caught()}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _caught() -> list[int]:
    """The signals that end a run; one that is ignored (nohup) stays ignored."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    return [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]


def call(
    target: str,
    arguments: dict[str, Any],
    *,
    signals: Signals | None = None,
    memory: int | None = None,
    seconds: float | None = None,
    verbose: bool = False,
    progress: Progress | None = None,
) -> Any:
    """What `module:function(**arguments, progress=...)` returns, called in a child process.

    target: "module:function"; arguments and result are pickled; memory: bytes the child may take (default: three
    quarters of what is free); seconds: of wall clock; verbose: the child's own words go to stderr, else nowhere.
    Raises the child's CompressError; LimitError for a limit, a crash, or an error that is a bug; SignalError.
    """
    limit = memory or default_memory()
    with _scratch_folder() as scratch:
        request = scratch / "request"
        request.write_bytes(pickle.dumps((target, arguments, limit, os.getpid())))
        child = _Child(scratch, verbose, progress, limit, seconds, start=time.monotonic())
        try:
            child.spawn(request)
            return child.wait(signals or Signals())
        finally:
            child.end()


@contextlib.contextmanager
def _scratch_folder() -> Iterator[Path]:
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(staging_folder(Path(tempfile.gettempdir()), "onnx-compress"))
        except OSError as error:
            raise LimitError(f"no folder for temporary files: {error.strerror}; set TMPDIR to one") from error
        yield folder


@dataclass
class _Child:
    scratch: Path
    verbose: bool
    progress: Progress | None
    memory: int | None
    seconds: float | None
    start: float
    stage: str = "starting"
    process: subprocess.Popen[bytes] | None = None
    reader: int = -1
    buffer: bytearray = field(default_factory=bytearray)

    def spawn(self, request: Path) -> None:
        self.reader, writer = os.pipe()
        path = [entry or str(Path.cwd()) for entry in sys.path]
        code = _START.format(path=path, fd=writer, request=str(request))
        try:
            with (self.scratch / "log").open("wb") as log:
                self.process = subprocess.Popen(  # noqa: S603 - our own code
                    [sys.executable, "-c", code],
                    stdin=subprocess.DEVNULL,
                    stdout=sys.__stderr__ if self.verbose and sys.__stderr__ else log,
                    stderr=None if self.verbose else log,
                    env={**os.environ, "TMPDIR": str(self.scratch)},
                    pass_fds=[writer],
                    process_group=0,  # Ctrl-C reaches the parent only; grandchildren end with the child
                )
        finally:
            os.close(writer)

    def wait(self, signals: Signals) -> Any:
        """Reads messages until the result; watches signals and limits meanwhile."""
        while True:
            signals.check()
            self._check_limits()
            ready, _, _ = select.select([self.reader], [], [], _TICK)
            if not ready:
                continue
            data = os.read(self.reader, 1 << 16)
            if not data:
                signals.check()
                raise self._death()
            self.buffer += data
            for kind, value in self._messages():
                if kind == "done":
                    return value
                if kind == "error":
                    raise value
                self.stage = value[2]
                if self.progress is not None:
                    self.progress(*value)

    def end(self) -> None:
        """Nothing of the child is left: no process, no pipe."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self.reader >= 0:
            os.close(self.reader)

    def _messages(self) -> Iterator[tuple[str, Any]]:
        while len(self.buffer) >= 8:
            size = 8 + int.from_bytes(self.buffer[:8], "little")
            if len(self.buffer) < size:
                return
            message = bytes(self.buffer[8:size])
            del self.buffer[:size]
            yield pickle.loads(message)  # noqa: S301 - from our own child

    def _check_limits(self) -> None:
        assert self.process is not None
        if self.seconds is not None and time.monotonic() - self.start > self.seconds:
            raise LimitError(
                f"stopped {self._where()}: --time-limit {self.seconds:g} s was reached; nothing was written"
            )
        if self.memory is not None and resident(self.process.pid) > self.memory:
            raise self._out_of_memory()

    def _where(self) -> str:
        return f"in {self.stage!r}"

    def _out_of_memory(self) -> LimitError:
        return out_of_memory(self.memory, self._where())

    def _death(self) -> LimitError:
        """Why the child ended without a word."""
        assert self.process is not None
        code = self.process.wait()
        log = self.scratch / "log"
        tail = log.read_bytes()[-2000:].lower() if log.exists() else b""
        if b"bad_alloc" in tail or b"memory allocation" in tail or b"cannot allocate memory" in tail:
            return self._out_of_memory()
        advice = "run again with -v to see its last words"
        if code == -signal.SIGKILL:
            return LimitError(
                f"the worker process was killed {self._where()}, most likely for lack of memory; "
                "nothing was written; use fewer --samples or a smaller --memory-limit"
            )
        if code == -signal.SIGBUS:
            return LimitError(
                f"a file of the model or of the data ended early, or the disk failed, {self._where()} (SIGBUS): it must not "
                "change during the run; nothing was written"
            )
        what = f"crashed with {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return LimitError(f"native code {what} {self._where()}; nothing was written; {advice}")


def out_of_memory(memory: int | None, where: str) -> LimitError:
    """The error of a run that needs more than it may take."""
    size = "" if memory is None else f" of {memory / 1e9:.3g} GB"
    return LimitError(
        f"out of memory {where}: the limit{size} was reached; nothing was written; "
        "raise --memory-limit or use fewer --samples"
    )


def resident(pid: int) -> int:
    """Bytes of memory that process `pid` holds and the system could not drop: mapped files do not count.

    0 where the system does not tell.
    """
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return sum(
        1024 * int(line.split()[1])
        for line in text.splitlines()
        if line.startswith(("RssAnon:", "RssShmem:"))
    )


def default_memory() -> int | None:
    """Three quarters of the free bytes of this machine or container; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        maximum = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
        files = dict(
            line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines()
        )
        free.append(maximum - used + int(files.get("inactive_file", 0)))
    return max(min(free) * 3 // 4, 1 << 28) if free else None
