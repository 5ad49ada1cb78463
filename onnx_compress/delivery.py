"""Where a report goes: its places checked before the work, its form told by their endings, and what is shown of it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from onnx_compress.errors import ThresholdError, UsageError
from onnx_compress.terminal import show, terminal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


ENDINGS = (".json", ".md", ".html")


def report_places(
    paths: Sequence[str], inputs: Sequence[str | None], endings: tuple[str, ...] = ENDINGS
) -> list[str]:
    """The places of --report, each of which can be written and is none of `inputs`. Raises UsageError where one is not."""
    from onnx_compress.target import check_place

    for path in paths:
        if not path.endswith(endings):
            words = " or ".join(filter(None, [", ".join(endings[:-1]), endings[-1]]))
            raise UsageError(f"--report {path}: its ending is not known; write {words}")
        if path.endswith(".html"):
            from onnx_compress.report.html import check_installed

            check_installed()
        check_place(path, inputs)
    return list(paths)


def detailed(reports: Sequence[str]) -> bool:
    """Whether layers are to be timed: an HTML report draws that."""
    return any(path.endswith(".html") for path in reports)


@contextlib.contextmanager
def reported(reports: Sequence[str], *, json: bool) -> Iterator[None]:
    """A missed threshold is reported where the user asked for a report: that is where it is looked up."""
    try:
        yield
    except ThresholdError as error:
        found = getattr(error, "report", None)
        if found:
            deliver({**found, "output": None}, reports, json=json, quiet=True)
        raise


def deliver(found: dict[str, Any], reports: Sequence[str], *, json: bool, quiet: bool) -> None:
    """The report to its places, and to stdout as JSON or, unless `quiet`, as text."""
    from onnx_compress.report.plain import to_json
    from onnx_compress.target import write_text

    for path in reports:
        write_text(path, _rendered(found, path))
    if json:
        show(to_json(found))
    elif not quiet:
        from onnx_compress.report.text import to_text

        show(to_text(found, **terminal()))


def _rendered(found: dict[str, Any], path: str) -> str:
    """The report in the form that the ending of `path` names."""
    if path.endswith(".html"):
        from onnx_compress.report.html import to_html

        return to_html(found)
    if path.endswith(".md"):
        from onnx_compress.report.markdown import to_markdown

        return to_markdown(found)
    from onnx_compress.report.plain import to_json

    return to_json(found)
