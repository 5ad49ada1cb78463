"""Files and folders that are being made, under names of their own; what a killed process left of them goes with the next run.

Whoever makes one holds a lock on it (flock), which ends with the process, however it ends. So what can be locked is nobody's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # a system without flock: what is killed leaves its files
    fcntl = None  # type: ignore[assignment]

ENDING = ".onnx-compress-tmp"
_TRIES = 100  # > another run may sweep a name away between its making and its lock


@contextlib.contextmanager
def staging_file(folder: Path, name: str) -> Iterator[tuple[int, Path]]:
    """A new file in `folder`, open to be written, and its path; gone after the block unless it was renamed.

    The descriptor is to be closed by the caller.
    """
    sweep(folder)
    for _ in range(_TRIES):
        descriptor, path = tempfile.mkstemp(prefix=f".{name[:40]}.", suffix=ENDING, dir=folder)
        if _locked(descriptor) is not False and Path(path).exists():
            break
        os.close(descriptor)
    else:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(folder))
    # > a second descriptor of the same opening: the lock is held until the file has its place
    held = os.dup(descriptor)
    try:
        yield descriptor, Path(path)
    finally:
        Path(path).unlink(missing_ok=True)
        os.close(held)


@contextlib.contextmanager
def staging_folder(folder: Path, name: str) -> Iterator[Path]:
    """A new folder in `folder`, gone after the block with all that is in it."""
    sweep(folder)
    for _ in range(_TRIES):
        path = Path(tempfile.mkdtemp(prefix=f".{name[:40]}.", suffix=ENDING, dir=folder))
        with contextlib.suppress(FileNotFoundError):
            held = os.open(path, os.O_RDONLY)
            if _locked(held) is not False and path.exists():
                break
            os.close(held)
    else:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(held)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """A binary file that takes the place of `path` when the block ends well, and vanishes when it does not."""
    target = Path(os.path.realpath(path))  # a link stays a link: what it points to is replaced
    with staging_file(target.parent, target.name) as (descriptor, temporary):
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        temporary.chmod(mode)
        temporary.replace(target)
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sweep(folder: Path) -> None:
    """Removes what killed processes of this user left in `folder`."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(ENDING):
                with contextlib.suppress(OSError):
                    _remove_unlocked(entry.path)


def _remove_unlocked(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or not _locked(descriptor):
            return
        if stat.S_ISDIR(status.st_mode):
            shutil.rmtree(path, ignore_errors=True)
        elif stat.S_ISREG(status.st_mode):
            os.unlink(path)  # noqa: PTH108 - a string of scandir
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool | None:
    """Whether the lock is ours now; None where there are no locks: then nothing is ever swept."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
