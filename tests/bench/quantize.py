"""int8 beside onnxruntime's own quantizer, in one run: `python -m tests.bench quantize [speed] [models] [memory] [--repeats N]`.

speed: a ResNet-50 of random weights and 32 photographs (or noise, where there are none) through the whole of either tool,
each run a process of its own, in turns: seconds, processor seconds and peak memory (VmHWM). models: the CIFAR ResNets and
EfficientNet-Lite0 of the shared assets: error against float, accuracy, and the time of one inference in turns. memory: the
peak of a run that calibrates EfficientNet-Lite0 on 2,000 photographs. Writes `quantize.md` and `quantize.json`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from tests.bench.networks import resnet
from tests.bench.zoo import ASSETS, HERE, Subject, subjects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Array = NDArray[Any]

FAST = "int8:rounding=nearest:bias_correction=false:equalize=false:smooth=false:keep_if=always:tolerance=none"
DEFAULT = "int8"
BRANCH = 0.2  # of the ResNet-50: it bears noise as trained networks do
IMAGES = 32
MANY = 2000
BATCH = 50  # samples in one run when outputs are compared
MEAN, SPREAD = 127.0, 128.0


def photographs(count: int, size: int) -> Array:
    """Photographs of the assets, cut to a square and repeated; noise where there are none."""
    files = sorted((ASSETS / "imagenet" / "calib").glob("*/*"))
    if not files:
        return np.random.default_rng(0).standard_normal((count, 3, size, size)).astype(np.float32)
    from PIL import Image

    found = []
    for file in files[:count]:
        with Image.open(file) as picture:
            small = np.asarray(picture.convert("RGB").resize((size, size)), np.float32)
        found.append((small.transpose(2, 0, 1) - MEAN) / SPREAD)
    return np.stack([found[at % len(found)] for at in range(count)])


# what the children do


def ours(model: str, target: str, recipe: str, data: str, samples: int, preprocess: str) -> None:
    """The whole of our command, less its parent process and the verification."""
    from onnx_compress.pipeline import compress

    done = compress(
        model, recipe, data=data, samples=samples, preprocess=preprocess or None, verify=False, threads=None
    )
    done.save(target)


def theirs(model: str, target: str, data: str, samples: int, preprocess: str) -> None:
    """onnxruntime's preparation and static quantization: U8S8, QDQ, one scale a channel, MinMax, one sample at a time."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    whole = importlib.util.find_spec("sympy") is not None
    with tempfile.TemporaryDirectory() as folder:
        prepared = f"{folder}/prepared.onnx"
        quant_pre_process(model, prepared, skip_symbolic_shape=not whole)
        quantize_static(
            prepared,
            target,
            Reader(model, data, samples, preprocess),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


class Reader:
    """A CalibrationDataReader of single samples."""

    def __init__(self, model: str, data: str, samples: int, preprocess: str) -> None:
        self.feeds = feeds_of(model, data, samples, preprocess, 1)

    def get_next(self) -> dict[str, Array] | None:
        """The next sample, or None."""
        return next(self.feeds, None)


def feeds_of(
    model: str, data: str, samples: int | None, preprocess: str, batch: int
) -> Iterator[dict[str, Array]]:
    """Batches of the data: without any code of ours for an npz, whose reading is part of what is timed."""
    if data.endswith(".npz"):
        name = onnx.load(model, load_external_data=False).graph.input[0].name
        with np.load(data) as arrays:
            values = arrays[name][:samples]
        for at in range(0, len(values), batch):
            yield {name: values[at : at + batch].astype(np.float32)}
        return
    from onnx_compress.model.document import Model
    from onnx_compress.runtime.data import open_data
    from onnx_compress.runtime.session import input_specs

    specs = input_specs(Model.load(model))
    yield from open_data(data, specs, samples=samples, preprocess=preprocess or None).batches(batch)


def child(words: dict[str, Any]) -> None:
    """Runs one tool, and prints what it took."""
    tool: Callable[..., None] = {"ours": ours, "theirs": theirs}[words.pop("tool")]
    tool(**words)
    used = os.times()
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"cpu": used.user + used.system, "peak": peak / 1024}))


