"""Train the zoo on Fashion-MNIST and export it: `python models/train.py all`, or some names.

The Debian package `dataset-fashion-mnist` brings the data. Seeds are fixed, but another processor may sum in
another order: a rebuilt model should agree in accuracy, not in bytes.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from architectures import ARCHITECTURES, SIDE
from data import SOURCE, load, scale, write_npz
from torch import nn

HERE = Path(__file__).parent
OPSET = 17


@dataclass(frozen=True)
class Schedule:
    """How one model is trained."""

    epochs: int
    rate: float  # peak learning rate of the one-cycle schedule
    decay: float = 0.05  # weight decay of AdamW
    shift: int = 2  # pixels an image may move, in each direction
    half: bool = True  # forward pass in bfloat16


SCHEDULES = {
    "fashion_mlp": Schedule(epochs=40, rate=2e-3, shift=0),
    "fashion_resnet": Schedule(epochs=16, rate=4e-3),
    "fashion_mobilenet": Schedule(epochs=6, rate=4e-3, half=False),
    "fashion_densenet": Schedule(epochs=7, rate=4e-3),
    "fashion_vit": Schedule(epochs=14, rate=1e-3, shift=1),
    "fashion_lstm": Schedule(epochs=16, rate=2e-3, shift=1),
}
BATCH = 128
SMOOTHING = 0.05  # of the labels


def augment(pixels: torch.Tensor, shift: int) -> torch.Tensor:
    """Each image of `(N, 1, 28, 28)` moved by up to `shift` pixels, half of them mirrored; in 0..1."""
    count = len(pixels)
    padded = nn.functional.pad(pixels.squeeze(1), (shift,) * 4)
    offset = torch.randint(2 * shift + 1, (2, count, 1))
    rows, columns = torch.arange(SIDE) + offset
    mirrored = torch.rand(count, 1) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    sample = torch.arange(count)[:, None, None]
    return padded[sample, rows[:, :, None], columns[:, None, :]][:, None].float() / 255


def train(model: nn.Module, plan: Schedule, pixels: torch.Tensor, label: torch.Tensor) -> None:
    """Fit `model` in place by AdamW under a one-cycle schedule."""
    steps = len(pixels) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.rate, weight_decay=plan.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, plan.rate, epochs=plan.epochs, steps_per_epoch=steps, pct_start=0.2
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    model.train()
    for epoch in range(plan.epochs):
        start, total = time.perf_counter(), 0.0
        for batch in torch.randperm(len(pixels))[: steps * BATCH].split(BATCH):
            images = augment(pixels[batch], plan.shift)
            images = images.to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=plan.half):
                logits = model(images)
            loss = criterion(logits.float(), label[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - start
        print(f"  epoch {epoch + 1}: loss {total / steps:.4f}, {seconds:.0f} s")


@torch.inference_mode()
def accuracy(model: nn.Module, pixels: torch.Tensor, label: torch.Tensor) -> float:
    """Fraction of `pixels` that `model` classifies right."""
    model.eval()
    guesses = [model(part).argmax(1) for part in pixels.split(500)]
    return float((torch.cat(guesses) == label).float().mean())


def export(model: nn.Module, path: Path, *, fold: bool) -> None:
    """Write `model` as one ONNX file with a symbolic batch axis `N`.

    Without `fold`, BatchNormalization stays a node of its own, in its inference form.
    """
    mode = torch.onnx.TrainingMode
    torch.onnx.export(
        # contiguous, since the exporter would write the weights as channels_last leaves them
        model.eval().to(memory_format=torch.contiguous_format),
        (torch.zeros(2, 1, SIDE, SIDE),),
        str(path),
        input_names=["input"],
        output_names=["logits"],
        dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
        opset_version=OPSET,
        training=mode.EVAL if fold else mode.PRESERVE,
        do_constant_folding=fold,
        dynamo=False,
    )
    onnx.checker.check_model(str(path), full_check=True)


def build(name: str, data: Path, epochs: int | None) -> None:
    """Train one model and write it beside this script."""
    torch.manual_seed(0)
    plan = SCHEDULES[name]
    if epochs is not None:
        plan = replace(plan, epochs=epochs)
    model = ARCHITECTURES[name]().to(memory_format=torch.channels_last)
    pixels, label = load(data, "train")
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters")
    train(model, plan, torch.from_numpy(pixels.copy()), torch.from_numpy(label))
    export(model, HERE / f"{name}.onnx", fold=name != "fashion_resnet")
    pixels, label = load(data, "t10k")
    right = accuracy(model, torch.from_numpy(scale(pixels)), torch.from_numpy(label))
    print(f"  {right:.2%} of the test images")


def main() -> None:
    """Parse the command line and build what it names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=["all", "npz", *ARCHITECTURES])
    parser.add_argument("--data", type=Path, default=SOURCE)
    parser.add_argument("--epochs", type=int, help="instead of each model's own number")
    parser.add_argument("--threads", type=int, default=2)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    everything = "all" in words.names
    if everything or "npz" in words.names:
        write_npz(words.data, HERE)
    for name in ARCHITECTURES:
        if everything or name in words.names:
            build(name, words.data, words.epochs)


if __name__ == "__main__":
    main()
