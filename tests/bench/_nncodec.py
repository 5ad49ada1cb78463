"""Runs in the environment that has NNCodec: `python _nncodec.py WEIGHTS.npz DECODED.npz QP`; prints the bytes of the bitstream.

Integer arrays are coded as they are, floats are quantized with the step that QP says.
"""

import contextlib
import io
import sys
import tempfile
from unittest.mock import MagicMock

import numpy as np

# > nncodec imports its image models; arrays need none, and torchvision seldom fits the torch that is there
for name in ("", ".transforms", ".datasets", ".models", ".io", ".utils"):
    sys.modules.setdefault(f"torchvision{name}", MagicMock())

from nncodec import nn  # noqa: E402 - after what stands in for its imports


def main(source: str, target: str, qp: int) -> None:
    """Encode, decode and say how many bytes it took."""
    weights = dict(np.load(source).items())
    quiet = contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, quiet:
        stream = nn.encode(weights, {"qp": qp, "results": folder, "verbose": False}, incremental=True)
        decoded = nn.decode(stream, {"verbose": False})
    np.savez(target, **{name: np.asarray(value) for name, value in decoded.items()})
    print(len(stream))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
