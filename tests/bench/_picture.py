"""The README's picture: size and latency of each model before and after, as the reports of one run have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BEFORE, AFTER, INK = "#9aa6b4", "#1f6feb", "#57606a"  # read on white and on black


def draw(reports: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Writes `path` (SVG): a row a model, {name: report}; its bars are shares of the original, its words the measured values."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "zoo",
        **dict.fromkeys(("text.color", "xtick.color", "ytick.color", "axes.labelcolor"), INK),
        **{f"axes.spines.{side}": False for side in ("top", "right", "left", "bottom")},
        "axes.facecolor": "none",
        "font.size": 9,
        "text.parse_math": False,
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(9, 0.6 + 0.46 * len(reports)), layout="constrained")
        figure.patch.set_alpha(0)
        left, right = figure.subplots(1, 2, sharey=True)
        rows = list(reports.items())
        _panel(left, "size", [_size(report) for _, report in rows])
        _panel(right, "latency, batch 1", [_latency(report) for _, report in rows])
        left.set_yticks(range(len(rows)), [f"{name}\n{_score(report)}" for name, report in rows])
        for axes in (left, right):
            axes.tick_params(length=0)
        left.invert_yaxis()
        figure.savefig(path, metadata={"Date": None})


def _panel(axes: Any, title: str, rows: list[tuple[float, str, str]]) -> None:
    """rows: (share left, words for before, words for after)."""
    for place, (share, before, after) in enumerate(rows):
        axes.barh(place - 0.2, 1, 0.34, color=BEFORE)
        axes.barh(place + 0.2, share, 0.34, color=AFTER)
        axes.text(1.02, place - 0.2, before, va="center", fontsize=8)
        axes.text(share + 0.02, place + 0.2, after, va="center", fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.set_xlim(0, 1.25)
    axes.set_xticks([])


def _size(report: Mapping[str, Any]) -> tuple[float, str, str]:
    before, after = report["before"]["bytes"], report["after"]["bytes"]
    return after / before, f"{before / 1e3:,.0f} kB", f"{after / 1e3:,.0f} kB, {before / after:.1f}× smaller"


def _latency(report: Mapping[str, Any]) -> tuple[float, str, str]:
    latency = report["latency"]
    before, after = latency["before_ms"]["median"], latency["after_ms"]["median"]
    faster = latency["speedup"]["median"]
    return 1 / faster, f"{before:.2f} ms", f"{after:.2f} ms, {faster:.1f}× faster"


def _score(report: Mapping[str, Any]) -> str:
    metric = report["metric"]
    return f"{100 * metric['before']:.2f} → {100 * metric['after']:.2f} %"
