"""Real models with a few bytes or fields changed at random."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hostile.case import good

ROOT = Path(__file__).parents[1] / "models"
TEXTS = [
    "attention",
    "if_branch",
    "lstm",
    "loop_body",
    "residual_add",
    "squeeze_excite",
    "tied_weights",
    "unet",
]
MODELS = ["good", *TEXTS, "fashion_mobilenet"]


@cache
def original(name: str) -> bytes:
    """A model, serialized."""
    if name == "good":
        return good().SerializeToString()
    if name.startswith("fashion"):
        return (ROOT / f"{name}.onnx").read_bytes()
    text = (ROOT / "tiny" / f"{name}.onnxtxt").read_text()
    return onnx.parser.parse_model(text).SerializeToString()


def mutant(name: str, rng: np.random.Generator) -> tuple[bytes, str]:
    """The model `name`, spoilt, and how in a word."""
    whole = original(name)
    if rng.random() < 0.4:
        return _bytes(bytearray(whole), rng)
    proto = onnx.ModelProto.FromString(whole)
    words = [_field(proto, rng) for _ in range(int(rng.integers(1, 4)))]
    return proto.SerializeToString(), "; ".join(words)


def _bytes(content: bytearray, rng: np.random.Generator) -> tuple[bytes, str]:
    """Bytes flipped, cut out, doubled or overwritten; more often at the ends, where a model's structure is."""
    for _ in range(int(rng.integers(1, 6))):
        at = int(len(content) * rng.random() ** rng.choice([0.3, 1.0, 3.0]))
        size = int(rng.integers(1, 9))
        match int(rng.integers(4)):
            case 0:
                content[at : at + 1] = bytes([int(rng.integers(256))])
            case 1:
                del content[at : at + size]
            case 2:
                content[at:at] = content[at : at + size]
            case _:
                content[at : at + size] = rng.choice([0, 1, 127, 128, 255], size).astype(np.uint8).tobytes()
    return bytes(content), "bytes"


def _messages(message: Any, depth: int = 0) -> list[Any]:
    """The message and those inside it."""
    found = [message]
    for field, value in message.ListFields():
        if field.message_type is not None and depth < 12:
            for item in value if field.is_repeated else [value]:
                found += _messages(item, depth + 1)
    return found


NUMBERS = (-1, 0, 1, 2, 3, 7, 100, 2**31 - 1, -(2**31))


def _field(proto: onnx.ModelProto, rng: np.random.Generator) -> str:
    """One field of one message is cleared, doubled, emptied, or gets another value."""
    messages = [message for message in _messages(proto) if message.ListFields()]
    message = messages[int(rng.integers(len(messages)))]
    fields = message.ListFields()
    field, value = fields[int(rng.integers(len(fields)))]
    name = f"{message.DESCRIPTOR.name}.{field.name}"
    try:
        return f"{name} {_changed(message, field, value, rng)}"
    except (ValueError, TypeError):
        message.ClearField(field.name)
        return f"{name} cleared"


def _changed(message: Any, field: Any, value: Any, rng: np.random.Generator) -> str:
    if field.is_repeated:
        at = int(rng.integers(len(value)))
        match int(rng.integers(4)):
            case 0:
                del value[at]
                return f"[{at}] gone"
            case 1 if field.message_type is not None:
                value.add().CopyFrom(value[at])
                return f"[{at}] twice"
            case 2 if field.message_type is None:
                value[at] = _other(value[at], rng)
                return f"[{at}] = {str(value[at])[:30]!r}"
            case _:
                items = [
                    type(item).FromString(item.SerializeToString()) if field.message_type else item
                    for item in value
                ]
                del value[:]
                value.extend([items[i] for i in rng.permutation(len(items))])
                return "in another order"
    if field.message_type is not None or rng.random() < 0.25:
        message.ClearField(field.name)
        return "cleared"
    setattr(message, field.name, _other(value, rng))
    return f"= {str(getattr(message, field.name))[:30]!r}"


def _other(value: Any, rng: np.random.Generator) -> Any:
    """Another value of the same type."""
    if isinstance(value, str):
        return str(rng.choice(["", "x", "y", value + "2", "Conv", "Loop", "a/b", "\0", value[::-1]]))
    if isinstance(value, bytes):
        cut = int(rng.integers(len(value) + 1))
        return value[:cut] if rng.random() < 0.5 else value + b"\xff" * int(rng.integers(1, 9))
    if isinstance(value, float):
        return float(rng.choice([0.0, -1.0, 1e38, np.nan, np.inf, 1e-45]))
    return int(rng.choice([*NUMBERS, value + 1, value - 1]))
