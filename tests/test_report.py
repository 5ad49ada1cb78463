"""The report's forms: what they show, and that nothing in a model's names can break them."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from onnx_compress.report import words
from onnx_compress.report.layers import to_text as layers_text
from onnx_compress.report.markdown import to_markdown
from onnx_compress.report.plain import to_json
from onnx_compress.report.text import to_text


def costs(factor: float) -> dict[str, Any]:
    return {
        "bytes": int(1_080_000 * factor),
        "params": int(272_474 * factor),
        "macs": 40_813_184,
        "nodes": 71,
    }


def agreed(
    output: str, sqnr_db: float, max_abs: float, cosine: float, argmax: float | None
) -> dict[str, Any]:
    return {
        "output": output,
        "sqnr_db": sqnr_db,
        "max_abs": max_abs,
        "cosine": cosine,
        "argmax": argmax,
        "samples": 512,
    }


LATENCY = {
    "threads": 2,
    "batch": 1,
    "runs": 20,
    "before_ms": {"median": 0.8, "p95": 0.9},
    "after_ms": {"median": 0.4, "p95": 0.5},
    "speedup": {"median": 2.0, "low": 1.9, "high": 2.1},
}


def pruned(node: str) -> dict[str, Any]:
    """What the pass said that halved the model."""
    return {
        "name": "prune",
        "options": {"macs": 0.5},
        "seconds": 3.2,
        "before": costs(1),
        "after": costs(0.5),
        "changes": [
            {"node": node, "what": "channels", "before": "64", "after": "32", "error": 0.00123},
            {"node": "gemm", "what": "inputs", "before": "64", "after": "32", "error": None},
        ],
        "skips": [
            {"node": "a", "why": "feeds an output"},
            {"node": "b", "why": "a custom op"},
            {"node": node, "why": "feeds an output"},
        ],
        "decisions": [],
    }


def sample(node: str = "conv1") -> dict[str, Any]:
    """A report of schema 1 whose nodes go by the name `node`."""
    layers = [
        {"name": f"{node}_{n}", "op": "Conv", "macs": n * 1000, "params": n, "bytes": 4 * n} for n in range(7)
    ]
    return {
        "schema": 1,
        "input": "in.onnx",
        "output": "out.onnx",
        "recipe": "prune,int8",
        "seed": 0,
        "seconds": 12.34,
        "peak_rss_bytes": 312_000_000,
        "before": costs(1),
        "after": costs(0.25),
        "stages": {"prepare": 0.1},
        "passes": [pruned(node)],
        "agreement": [
            agreed("logits", 35.21, 0.1, 0.99987, 0.991),
            agreed("ids", math.inf, 0.0, 1.0, None),
        ],
        "metric": {"name": "top1", "before": 0.912, "after": 0.9095, "drop": 0.0025, "samples": 2000},
        "latency": LATENCY,
        "data": {"source": "calib.npz", "samples": 512, "random": False},
        "thresholds": [],
        "environment": {},
        "warnings": ["timings hold for this processor only"],
        "layers": {"before": layers, "after": layers[:3]},
    }


def lines_of(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_text_shows_before_and_after_side_by_side() -> None:
    lines = lines_of(to_text(sample(), width=120))
    assert lines[0] == "in.onnx -> out.onnx prune,int8 12.3 s, 312 MB at most"
    for line in (
        "size 1.08 MB 270 kB 4.00x less",
        "parameters 272 k 68.1 k 4.00x less",
        "MACs 40.8 M 40.8 M same",
        "nodes 71 71 same",
        "top1 91.20 % 90.95 % -0.25 points (2,000 samples)",
        "latency 0.8 ms 0.4 ms 2.00x faster (1.90..2.10)",
        "latency: batch 1, 2 threads, 20 runs",
        "output logits: 35.21 dB SQNR, largest difference 0.1, cosine 0.99987, argmax agrees on 99.10 % (512 samples)",
        "output ids: inf dB SQNR, largest difference 0, cosine 1 (512 samples)",
        "prune 3.2 540 kB 40.8 M 2 3",
        "warning: timings hold for this processor only",
    ):
        assert line in lines


def test_text_shows_the_five_costliest_layers_before_and_after() -> None:
    lines = lines_of(to_text(sample(), width=120))
    start = lines.index("costliest before op MACs size costliest after op MACs size")
    assert lines[start + 1] == "conv1_6 Conv 6.00 k 24 B conv1_2 Conv 2.00 k 8 B"
    assert lines[start + 5] == "conv1_2 Conv 2.00 k 8 B"
    assert lines[start + 6] == ""


def test_text_groups_skips_by_reason_most_nodes_first() -> None:
    lines = lines_of(to_text(sample(), width=120))
    start = lines.index("left alone")
    assert lines[start + 2 : start + 4] == ["prune 2 feeds an output a, conv1", "prune 1 a custom op b"]


def test_text_without_anything_measured() -> None:
    """`--passes none` measures nothing: what is absent is not shown."""
    bare: dict[str, Any] = {
        "input": "a",
        "output": None,
        "recipe": "none",
        "before": costs(1),
        "after": costs(1),
        "passes": [],
    }
    assert lines_of(to_text(bare))[0] == "a (nothing written) none"
    assert "## " not in to_markdown(bare)


def test_comparison_of_two_models_has_no_recipe() -> None:
    both = {**sample(), "output": "b.onnx", "recipe": None, "passes": []}
    assert lines_of(to_text(both))[0] == "in.onnx compared with b.onnx 12.3 s, 312 MB at most"
    assert to_markdown(both).startswith("# onnx-compress: `in.onnx` compared with `b.onnx`\n\n12.3 s.")


def test_colour_only_when_asked() -> None:
    assert "\x1b[" not in to_text(sample())
    assert "\x1b[" in to_text(sample(), color=True)


@given(st.text(max_size=30))
def test_no_name_breaks_a_report(node: str) -> None:
    """Markup, escape codes, pipes and newlines in a node's name come out as text, on one line."""
    report = sample(node)
    text, markdown = to_text(report), to_markdown(report)
    assert "\x1b" not in text
    assert markdown.count("\n") == to_markdown(sample()).count("\n")
    assert json.loads(to_json(report))["passes"][0]["skips"][2]["node"] == node


