"""Whatever happens in the worker process is one error with the right exit code, and nothing is left behind."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from onnx_compress import supervise
from onnx_compress.errors import CompressError, InputError, LimitError
from onnx_compress.supervise import SignalError, Signals, call, catch_signals

JOBS = """
import ctypes, os, subprocess, sys, tempfile, time
from onnx_compress.errors import InputError

def echo(value, progress):
    progress(1, 2, "half")
    open(os.path.join(tempfile.gettempdir(), "scratch"), "w").write("x")
    print("noise"); print("noise", file=sys.stderr); os.write(1, b"noise"); os.write(2, b"noise")
    return value, tempfile.gettempdir(), os.getpid()

def wrong(progress):
    class Odd(InputError):
        pass
    raise Odd("the model is wrong")

def bug(progress):
    progress(0, 1, "pass prune")
    raise KeyError("a\\nb")

def segfault(progress):
    progress(0, 1, "pass svd")
    ctypes.string_at(0)

def killed(progress):
    os.kill(os.getpid(), 9)

def leaves(progress):
    os._exit(7)

def hang(progress):
    progress(0, 1, "pass int8")
    child = subprocess.Popen(["sleep", "60"])
    progress(child.pid, 1, "grandchild")
    time.sleep(60)

def bomb(progress):
    progress(0, 1, "pass int8")
    kept = []
    while True:
        kept.append(bytearray(8 << 20))

def shared_bomb(progress):
    import mmap
    kept = []
    while True:  # shared memory is no data segment: only the parent's watch sees it
        kept.append(mmap.mmap(-1, 8 << 20))
        kept[-1].write(b"x" * (8 << 20))

def full(progress):
    with open("/dev/full", "w") as file:
        file.write("x")

def refused(progress):
    raise PermissionError(13, "Permission denied", "/place")

def cut(path, progress):
    import mmap
    with open(path, "r+b") as file:
        view = mmap.mmap(file.fileno(), 0)
        file.truncate(0)
    return sum(view[::4096])

def mapped(path, progress):
    import mmap
    with open(path, "rb") as file:
        view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return sum(view[::4096])
"""


@pytest.fixture(autouse=True)
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of fake jobs that the child can import; afterwards no scratch folder and no child is left."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / "fake_jobs.py").write_text(JOBS)
    monkeypatch.syspath_prepend(str(folder))
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    yield
    assert list(scratch.iterdir()) == []
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_result_and_progress_come_back(capfd: pytest.CaptureFixture[str]) -> None:
    """Noise of the child goes nowhere; its TMPDIR is the scratch folder, gone afterwards."""
    seen: list[tuple[int, int, str]] = []
    value, folder, pid = call(
        "fake_jobs:echo", {"value": {"a": 1}}, progress=lambda *words: seen.append(words)
    )
    assert value == {"a": 1}
    assert pid != os.getpid()
    assert seen == [(1, 2, "half")]
    assert not Path(folder).exists()
    assert capfd.readouterr() == ("", "")


def test_verbose_shows_the_childs_words_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    call("fake_jobs:echo", {"value": 1}, verbose=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("noise") == 4


def test_users_error_crosses_with_its_exit_code() -> None:
    """A subclass made elsewhere arrives as the class of errors.py that it is."""
    with pytest.raises(InputError, match=r"^the model is wrong$") as caught:
        call("fake_jobs:wrong", {})
    assert caught.value.exit_code == 3
    assert "in wrong" in caught.value.details  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("bug", "a bug in onnx-compress or a pass: KeyError in 'pass prune'"),
        ("segfault", "native code crashed with SIGSEGV in 'pass svd'"),
        ("killed", "the worker process was killed in 'starting', most likely for lack of memory"),
        ("leaves", "native code ended with code 7"),
        ("full", "the disk is full"),
        ("refused", "the system refused in 'starting': Permission denied (/place)"),
        ("absent", "a bug in onnx-compress or a pass: AttributeError"),
    ],
)
def test_crash_is_a_limit_error(job: str, words: str) -> None:
    with pytest.raises(LimitError) as caught:
        call(f"fake_jobs:{job}", {})
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)
    assert "nothing was written" in str(caught.value)


@pytest.mark.parametrize("job", ["bomb", "shared_bomb"])
def test_memory_limit_ends_a_bomb(job: str) -> None:
    with pytest.raises(LimitError, match=r"out of memory in '.*': the limit of 0.2 GB was reached"):
        call(f"fake_jobs:{job}", {}, memory=200_000_000)


def test_mapped_file_does_not_count_as_memory(tmp_path: Path) -> None:
    """The system may drop its pages at any time."""
    file = tmp_path / "large"
    with file.open("wb") as handle:
        handle.truncate(600_000_000)
    assert call("fake_jobs:mapped", {"path": str(file)}, memory=300_000_000) == 0


def test_file_that_ends_early_while_it_is_mapped_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(100_000))
    with pytest.raises(LimitError, match=r"ended early.*SIGBUS.*nothing was written"):
        call("fake_jobs:cut", {"path": str(tmp_path / "data")})


def ended(pid: int) -> bool:
    for _ in range(100):
        try:
            if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def test_time_limit_ends_a_hang_and_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps once the grandchild runs, so that a slow machine changes nothing."""
    seen: list[int] = []
    real = time.monotonic

    def progress(done: int, _total: int, what: str) -> None:
        if what == "grandchild":
            seen.append(done)
            monkeypatch.setattr(time, "monotonic", lambda: real() + 1000)

    with pytest.raises(LimitError, match=r"stopped in 'grandchild': --time-limit 500 s was reached"):
        call("fake_jobs:hang", {}, seconds=500, progress=progress)
    assert ended(seen[-1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_the_run_with_130(number: int) -> None:
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    outer = signal.signal(number, signal.default_int_handler)  # a runner in the background ignores some
    before = signal.getsignal(number)
    timer.start()
    with catch_signals() as signals, pytest.raises(SignalError) as caught:
        call("fake_jobs:hang", {}, signals=signals)
    timer.join()
    assert caught.value.exit_code == 130
    assert signal.getsignal(number) is before
    signal.signal(number, outer)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
def test_killed_parent_leaves_no_child(tmp_path: Path) -> None:
    """Not even SIGKILL, which nobody can catch."""
    code = (
        f"import sys, tempfile; sys.path.append({str(tmp_path / 'jobs')!r}); tempfile.tempdir = {str(tmp_path)!r};"
        "from onnx_compress.supervise import call;"
        "call('fake_jobs:hang', {}, progress=lambda done, total, what: print(done, flush=True))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "0\n"
        grandchild = int(parent.stdout.readline())
        child = int(Path(f"/proc/{grandchild}/stat").read_text().split()[3])
        parent.kill()
    assert ended(child)
    os.kill(grandchild, signal.SIGKILL)


def test_call_works_in_a_thread() -> None:
    """Where signals cannot be caught, everything else still holds."""
    found: list[Any] = []

    def run() -> None:
        with catch_signals() as signals:
            found.append(call("fake_jobs:echo", {"value": 5}, signals=signals)[0])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [5]


def test_errors_pickle() -> None:
    for kind in (CompressError, InputError, LimitError):
        assert str(pickle.loads(pickle.dumps(kind("words")))) == "words"  # noqa: S301


def test_default_memory_is_some_of_what_is_free() -> None:
    assert (supervise.default_memory() or 1 << 28) >= 1 << 28
    assert supervise.resident(os.getpid()) > 1 << 20
    assert supervise.resident(2**22 + 1) == 0
    assert Signals().check() is None  # type: ignore[func-returns-value]
