"""Sections of `lowrank` about output errors: against tensorly, against plain SVD, against what the spectrum predicts."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress import compress
from onnx_compress.contract import Job
from onnx_compress.model.cost import cost
from onnx_compress.model.document import Model
from onnx_compress.model.prepare import prepare
from onnx_compress.model.shapes import infer
from onnx_compress.passes.svd.forms import candidates
from onnx_compress.passes.svd.ranks import Option, option_of
from onnx_compress.passes.svd.study import Study
from onnx_compress.preflight import preflight
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import Session, input_specs
from tests.bench.resnet18 import digits
from tests.bench.zoo import ASSETS, MODELS, subjects

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Rows = Iterator[dict[str, Any]]

ALWAYS = "keep_if=always:round_to=1"
CIFAR = ASSETS / "cifar10"
PEER = Path(__file__).parent / "peers" / "with_tensorly.py"


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
    with tempfile.TemporaryDirectory() as folder:
        for name, path, fit, held in _beside_tensorly(words.resnet18):
            if words.only not in name:
                continue
            argv = [words.tensorly, str(PEER), path, f"{folder}/peer.onnx"]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"no tensorly in {words.tensorly}: {done.stderr.strip()[-200:]}")
                return
            version, theirs = done.stdout.split()
            before, after = (macs(file, fit[:1]) for file in (path, f"{folder}/peer.onnx"))
            share = after / before
            key = next(iter(Session(Model.load(path)).inputs))
            expected = run(path, held)
            for effort in ("", ":effort=quick"):
                start = time.perf_counter()
                spec = f"svd:macs={share:.4f}:{ALWAYS}{effort}"
                made = compress(path, spec, data=batches(key, fit), samples=len(fit), verify=False)
                ours = time.perf_counter() - start
                made.save(f"{folder}/ours.onnx")
                yield {
                    "net": name,
                    "recipe": spec,
                    "samples": len(fit),
                    "macs": round(share, 3),
                    "tensorly": version,
                    "tensorly s": round(float(theirs), 1),
                    "tensorly dB": round(sqnr(expected, run(f"{folder}/peer.onnx", held)), 2),
                    "svd s": round(ours, 1),
                    "svd macs": round(macs(f"{folder}/ours.onnx", fit[:1]) / before, 3),
                    "svd dB": round(sqnr(expected, run(f"{folder}/ours.onnx", held)), 2),
                }


def _beside_tensorly(resnet18: str | None) -> Iterator[tuple[str, str, Array, Array]]:
    """Nets with the inputs to fit on and to judge by."""
    if resnet18:
        images, _, held, _ = digits()
        yield "resnet18 on digits", resnet18, images[:128], held
    fit, held = (np.load(MODELS / f"fashion_{part}.npz")["input"] for part in ("calib", "eval"))
    yield "fashion_resnet", str(MODELS / "fashion_resnet.onnx"), fit, held


def batches(name: str, x: Array) -> list[dict[str, Array]]:
    """x as a list of feeds."""
    return [{name: x[i : i + 32]} for i in range(0, len(x), 32)]


def macs(path: str, x: Array) -> int:
    """Multiply-adds of a model for one sample."""
    model = Model.load(path)
    key = input_specs(model)[0].name
    return cost(model, infer(model, {key: x.shape})).macs


def plain(words: argparse.Namespace) -> Rows:
    """Output SQNR at equal multiply-adds, with and without data."""
    cases = [(CIFAR / "resnet20.onnx", CIFAR / "calib.npz", CIFAR / "eval.npz", 1024)]
    cases += [(MODELS / "fashion_vit.onnx", MODELS / "fashion_calib.npz", MODELS / "fashion_eval.npz", 512)]
    for path, calib, held, samples in cases:
        if not path.exists() or words.only not in path.stem:
            continue
        x = np.load(held)["input"].astype(np.float32)[:2000]
        expected = run(path, x)
        for share in (0.75, 0.5) if words.share is None else (words.share,):
            row: dict[str, Any] = {"net": path.stem, "budget": share}
            for word, extra in (
                ("plain", "method=svd:data_aware=false"),
                ("plain auto", "data_aware=false"),
                ("data-aware", ""),
            ):
                spec = ":".join(part for part in (f"svd:macs={share}:{ALWAYS}", extra) if part)
                made = compress(path, spec, data=calib, samples=samples, verify=False)
                row[f"{word} dB"] = round(sqnr(expected, run(made.model, x)), 2)
            yield row


def rank(words: argparse.Namespace) -> Rows:
    """The error that a layer's whitened spectrum predicts against the one measured on all fitting samples, method=svd."""
    for subject in subjects():
        if subject.preprocess or words.only not in subject.model.stem:
            continue
        model = Model.load(subject.model)
        data = open_data(subject.calib, input_specs(model), samples=512)
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
        yield {"net": subject.model.stem, "layers": count, "largest difference": round(worst, 4)}


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
