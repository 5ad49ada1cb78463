"""Sections of `lowrank` that run the command: budgets, prune and svd together, a language model, speed, a large model."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress import compress
from onnx_compress.model.document import Model
from onnx_compress.runtime.session import Session
from tests.bench._lowrank_outputs import ALWAYS, CIFAR, batches
from tests.bench.networks import resnet
from tests.bench.zoo import ASSETS, MODELS, Subject, measure, subjects

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    Rows = Iterator[dict[str, Any]]

TOKENS = ASSETS / "stsb"


def report_row(name: str, subject: Subject, spec: str, extra: tuple[str, ...] = ()) -> dict[str, Any]:
    """One run of the command."""
    report = measure(subject, spec, extra)
    if "error" in report:
        return {"net": name, "recipe": spec, "error": report["error"]}
    speed = report["latency"]["speedup"]
    return {
        "net": name,
        "recipe": spec,
        "top-1 before": round(100 * report["metric"]["before"], 2),
        "top-1 after": round(100 * report["metric"]["after"], 2),
        "macs": round(report["after"]["macs"] / report["before"]["macs"], 3),
        "params": round(report["after"]["params"] / report["before"]["params"], 3),
        "dB": round(min(entry["sqnr_db"] for entry in report["agreement"]), 1),
        "faster": f"{speed['median']:.2f} ({speed['low']:.2f}..{speed['high']:.2f})",
        "s": round(report["stages"].get("svd", report["seconds"]), 1),
    }


def _cifar(name: str) -> Subject:
    return Subject(CIFAR / f"{name}.onnx", CIFAR / "calib.npz", CIFAR / "eval.npz")


def _wanted(name: str, words: argparse.Namespace) -> bool:
    return words.only in name and (CIFAR / f"{name}.onnx").exists()


def budgets(words: argparse.Namespace) -> Rows:
    """Accuracy at budgets of multiply-adds, `--samples 1024`."""
    for name, shares in (("resnet20", (0.75, 0.5, 0.35)), ("resnet44", (0.5, 0.35))):
        for share in shares if _wanted(name, words) else ():
            if words.share not in (None, share):
                continue
            yield report_row(name, _cifar(name), f"svd:macs={share}:{ALWAYS}", ("--samples", "1024"))


def interplay(words: argparse.Namespace) -> Rows:
    """prune and svd together against either alone, at 0.49 of the multiply-adds."""
    recipes = (
        f"prune:macs=0.7:round_to=1,svd:macs=0.7:{ALWAYS}",
        "prune:macs=0.49:round_to=1",
        f"svd:macs=0.49:{ALWAYS}",
    )
    for name in ("resnet20", "resnet44"):
        for recipe in recipes if _wanted(name, words) else ():
            yield report_row(name, _cifar(name), recipe, ("--samples", "1024"))


def minilm(words: argparse.Namespace) -> Rows:
    """Spearman of sentence similarity before and after, at 0.7 of the weights."""
    if words.minilm is None or not TOKENS.exists():
        return
    before = similarity(words.minilm)
    start = time.perf_counter()
    spec = "svd:params=0.7:keep_if=always"
    made = compress(words.minilm, spec, data=TOKENS / "calib.npz", verify=False)
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        made.save(f"{folder}/out.onnx")
        after = similarity(f"{folder}/out.onnx")
    report = made.report
    share = report["after"]["params"] / report["before"]["params"]
    row = {"net": "MiniLM-L3", "recipe": spec, "params": round(share, 3), "s": round(seconds, 1)}
    row |= {"Spearman before": round(before, 4), "Spearman after": round(after, 4)}
    yield row


def similarity(path: str) -> float:
    """Spearman's correlation of cosine similarity, mean pooling, with the scores of stsb's pairs."""
    from scipy.stats import spearmanr

    held = np.load(TOKENS / "eval.npz")
    session = Session(Model.load(path), threads=1)
    pooled = []
    rows = len(held["input_ids"])
    for at in range(0, rows, 64):
        feed = {name: held[name][at : at + 64].astype(np.int64) for name in session.inputs}
        states = next(value for value in session.run(feed).values() if value.ndim == 3)
        mask = held["attention_mask"][at : at + 64].astype(np.float32)[..., None]
        pooled.append((states * mask).sum(1) / mask.sum(1))
    x = np.concatenate(pooled)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    score = held["score"][: rows // 2] if len(held["score"]) == rows // 2 else held["score"][::2]
    return float(spearmanr((x[::2] * x[1::2]).sum(1), score).statistic)


def vgg(words: argparse.Namespace) -> Rows:
    """A trained VGG-like net with the default keep_if=faster: the most speed at 25 dB and more."""
    if words.vgg is None:
        return
    subject = Subject(Path(words.vgg), MODELS / "fashion_calib.npz", MODELS / "fashion_eval.npz")
    for spec in ("svd:tolerance=0.003", "svd", "svd:macs=0.5"):
        yield report_row("vgg", subject, spec)


def faster(words: argparse.Namespace) -> Rows:
    """keep_if=faster on the zoo and the assets: nothing may get slower."""
    for subject in subjects():
        if words.only not in subject.model.stem:
            continue
        yield report_row(subject.model.stem, subject, "svd")


def resnet50(words: argparse.Namespace) -> Rows:
    """Seconds to factor a ResNet-50 at 224 x 224, on random inputs: by the default, and to half the work."""
    x = np.random.default_rng(0).standard_normal((64, 3, 224, 224)).astype(np.float32)
    recipes = ("svd", "svd:macs=0.5:keep_if=always")
    for spec in recipes if words.share is None else recipes[1:]:
        start, used = time.perf_counter(), time.process_time()
        made = compress(resnet(50, 224, 0), spec, data=batches("input", x), samples=len(x), verify=False)
        yield {
            "net": "resnet50",
            "recipe": spec,
            "s": round(time.perf_counter() - start, 1),
            "processor s": round(time.process_time() - used, 1),
            "macs": round(made.report["after"]["macs"] / made.report["before"]["macs"], 3),
        }
