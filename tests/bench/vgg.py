"""Trains what `lowrank` measures speed on: `python -m tests.bench vgg --out vgg.onnx [--images N] [--epochs N]`.

A VGG-like net for Fashion-MNIST, 3x3 convolutions of 64 to 512 channels, by the zoo's own training script. Needs torch (extra
`zoo`) and the Debian package that `models/data.py` names. Some minutes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

MODELS = Path(__file__).parents[2] / "models"
WIDTHS = (64, 0, 128, 0, 256, 256, 512, 0, 512)  # 0: a pooling


def main(argv: list[str] | None = None) -> None:
    """Trains one net and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=30000)
    parser.add_argument("--epochs", type=int, default=2)
    words = parser.parse_args(argv)
    sys.path.insert(0, str(MODELS))
    import torch
    from data import SOURCE, load, scale
    from torch import nn
    from train import Schedule, accuracy, export, train

    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = 1
    for width in WIDTHS:
        if not width:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    pixels, label = load(SOURCE, "train")
    count = words.images
    plan = Schedule(words.epochs, rate=2e-3)
    train(net, plan, torch.from_numpy(pixels[:count].copy()), torch.from_numpy(label[:count]))
    pixels, label = load(SOURCE, "t10k")
    found = accuracy(net, torch.from_numpy(scale(pixels[:2000])), torch.from_numpy(label[:2000]))
    print(f"top-1 {100 * found:.2f} %")
    export(net, words.out, fold=True)


if __name__ == "__main__":
    main()
