"""Deep Compression's two LeNets, without labels and without training: `python -m tests.bench deep_compression [--only NAME]`.

Each network goes through sparsify and cluster on 10,000 unlabelled training images, is measured on the 10,000 test images, packed,
unpacked and compared byte by byte. Beside it the archive with Huffman's code, `xz -9` of the same ONNX file, the paper's table
(Han 2016, arXiv:1510.00149, tables 1 and 4), and with --nncodec PYTHON, an interpreter that has nncodec and numpy, NNCodec: on
the weights of the original and of the sparse model, quantized by itself, and on the very indices that our archive holds.
Writes `tests/bench/deep_compression.md` and `.json`. `python models/train_lenet.py npz` makes the data.
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
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from onnx_compress.model.codebook import codebook_of
from onnx_compress.model.document import Model
from onnx_compress.model.surgery import Surgery

HERE = Path(__file__).parent
MODELS = HERE.parents[1] / "models"
CACHE = Path.home() / ".cache" / "onnx-compress" / "mnist"
STEPS = (-20, -18, -16, -14, -12, -10)  # NNCodec's qp: finer to coarser


@dataclass(frozen=True)
class Network:
    """A network, its recipes as (zeros, bits), and what the paper has of it: times smaller, error before and after in %."""

    name: str
    recipes: tuple[tuple[float, int], ...]
    paper: tuple[int, float, float]


NETWORKS = (
    Network("lenet_300_100", ((0.89, 3), (0.92, 3), (0.95, 3)), (40, 1.64, 1.58)),
    Network("lenet_5", ((0.92, 3), (0.95, 3)), (39, 0.80, 0.74)),
)


def command(*words: str) -> None:
    """Runs the tool; raises RuntimeError with its line where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "onnx_compress", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip())


def archive_bytes(source: Path, folder: Path, coder: str) -> int:
    """The bytes of the archive; it must unpack to the file it was made of."""
    packed, back = folder / f"{coder}.ocz", folder / "back.onnx"
    command("pack", str(source), str(packed), "--coder", coder, "-q")
    command("unpack", str(packed), str(back), "-q")
    if back.read_bytes() != source.read_bytes():
        raise RuntimeError(f"{source}: the archive does not give its bytes back")
    back.unlink()
    return packed.stat().st_size


def accuracy(model: str | bytes, evaluation: dict[str, Any]) -> float:
    """Top-1 in percent."""
    session = ort.InferenceSession(model)
    (logits,) = session.run(None, {"input": evaluation["input"]})
    return 100 * float((logits.argmax(1) == evaluation["label"]).mean())


def ours(
    network: Network, zeros: float, bits: int, folder: Path, cache: Path, *, keep_sparse: bool
) -> dict[str, Any]:
    """One recipe: accuracy, sizes, and the models it made; keep_sparse: the one before cluster, too."""
    source = MODELS / f"{network.name}.onnx"
    sparse, small = folder / "sparse.onnx", folder / "small.onnx"
    recipe = f"sparsify:sparsity={zeros:g},cluster:bits={bits}"
    data = ["--data", str(cache / "mnist_calib.npz"), "--samples", "10000", "--no-verify", "-q"]
    start = time.perf_counter()
    command(str(source), str(small), "--passes", recipe, *data)
    seconds = time.perf_counter() - start
    evaluation = dict(np.load(cache / "mnist_eval.npz"))
    if keep_sparse:
        command(str(source), str(sparse), "--passes", recipe.split(",", maxsplit=1)[0], *data)
    found = {
        "network": network.name,
        "recipe": recipe,
        "before": accuracy(str(source), evaluation),
        "after": accuracy(str(small), evaluation),
        "fp32": source.stat().st_size,
        "onnx": small.stat().st_size,
        "xz": len(lzma.compress(small.read_bytes(), preset=9)),
        "seconds": seconds,
    }
    return found | {coder: archive_bytes(small, folder, coder) for coder in ("auto", "huffman", "zstd")}


