"""What svd is to show: `python -m tests.bench lowrank [SECTION ...] [--tensorly PYTHON] [--vgg FILE] [--minilm FILE]`.

Sections: tensorly, plain, rank, budgets, interplay, minilm, vgg, faster, resnet50. Each rewrites its own part of `lowrank.json`, and
the table of all parts is `lowrank.md`. What is not there (the shared assets, an interpreter with tensorly, the net that
`tests.bench vgg` trains, a package's MiniLM) is left out. Accuracies are on whole evaluation sets, times of this machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress import compress
from onnx_compress.contract import Job
from onnx_compress.model.document import Model
from onnx_compress.model.prepare import prepare
from onnx_compress.passes.svd.forms import candidates
from onnx_compress.passes.svd.ranks import Option, option_of
from onnx_compress.passes.svd.study import Study
from onnx_compress.preflight import preflight
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import Session, input_specs
from tests.bench.networks import resnet
from tests.bench.zoo import ASSETS, MODELS, Subject, measure, subjects

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Rows = list[dict[str, Any]]

HERE = Path(__file__).parent
ALWAYS = "keep_if=always:round_to=1"
CIFAR = ASSETS / "cifar10"
TOKENS = ASSETS / "stsb"

TENSORLY = """
import sys, time, onnx, numpy as np, tensorly
from onnx import helper, numpy_helper
from tensorly.decomposition import partial_tucker
model = onnx.load(sys.argv[1])
graph, weights, nodes = model.graph, {t.name: t for t in model.graph.initializer}, []
start = time.perf_counter()
for node in graph.node:
    w = numpy_helper.to_array(weights[node.input[1]]) if node.op_type == "Conv" else None
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    if w is None or w.shape[2] * w.shape[3] == 1 or group > 1 or min(w.shape[:2]) < 4:
        nodes.append(node)
        continue
    ranks = [w.shape[0] // 2, w.shape[1] // 2]
    found = partial_tucker(w.astype(np.float64), rank=ranks, modes=[0, 1], init="svd")
    core, (last, first) = found[0] if isinstance(found[0], tuple) else found
    name = node.output[0]
    for part, value in (("a", first.T[..., None, None]), ("b", core), ("c", last[..., None, None])):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name + part))
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    nodes.append(helper.make_node("Conv", [node.input[0], name + "a"], [name + "_a"], name=name + "a"))
    nodes.append(helper.make_node("Conv", [name + "_a", name + "b"], [name + "_b"], name=name + "b", **attrs))
    nodes.append(helper.make_node("Conv", [name + "_b", name + "c", *node.input[2:]], [name], name=name + "c"))
seconds = time.perf_counter() - start
del graph.node[:]
graph.node.extend(nodes)
used = {name for node in nodes for name in node.input}
for tensor in [t for t in graph.initializer if t.name not in used]:
    graph.initializer.remove(tensor)
