"""Archives against `xz -9`: `python -m tests.bench archive [--only NAME]`.

Each model goes through its recipe, is packed, unpacked and compared byte by byte; all within one process, on one core, imports and
one small model beforehand not counted. Times are processor time, the least of REPEATS in each of ROUNDS, minutes apart, since a
shared machine is slow for seconds; `xz -9` is Python's lzma at preset 9, measured in between. Models that are not there are left out. Writes `tests/bench/archive.md` and `.json`.
"""

from __future__ import annotations

import argparse
import json
import lzma
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnx_compress.archive import pack, unpack
from tests.bench.zoo import ASSETS, HERE

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = HERE.parents[1]
REPEATS, ROUNDS = 5, 2
PICTURES = ("--preprocess", "size=256:crop=224:mean=127:std=128")


@dataclass(frozen=True)
class Family:
    """Models that take the same data, and the recipes they go through; an empty one stands for the model itself."""

    models: tuple[Path, ...]
    data: tuple[str, ...]
    recipes: tuple[str, ...]


CLUSTERS = tuple(f"cluster:bits={bits}" for bits in (4, 5, 6))
SPARSE = tuple(f"sparsify:sparsity=0.6,{one}" for one in ("int8", *CLUSTERS))
FAMILIES = (
    Family(
        tuple(sorted((ROOT / "models").glob("fashion_*.onnx"))),
        ("--data", str(ROOT / "models" / "fashion_calib.npz"), "--samples", "64"),
        ("", "int8", SPARSE[0]),
    ),
    Family(
        (ASSETS / "cifar10" / "resnet20.onnx",),
        ("--data", str(ASSETS / "cifar10" / "calib.npz"), "--samples", "1024"),
        (
            "",
            "int8",
            *CLUSTERS,
            *SPARSE,
            "sparsify:sparsity=0.8,int8",
            "sparsify:sparsity=0.8,cluster:bits=4",
        ),
    ),
    Family(
        (ASSETS / "imagenet" / "efficientnet_lite0.onnx",),
        ("--data", str(ASSETS / "imagenet" / "calib"), *PICTURES, "--samples", "1024"),
        ("", "int8", *CLUSTERS, *SPARSE),
    ),
)


def place(source: Path, recipe: str, folder: Path) -> Path:
    """Where the model is that a recipe makes of `source`."""
    if not recipe:
        return source
    return folder / f"{source.stem}_{''.join(c if c.isalnum() else '_' for c in recipe)}.onnx"


def made(source: Path, recipe: str, data: tuple[str, ...], folder: Path) -> Path:
    """The model that a recipe makes of `source`; raises RuntimeError with the tool's line where it fails."""
    target = place(source, recipe, folder)
    if target.exists():
        return target
    words = ["-m", "onnx_compress", str(source), str(target), "--passes", recipe, *data, "--no-verify", "-q"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return target


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Processor time of `work`, the least."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def measure(path: Path, folder: Path) -> dict[str, Any]:
    """Sizes and times of one model."""
    packed, back = folder / "a.ocz", folder / "b.onnx"
    data = path.read_bytes()
    repeats = REPEATS if len(data) < 1 << 23 else 2
    pack_seconds = seconds(lambda: pack(source=str(path), target=str(packed)), repeats)
    xz_seconds = seconds(lambda: lzma.compress(data, preset=9), 1)
    unpack_seconds = seconds(lambda: unpack(source=str(packed), target=str(back)), repeats)
    if back.read_bytes() != data:
        raise RuntimeError(f"{path}: the archive does not give its bytes back")
    return {
        "bytes": len(data),
        "archive": packed.stat().st_size,
        "xz": len(lzma.compress(data, preset=9)),
        "pack_seconds": pack_seconds,
        "unpack_seconds": unpack_seconds,
        "xz_seconds": xz_seconds,
    }


def zeros(path: Path) -> float:
    """The share of zeros in all matrices and kernels of 1,000 elements or more."""
    from onnx_compress.model.codebook import codebook_of
    from onnx_compress.model.document import Model
    from onnx_compress.model.surgery import Surgery

    none = total = 0
    for node in Surgery(Model.load(path)).nodes():
        book = codebook_of(node.inputs[1]) if node.op in ("Conv", "Gemm", "MatMul") else None
        if book is not None and book.indices.size >= 1000:
            none += int((book.values.reshape(-1)[book.indices] == 0).sum())
            total += book.indices.size
    for tensor in onnx.load(str(path)).graph.initializer:
        if len(tensor.dims) > 1 and tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT8):
            value = onnx.numpy_helper.to_array(tensor)
            if value.size >= 1000:
                none += value.size - int(np.count_nonzero(value))
                total += value.size
    return none / max(total, 1)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown."""
    lines = [
        "| model | recipe | zeros % | ONNX bytes | archive | of xz -9 | pack MB/s | unpack MB/s | pack ms | xz -9: times slower |",
        "|" + "---|" * 10,
    ]
    for row in rows:
        size = row["bytes"] / 1e6
        lines.append(
            f"| {row['model']} | {'`' + row['recipe'] + '`' if row['recipe'] else 'fp32'} | {100 * row['zeros']:.0f} | {row['bytes']:,}"
            f" | {row['archive']:,} | **{row['archive'] / row['xz']:.3f}** | {size / row['pack_seconds']:.1f} | {size / row['unpack_seconds']:.1f}"
            f" | {1e3 * row['pack_seconds']:.0f} | {row['xz_seconds'] / row['pack_seconds']:.1f} |"
        )
    return lines


def main(argv: list[str] | None = None) -> None:
    """Runs everything and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="models whose name contains this")
    parser.add_argument("--models", type=Path, help="a folder that keeps what the recipes make")
    parser.add_argument("--made", action="store_true", help="only what that folder holds already")
    words = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = words.models or folder
        kept.mkdir(exist_ok=True)
        ready = [
            (path, recipe, made(path, recipe, family.data, kept))
            for family in FAMILIES
            for path in family.models
            if path.exists() and words.only in path.stem
            for recipe in family.recipes
            if not words.made or place(path, recipe, kept).exists()
        ]
        measure(ROOT / "models" / "fashion_mlp.onnx", folder)
        rounds = [[measure(model, folder) for *_, model in ready] for _ in range(ROUNDS)]
        for (path, recipe, model), *found in zip(ready, *rounds, strict=True):
            least = {key: min(one[key] for one in found) for key in found[0]}
            rows.append({"model": path.stem, "recipe": recipe, "zeros": zeros(model), **least})
    print("\n".join(table(rows)))
    (HERE / "archive.md").write_text("\n".join(table(rows)) + "\n", encoding="utf-8")
    (HERE / "archive.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