def nncodec(python: str, weights: dict[str, Any], qp: int, folder: Path) -> tuple[int, dict[str, Any]]:
    """The bytes of NNCodec's bitstream, and what it decodes to."""
    source, target = folder / "w.npz", folder / "d.npz"
    np.savez(source, **weights)
    words = [python, str(HERE / "_nncodec.py"), str(source), str(target), str(qp)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return int(done.stdout.split()[-1]), dict(np.load(target))


def quantized(python: str, path: Path, folder: Path, evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """NNCodec on the float weights of a model, at every step: bytes and accuracy."""
    proto = onnx.load(str(path))
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    floats = {name: value for name, value in weights.items() if value.dtype == np.float32}
    rows = []
    for qp in STEPS:
        size, decoded = nncodec(python, floats, qp, folder)
        for tensor in proto.graph.initializer:
            if tensor.name in decoded:
                value = decoded[tensor.name].astype(np.float32).reshape(floats[tensor.name].shape)
                tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
        rows.append({"qp": qp, "bytes": size, "after": accuracy(proto.SerializeToString(), evaluation)})
    return rows


def indices(python: str, path: Path, folder: Path) -> int:
    """NNCodec on the indices of a clustered model, zero at zero, its codebooks and biases at four bytes a value."""
    whole, beside = {}, 0
    for number, node in enumerate(Surgery(Model.load(path)).nodes()):
        book = codebook_of(node.inputs[1]) if node.op in ("Conv", "Gemm", "MatMul") else None
        if book is None:
            continue
        zero = int(np.abs(book.values.reshape(-1)).argmin())
        places = book.indices.astype(np.int32) - zero
        whole[f"w{number}"] = places.reshape(len(places), -1)
        beside += book.values.nbytes + (node.inputs[2].values.nbytes if len(node.inputs) > 2 else 0)
    size, decoded = nncodec(python, whole, -32, folder)
    if any(not np.array_equal(decoded[name], value) for name, value in whole.items()):
        raise RuntimeError("NNCodec does not give the indices back")
    return size + beside


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown."""
    lines = [
        "| network | recipe | top-1 % | drop | fp32 file | ONNX | archive | smaller | Huffman | smaller | xz -9 | NNCodec, same indices | s |",
        "|" + "---|" * 13,
    ]
    for row in rows:
        times = {name: row["fp32"] / row[name] for name in ("auto", "huffman")}
        peer = f"{row['nncodec']:,}" if "nncodec" in row else ""
        lines.append(
            f"| {row['network']} | `{row['recipe']}` | {row['before']:.2f} → {row['after']:.2f} | {row['before'] - row['after']:.2f}"
            f" | {row['fp32']:,} | {row['onnx']:,} | {row['auto']:,} | **{times['auto']:.1f}×** | {row['huffman']:,} | {times['huffman']:.1f}×"
            f" | {row['xz']:,} | {peer} | {row['seconds']:.0f} |"
        )
    return lines


def write(rows: list[dict[str, Any]], peers: list[dict[str, Any]]) -> None:
    """The files, of what there is so far."""
    lines = table(rows)
    for network in NETWORKS:
        times, before, after = network.paper
        lines.append(
            f"| {network.name} | the paper, retrained with labels | {100 - before:.2f} → {100 - after:.2f} | {after - before:.2f} | | | | | | {times}× | | | |"
        )
    if peers:
        lines += [
            "",
            "NNCodec on float weights, quantized by itself (its bitstream alone, without the graph):",
            "",
        ]
        lines += ["| network | weights of | qp | bytes | smaller | top-1 % |", "|" + "---|" * 6]
        lines += [
            f"| {one['network']} | {one['of']} | {one['qp']} | {one['bytes']:,} | {one['fp32'] / one['bytes']:.1f}× | {one['after']:.2f} |"
            for one in peers
        ]
    (HERE / "deep_compression.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = {"ours": rows, "nncodec": peers}
    (HERE / "deep_compression.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Runs everything and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="networks whose name contains this")
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="folder of mnist_calib.npz and mnist_eval.npz"
    )
    parser.add_argument("--nncodec", help="an interpreter that has nncodec")
    words = parser.parse_args(argv)
    if not (words.cache / "mnist_eval.npz").exists():
        parser.error(f"{words.cache} holds no data: python models/train_lenet.py npz --cache {words.cache}")
    evaluation = dict(np.load(words.cache / "mnist_eval.npz"))
    rows: list[dict[str, Any]] = []
    peers: list[dict[str, Any]] = []
    for network in NETWORKS:
        if words.only and words.only not in network.name:
            continue
        for zeros, bits in network.recipes:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                row = ours(network, zeros, bits, folder, words.cache, keep_sparse=bool(words.nncodec))
                if words.nncodec:
                    row["nncodec"] = indices(words.nncodec, folder / "small.onnx", folder)
                    for what, path in (
                        ("sparse " + row["recipe"].split(",")[0], folder / "sparse.onnx"),
                        ("original", MODELS / f"{network.name}.onnx"),
                    ):
                        if what == "original" and zeros != network.recipes[0][0]:
                            continue
                        made = quantized(words.nncodec, path, folder, evaluation)
                        peers += [
                            {"network": network.name, "of": what, "fp32": row["fp32"], **one} for one in made
                        ]
            rows.append(row)
            print(table([row])[-1], flush=True)
            write(rows, peers)
