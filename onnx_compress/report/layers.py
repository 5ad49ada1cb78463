"""The text of `onnx-compress inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_compress.report.text import render, short, skip_table, table
from onnx_compress.report.words import amount, plain, size

if TYPE_CHECKING:
    from rich.table import Table


def to_text(found: dict[str, Any], *, width: int = 100, color: bool = False) -> str:
    """Cost, layers, channel units, and what each pass could do and why not."""
    from rich.text import Text

    def title(words: str) -> Text:
        return Text("\n" + words, style="bold")

    parts: list[Any] = [
        Text(plain(found["model"]), style="bold"),
        Text(
            f"{size(found['bytes'])}, {amount(found['params'])} parameters, {amount(found['macs'])} MACs, "
            f"{found['nodes']} nodes, opset {found['opsets'].get('ai.onnx', '?')}"
        ),
        *(
            Text(f"input  {plain(item['name'])}: {item['dtype']} {_shape(item['shape'])}")
            for item in found["inputs"]
        ),
        *(Text(f"output {plain(item['name'])}: {_shape(item['shape'])}") for item in found["outputs"]),
    ]
    if found["layers"]:
        parts += [title("layers"), _layers(found["layers"])]
    units = found["units"]
    if units["kinds"]:
        parts += [title("channel units that can go whole"), _kinds(units["kinds"])]
    pinned = [item for item in units["pinned"] if item["why"] != "part of a kernel"]
    if pinned:
        parts += [title("weight axes of which nothing can go"), _grouped("axis", pinned)]
    if found["barriers"]:
        parts += [title("not compressible"), _grouped("node", found["barriers"])]
    for item in found["passes"]:
        parts += [title(item["name"]), *_pass(item)]
    parts += [Text(f"warning: {plain(line)}", style="yellow") for line in found["warnings"]]
    return render(parts, width=width, color=color)


def _shape(axes: list[Any]) -> str:
    return "x".join("?" if axis is None else plain(axis) for axis in axes) or "-"


def _layers(layers: list[dict[str, Any]]) -> Table:
    made = table("name", "op", "input", "weight", "output", "parameters", "MACs", "size", right=(5, 6, 7))
    for layer in layers:
        shapes = (_shape(layer[key]) for key in ("input", "weight", "output"))
        costs = (amount(layer["params"]), amount(layer["macs"]), size(layer["bytes"]))
        made.add_row(short(layer["name"]), plain(layer["op"]), *shapes, *costs)
    return made


def _kinds(kinds: list[dict[str, Any]]) -> Table:
    made = table("units", "weight axes (indices a unit)", right=(0,))
    for kind in kinds:
        places = [f"{short(place)} ({count})" for place, count in kind["places"].items()]
        more = f", and {len(places) - 4} more" if len(places) > 4 else ""
        made.add_row(str(kind["units"]), ", ".join(places[:4]) + more)
    return made


def _grouped(key: str, items: list[dict[str, Any]]) -> Table:
    groups: dict[str, list[str]] = {}
    for item in items:
        groups.setdefault(item["why"], []).append(item[key])
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return skip_table([("", why, nodes) for why, nodes in ordered])


def _pass(item: dict[str, Any]) -> list[Any]:
    from rich.text import Text

    if item["could"] is None:
        return [Text("does not say beforehand")]
    groups: dict[str, list[str]] = {}
    for change in item["could"]:
        groups.setdefault(change["what"], []).append(change["node"])
    made = table("could", "count", "which", right=(1,))
    for what, nodes in groups.items():
        shown = ", ".join(short(node) for node in nodes[:3]) + (", ..." if len(nodes) > 3 else "")
        made.add_row(plain(what), str(len(nodes)), shown)
    parts: list[Any] = [made] if groups else [Text("could do nothing")]
    return [*parts, _grouped("node", item["skips"])] if item["skips"] else parts
