"""Graph inputs and outputs that carry integer codes: what the codes mean, as the model's metadata says it.

onnx_compress.io = {"image": {"type": "uint8", "scale": 0.0078, "zero_point": 128}, ...}      real = scale · (code − zero_point)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model

    Array = NDArray[Any]

KEY = "onnx_compress.io"


@dataclass(frozen=True)
class Edge:
    """The codes of one input or output."""

    type: str
    scale: float
    zero_point: int

    def encode(self, value: Array) -> Array:
        """The codes of float values; of anything else, itself: it is codes already.

        >>> Edge("uint8", 0.5, 10).encode(np.float32([-99, 0, 1.2, 999]))
        array([  0,  10,  12, 255], dtype=uint8)
        """
        if value.dtype.kind != "f":
            return value
        info = np.iinfo(self.type)
        codes = np.rint(value / np.float32(self.scale)) + self.zero_point
        clipped: Array = np.clip(codes, info.min, info.max).astype(self.type)
        return clipped

    def decode(self, codes: Array) -> Array:
        """The float32 values of codes."""
        real: Array = (codes.astype(np.int32) - self.zero_point).astype(np.float32) * np.float32(self.scale)
        return real


def edges(model: Model) -> dict[str, Edge]:
    """The inputs and outputs of `model` that carry codes."""
    text = next((entry.value for entry in model.proto.metadata_props if entry.key == KEY), None)
    if text is None:
        return {}
    try:
        return {str(name): Edge(**values) for name, values in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        return {}  # > somebody else's entry of that name


def record(model: Model, found: Mapping[str, Edge]) -> None:
    """Writes what the codes of these inputs and outputs mean into the metadata of `model`."""
    kept = [entry for entry in model.proto.metadata_props if entry.key != KEY]
    del model.proto.metadata_props[:]
    model.proto.metadata_props.extend(kept)
    text = json.dumps({name: vars(edge) for name, edge in found.items()}, sort_keys=True)
    model.proto.metadata_props.add(key=KEY, value=text)
