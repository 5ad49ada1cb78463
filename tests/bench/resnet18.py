"""Trains the ResNet-18 that `lowrank` compares with tensorly on: `python -m tests.bench resnet18 --out resnet18.onnx [--epochs N]`.

scikit-learn's digits, 8 x 8, enlarged to 3 x 64 x 64: 1,437 of them to train, 360 to judge by. Needs torch (extra `zoo`). Some minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

HELD = 360
SIDE = 64
BATCH = 32
RATE = 2e-3
OPSET = 17


def digits() -> tuple[Array, Array, Array, Array]:
    """Images (n, 3, 64, 64) from 0 to 1 and labels (n,): to train, then to judge by."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    small = found.images[order].astype(np.float32) / 16
    large = np.kron(small, np.ones((1, SIDE // 8, SIDE // 8), np.float32))
    images = np.repeat(large[:, None], 3, axis=1)
    labels = found.target[order]
    return images[:-HELD], labels[:-HELD], images[-HELD:], labels[-HELD:]


def network() -> Any:
    """He et al. 2016, arXiv:1512.03385, of 18 layers and ten classes, in torch."""
    import torch
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]
        """Two 3 x 3 convolutions and a shortcut."""

        def __init__(self, inputs: int, width: int, stride: int) -> None:
            super().__init__()
            self.branch = nn.Sequential(
                nn.Conv2d(inputs, width, 3, stride, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, 1, 1, bias=False),
                nn.BatchNorm2d(width),
            )
            same = inputs == width and stride == 1
            down = [nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)]
            self.shortcut = nn.Identity() if same else nn.Sequential(*down)

        def forward(self, x: Any) -> Any:
            return torch.relu(self.branch(x) + self.shortcut(x))

    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks = []
    inputs = 64
    for width in (64, 128, 256, 512):
        blocks += [Block(inputs, width, 1 if width == 64 else 2), Block(width, width, 1)]
        inputs = width
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def main(argv: list[str] | None = None) -> None:
    """Trains one net and writes it."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    words = parser.parse_args(argv)
    torch.manual_seed(0)
    net = network()
    images, labels, held, truth = map(torch.from_numpy, digits())
    steps = len(images) // BATCH
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, epochs=words.epochs, steps_per_epoch=steps
    )
    net.train()
    for _ in range(words.epochs):
        for batch in torch.randperm(len(images))[: steps * BATCH].split(BATCH):
            loss = torch.nn.functional.cross_entropy(net(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"loss {loss.item():.3f}", flush=True)
    net.eval()
    with torch.inference_mode():
        print(f"top-1 {100 * float((net(held).argmax(1) == truth).float().mean()):.2f} %")
    torch.onnx.export(
        net,
        (torch.zeros(2, 3, SIDE, SIDE),),
        str(words.out),
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
        opset_version=OPSET,
        dynamo=False,
    )


if __name__ == "__main__":
    main()