def run(**words: Any) -> dict[str, float]:
    """One tool in a process of its own: seconds from start to end, processor seconds, peak memory in MB."""
    start = time.perf_counter()
    argv = [sys.executable, "-m", "tests.bench", "quantize", "--child", json.dumps(words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{words}: {done.stderr}")
    return {"seconds": time.perf_counter() - start, **json.loads(done.stdout.splitlines()[-1])}


# the parts


def speed(repeats: int) -> dict[str, Any]:
    """Medians of either tool, and of the ratios of runs that followed each other."""
    with tempfile.TemporaryDirectory() as folder:
        model, data = f"{folder}/model.onnx", f"{folder}/calib.npz"
        onnx.save(resnet(50, 224, 0, BRANCH), model)
        np.savez(data, input=photographs(IMAGES, 224))
        every: dict[str, list[dict[str, float]]] = {"theirs": [], FAST: [], DEFAULT: []}
        common = {
            "model": model,
            "target": f"{folder}/out.onnx",
            "data": data,
            "samples": IMAGES,
            "preprocess": "",
        }
        for _ in range(repeats):
            every["theirs"].append(run(tool="theirs", **common))
            for recipe in (FAST, DEFAULT):
                every[recipe].append(run(tool="ours", recipe=recipe, **common))
                print(recipe, every[recipe][-1], "theirs", every["theirs"][-1], flush=True)
    found: dict[str, Any] = {}
    for name, runs in every.items():
        found[name] = {key: median(one[key] for one in runs) for key in ("seconds", "cpu", "peak")}
        for key in ("seconds", "cpu"):
            pairs = zip(runs, every["theirs"], strict=True)
            found[name][f"{key}_ratio"] = median(one[key] / other[key] for one, other in pairs)
    return found


def models() -> dict[str, Any]:
    """Error, accuracy and latency of both tools' models."""
    wanted = {"resnet20", "resnet44", "efficientnet_lite0"}
    return {subject.model.stem: both(subject) for subject in subjects() if subject.model.stem in wanted}


def both(subject: Subject) -> dict[str, Any]:
    """One model through both tools."""
    from onnx_compress.model.document import Model
    from onnx_compress.runtime.clock import Clock

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "model": str(subject.model),
            "data": str(subject.calib),
            "samples": 512,
            "preprocess": subject.preprocess,
        }
        for tool, extra in (("ours", {"recipe": DEFAULT}), ("theirs", {})):
            target = f"{folder}/{tool}.onnx"
            found[tool] = run(tool=tool, target=target, **common, **extra)
            found[tool] |= quality(subject, target)
            print(subject.model.stem, tool, found[tool], flush=True)
        feeds = next(feeds_of(str(subject.model), str(subject.evaluation), 1, subject.preprocess, 1))
        mine, other = (Model.load(f"{folder}/{tool}.onnx") for tool in ("ours", "theirs"))
        ratio = Clock(1).compare(other, mine, feeds)
        float_ratio = Clock(1).compare(Model.load(str(subject.model)), mine, feeds)
    found["faster_than_theirs"] = {"median": ratio.median, "low": ratio.low, "high": ratio.high}
    found["faster_than_float"] = float_ratio.median
    return found


def quality(subject: Subject, target: str) -> dict[str, float]:
    """SQNR in dB of all outputs, and top-1 before and after, on the whole of --eval."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    sessions = [ort.InferenceSession(str(path), options) for path in (subject.model, target)]
    signal = noise = 0.0
    winners: list[list[Array]] = [[], []]
    for feeds in feeds_of(str(subject.model), str(subject.evaluation), None, subject.preprocess, BATCH):
        before, after = (session.run(None, feeds)[0] for session in sessions)
        signal += float(np.square(before, dtype=np.float64).sum())
        noise += float(np.square(after - before, dtype=np.float64).sum())
        for kept, outputs in zip(winners, (before, after), strict=True):
            kept.append(outputs.argmax(axis=1))
    first, second = (np.concatenate(parts) for parts in winners)
    labels = labels_of(subject)
    return {
        "sqnr_db": 10 * float(np.log10(signal / noise)),
        "top1_before": 100 * float((first == labels).mean()),
        "top1": 100 * float((second == labels).mean()),
        "agree": 100 * float((first == second).mean()),
    }


def labels_of(subject: Subject) -> Array:
    """The labels of --eval."""
    from onnx_compress.model.document import Model
    from onnx_compress.runtime.data import open_data
    from onnx_compress.runtime.session import input_specs

    specs = input_specs(Model.load(subject.model))
    labels = open_data(subject.evaluation, specs, preprocess=subject.preprocess or None).labels
    assert labels is not None
    return labels


def memory() -> dict[str, Any]:
    """The peak of calibrating EfficientNet-Lite0 on MANY photographs, those of the assets under many names."""
    subject = next((one for one in subjects() if one.model.stem == "efficientnet_lite0"), None)
    if subject is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        files = sorted(file for part in (subject.calib, subject.evaluation) for file in part.glob("*/*"))
        for number in range(MANY):
            file = files[number % len(files)]
            place = Path(folder) / "images" / file.parent.name
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{number}{file.suffix}").symlink_to(file.resolve())
        return run(
            tool="ours",
            model=str(subject.model),
            target=f"{folder}/out.onnx",
            recipe=FAST,
            data=f"{folder}/images",
            samples=MANY,
            preprocess=subject.preprocess,
        )


# the page


def page(found: dict[str, Any]) -> str:
    """All that was measured, as Markdown."""
    lines = ["# int8 beside onnxruntime's quantize_static (MinMax, one scale a channel)", ""]
    lines += [f"{os.cpu_count()} processors. `python -m tests.bench quantize`.", ""]
    if found.get("speed"):
        lines += [f"## ResNet-50, random weights, {IMAGES} images of 224x224: the whole run", ""]
        lines += ["| | s | of theirs | processor s | of theirs | peak MB |", "|---|---|---|---|---|---|"]
        lines += [
            f"| `{name}` | {row['seconds']:.1f} | {row['seconds_ratio']:.2f} | {row['cpu']:.1f} |"
            f" {row['cpu_ratio']:.2f} | {row['peak']:.0f} |"
            for name, row in found["speed"].items()
        ]
    if found.get("models"):
        lines += ["", "## Error, accuracy, latency (batch 1, one thread)", ""]
        lines += [
            "| model | SQNR dB | theirs | top-1 | float | theirs | speed against theirs | against float |"
        ]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for name, row in found["models"].items():
            mine, other, ratio = row["ours"], row["theirs"], row["faster_than_theirs"]
            lines.append(
                f"| {name} | {mine['sqnr_db']:.1f} | {other['sqnr_db']:.1f} | {mine['top1']:.2f} |"
                f" {mine['top1_before']:.2f} | {other['top1']:.2f} | {ratio['median']:.2f}"
                f" ({ratio['low']:.2f}..{ratio['high']:.2f}) | {row['faster_than_float']:.2f} |"
            )
    if found.get("memory"):
        row = found["memory"]
        lines += ["", f"## EfficientNet-Lite0 calibrated on {MANY} images", ""]
        lines += [f"`{FAST}`: {row['seconds']:.0f} s, {row['peak']:.0f} MB at the peak."]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """Measures the parts named, or all; what an earlier run measured of the others stays in the page."""
    words = argparse.ArgumentParser(prog="python -m tests.bench quantize", description=__doc__)
    words.add_argument("parts", nargs="*", metavar="speed | models | memory")
    words.add_argument("--repeats", type=int, default=3)
    words.add_argument("--child", help=argparse.SUPPRESS)
    words.add_argument("--out", type=Path, default=HERE / "quantize")
    chosen = words.parse_args(argv)
    if chosen.child:
        child(json.loads(chosen.child))
        return
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: speed(chosen.repeats),
        "models": models,
        "memory": memory,
    }
    table = chosen.out.with_suffix(".json")
    found = json.loads(table.read_text()) if table.exists() else {}
    for part in chosen.parts or measures:
        found[part] = measures[part]()
        table.write_text(json.dumps(found, indent=1) + "\n")
        chosen.out.with_suffix(".md").write_text(page(found))
    print(page(found))
