"""The report as Markdown: the terminal's tables, for a pull request or a wiki."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_compress.report.words import (
    amount,
    comparison,
    conditions,
    costliest,
    hurting,
    number,
    options_text,
    plain,
    size,
    skips_by_reason,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def to_markdown(report: dict[str, Any]) -> str:
    """The whole report, every change and every skip included."""
    output = report.get("output")
    recipe = report.get("recipe")
    target = f" to {code(output)}" if output else ", nothing written"
    if recipe is None:
        target = f" compared with {code(output)}"
    made = "" if recipe is None else f"Recipe {code(recipe)}, seed {report.get('seed')}, "
    lines = [
        f"# onnx-compress: {code(report.get('input'))}{target}",
        "",
        f"{made}{number(report.get('seconds'), 3)} s.",
        "",
        *rows(("", "before", "after", "change"), comparison(report)),
        *(f"- {escape(line)}" for line in conditions(report)),
        *(f"- **warning:** {escape(line)}" for line in report.get("warnings") or []),
    ]
    if report.get("passes"):
        lines += ["", "## Passes", "", *rows(_PASS_HEADINGS, map(_pass_row, report["passes"]))]
    for side in ("before", "after"):
        layers = costliest(report, side)
        if layers:
            lines += ["", f"## Costliest layers {side}", "", *rows(_LAYER_HEADINGS, map(_layer_row, layers))]
    if hurting(report):
        headings = ("layer", "op", "error", "added", "dB SQNR")
        lines += ["", "## Layers that add most error", "", *rows(headings, hurting(report))]
    skips = skips_by_reason(report)
    if skips:
        shown = [(name, str(len(nodes)), why, ", ".join(nodes)) for name, why, nodes in skips]
        lines += ["", "## Left alone", "", *rows(("pass", "nodes", "why", "which"), shown)]
    for step in report.get("passes") or []:
        if step.get("changes"):
            changes = map(_change_row, step["changes"])
            lines += ["", f"## Changes of {escape(step['name'])}", "", *rows(_CHANGE_HEADINGS, changes)]
    return "\n".join(lines) + "\n"


_PASS_HEADINGS = ("pass", "options", "seconds", "size", "MACs", "changes", "left alone")
_LAYER_HEADINGS = ("layer", "op", "MACs", "parameters", "size")
_CHANGE_HEADINGS = ("node", "what", "before", "after", "error")


def rows(headings: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, and an empty one."""
    lines = [headings, ["---"] * len(headings), *([escape(cell) for cell in row] for row in body)]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def escape(text: Any) -> str:
    """`text` as Markdown that shows it as it is."""
    return "".join("\\" + letter if letter in "\\`*_[]<>|#" else letter for letter in plain(text))


def code(text: Any) -> str:
    """`text` as inline code, whatever backquotes it holds."""
    text = plain(text)
    fence = "`"
    while fence in text:
        fence += "`"
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def _pass_row(step: dict[str, Any]) -> tuple[str, ...]:
    after = step.get("after") or {}
    counts = (str(len(step.get("changes") or ())), str(len(step.get("skips") or ())))
    costs = (size(after.get("bytes")), amount(after.get("macs")))
    return (step["name"], options_text(step), number(step.get("seconds"), 3), *costs, *counts)


def _layer_row(layer: dict[str, Any]) -> tuple[str, ...]:
    return (
        layer["name"],
        layer["op"],
        amount(layer.get("macs")),
        amount(layer.get("params")),
        size(layer.get("bytes")),
    )


def _change_row(change: dict[str, Any]) -> tuple[str, ...]:
    error = change.get("error")
    return (
        change["node"],
        change["what"],
        str(change["before"]),
        str(change["after"]),
        "" if error is None else number(error),
    )
