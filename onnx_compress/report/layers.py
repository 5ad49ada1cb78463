"""The text of `onnx-compress inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_compress.model.groups import place_words
from onnx_compress.report.text import render, short, table
from onnx_compress.report.words import amount, milliseconds, number, plain, size

if TYPE_CHECKING:
    from rich.table import Table

NAME = 38  # characters of a node's name


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
            + (f", {milliseconds(found['ms'])} a run" if found.get("ms") else "")
            + (", quantized" if found.get("quantized") else "")
            + (f", by {plain(found['producer'])}" if found.get("producer") else "")
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
        parts += [
            title("channel units that can go whole (width and parameters of one)"),
            _kinds(units["kinds"]),
        ]
    pinned = [item for item in units["pinned"] if item["why"] != "part of a kernel"]
    if pinned:
        parts += [title("channels that cannot go"), _pinned(pinned)]
    if found["barriers"]:
        parts += [title("not compressible"), _grouped("node", found["barriers"])]
    for item in found["passes"]:
        parts += [title(item["name"]), *_pass(item)]
    if "self_test" in found:
        parts += [title("self-test"), Text(_tested(found["self_test"]))]
    if "sensitivity" in found:
        parts += [
            title(f"sensitivity to {found['sensitivity']['pass']}"),
            *_sensitivity(found["sensitivity"]),
        ]
    parts += [Text(f"warning: {plain(line)}", style="yellow") for line in found["warnings"]]
    return render(parts, width=width, color=color)


def brief(name: str, length: int = NAME) -> str:
    """A name that is too long without what torch says twice, and of that the end.

    >>> brief("/blocks/blocks.0/attention/attention.1/query/MatMul"), brief("/0/0.0/Conv")
    ('/blocks.0/attention.1/query/MatMul', '/0/0.0/Conv')
    """
    if len(name) <= length:
        return plain(name)
    parts = name.split("/")
    following = [*parts[1:], ""]
    told = [part for part, after in zip(parts, following, strict=True) if not after.startswith(f"{part}.")]
    return short("/".join(told), length)


def _tested(result: dict[str, Any]) -> str:
    verdict = "sound" if result["sound"] else "NOT SOUND: do not prune this model, and report it"
    return (
        f"channels removed against channels masked: largest difference {number(result['difference'])} "
        f"of an output in {result['precision']}, rounding is up to {result['allowed']:g}: {verdict}"
    )


def _sensitivity(result: dict[str, Any]) -> list[Any]:
    """A row a place, a column a share: the relative error of the worst output."""
    from rich.text import Text

    shares = list(dict.fromkeys(row["share"] for row in result["rows"]))
    made = table("where", *(f"{100 * share:.0f} % gone" for share in shares), right=range(1, len(shares) + 1))
    for where in dict.fromkeys(row["where"] for row in result["rows"]):
        errors = {row["share"]: row["error"] for row in result["rows"] if row["where"] == where}
        made.add_row(brief(where, 60), *(number(errors.get(share), 3) for share in shares))
    kind = " RANDOM" if result["random"] else ""
    return [made, Text(f"relative error of the worst output; {result['samples']}{kind} samples given")]


def _shape(axes: list[Any]) -> str:
    return "x".join("?" if axis is None else plain(axis) for axis in axes) or "-"


def _layers(layers: list[dict[str, Any]]) -> Table:
    made = table(
        "name", "op", "input", "weight", "output", "parameters", "MACs", "size", "ms", right=(5, 6, 7, 8)
    )
    for layer in layers:
        shapes = (_shape(layer[key]) for key in ("input", "weight", "output"))
        costs = (amount(layer["params"]), amount(layer["macs"]), size(layer["bytes"]))
        time = "" if layer.get("ms") is None else number(layer["ms"], 3)
        made.add_row(brief(layer["name"], 28), plain(layer["op"]), *shapes, *costs, time)
    return made


def _kinds(kinds: list[dict[str, Any]]) -> Table:
    made = table("units", "width", "parameters", "made by", "read by", "through", right=(0, 1, 2, 5))
    for kind in kinds:
        sizes = (str(kind["units"]), str(kind["width"]), amount(kind["params"]))
        made.add_row(*sizes, some(kind["makes"]), some(kind["reads"]), str(len(kind["carries"]) or ""))
    return made


def some(nodes: list[str]) -> str:
    """The first two of these names of nodes, and how many more there are."""
    more = f" and {len(nodes) - 2} more" if len(nodes) > 2 else ""
    return ", ".join(brief(node) for node in nodes[:2]) + more or "-"


def _pinned(items: list[dict[str, Any]]) -> Table:
    """By the nodes rather than the weights, each once."""
    seen = {place_words(item["axis"], item["node"], item["side"]): item["why"] for item in items}
    return _grouped("at", [{"at": at, "why": why} for at, why in seen.items()])


def _grouped(key: str, items: list[dict[str, Any]]) -> Table:
    groups: dict[str, list[str]] = {}
    for item in items:
        groups.setdefault(item["why"], []).append(item[key])
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    made = table("count", "why", "which", right=(0,))
    for why, nodes in ordered:
        made.add_row(str(len(nodes)), plain(why), _first(nodes))
    return made


def _first(nodes: list[str]) -> str:
    """The first three of these; what a pass names may be several nodes at once."""
    between = "; " if any(", " in node for node in nodes) else ", "
    shown = [", ".join(map(brief, node.split(", "))) for node in nodes[:3]]
    return between.join([*shown, "..."] if len(nodes) > 3 else shown)


def _pass(item: dict[str, Any]) -> list[Any]:
    from rich.text import Text

    if item["could"] is None:
        return [Text("does not say beforehand")]
    groups: dict[str, list[str]] = {}
    for change in item["could"]:
        groups.setdefault(change["what"], []).append(change["node"])
    made = table("could", "count", "which", right=(1,))
    for what, nodes in groups.items():
        made.add_row(plain(what), str(len(nodes)), _first(nodes))
    parts: list[Any] = [made] if groups else [Text("could do nothing")]
    return [*parts, _grouped("node", item["skips"])] if item["skips"] else parts
