"""The zoo and, where they are, the shared assets through some recipes: `python -m tests.bench zoo [--only NAME] [RECIPE ...]`.

Every figure is measured by the command itself, each model in a process of its own, original and result in turns. Writes
`tests/bench/results.md`, `results.json`, and of the zoo through all three passes the picture `zoo.svg`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench._picture import draw

HERE = Path(__file__).parent
MODELS = HERE.parents[1] / "models"
ASSETS = HERE.parents[2] / "shared" / "assets"
RECIPES = ("prune,svd,int8", "int8", "prune", "svd", "cluster")


@dataclass(frozen=True)
class Subject:
    """A model with its calibration and evaluation data."""

    model: Path
    calib: Path
    evaluation: Path
    preprocess: str = ""


def subjects() -> list[Subject]:
    """The zoo, then the assets that are there."""
    data = MODELS / "fashion_calib.npz", MODELS / "fashion_eval.npz"
    found = [Subject(path, *data) for path in sorted(MODELS.glob("fashion_*.onnx"))]
    for name in ("resnet20", "resnet44"):
        folder = ASSETS / "cifar10"
        found.append(Subject(folder / f"{name}.onnx", folder / "calib.npz", folder / "eval.npz"))
    folder = ASSETS / "imagenet"
    how = "size=256:crop=224:mean=127:std=128"
    found.append(Subject(folder / "efficientnet_lite0.onnx", folder / "calib", folder / "eval", how))
    return [subject for subject in found if subject.model.exists()]


def measure(subject: Subject, recipe: str, extra: tuple[str, ...] = ()) -> dict[str, Any]:
    """The report of one run; extra: more words of the command."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [
            sys.executable,
            "-m",
            "onnx_compress",
            str(subject.model),
            f"{folder}/out.onnx",
            "--passes",
            recipe,
        ]
        argv += ["--data", str(subject.calib), "--eval", str(subject.evaluation), "--json"]
        argv += ["--preprocess", subject.preprocess] if subject.preprocess else []
        argv += extra
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip()}
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def row(name: str, recipe: str, report: dict[str, Any]) -> str:
    """One line of the table."""
    if "error" in report:
        return f"| {name} | `{recipe}` | {report['error']} | | | | | |"
    metric, speed = report["metric"], report["latency"]["speedup"]
    sqnr = min(entry["sqnr_db"] for entry in report["agreement"])
    smaller = report["before"]["bytes"] / report["after"]["bytes"]
    work = report["before"]["macs"] / max(report["after"]["macs"], 1)
    top1 = f"{100 * metric['before']:.2f} → {100 * metric['after']:.2f}"
    faster = f"{speed['median']:.2f} ({speed['low']:.2f}..{speed['high']:.2f})"
    seconds = f"{report['seconds']:.0f}"
    return f"| {name} | `{recipe}` | {top1} | {sqnr:.1f} | {smaller:.2f}× | {work:.2f}× | {faster}× | {seconds} |"


def main(argv: list[str] | None = None) -> None:
    """Runs everything and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--only", help="models whose name contains this")
    words = parser.parse_args(argv)
    head = "| model | passes | top-1 % | SQNR dB | smaller | fewer MACs | faster, batch 1 (95 %) | s |"
    lines = [head, "|" + "---|" * 8]
    reports = {}
    for subject in subjects():
        name = subject.model.stem
        if words.only and words.only not in name:
            continue
        for recipe in words.recipes:
            report = measure(subject, recipe)
            reports[f"{name} {recipe}"] = report
            lines.append(row(name, recipe, report))
            print(lines[-1], flush=True)
    drawn = {
        name.removesuffix(f" {RECIPES[0]}"): report
        for name, report in reports.items()
        if name.startswith("fashion_") and name.endswith(f" {RECIPES[0]}") and "error" not in report
    }
    if drawn:
        draw(drawn, HERE / "zoo.svg")
    (HERE / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (HERE / "results.json").write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
