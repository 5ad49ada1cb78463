"""Other compressors and this one on the same models and data: `python -m tests.bench peers [--peers FOLDER] [--only NAME]`.

Each peer has an environment of its own, FOLDER/venv-PEER (or FOLDER/PEER), FOLDER also from ONNX_COMPRESS_PEERS: `nncf`, `quark`
(amd-quark), `onnxsim` and `nncodec`; those that are absent are skipped. onnxruntime's quantizers run in this environment. Every
tool is a process of its own with the same calibration samples; then all results are measured in this one, latencies in
turns. Writes `peers.md` and `peers.json` beside itself; models that are not run keep the tables they had there.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.errors import CompressError
from onnx_compress.model.cost import cost
from onnx_compress.model.document import Model
from onnx_compress.preflight import shapes_at
from onnx_compress.runtime.agreement import Reference
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.race import interval
from onnx_compress.runtime.session import Session, input_specs
from tests.bench.zoo import Subject, subjects

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

HERE = Path(__file__).parent
SCRIPTS = HERE / "peers"
ROUNDS = 24  # samples of each model's latency
SAMPLE = 0.002  # seconds a sample takes at least
BASE = "onnxruntime minmax"  # what the others' latency is compared with, beside float


@dataclass(frozen=True)
class Tool:
    """One row of the table. script: in tests/bench/peers, with `words` after MODEL CALIB OUT; none: this project, with
    the recipe `words`. packed: the size is that of the archive.
    """

    name: str
    family: str
    peer: str
    script: str = ""
    words: tuple[str, ...] = ()
    packed: bool = False


TOOLS = (
    Tool(BASE, "int8", "", "with_onnxruntime.py", ("minmax",)),
    Tool("onnxruntime percentile", "int8", "", "with_onnxruntime.py", ("percentile",)),
    Tool("onnxruntime dynamic", "int8", "", "with_onnxruntime.py", ("dynamic",)),
    Tool("NNCF", "int8", "nncf", "with_nncf.py"),
    Tool("Quark U8S8_AAWS", "int8", "quark", "with_quark.py", ("U8S8_AAWS",)),
    Tool("int8", "int8", "", "", ("int8",)),
    Tool("int4", "weights only", "", "", ("int4",)),
    Tool("fp16", "weights only", "", "", ("fp16",)),
    Tool("onnxsim structured 0.3", "pruning", "onnxsim", "with_onnxsim.py", ("0.3",)),
    Tool("onnxsim structured 0.5", "pruning", "onnxsim", "with_onnxsim.py", ("0.5",)),
    Tool("NNCodec qp -38", "archive", "nncodec", "with_nncodec.py", ("-38",)),
    Tool("NNCodec qp -28", "archive", "nncodec", "with_nncodec.py", ("-28",)),
    Tool("cluster, packed", "archive", "", "", ("cluster",), packed=True),
)


@dataclass
class Outcome:
    """What a tool made of a model. seconds: of the whole process, work: of what it did after its imports; bytes: of the
    file or archive; peak: bytes.
    """

    tool: str
    family: str
    what: str
    error: str = ""
    seconds: float = math.nan
    work: float | None = None
    peak: int = 0
    bytes: int = 0
    sqnr_db: float = math.nan
    top1: float | None = None
    macs: float = math.nan
    faster: tuple[float, float, float] | None = None
    than_base: tuple[float, float, float] | None = None
    path: str = ""


def main(argv: list[str] | None = None) -> None:
    """Runs every tool that is there on every model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, default=os.environ.get("ONNX_COMPRESS_PEERS"))
    parser.add_argument("--only", help="models whose name contains one of these words, joined by commas")
    parser.add_argument(
        "--tools", help="families of tools, joined by commas: int8, weights only, pruning, archive"
    )
    parser.add_argument("--samples", type=int, default=128, help="calibration samples")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of peers.md and peers.json")
    words = parser.parse_args(argv)
    peers = Path(words.peers) if words.peers else None
    tools = [tool for tool in TOOLS if not words.tools or tool.family in words.tools.split(",")]
    results = words.out / "peers.json"
    everything: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    for subject in subjects():
        name = subject.model.stem
        if words.only and not any(part in name for part in words.only.split(",")):
            continue
        outcomes = compare(subject, tools, peers, words.samples)
        rows = [dataclasses.asdict(outcome) | {"path": ""} for outcome in outcomes]
        lines = table(name, outcomes, words.samples)
        everything[name] = {"rows": rows, "table": lines}
        print(lines, flush=True)
        text = "\n".join([HEAD, *(found["table"] for found in everything.values())])
        (words.out / "peers.md").write_text(text, encoding="utf-8")
        results.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


