"""The passes and their options, as the command `passes` lists them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_compress.errors import UsageError
from onnx_compress.recipe import nearest, options
from onnx_compress.report.text import render, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx_compress.contract import Pass


def passes_data(known: Sequence[type[Pass]], name: str | None = None) -> list[dict[str, Any]]:
    """Name, summary and options of every pass, or of the one named.

    Raises UsageError where there is no such pass.
    """
    names = [kind.name for kind in known]
    if name is not None and name not in names:
        words = ", ".join(sorted(names)) or "(none)"
        raise UsageError(f"no pass named {name!r}; known passes: {words}{nearest(name, names)}")
    return [_pass_data(kind) for kind in known if name in (None, kind.name)]


def _pass_data(kind: type[Pass]) -> dict[str, Any]:
    return {
        "name": kind.name,
        "summary": (kind.__doc__ or "").strip().split("\n\n")[0].replace("\n", " "),
        "options": [
            {"name": item.name, "default": item.default, "values": item.words, "help": item.help}
            for item in options(kind)
        ],
    }


def passes_text(found: Sequence[dict[str, Any]], *, width: int = 100, color: bool = False) -> str:
    """The passes as text, an option a row."""
    from rich.text import Text

    parts: list[Any] = []
    for item in found:
        parts += ["", Text.assemble((item["name"], "bold"), f"  {item['summary']}")]
        made = table("  option", "default", "values", "")
        for choice in item["options"]:
            default = choice["default"]
            shown = str(default).lower() if default is None or isinstance(default, bool) else str(default)
            made.add_row(f"  {choice['name']}", shown, choice["values"], choice["help"])
        if item["options"]:
            parts.append(made)
    return render(parts[1:], width=width, color=color)