def test_markup_in_a_name_is_shown_as_it_is() -> None:
    report = sample("[red]x[/red]")
    assert "[red]x[/red]" in to_text(report)
    assert r"\[red\]x\[/red\]" in to_markdown(report)


def test_markdown_holds_every_change_and_skip() -> None:
    markdown = to_markdown(sample())
    assert markdown.startswith("# onnx-compress: `in.onnx` to `out.onnx`\n")
    assert "| conv1 | channels | 64 | 32 | 0.00123 |" in markdown
    assert "| gemm | inputs | 64 | 32 |  |" in markdown
    assert "| prune | 2 | feeds an output | a, conv1 |" in markdown
    assert "- **warning:** timings hold for this processor only" in markdown


def test_json_is_json_for_every_reader() -> None:
    """NaN and Infinity are no JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    found = json.loads(to_json(sample()), parse_constant=refuse)
    assert found["agreement"][1]["sqnr_db"] is None
    assert found["agreement"][0]["sqnr_db"] == 35.21


def test_three_digits_and_a_unit() -> None:
    assert [words.size(n) for n in (0, 999, 1000, 9994, 9996, 99960, 999_500, 2.5e9)] == [
        "0 B",
        "999 B",
        "1.00 kB",
        "9.99 kB",
        "10.0 kB",
        "100 kB",
        "1.00 MB",
        "2.50 GB",
    ]


def test_mse_is_shown_as_a_number() -> None:
    metric: dict[str, Any] = {
        "name": "mse",
        "before": -0.01,
        "after": -0.0125,
        "drop": 0.0025,
        "samples": 100,
    }
    assert words.score("mse", metric["before"]) == "-0.01"
    assert words.drop(metric) == "-0.0025 (100 samples)"


def test_layers_text_shows_units_and_every_reason() -> None:
    layer = {"name": "c", "op": "Conv", "input": [1, 3, 8, 8], "weight": [4, 3, 3, 3], "output": ["N", None]}
    found = {
        "model": "m.onnx",
        **costs(1),
        "opsets": {"ai.onnx": 17},
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 3, 8, 8]}],
        "outputs": [{"name": "y", "shape": []}],
        "layers": [{**layer, "params": 108, "macs": 6912, "bytes": 432}],
        "units": {
            "kinds": [
                {
                    "units": 4,
                    "width": 9,
                    "params": 63,
                    "makes": ["c"],
                    "reads": ["d", "e", "f"],
                    "carries": [],
                }
            ],
            "pinned": [
                {"axis": "w[2]", "why": "part of a kernel", "node": "c", "side": None},
                {"axis": "v[0]", "why": "a graph output", "node": "l", "side": "outputs"},
            ],
        },
        "barriers": [{"node": "n", "why": "a custom op"}],
        "passes": [
            {"name": "prune", "could": None, "skips": []},
            {
                "name": "int8",
                "could": [{"node": "c", "what": "quantize"}],
                "skips": [{"node": "l", "why": "recurrent"}],
            },
            {"name": "svd", "could": [], "skips": []},
        ],
        "warnings": ["odd"],
    }
    lines = lines_of(layers_text(found))
    for line in (
        "1.08 MB, 272 k parameters, 40.8 M MACs, 71 nodes, opset 17",
        "input x: float32 Nx3x8x8",
        "output y: -",
        "c Conv 1x3x8x8 4x3x3x3 Nx? 108 6.91 k 432 B",
        "4 9 63 c d, e and 1 more",
        "1 a graph output l (outputs)",
        "1 a custom op n",
        "does not say beforehand",
        "quantize 1 c",
        "1 recurrent l",
        "could do nothing",
        "warning: odd",
    ):
        assert line in lines
    assert "part of a kernel" not in " ".join(lines)
