"""Every criterion of prune: `python -m tests.bench criteria [--models NAMES] [--samples N] [--eval N]`.

By default on three networks, in about a quarter of an hour on one core; of the zoo and the CIFAR networks others can be named.
A quarter or half of every kind of unit goes, with the least-squares repair and without; random, the control, with five seeds.
Each row is written as soon as it is measured, and a row that is there is not measured again. Writes `criteria.json` and,
from it, `criteria.md` beside itself.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from onnx_compress.contract import Job
from onnx_compress.model.document import Model
from onnx_compress.model.prepare import prepare
from onnx_compress.model.shapes import infer
from onnx_compress.passes.prune.allocate import chosen, even
from onnx_compress.passes.prune.criteria import CRITERIA, Criterion
from onnx_compress.passes.prune.plan import make_plan
from onnx_compress.passes.prune.repairer import Repairer
from onnx_compress.runtime.agreement import Reference
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import Data, open_data
from onnx_compress.runtime.session import Session, input_specs
from tests.bench.zoo import Subject, subjects

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onnx_compress.passes.prune.plan import Plan

HERE = Path(__file__).parent
ROWS = HERE / "criteria.json"
REMOVED = (0.25, 0.5)
REPAIRS = ("least-squares", "none")
SEEDS = 5  # of random
MODELS = "fashion_mlp,fashion_lstm,resnet20"
Row = dict[str, Any]
Key = tuple[str, str, int, float, str]


def key(row: Row) -> Key:
    """What a row is of."""
    return row["model"], row["criterion"], row["seed"], row["removed"], row["repair"]


def read() -> dict[Key, Row]:
    """The rows that are there."""
    rows = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.exists() else []
    return {key(row): row for row in rows}


def write(rows: dict[Key, Row]) -> None:
    """The rows and the table made of them."""
    text = ",\n".join(json.dumps(row) for row in rows.values())
    ROWS.write_text(f"[\n{text}\n]\n", encoding="utf-8")
    (HERE / "criteria.md").write_text(table(list(rows.values())), encoding="utf-8")


def runs() -> Iterator[tuple[Criterion, int]]:
    """Each criterion and seed."""
    for criterion in CRITERIA:
        for seed in range(SEEDS if criterion == "random" else 1):
            yield criterion, seed


def top1(model: Model, data: Data) -> float:
    """The share of samples whose label wins."""
    assert data.labels is not None
    session, hits, first = Session(model), 0, 0
    for feeds in data.batches(100):
        scores = next(iter(session.run(feeds).values()))
        winners = scores.reshape(len(scores), -1).argmax(1)
        hits += int((winners == data.labels[first : first + len(winners)]).sum())
        first += len(winners)
    return hits / first


def measure(subject: Subject, rows: dict[Key, Row], samples: int, evaluated: int) -> None:
    """Adds the rows of one model that are not there yet."""
    name = subject.model.stem
    loaded = Model.load(subject.model)
    model = prepare(loaded, infer(loaded)).model
    specs = input_specs(model)
    data = open_data(subject.calib, specs, samples=samples, preprocess=subject.preprocess or None)
    tests = open_data(subject.evaluation, specs, samples=10**9, preprocess=subject.preprocess or None)
    if evaluated < tests.samples:  # > spread over the file: it may be sorted by class
        tests = tests.split(evaluated / tests.samples)[1]
    job = Job(model, model, data, 0, Clock(1, 0))
    fit, held = data.split(0.25, 0)
    reference = Reference(model, held, threads=1)
    whole: float | None = None
    for criterion, seed in runs():
        cases = [(share, repair) for share in REMOVED for repair in REPAIRS]
        cases = [case for case in cases if (name, criterion, seed, *case) not in rows]
        if not cases:
            continue
        whole = whole if whole is not None else top1(model, tests)
        start = time.perf_counter()
        plan = ranked(job, fit, criterion, seed)
        took = time.perf_counter() - start
        for share, repair in cases:
            units = chosen(plan.choices, even(plan.choices, 1 - share))
            start = time.perf_counter()
            repairer = Repairer(job, plan, repair, fit, reference)  # type: ignore[arg-type]
            pruned = repairer.model(units)
            row = {
                "model": name,
                "criterion": criterion,
                "seed": seed,
                "removed": share,
                "repair": repair,
                "before": whole,
                "after": top1(pruned, tests),
                "error": reference.error(pruned),
                "samples": samples,
                "evaluated": tests.samples,
                "seconds": round(took + time.perf_counter() - start, 2),
            }
            rows[key(row)] = row
            print(*key(row), f"{100 * row['after']:.2f} %", flush=True)
        write(rows)


def ranked(job: Job, fit: Data, criterion: Criterion, seed: int) -> Plan:
    """The units in the order of the criterion."""
    job = Job(job.model, job.original, job.data, seed, job.clock)
    return make_plan(job, fit, criterion=criterion, exclude=None, multiple=1)


def table(rows: Sequence[Row]) -> str:
    """What each criterion loses on average, best first, and then all rows."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    drops: dict[tuple[str, float, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        case = row["criterion"], row["removed"], row["repair"]
        drops[case][row["model"]].append(100 * (row["before"] - row["after"]))
    complete = {
        criterion
        for criterion in CRITERIA
        if all(set(drops[criterion, share, repair]) == set(models) for share in REMOVED for repair in REPAIRS)
    }

    def mean(criterion: str, share: float, repair: str) -> float:
        found = drops[criterion, share, repair]
        return statistics.mean(statistics.mean(found[model]) for model in models)

    lines = [
        f"Points of top-1 lost, the mean over {len(models)} models ({', '.join(models)}).",
        "So much of every kind of unit removed, with the least-squares repair and without; random: five seeds, ± their spread.",
        "",
        "| criterion | −25 %, repaired | −50 %, repaired | −25 %, as cut | −50 %, as cut |",
        "|---|---|---|---|---|",
    ]
    cases = [(share, repair) for repair in REPAIRS for share in REMOVED]
    for criterion in sorted(complete, key=lambda name: mean(name, 0.5, "least-squares")):
        cells = [f"{mean(criterion, *case):.1f}{_spread(drops[criterion, *case])}" for case in cases]
        lines.append(f"| {criterion} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Each row: {_size(rows)}.",
        "",
        "| model | criterion | removed | repair | top-1 % | error | s |",
        "|" + "---|" * 7,
    ]
    for row in sorted(
        rows, key=lambda row: (models.index(row["model"]), row["removed"], row["repair"], -row["after"])
    ):
        seed = f" (seed {row['seed']})" if row["criterion"] == "random" else ""
        lines.append(
            f"| {row['model']} | {row['criterion']}{seed} | {row['removed']:.0%} | {row['repair']} | "
            f"{100 * row['before']:.2f} → {100 * row['after']:.2f} | {row['error']:.3f} | {row['seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def _spread(found: dict[str, list[float]]) -> str:
    """The standard deviation of the mean over models from seed to seed, where there are several."""
    seeds = list(zip(*found.values(), strict=False))  # a model may lack some as yet
    if len(seeds) < 2:
        return ""
    return f" ± {statistics.stdev(float(np.mean(seed)) for seed in seeds):.1f}"


def _size(rows: Sequence[Row]) -> str:
    samples = sorted({row["samples"] for row in rows})
    evaluated = sorted({row["evaluated"] for row in rows})
    return (
        f"{' or '.join(map(str, samples))} calibration samples, top-1 on "
        f"{' or '.join(map(str, evaluated))} of the evaluation samples, spread over the file, seconds on one thread of a busy machine"
    )


def main(argv: list[str] | None = None) -> None:
    """Measures what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=MODELS, help="their names, joined by commas")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--eval", type=int, default=1000)
    words = parser.parse_args(argv)
    rows = read()
    for subject in subjects():
        if subject.preprocess or subject.model.stem not in words.models.split(","):
            continue
        with threadpool_limits(1, "blas"):
            measure(subject, rows, words.samples, words.eval)
    write(rows)
