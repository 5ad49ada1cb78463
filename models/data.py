"""Fashion-MNIST as arrays, and the two npz files cut from it."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SOURCE = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
CALIBRATION = 512  # the first training images
EVALUATION = 2000  # the first test images; both sets come shuffled


def read_idx(path: Path) -> NDArray[np.uint8]:
    """What is in a gzipped IDX file."""
    return parse_idx(gzip.decompress(path.read_bytes()))


def parse_idx(content: bytes) -> NDArray[np.uint8]:
    """Bytes of an IDX file in their shape: two zeros, type, rank, then the big-endian sizes."""
    if content[:3] != b"\x00\x00\x08":
        message = "no IDX file of bytes"
        raise ValueError(message)
    rank = content[3]
    shape = np.frombuffer(content, ">u4", rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def load(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels `(samples, 1, 28, 28)` in 0..255 and classes `(samples,)`; `part` is `train` or `t10k`."""
    pixels = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    label = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    return pixels[:, np.newaxis], label.astype(np.int64)


def scale(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels in 0..1, as the models take them."""
    return pixels.astype(np.float32) / 255


def write_npz(folder: Path, target: Path) -> None:
    """Write the calibration inputs and the labelled evaluation samples, ready to feed."""
    pixels, _ = load(folder, "train")
    np.savez_compressed(target / "fashion_calib.npz", input=scale(pixels[:CALIBRATION]))
    pixels, label = load(folder, "t10k")
    np.savez_compressed(
        target / "fashion_eval.npz",
        input=scale(pixels[:EVALUATION]),
        label=label[:EVALUATION],
    )
