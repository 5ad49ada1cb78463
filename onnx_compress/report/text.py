"""The report on a terminal."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from onnx_compress.report.words import (
    amount,
    comparison,
    conditions,
    costliest,
    hurting,
    plain,
    size,
    skips_by_reason,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table


def to_text(report: dict[str, Any], *, width: int = 100, color: bool = False) -> str:
    """The report as tables of at most `width` columns; ANSI colours where `color`."""
    from rich.text import Text

    parts: list[Any] = [Text(_headline(report), style="bold"), _compared(report)]
    measured = conditions(report)
    if measured:
        parts += ["", *map(Text, measured)]
    if report.get("passes"):
        parts += ["", _passes(report)]
    if costliest(report, "before"):
        parts += ["", _layers(report)]
    if hurting(report):
        parts += ["", Text("layers that add most error", style="bold"), _hurting(report)]
    skips = skips_by_reason(report)
    if skips:
        parts += ["", Text("left alone", style="bold"), skip_table(skips)]
    if report.get("warnings"):
        parts.append("")
    parts += [Text(f"warning: {plain(line)}", style="yellow") for line in report.get("warnings") or []]
    return render(parts, width=width, color=color)


def render(parts: Iterable[Any], *, width: int, color: bool) -> str:
    """Texts and tables of rich as one string, without trailing spaces."""
    from rich.console import Console

    file = io.StringIO()
    console = Console(
        file=file,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        markup=False,
        highlight=False,
        emoji=False,
        legacy_windows=False,
    )
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def table(*headings: str, right: Iterable[int] = ()) -> Table:
    """An empty table without boxes, the columns `right` aligned to the right."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, heading in enumerate(headings):
        made.add_column(heading, justify="right" if place in right else "left", overflow="fold")
    return made


def _headline(report: dict[str, Any]) -> str:
    seconds = report.get("seconds")
    spent = "" if seconds is None else f"  {seconds:.1f} s"
    if report.get("peak_rss_bytes"):
        spent += f", {size(report['peak_rss_bytes'])} at most"
    names = plain(report.get("input")), plain(report.get("output"))
    if report.get("recipe") is None:
        return f"{names[0]} compared with {names[1]}{spent}"
    target = f" -> {names[1]}" if report.get("output") else " (nothing written)"
    return f"{names[0]}{target}  {plain(report['recipe'])}{spent}"


def _compared(report: dict[str, Any]) -> Table:
    made = table("", "before", "after", "", right=(1, 2))
    for row in comparison(report):
        made.add_row(*row)
    return made


def _passes(report: dict[str, Any]) -> Table:
    made = table("pass", "seconds", "size", "MACs", "changes", "left alone", right=range(1, 6))
    for step in report["passes"]:
        after = step.get("after") or {}
        made.add_row(
            plain(step["name"]),
            f"{step.get('seconds') or 0:.1f}",
            size(after.get("bytes")),
            amount(after.get("macs")),
            str(len(step.get("changes") or ())),
            str(len(step.get("skips") or ())),
        )
    return made


def _layers(report: dict[str, Any]) -> Table:
    made = table(
        "costliest before", "op", "MACs", "size", "costliest after", "op", "MACs", "size", right=(2, 3, 6, 7)
    )
    before, after = costliest(report, "before"), costliest(report, "after")
    for place in range(max(len(before), len(after))):
        made.add_row(*_layer(before, place), *_layer(after, place))
    return made


def _hurting(report: dict[str, Any]) -> Table:
    made = table("layer", "op", "error", "added", "dB SQNR", right=(2, 3, 4))
    for name, *cells in hurting(report):
        made.add_row(short(name, 50), *cells)
    return made


def _layer(layers: list[dict[str, Any]], place: int) -> tuple[str, str, str, str]:
    if place >= len(layers):
        return "", "", "", ""
    layer = layers[place]
    return short(layer["name"]), plain(layer["op"]), amount(layer.get("macs")), size(layer.get("bytes"))


def short(name: str, length: int = 28) -> str:
    """The end of a long name: that is where names differ."""
    name = plain(name)
    return name if len(name) <= length else "…" + name[1 - length :]


def skip_table(skips: list[tuple[str, str, list[str]]]) -> Table:
    """(pass, reason, nodes) as rows; no column for the pass where none is named."""
    named = any(name for name, _, _ in skips)
    made = table(*(["pass"] if named else []), "count", "why", "which", right=(int(named),))
    for name, why, nodes in skips:
        shown = ", ".join(short(node) for node in nodes[:3]) + (", ..." if len(nodes) > 3 else "")
        made.add_row(*([plain(name)] if named else []), str(len(nodes)), plain(why), shown)
    return made
