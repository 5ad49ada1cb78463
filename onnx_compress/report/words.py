"""Numbers and names of a report as people read them."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any


def size(count: float | None) -> str:
    """Bytes with three digits and a decimal unit.

    >>> size(1_234_567), size(999), size(None)
    ('1.23 MB', '999 B', '?')
    """
    return "?" if count is None else _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def amount(count: float | None) -> str:
    """A count with three digits: `272 k`, `40.8 M`.

    >>> amount(40_813_184), amount(71)
    ('40.8 M', '71')
    """
    return "?" if count is None else _scaled(count, ("", "k", "M", "G", "T")).rstrip()


def _scaled(count: float, units: tuple[str, ...]) -> str:
    step = 0
    while abs(count) >= 999.5 and step < len(units) - 1:
        count, step = count / 1000, step + 1
    digits = 0 if step == 0 or abs(count) >= 99.95 else 1 if abs(count) >= 9.995 else 2
    return f"{count:.{digits}f} {units[step]}"


def ratio(before: float | None, after: float | None) -> str:
    """What became of a cost: `3.72x less`, `1.10x more`, `same`."""
    if not before or not after:
        return ""
    if before == after:
        return "same"
    return f"{before / after:.2f}x less" if before > after else f"{after / before:.2f}x more"


def number(value: Any, digits: int = 4) -> str:
    """A measured number, `?` where there is none."""
    if value is None:
        return "?"
    if isinstance(value, str):
        return value
    return "inf" if math.isinf(value) else f"{value:.{digits}g}"


def milliseconds(value: float | None) -> str:
    """A latency.

    >>> milliseconds(0.12345)
    '0.123 ms'
    """
    return "?" if value is None else f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"


def score(name: str, value: float | None) -> str:
    """A metric's value: shares of right answers in per cent."""
    if value is None:
        return "?"
    return f"{100 * value:.2f} %" if name in {"top1", "top5"} else f"{value:.6g}"


def drop(metric: dict[str, Any]) -> str:
    """How far the metric fell: in points where it is a share."""
    fell, samples = metric.get("drop"), metric.get("samples")
    if fell is None:
        return ""
    change = f"{-100 * fell:+.2f} points" if metric["name"] in {"top1", "top5"} else f"{-fell:+.4g}"
    return f"{change} ({samples:,} samples)" if samples else change


def plain(text: Any) -> str:
    """`text` on one line, with nothing in it that a terminal would obey."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in str(text))


def skips_by_reason(report: dict[str, Any]) -> list[tuple[str, str, list[str]]]:
    """(pass, reason, nodes) of everything left alone, most nodes first."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for step in report.get("passes", []):
        for skip in step.get("skips", []):
            groups[step["name"], skip["why"]].append(skip["node"])
    return sorted(
        ((name, why, nodes) for (name, why), nodes in groups.items()), key=lambda group: -len(group[2])
    )


def costliest(report: dict[str, Any], side: str, count: int = 5) -> list[dict[str, Any]]:
    """The layers with the most MACs `before` or `after`; where none has any, those with the most bytes."""
    layers = (report.get("layers") or {}).get(side, [])
    return sorted(layers, key=lambda layer: (-(layer.get("macs") or 0), -(layer.get("bytes") or 0)))[:count]


def hurting(report: dict[str, Any], count: int = 10) -> list[tuple[str, str, str, str, str]]:
    """Rows of (node, op, tensor's error, what it added, SQNR) of the tensors that added most error, worst first."""
    tensors = (report.get("layers") or {}).get("tensors") or []
    ranked = sorted(tensors, key=lambda item: -item["added"])[:count]
    return [
        (
            plain(item["node"] or item["tensor"]),
            plain(item["op"]),
            number(item["error"], 3),
            number(item["added"], 3),
            number(item["sqnr_db"]),
        )
        for item in ranked
        if item["added"] > 0
    ]


def comparison(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows of (what, before, after, change) for everything that was measured on both models."""
    before, after = report.get("before") or {}, report.get("after") or {}
    rows = [
        (label, form(before.get(key)), form(after.get(key)), ratio(before.get(key), after.get(key)))
        for label, key, form in (
            ("size", "bytes", size),
            ("parameters", "params", amount),
            ("MACs", "macs", amount),
            ("nodes", "nodes", amount),
        )
    ]
    if (after.get("memory") or 0) > (
        after.get("bytes") or 0
    ):  # > the file is small, what it unfolds to is not
        was, now = before.get("memory"), after.get("memory")
        rows.insert(1, ("weights in memory", size(was), size(now), ratio(was, now)))
    metric = report.get("metric")
    if metric:
        name = metric["name"]
        values = (score(name, metric.get("before")), score(name, metric.get("after")))
        rows.append((plain(name), *values, drop(metric)))
    latency = report.get("latency")
    if latency:
        rows.append(_latency_row(latency))
    return rows


def _latency_row(latency: dict[str, Any]) -> tuple[str, str, str, str]:
    speedup = latency.get("speedup") or {}
    change = ""
    if speedup.get("median") is not None:
        change = f"{speedup['median']:.2f}x faster"
        if speedup.get("low") is not None:
            change += f" ({speedup['low']:.2f}..{speedup['high']:.2f})"
    before, after = latency.get("before_ms") or {}, latency.get("after_ms") or {}
    return "latency", milliseconds(before.get("median")), milliseconds(after.get("median")), change


def conditions(report: dict[str, Any]) -> list[str]:
    """What the measurements were made on, a line each."""
    lines = []
    latency, data = report.get("latency"), report.get("data") or {}
    if latency:
        lines.append(
            f"latency: batch {latency.get('batch')}, {latency.get('threads')} threads, {latency.get('runs')} runs"
        )
    kind = " RANDOM" if data.get("random") else ""
    lines += [
        f"output {plain(item['output'])}: {number(item.get('sqnr_db'))} dB SQNR, "
        f"largest difference {number(item.get('max_abs'))}, cosine {number(item.get('cosine'), 6)}"
        + (f", argmax agrees on {100 * item['argmax']:.2f} %" if item.get("argmax") is not None else "")
        + f" ({item.get('samples')}{kind} samples)"
        for item in report.get("agreement") or []
    ]
    return lines


def options_text(step: dict[str, Any]) -> str:
    """The options of one pass in a report, as they would be typed; those that are not set are left out.

    >>> options_text({"options": {"tolerance": 0.01, "macs": None, "data_aware": True}})
    'tolerance=0.01:data_aware=true'
    """
    given = step.get("options") or {}
    if isinstance(given, str):
        return plain(given)
    typed = (
        f"{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in given.items()
        if value is not None
    )
    return plain(":".join(typed))
