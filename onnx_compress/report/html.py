"""The report as one HTML file that needs nothing else: light and dark, and readable on a telephone."""

from __future__ import annotations

import math
import shlex
from importlib import resources, util
from typing import TYPE_CHECKING, Any

from onnx_compress.errors import UsageError
from onnx_compress.model.groups import place_words
from onnx_compress.report.layers import some
from onnx_compress.report.words import (
    amount,
    comparison,
    conditions,
    drop,
    hurting,
    milliseconds,
    number,
    options_text,
    plain,
    ratio,
    score,
    size,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

POOR = 10.0  # dB: a tenth of the outputs' energy is error
CURVES = 24  # drawn for a pass: the steepest
KINDS = 200  # kinds of channels in the table
NAMED = 5  # axes named beside the reason that pins them
ROWS = 4000  # changes, skips and decisions in the table; the JSON report has all


def check_installed() -> None:
    """Raises UsageError where what draws the page is not installed."""
    missing = [name for name in ("jinja2", "matplotlib") if util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"an .html report needs {' and '.join(missing)}: pip install 'onnx-compress[report]'"
        )


def to_html(report: dict[str, Any]) -> str:
    """The page. Raises UsageError where what draws it is not installed."""
    check_installed()
    from jinja2 import Environment, StrictUndefined

    source = resources.files("onnx_compress.report").joinpath("report.html.j2").read_text("utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"plain": plain, "size": size, "amount": amount, "number": number}
    rows = list(_rows(report))
    return (
        page.from_string(source).render(
            title=f"{_name(report.get('input'))} → {_name(report.get('output'))}",
            report=report,
            tiles=list(_tiles(report)),
            compared=comparison(report),
            conditions=conditions(report),
            passes=[_pass(step) for step in report.get("passes") or []],
            hurting=hurting(report, 30),
            charts=list(_layers(report)),
            weights=_weights(report),
            curves=list(_curves(report)),
            channels=_channels(report),
            agreement=_agreement(report),
            rows=rows[:ROWS],
            omitted=max(0, len(rows) - ROWS),
            command=_command(report),
        )
        + "\n"
    )


def _name(path: Any) -> str:
    return plain(path or "nothing written").replace("\\", "/").rpartition("/")[2]


def _tiles(report: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """(what, headline, details, good | bad | even) of size, speed and accuracy."""
    before, after = report["before"], report["after"]
    change = ratio(before["bytes"], after["bytes"]).replace("less", "smaller").replace("more", "larger")
    mood = "good" if before["bytes"] > after["bytes"] else "even"
    yield "Size", change, f"{size(before['bytes'])} → {size(after['bytes'])}", mood
    if report.get("latency"):
        yield _speed(report["latency"])
    if report.get("metric"):
        yield _accuracy(report["metric"])
    elif report.get("agreement"):
        yield _closeness(report)


def _speed(latency: dict[str, Any]) -> tuple[str, str, str, str]:
    speedup = latency["speedup"]
    middle, low, high = (speedup.get(key) or math.nan for key in ("median", "low", "high"))
    words, mood = f"{middle:.2f}x faster", "good"
    if low <= 1 <= high:
        words, mood = f"{middle:.2f}x: no clear change", "even"
    elif middle < 1:
        words, mood = f"{1 / middle:.2f}x slower", "bad"
    times = " → ".join(milliseconds(latency[key]["median"]) for key in ("before_ms", "after_ms"))
    return "Speed", words, f"{times}; 95 % between {low:.2f}x and {high:.2f}x", mood


def _accuracy(metric: dict[str, Any]) -> tuple[str, str, str, str]:
    """A share of right answers comes with its sampling error: 1.96 √(p (1 - p) / n)."""
    name, samples = metric["name"], metric.get("samples")
    details = f"{score(name, metric['before'])} before, {drop(metric)}"
    mood = "good" if metric["drop"] <= 0 else "even"
    if name in {"top1", "top5"} and samples:
        spread = 100 * 1.96 * math.sqrt(max(metric["after"] * (1 - metric["after"]), 0) / samples)
        details += f"; each ±{spread:.1f} points"
        mood = "bad" if 100 * metric["drop"] > spread else mood
    return plain(name), score(name, metric["after"]), details, mood


def _closeness(report: dict[str, Any]) -> tuple[str, str, str, str]:
    worst = min(report["agreement"], key=lambda row: math.inf if row["sqnr_db"] is None else row["sqnr_db"])
    details = f"output {plain(worst['output'])}, {worst['samples']} samples"
    if (report.get("data") or {}).get("random"):
        details += " of RANDOM input"
    if worst["argmax"] is not None:
        details += f"; same answer on {100 * worst['argmax']:.2f} %"
    decibels = worst["sqnr_db"]
    if decibels is None:
        return "Agreement", "no float output", details, "even"
    return "Agreement", f"{decibels:.1f} dB SQNR", details, "bad" if decibels < POOR else "even"


def _pass(step: dict[str, Any]) -> dict[str, Any]:
    before, after = step["before"], step["after"]
    return {
        "name": step["name"],
        "options": options_text(step),
        "seconds": f"{step['seconds']:.1f}",
        "costs": [
            (form(before[key]), form(after[key]), ratio(before[key], after[key]))
            for key, form in (("bytes", size), ("params", amount), ("macs", amount))
        ],
        "counts": (len(step["changes"]), len(step["skips"])),
    }


def _layers(report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(title, note, drawing) of what layers cost, for each cost that was found."""
    from onnx_compress.report.charts import bars, costly

    kernels = report["layers"].get("kernels")
    sums = (
        ""
        if kernels is None
        else " → ".join(
            milliseconds(sum(kernel["ms"] for kernel in kernels[side])) for side in ("before", "after")
        )
    )
    drawn: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
        ("ms", "Time", f"all kernels, profiled: {sums}", _time),
        ("bytes", "Bytes of weights", "", size),
        ("macs", "Multiply-adds", "of one sample", amount),
    )
    for key, title, note, write in drawn:
        layers = costly(report, key)
        if layers:
            yield title, note, bars(layers, write, key)


def _time(value: float) -> str:
    """A layer's time; unknown where no kernel bears its name."""
    return milliseconds(value or None)


def _weights(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(layer, note, drawing) of the weights that changed most."""
    from onnx_compress.report.charts import histogram

    found = []
    for place, item in enumerate(report["layers"].get("weights") or []):
        sides = [item[side]["counts"] for side in ("before", "after")]
        shapes = ["×".join(map(str, item[side]["shape"])) for side in ("before", "after")]
        note = shapes[0] if shapes[0] == shapes[1] else " → ".join(shapes)
        found.append(
            (plain(item["name"]), note, histogram(item["low"], item["high"], sides, f"weights{place}"))
        )
    return found


def _curves(report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(place, note, drawing) of the places whose curves rise highest, for each pass that measured some."""
    from onnx_compress.report.charts import curve

    for step in report.get("passes") or []:
        ranked = sorted(step.get("curves") or [], key=lambda item: -max(item["errors"], default=0))
        for place, item in enumerate(ranked[:CURVES]):
            note = f"{step['name']}: {100 * item['kept']:.0f} % stays"
            salt = f"{step['name']}{place}"
            yield plain(item["where"]), note, curve(item["shares"], item["errors"], 1 - item["kept"], salt)


def _channels(report: dict[str, Any]) -> dict[str, list[tuple[str, ...]]]:
    """Rows of the kinds of units, largest first, and of what is pinned, by its reason."""
    found = report["layers"].get("channels") or {"kinds": [], "pinned": []}
    kinds = sorted(found["kinds"], key=lambda kind: -kind["units"] * kind["params"])
    rows: list[tuple[str, ...]] = [
        (
            *(amount(kind[key]) for key in ("units", "width", "params")),
            some(kind["makes"]),
            some(kind["reads"]),
        )
        for kind in kinds
    ]
    axes: dict[str, list[str]] = {}
    for item in found["pinned"]:
        place = place_words(item["axis"], item["node"], item["side"])
        axes.setdefault(plain(item["why"]), []).append(plain(place))
    pinned: list[tuple[str, ...]] = [
        (why, str(len(set(names))), ", ".join(list(dict.fromkeys(names))[:NAMED]))
        for why, names in axes.items()
    ]
    return {"kinds": rows[:KINDS], "pinned": pinned}


def _agreement(report: dict[str, Any]) -> list[dict[str, Any]]:
    from onnx_compress.report.charts import histogram

    spreads = {item["output"]: item for item in report["layers"].get("errors") or []}
    found = []
    for place, row in enumerate(report.get("agreement") or []):
        item = spreads.get(row["output"])
        svg = "" if item is None else histogram(item["low"], item["high"], [item["counts"]], f"errors{place}")
        share = "" if row["argmax"] is None else f"{100 * row['argmax']:.2f} %"
        numbers = [number(row["sqnr_db"]), number(row["max_abs"]), number(row["cosine"], 6), share]
        found.append({"output": row["output"], "numbers": [*numbers, row["samples"]], "svg": svg})
    return found


def _rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """(pass, kind, node, what, before, after, error) of everything that was done, left alone or decided."""
    for step in report.get("passes") or []:
        name = step["name"]
        for change in step["changes"]:
            error = "" if change["error"] is None else number(change["error"], 3)
            texts = [plain(change[key]) for key in ("node", "what", "before", "after")]
            yield name, "change", *texts, error
        for skip in step["skips"]:
            yield name, "left alone", plain(skip["node"]), plain(skip["why"]), "", "", ""
        for item in step["decisions"]:
            kept = "kept" if item["kept"] else "dropped"
            clocked = item["ratio"] is not None
            times = f"{item['ratio']:.2f}x ({item['low']:.2f}..{item['high']:.2f})" if clocked else ""
            yield (
                name,
                "decision",
                plain(item["node"]),
                plain(item["what"]),
                number(item["value"]),
                kept,
                times,
            )


def _command(report: dict[str, Any]) -> str:
    """What the user types to have this run again."""
    source, target = (
        str(report.get(key) or word) for key, word in (("input", "IN.onnx"), ("output", "OUT.onnx"))
    )
    given = dict(report.get("arguments") or {})
    if report.get("recipe") is None:
        words = ["onnx-compress", "verify", source, target]
    else:
        words = ["onnx-compress", source, target, "--passes", report["recipe"]]
    for name, shape in (given.pop("input_shapes", None) or {}).items():
        words += ["--input-shapes", f"{name}:{','.join(map(str, shape))}"]
    words += ["--no-verify"] if given.pop("verify", True) is False else []
    for name, value in given.items():
        option = "--" + name.replace("_", "-")
        words += [option] if value is True else [option, str(value)]
    return plain(shlex.join(words))
