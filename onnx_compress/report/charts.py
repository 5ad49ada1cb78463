"""The drawings of the HTML report: matplotlib's SVG, whose colours the page sets and whose words are text."""

from __future__ import annotations

import contextlib
import io
import math
import re
import warnings
from typing import TYPE_CHECKING, Any

from onnx_compress.report.words import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib's colours, and the page's variables that take their places: one drawing for light and dark
_INK, _GRID, _BEFORE, _AFTER = "#010203", "#040506", "#070809", "#0a0b0c"
_VARIABLES = {_INK: "--muted", _GRID: "--line", _BEFORE: "--before", _AFTER: "--after"}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 8.5,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "figure.frameon": False,
    "axes.facecolor": "none",
}
ROWS = 24  # layers in a chart
SMALLEST = 0.002  # of the largest layer: less is not drawn


def bars(layers: Sequence[tuple[str, float, float]], write: Callable[[float], str], salt: str) -> str:
    """Two bars a layer, (name, before, after), each with what `write` makes of its number."""
    with _drawing(salt) as figure_of:
        figure, axes = figure_of(3.8, 0.35 + 0.34 * len(layers))
        places = range(len(layers))
        for shift, side, color in ((-0.2, 1, _BEFORE), (0.2, 2, _AFTER)):
            values = [float(layer[side]) for layer in layers]
            drawn = axes.barh([place + shift for place in places], values, 0.36, color=color)
            axes.bar_label(drawn, [write(value) for value in values], padding=2, fontsize=7)
        axes.set_yticks(list(places), [_label(name) for name, _, _ in layers])
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.margins(x=0.22, y=0.01)
        return _svg(figure)


def histogram(low: float, high: float, sides: Sequence[Sequence[int]], salt: str) -> str:
    """One or two histograms of the same bins, each as shares; the last is in the colour of after."""
    with _drawing(salt) as figure_of:
        figure, axes = figure_of(2.5, 1.15)
        bins = len(sides[0])
        edges = [low + (high - low) * place / bins for place in range(bins + 1)]
        for counts, color in zip(sides, (_BEFORE, _AFTER)[-len(sides) :], strict=True):
            total = sum(counts) or 1
            shares = [count / total for count in counts]
            axes.stairs(shares, edges, fill=True, color=color, alpha=0.35)
            axes.stairs(shares, edges, color=color, linewidth=1)
        axes.set_yticks([])
        axes.set_xticks([low, (low + high) / 2, high], [_tick(low), _tick((low + high) / 2), _tick(high)])
        axes.tick_params(length=2, labelsize=7)
        axes.margins(x=0.02)
        return _svg(figure)


def curve(shares: Sequence[float], errors: Sequence[float], gone: float, salt: str) -> str:
    """Error against the share that is gone, in percent, and a mark at what went; errors are drawn by their square root."""
    with _drawing(salt) as figure_of:
        figure, axes = figure_of(2.5, 1.25)
        axes.plot([100 * share for share in shares], list(errors), color=_BEFORE, linewidth=1.4)
        nearest = min(range(len(shares)), key=lambda place: abs(shares[place] - gone))
        axes.plot([100 * shares[nearest]], [errors[nearest]], "o", color=_AFTER, markersize=4)
        axes.set_xticks([0, 50, 100], ["0", "50", "100 %"])
        axes.set_yticks([0, max(errors)], ["0", _tick(max(errors))])
        axes.set_ylim(0, 1.08 * max(errors) or 1)
        axes.tick_params(length=2, labelsize=7)
        return _svg(figure)


def costly(report: dict[str, Any], key: str) -> list[tuple[str, float, float]]:
    """(layer, before, after) of the layers with most of `key` on either side, in graph order.

    The parts a layer was split into (`conv` into `conv_a`, `conv_b`) count as that layer, where it is gone itself.
    """
    sides = report["layers"]["before"], report["layers"]["after"]
    names = {layer["name"] for layer in sides[0]}
    gone = names - {layer["name"] for layer in sides[1]}
    found: dict[str, list[float]] = {}
    for place, layers in enumerate(sides):
        for layer in layers:
            name = layer["name"] if layer["name"] in names else _whole(layer["name"], gone)
            found.setdefault(name, [0.0, 0.0])[place] += layer.get(key) or 0
    ranked = sorted(found.items(), key=lambda item: -max(item[1]))[:ROWS]
    largest = max(ranked[0][1]) if ranked else 0.0
    kept = {name for name, values in ranked if max(values) > SMALLEST * largest}
    return [(name, *values) for name, values in found.items() if name in kept]  # type: ignore[misc]


def _whole(part: str, gone: set[str]) -> str:
    parents = [name for name in gone if name and re.match(re.escape(name) + r"[_/.:\W]", part)]
    return max(parents, key=len, default=part)


def _label(name: str, head: int = 8, tail: int = 15) -> str:
    """Both ends of a long name: layers of one block differ in the one, blocks in the other.

    >>> _label("/2/body/body.0/body.0.0/Conv")
    '/2/body/…0/body.0.0/Conv'
    """
    name = plain(name)
    return name if len(name) <= head + 1 + tail else f"{name[:head]}…{name[-tail:]}"


def _tick(value: float) -> str:
    return "0" if math.isclose(value, 0, abs_tol=1e-12) else f"{value:.2g}"


@contextlib.contextmanager
def _drawing(salt: str) -> Iterator[Callable[[float, float], tuple[Figure, Axes]]]:
    """Inside the block, a function (width, height in inches) that makes a figure with one pair of axes."""
    import matplotlib as mpl

    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": salt}):
        yield _figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _svg(figure: Figure) -> str:
    """The drawing without what only a file of its own needs."""
    file = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # > a name's letters that matplotlib's font lacks: the page's font has them
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(<g) id="[^"]*"', r"\1", text)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    text = re.sub(r"(font: )([0-9.]+px) [^;\"]*", r"\1\2 system-ui, sans-serif", text)
    for color, name in _VARIABLES.items():
        text = text.replace(color, f"var({name})")
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())