onnx.save(model, sys.argv[2])
print(tensorly.__version__, seconds)
"""


def sqnr(expected: Array, found: Array) -> float:
    """Decibels of signal over noise."""
    noise = float(((found - expected).astype(np.float64) ** 2).sum())
    return float(10 * np.log10(float((expected.astype(np.float64) ** 2).sum()) / max(noise, 1e-30)))


def run(model: Any, x: Array) -> Array:
    """The first output for all of x, in batches."""
    session = Session(model if isinstance(model, Model) else Model.load(model), threads=1)
    name = next(iter(session.inputs))
    return np.concatenate(
        [next(iter(session.run({name: x[i : i + 64]}).values())) for i in range(0, len(x), 64)]
    )


def tensorly(words: argparse.Namespace) -> Rows:
    """Tucker-2 at half ranks by tensorly, and this pass at the same multiply-adds, on the same nets and inputs."""
    rows: Rows = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "peer.py").write_text(TENSORLY, encoding="utf-8")
        rng = np.random.default_rng(1)
        random = rng.standard_normal((640, 3, 64, 64)).astype(np.float32)
        fashion = (
            np.load(MODELS / "fashion_calib.npz")["input"],
            np.load(MODELS / "fashion_eval.npz")["input"],
        )
        Model.from_proto(resnet(18, 64, 0)).save(f"{folder}/resnet18.onnx")
        cases = [
            ("resnet18, random weights", f"{folder}/resnet18.onnx", random[:512], random[512:]),
            ("fashion_resnet", str(MODELS / "fashion_resnet.onnx"), *fashion),
        ]
        for name, path, fit, held in cases:
            argv = [words.tensorly, f"{folder}/peer.py", path, f"{folder}/peer.onnx"]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"no tensorly in {words.tensorly}: {done.stderr.strip()[-200:]}")
                return rows
            version, theirs = done.stdout.split()
            before, after = (macs(file, fit[:1]) for file in (path, f"{folder}/peer.onnx"))
            share = after / before
            start = time.perf_counter()
            key = next(iter(Session(Model.load(path)).inputs))
            spec = f"svd:macs={share:.4f}:{ALWAYS}"
            made = compress(path, spec, data=batches(key, fit), samples=len(fit), verify=False)
            ours = time.perf_counter() - start
            made.save(f"{folder}/ours.onnx")
            expected = run(path, held)
            rows.append(
                {
                    "net": name,
                    "macs": round(share, 3),
                    "tensorly": version,
                    "tensorly s": round(float(theirs), 1),
                    "tensorly dB": round(sqnr(expected, run(f"{folder}/peer.onnx", held)), 2),
                    "svd s": round(ours, 1),
                    "svd macs": round(macs(f"{folder}/ours.onnx", fit[:1]) / before, 3),
                    "svd dB": round(sqnr(expected, run(f"{folder}/ours.onnx", held)), 2),
                }
            )
            print(rows[-1], flush=True)
    return rows


def batches(name: str, x: Array) -> list[dict[str, Array]]:
    """x as a list of feeds."""
    return [{name: x[i : i + 32]} for i in range(0, len(x), 32)]


def macs(path: str, x: Array) -> int:
    """Multiply-adds of a model for one sample."""
    from onnx_compress.model.cost import cost
    from onnx_compress.model.shapes import infer

    model = Model.load(path)
    key = input_specs(model)[0].name
    return cost(model, infer(model, {key: x.shape})).macs


def plain(_words: argparse.Namespace) -> Rows:
    """Output SQNR at equal multiply-adds, with and without data."""
    rows: Rows = []
    cases = [(CIFAR / "resnet20.onnx", CIFAR / "calib.npz", CIFAR / "eval.npz", 1024)]
    cases += [(MODELS / "fashion_vit.onnx", MODELS / "fashion_calib.npz", MODELS / "fashion_eval.npz", 512)]
    for path, calib, held, samples in cases:
        if not path.exists():
            continue
        x = np.load(held)["input"].astype(np.float32)[:2000]
        expected = run(path, x)
        for share in (0.75, 0.5):
            row: dict[str, Any] = {"net": path.stem, "macs": share}
            for word, extra in (
                ("plain", "method=svd:data_aware=false"),
                ("plain auto", "data_aware=false"),
                ("data-aware", ""),
            ):
                spec = ":".join(part for part in (f"svd:macs={share}:{ALWAYS}", extra) if part)
                made = compress(path, spec, data=calib, samples=samples, verify=False)
                row[f"{word} dB"] = round(sqnr(expected, run(made.model, x)), 2)
            rows.append(row)
            print(row, flush=True)
    return rows


def rank(_words: argparse.Namespace) -> Rows:
    """The error that a layer's whitened spectrum predicts against the one measured on all fitting samples, method=svd."""
    rows: Rows = []
    for subject in subjects():
        if subject.preprocess:
            continue
        model = Model.load(subject.model)
        data = open_data(subject.calib, input_specs(model), samples=256)
        flight = preflight(model, input_shapes=None, data=data)
        ready = prepare(model, flight.shapes).model
        study = Study.of(Job(ready, ready, data, 0, Clock(1)), exclude=None, data_aware=True)
        study.observe(study.layers)
        assert study.fit is not None
        layers = [layer for layer in study.layers if layer.op != "Gather" and layer.aims]
        feeds = list(study.fit.batches(64))
        worst, count = 0.0, 0
        for layer in layers:
            half = list(candidates(layer, "svd", 1))
            if not half:
                continue
            option = option_of(layer, study.problems[layer.output], half[len(half) // 2])
            worst, count = max(worst, _apart(study, ready, layer, option, feeds)), count + 1
        rows.append({"net": subject.model.stem, "layers": count, "largest difference": round(worst, 4)})
        print(rows[-1], flush=True)
    return rows


def _apart(study: Study, model: Model, layer: Any, option: Option, feeds: Any) -> float:
    """|measured / predicted − 1| of one layer's own output, of which the mean is taken off where its bias may be rewritten."""
    session = Session(model, outputs=[layer.output], threads=1)
    thin = Session(study.build({layer.output: option}), outputs=[layer.output], threads=1)
    centred = (
        study.problems[layer.output].mean_x is not None
    )  # a shift may stand in the Add behind, not in this output
    sums: list[list[Any]] = [[0.0, 0.0], [0.0, 0.0]]
    count = 0
    for feed in feeds:
        dense, found = (s.run(feed)[layer.output].astype(np.float64) for s in (session, thin))
        axis = 1 if layer.kernel else dense.ndim - 1
        rows = [np.moveaxis(x, axis, -1).reshape(-1, dense.shape[axis]) for x in (found - dense, dense)]
        rows[1] = rows[1] - (layer.bias if layer.shifts else 0.0)
        count += len(rows[0])
        for known, part in zip(sums, rows, strict=True):
            known[0], known[1] = known[0] + part.sum(0), known[1] + float((part**2).sum())
    noise, energy = (
        square - float((np.asarray(total) ** 2).sum()) / count if centred else square
        for total, square in sums
    )
    return abs(noise / max(energy, 1e-30) / max(option.error, 1e-12) - 1)


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


def budgets(_words: argparse.Namespace) -> Rows:
    """Accuracy at budgets of multiply-adds, `--samples 1024`."""
    rows: Rows = []
    for name, shares in (("resnet20", (0.75, 0.5, 0.35)), ("resnet44", (0.5, 0.35))):
        for share in shares if (CIFAR / f"{name}.onnx").exists() else ():
            rows.append(report_row(name, _cifar(name), f"svd:macs={share}:{ALWAYS}", ("--samples", "1024")))
            print(rows[-1], flush=True)
    return rows


def interplay(_words: argparse.Namespace) -> Rows:
    """prune and svd together against either alone, at 0.49 of the multiply-adds."""
    rows: Rows = []
    recipes = (
        f"prune:macs=0.7:round_to=1,svd:macs=0.7:{ALWAYS}",
        "prune:macs=0.49:round_to=1",
        f"svd:macs=0.49:{ALWAYS}",
    )
    for name in ("resnet20", "resnet44"):
        for recipe in recipes if (CIFAR / f"{name}.onnx").exists() else ():
            rows.append(report_row(name, _cifar(name), recipe, ("--samples", "1024")))
            print(rows[-1], flush=True)
    return rows


def minilm(words: argparse.Namespace) -> Rows:
    """Spearman of sentence similarity before and after, at 0.7 of the weights."""
    if words.minilm is None or not TOKENS.exists():
        return []
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
    print(row, flush=True)
    return [row]


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
        return []
    subject = Subject(Path(words.vgg), MODELS / "fashion_calib.npz", MODELS / "fashion_eval.npz")
    rows = []
    for spec in ("svd", "svd:macs=0.5"):
        rows.append(report_row("vgg", subject, spec))
        print(rows[-1], flush=True)
    return rows


def faster(_words: argparse.Namespace) -> Rows:
    """keep_if=faster on the zoo and the assets: nothing may get slower."""
    rows: Rows = []
    for subject in subjects():
        rows.append(report_row(subject.model.stem, subject, "svd"))
        print(rows[-1], flush=True)
    return rows


def resnet50(_words: argparse.Namespace) -> Rows:
    """Seconds to factor a ResNet-50 at 224 x 224, on random inputs: by the default, and to half the work."""
    rows: Rows = []
    x = np.random.default_rng(0).standard_normal((64, 3, 224, 224)).astype(np.float32)
    for spec in ("svd", "svd:macs=0.5:keep_if=always"):
        start, used = time.perf_counter(), time.process_time()
        made = compress(resnet(50, 224, 0), spec, data=batches("input", x), samples=len(x), verify=False)
        rows.append(
            {
                "net": "resnet50",
                "recipe": spec,
                "s": round(time.perf_counter() - start, 1),
                "processor s": round(time.process_time() - used, 1),
                "macs": round(made.report["after"]["macs"] / made.report["before"]["macs"], 3),
            }
        )
        print(rows[-1], flush=True)
    return rows


SECTIONS: dict[str, Callable[[argparse.Namespace], Rows]] = {
    "tensorly": tensorly,
    "plain": plain,
    "rank": rank,
    "budgets": budgets,
    "interplay": interplay,
    "minilm": minilm,
    "vgg": vgg,
    "faster": faster,
    "resnet50": resnet50,
}


def table(name: str, rows: Rows) -> list[str]:
    """A section as Markdown."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"## {name}", "", str(SECTIONS[name].__doc__).splitlines()[0], ""]
    lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return [*lines, *(f"| {' | '.join(str(row.get(key, '')) for key in columns)} |" for row in rows), ""]


def main(argv: list[str] | None = None) -> None:
    """Runs the sections asked for and writes all that are known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument(
        "--tensorly", default=sys.executable, help="an interpreter that has tensorly and onnx"
    )
    parser.add_argument("--vgg", help="what `tests.bench vgg` wrote")
    parser.add_argument("--minilm", help="a MiniLM with token ids in and hidden states out")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder of lowrank.json and lowrank.md")
    words = parser.parse_args(argv)
    path = words.out / "lowrank.json"
    known: dict[str, Rows] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in words.sections or SECTIONS:
        rows = SECTIONS[name](words)
        if rows:
            known[name] = rows
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    lines = [line for name in SECTIONS if name in known for line in table(name, known[name])]
    (words.out / "lowrank.md").write_text("\n".join(lines), encoding="utf-8")