HEAD = """# Peers

Written by `python -m tests.bench peers`: every tool on the same model, calibration samples and processor, one after the other, each in
a process of its own; then all results together: SQNR and top-1 on the evaluation samples, latency at batch 1 and one thread
in turns, as the median of paired ratios with its 95 % interval. Seconds and peak memory are those of the whole process,
imports included; in brackets the work alone. A packed model or a bitstream runs as fast as what it unpacks to.
"""


def compare(subject: Subject, tools: Sequence[Tool], peers: Path | None, samples: int) -> list[Outcome]:
    """Every tool on one model, measured together; the float model first."""
    original = Model.load(subject.model)
    specs = input_specs(original)
    how = subject.preprocess or None
    with tempfile.TemporaryDirectory() as folder:
        calib = Path(folder) / "calib.npz"
        batches = list(open_data(subject.calib, specs, samples=samples, preprocess=how).batches(32))
        np.savez(calib, **{spec.name: np.concatenate([b[spec.name] for b in batches]) for spec in specs})
        outcomes = [Outcome("(float)", "", "", bytes=original.nbytes, path=str(subject.model))]
        for tool in tools:
            outcomes += run(tool, subject.model, calib, Path(folder), peers)
        for outcome in [o for o in outcomes if o.family == "pruning" and o.path]:
            outcomes.append(prune_alike(outcome, subject.model, calib, Path(folder)))
        evaluation = open_data(subject.evaluation, specs, samples=None, preprocess=how)
        measure(outcomes, original, evaluation)
    return outcomes


def run(tool: Tool, model: Path, calib: Path, folder: Path, peers: Path | None) -> list[Outcome]:
    """The outcome of one tool; none where its environment is absent."""
    python = sys.executable
    if tool.peer:
        found = [peers / f"{start}{tool.peer}" / "bin" / "python" for start in ("venv-", "")] if peers else []
        there = next((path for path in found if path.exists()), None)
        if there is None:
            print(f"{tool.name}: no environment, skipped", flush=True)
            return []
        python = str(there)
    out = folder / f"{tool.name.replace(' ', '_')}.onnx"
    if tool.script:
        argv = [python, str(SCRIPTS / tool.script), str(model), str(calib), str(out), *tool.words]
    else:
        argv = own(model, out, tool.words[0], calib)
    outcome = Outcome(tool.name, tool.family, " ".join(tool.words))
    started(outcome, argv, out, folder, beside=bool(tool.script))
    if tool.packed and outcome.path:
        archive = out.with_suffix(".ocz")
        done = subprocess.run(
            [python, "-m", "onnx_compress", "pack", str(out), str(archive)], check=False, capture_output=True
        )
        outcome.bytes = archive.stat().st_size if done.returncode == 0 else 0
    return [outcome]


def own(model: Path, out: Path, recipe: str, calib: Path) -> list[str]:
    """This project's command."""
    words = ["--passes", recipe, "--data", str(calib), "--no-verify", "-q"]
    return [sys.executable, "-m", "onnx_compress", str(model), str(out), *words]


def prune_alike(outcome: Outcome, model: Path, calib: Path, folder: Path) -> Outcome:
    """This project's pruning to the MACs that the peer's result has left."""
    share = macs(Path(outcome.path)) / macs(model)
    recipe = f"prune:macs={share:.3f}"
    found = Outcome(f"{recipe} (as {outcome.tool})", "pruning", recipe)
    out = folder / f"own_{outcome.tool.replace(' ', '_')}.onnx"
    started(found, own(model, out, recipe, calib), out, folder)
    return found


def started(outcome: Outcome, argv: Sequence[str], out: Path, folder: Path, *, beside: bool = False) -> None:
    """Runs a tool to its end and notes what it took. beside: in the scratch folder, where some leave files behind."""
    log = folder / "log.txt"
    with log.open("w") as file:
        start = time.perf_counter()
        child = subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT, cwd=folder if beside else None)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    outcome.seconds, outcome.peak = time.perf_counter() - start, usage.ru_maxrss * 1024
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said: dict[str, Any] = {}
    if lines and lines[-1].startswith("{"):
        said = json.loads(lines[-1])
    outcome.work = said.get("seconds")
    if child.returncode or not out.exists():
        outcome.error = (lines or ["it said nothing"])[-1][:120]
        return
    outcome.path = str(out)
    outcome.bytes = int(said.get("bytes", out.stat().st_size))


