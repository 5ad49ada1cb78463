"""Files the command will write: checked before the work, written beside their place, renamed at the end."""

from __future__ import annotations

import contextlib
import filecmp
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Self

from onnx_compress.errors import LimitError, UsageError
from onnx_compress.model.staging import staging_file, staging_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType


class Target:
    """The model's place at `out`, and a staging folder beside it that is gone when the block ends.

    Raises UsageError where `out` cannot be written, or is one of `inputs` (files the run reads beside the model).
    """

    def __init__(self, out: str, inputs: Iterable[str | None] = ()) -> None:
        self.place = check_place(out, inputs)
        name = self.place.name
        self._stack = contextlib.ExitStack()
        try:
            self.folder = self._stack.enter_context(staging_folder(self.place.parent, name))
        except OSError as error:
            raise UsageError(f"{out}: cannot write in its folder: {error.strerror}") from error
        self.staged = self.folder / name
        for taken in self.place.parent.glob(f"{_literal(name)}.*.data"):
            # > a placeholder: so that the new model's data gets a name that no old model refers to
            (self.folder / taken.name).touch()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def publish(self, beside: Sequence[str] = ()) -> None:
        """Renames what was staged to its place, external data first, the model last.

        beside: names of further files, staged in the folder `external`, that go beside the model.
        Raises LimitError where that fails, UsageError where other bytes have the name of one; then the place is what it was.
        """
        moved: list[Path] = []
        try:
            for name in beside:
                moved += self._move(self.folder / "external" / name, self.place.parent / name)
            if self.place.exists():
                self.staged.chmod(stat.S_IMODE(self.place.stat().st_mode))
            for data in self.folder.glob(f"{_literal(self.place.name)}.*.data"):
                goal = self.place.parent / data.name
                if not goal.exists():
                    moved.append(data.rename(goal))
            self.staged.replace(self.place)
        except OSError as error:
            _undo(moved)
            raise LimitError(f"{self.place}: cannot be written: {error.strerror}") from error
        except UsageError:
            _undo(moved)
            raise
        _sync(self.place.parent)

    def _move(self, staged: Path, goal: Path) -> list[Path]:
        """What came to be: nothing where the same bytes are there."""
        folder = Path(os.path.realpath(self.place.parent))
        if goal == self.place or not Path(os.path.realpath(goal)).is_relative_to(folder):
            raise UsageError(
                f"{goal}: its place is the model's or outside its folder; unpack into an empty folder"
            )
        if os.path.lexists(goal):
            if goal.is_file() and filecmp.cmp(staged, goal, shallow=False):
                return []
            raise UsageError(f"{goal} exists and is another file; unpack into an empty folder")
        goal.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(goal)
        return [goal]


def _undo(moved: Iterable[Path]) -> None:
    for path in moved:
        path.unlink(missing_ok=True)


def check_place(out: str, inputs: Iterable[str | None] = ()) -> Path:
    """Where `out` leads, links resolved. Raises UsageError where no file can be written there."""
    try:
        place = Path(os.path.realpath(out))
        if place.is_symlink():
            raise UsageError(f"{out} is a link that leads back to itself; name another place")
        if place.is_dir() or not out or out.endswith(os.sep):
            raise UsageError(f"{out!r} is a folder; name the file to write")
        if not place.parent.is_dir():
            raise UsageError(f"{out}: there is no folder {str(place.parent)!r}; make it first")
        if place.exists() and not place.is_file():
            raise UsageError(
                f"{out} is no regular file; name another place, or use --dry-run to write nothing"
            )
        if not os.access(place if place.exists() else place.parent, os.W_OK):
            raise UsageError(f"{out} cannot be written: permission denied")
        if not os.access(place.parent, os.W_OK):
            raise UsageError(f"{out} cannot be written: its folder is read-only")
        for path in inputs:
            if path and os.path.realpath(path) == str(place):
                raise UsageError(f"{out} is read by this run; write to another file")
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror}") from error
    return place


def write_text(path: str, text: str) -> None:
    """Writes a report: beside its place first, then renamed. Raises LimitError where that fails."""
    place = Path(os.path.realpath(path))
    try:
        with staging_file(place.parent, place.name) as (descriptor, temporary):
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            temporary.chmod(stat.S_IMODE(place.stat().st_mode) if place.exists() else 0o666 & ~_umask())
            temporary.replace(place)
    except OSError as error:
        raise LimitError(f"{path}: the report cannot be written: {error.strerror}") from error


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync(folder: Path) -> None:
    """So that the rename survives a power cut; a file system that cannot is no reason to fail."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _literal(name: str) -> str:
    """`name` as a glob pattern that matches only itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
