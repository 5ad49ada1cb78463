"""The command `onnx-compress`, run hundreds of times a minute: forked from a process that has imported everything.

All is as when it is typed (parent, worker, pipe, limits, signals, exit code), but that both processes are forked, not begun.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Outcome:
    """How a run of the command ended; peak: bytes resident at most, of the command or of its worker."""

    code: int
    out: str
    err: str
    seconds: float
    peak: int


class Command:
    """Runs the command again and again; `end` ends the process that it is forked from."""

    def __init__(self) -> None:
        words = [sys.executable, str(Path(__file__))]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=env, cwd="/")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def run(
        self,
        words: Sequence[str],
        folder: Path,
        scratch: Path,
        seconds: float = 30.0,
        *,
        stop: int = signal.SIGKILL,
    ) -> Outcome:
        """The command with these words in `folder`, its temporary files in `scratch`; after `seconds` it gets `stop`.

        The code of one that was killed is 999.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with tempfile.TemporaryDirectory() as streams:
            files = [Path(streams) / name for name in ("out", "err")]
            for file in files:  # > it may be killed before it opens them
                file.touch()
            ask = {"words": list(words), "folder": str(folder), "scratch": str(scratch)}
            process.stdin.write(
                json.dumps({**ask, "streams": streams, "seconds": seconds, "stop": int(stop)}) + "\n"
            )
            process.stdin.flush()
            found = json.loads(process.stdout.readline())
            out, err = (file.read_text(errors="replace") for file in files)
        return Outcome(found["code"], out, err, found["seconds"], found["peak"])

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


def _serve() -> None:
    """Reads a line, forks the command, writes a line, until there are no more."""
    import numpy  # noqa: ICN001, F401
    import onnx.checker
    import onnx.inliner
    import onnx.shape_inference  # noqa: F401
    import onnxruntime
    import sklearn.cluster  # noqa: F401
    import threadpoolctl  # noqa: F401

    import onnx_compress.archive
    import onnx_compress.cli
    import onnx_compress.inspect
    import onnx_compress.passes
    import onnx_compress.pipeline
    import onnx_compress.report.text
    import onnx_compress.worker  # noqa: F401

    onnxruntime.set_default_logger_severity(4)
    for line in sys.stdin:
        asked = json.loads(line)
        start = time.monotonic()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        child = os.fork()
        if not child:
            _command(asked)
        status, usage, late = _wait(child, start + asked["seconds"], asked["stop"])
        code = 999 if late and os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)
        answer = {"code": code, "seconds": time.monotonic() - start, "peak": usage.ru_maxrss * 1024}
        print(json.dumps(answer), flush=True)  # noqa: T201 - the answer


def _wait(child: int, until: float, stop: int) -> tuple[int, Any, bool]:
    late, pause = False, 0.001
    while True:
        found, status, usage = os.wait4(child, 0 if late else os.WNOHANG)
        if found:
            return status, usage, late
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
        if time.monotonic() > until:
            late = True
            os.kill(child, stop)


def _command(asked: dict[str, Any]) -> None:
    """The forked process: becomes the command, and ends with its exit code."""
    from onnx_compress import cli, supervise

    code = 998
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # > it is ignored in what a shell runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(BaseException):
        for name, number in (("out", 1), ("err", 2)):
            descriptor = os.open(Path(asked["streams"]) / name, os.O_WRONLY)
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(asked["folder"])
        os.environ["TMPDIR"] = asked["scratch"]
        tempfile.tempdir = None
        supervise.subprocess.Popen = _Forked  # type: ignore[attr-defined]
        first = vars(cli)["name_run"]

        def begin(commands: Any) -> None:
            # > what comes before the command's own code is Python's start, not ours
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            first(commands)

        vars(cli)["name_run"] = begin
        code = cli.main(asked["words"])
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


class _Forked:
    """What `supervise` needs of Popen, forked instead of begun."""

    def __init__(self, command: list[str], **how: Any) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        try:
            os.setpgid(0, 0)
            log = how["stdout"].fileno()
            os.dup2(log, 1)
            os.dup2(log if how["stderr"] is not None else 2, 2)
            os.environ.update(how["env"])
            tempfile.tempdir = None
            exec(command[2], {})  # noqa: S102 - what the real one runs
        finally:
            os._exit(97)

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if found else None
        return self.returncode


if __name__ == "__main__":
    _serve()