def measure(outcomes: Sequence[Outcome], original: Model, evaluation: Any) -> None:
    """Agreement, accuracy, work and latency of every result that onnxruntime loads."""
    reference = Reference(original, evaluation, threads=0)
    labels = evaluation.labels
    sessions: dict[int, Session] = {}
    feeds = next(iter(evaluation.batches(1)))
    for number, outcome in enumerate(outcomes):
        if not outcome.path:
            continue
        try:
            model = Model.load(outcome.path)
            rows = reference.agreements(model)
            outcome.sqnr_db = min(row.sqnr_db for row in rows if row.sqnr_db is not None)
            outcome.macs = macs(Path(outcome.path))
            outcome.top1 = None if labels is None else top1(model, evaluation, labels)
            sessions[number] = Session(model, threads=1)
        except CompressError as error:
            outcome.error = str(error)[:120]
    times = race(sessions, feeds)
    base = next((n for n, outcome in enumerate(outcomes) if outcome.tool == BASE and n in times), None)
    for number, taken in times.items():
        outcomes[number].faster = ratio(times[0], taken)
        outcomes[number].than_base = None if base is None else ratio(times[base], taken)


def macs(path: Path) -> int:
    """Multiply-adds of one sample."""
    model = Model.load(path)
    feeds = {
        spec.name: np.zeros([size if isinstance(size, int) else 1 for size in spec.shape], spec.dtype)
        for spec in input_specs(model)
    }
    return cost(model, shapes_at(model, feeds)).macs


def top1(model: Model, evaluation: Any, labels: Array) -> float:
    """The share of samples whose largest value of the first output is at their label."""
    session = Session(model)
    found = [
        np.asarray(session.run(feeds)[session.outputs[0]])
        .reshape(len(next(iter(feeds.values()))), -1)
        .argmax(1)
        for feeds in evaluation.batches(32)
    ]
    return float((np.concatenate(found) == labels).mean())


def race(sessions: Mapping[int, Session], feeds: Mapping[str, Array]) -> dict[int, list[float]]:
    """The best run of each of ROUNDS samples of every session, in turns that start with another one each round."""
    loops = {}
    for number, session in sessions.items():
        session.run(feeds)
        loops[number] = max(1, math.ceil(SAMPLE / max(_seconds(session, feeds, 3), 1e-7)))
    taken: dict[int, list[float]] = {number: [] for number in sessions}
    order = list(sessions)
    for turn in range(ROUNDS):
        at = turn % max(len(order), 1)
        for number in itertools.chain(order[at:], order[:at]):
            taken[number].append(_seconds(sessions[number], feeds, loops[number]))
    return taken


def _seconds(session: Session, feeds: Mapping[str, Array], loop: int) -> float:
    best = math.inf
    for _ in range(loop):
        start = time.perf_counter()
        session.run_raw(feeds)
        best = min(best, time.perf_counter() - start)
    return best


def ratio(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Time of the first over time of the second, round by round: median and 95 % interval."""
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    return statistics.median(ratios), *interval(ratios)


def table(name: str, outcomes: Sequence[Outcome], samples: int) -> str:
    """The Markdown table of one model."""
    whole = outcomes[0]
    lines = [
        f"## {name} ({samples} calibration samples at most)\n",
        "| tool | SQNR dB | top-1 % | smaller | MACs | faster than float | than onnxruntime minmax | s | peak MB |",
        "|" + "---|" * 9,
    ]
    for outcome in outcomes:
        if outcome.error:
            lines.append(f"| {outcome.tool} | {outcome.error} | | | | | | {outcome.seconds:.0f} | |")
            continue
        accuracy = "" if outcome.top1 is None else f"{100 * outcome.top1:.2f}"
        sqnr = "" if outcome is whole else f"{outcome.sqnr_db:.1f}"
        work = "" if outcome.work is None else f" ({outcome.work:.1f})"
        spent = "" if outcome is whole else f"{outcome.seconds:.1f}{work} | {outcome.peak / 1e6:.0f}"
        lines.append(
            f"| {outcome.tool} | {sqnr} | {accuracy} | {whole.bytes / max(outcome.bytes, 1):.2f}× | "
            f"{outcome.macs / whole.macs:.2f} | {_ratio_words(outcome.faster)} | {_ratio_words(outcome.than_base)} | "
            f"{spent or ' | '} |"
        )
    return "\n".join(lines) + "\n"


def _ratio_words(found: tuple[float, float, float] | None) -> str:
    return "" if found is None else f"{found[0]:.2f} ({found[1]:.2f}..{found[2]:.2f})"


def spearman(outputs: Mapping[str, Array], data: Mapping[str, Array]) -> float:
    """The rank correlation of cosine and `score` of sentence pairs, rows 2i and 2i + 1; tokens pooled by their mean.

    For `--metric tests.bench.peers:spearman`: the first output of three axes is that of the tokens.
    """
    from scipy.stats import spearmanr

    tokens = next(value for value in outputs.values() if value.ndim == 3)
    mask = data["attention_mask"][..., np.newaxis]
    pooled = (tokens * mask).sum(axis=1) / mask.sum(axis=1)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    cosine = (pooled[0::2] * pooled[1::2]).sum(axis=1)
    return float(spearmanr(cosine, np.asarray(data["score"])[0::2]).statistic)
