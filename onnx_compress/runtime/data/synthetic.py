"""Random inputs of the declared types and shapes, plausible enough to run a model by them."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.errors import InputError
from onnx_compress.model.document import tensors
from onnx_compress.runtime.data.batches import Data
from onnx_compress.runtime.data.fit import batch_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.runtime.session import InputSpec

    Array = NDArray[Any]

IMAGE, SEQUENCE, WIDTH = 224, 32, 512  # sizes for symbolic axes: of pictures, of token ids, of anything else
MOST = 2**32  # values of one made-up input: more are no model's that runs here
VOCABULARY = 100  # token ids where the embedding table is not found
STEPS = {"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Clip", "Flatten"}


class Random:
    """A reader of made-up samples; a sample depends on the seed and its number only."""

    def __init__(
        self,
        specs: Sequence[InputSpec],
        samples: int,
        seed: int,
        shapes: Mapping[str, tuple[int, ...]],
        tables: Mapping[str, int],
    ) -> None:
        self.specs = specs
        self.shapes = _sizes(specs, shapes)
        self.seed = seed
        self.tables = tables
        size = batch_size(specs)
        self.rows = size != "none"
        self.fixed = size if isinstance(size, int) else None
        count = max(samples, self.fixed or 1)
        self.groups = np.zeros(count, int) if self.rows else np.arange(count)

    def read(self, rows: Array) -> dict[str, Array]:
        """The inputs of these samples."""
        feeds = [self._sample(int(row)) for row in rows]
        if not self.rows:
            return feeds[0]
        return {spec.name: np.concatenate([feed[spec.name] for feed in feeds]) for spec in self.specs}

    def targets(self) -> dict[str, Array]:
        """None: nothing is known of made-up samples."""
        return {}

    def _sample(self, row: int) -> dict[str, Array]:
        rng = np.random.default_rng([self.seed, row])
        shapes = {
            s.name: (1, *self.shapes[s.name][1:]) if self.rows else self.shapes[s.name] for s in self.specs
        }
        length = next((s[1] for s in shapes.values() if len(s) > 1), 1)
        return {
            spec.name: _draw(spec, shapes[spec.name], length, self.tables.get(spec.name), rng)
            for spec in self.specs
        }


def random_data(
    specs: Sequence[InputSpec],
    samples: int,
    seed: int = 0,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    model: Model | None = None,
) -> Data:
    """`samples` made-up samples for the inputs `specs`, or the batch that the model demands; the same seed gives the same ones.

    input_shapes: the sizes of symbolic axes; model: to find the size of the table that token ids look up.
    Images and other floats are smooth fields of unit variance, ids are words of the vocabulary, masks are ones, types of
    token zeros, positions count up, lengths are the length, recurrent states are zeros.
    """
    reader = Random(specs, samples, seed, input_shapes or {}, table_sizes(model) if model else {})
    return Data.of("random inputs", reader, fixed=reader.fixed, samples=samples, random=True)


def table_sizes(model: Model) -> dict[str, int]:
    """For each graph input whose values look up rows of a weight (Gather), how many rows there are."""
    graph = model.proto.graph
    rows = {t.name: t.dims[0] for t in graph.initializer if len(t.dims) > 1}
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            rows[node.output[0]] = next((t.dims[0] for t in tensors(node) if len(t.dims) > 1), 0)
    origin = {value.name: value.name for value in graph.input}
    sizes: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in STEPS and node.input and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if node.op_type == "Gather" and axis == 0 and rows.get(node.input[0]) and node.input[1] in origin:
            name = origin[node.input[1]]
            sizes[name] = min(sizes.get(name, 2**31), rows[node.input[0]])
    return sizes


def _sizes(specs: Sequence[InputSpec], given: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """A number for every axis; one symbol has one size throughout."""
    known: dict[str, int] = {}
    for spec in specs:
        pairs = zip(spec.shape, given.get(spec.name, ()), strict=False)
        known.update({size: number for size, number in pairs if isinstance(size, str)})
    result = {}
    for spec in specs:
        shape: list[int] = []
        for axis, size in enumerate(spec.shape):
            if isinstance(size, int):
                number = size
            elif spec.name in given and axis < len(given[spec.name]):
                number = given[spec.name][axis]
            else:
                number = _guess(spec, axis)
                if isinstance(size, str):
                    number = known.setdefault(size, number)
            shape.append(number)
        if math.prod(shape) > MOST:
            raise InputError(
                f"input {spec.name!r} has {math.prod(shape)} values: give data, or smaller sizes with --input-shapes"
            )
        result[spec.name] = tuple(shape)
    return result


def _guess(spec: InputSpec, axis: int) -> int:
    """A usual size for a symbolic axis."""
    symbol = str(spec.shape[axis] or "").lower()
    rank = len(spec.shape)
    if axis == 0 or "batch" in symbol or (axis == 1 and _is(spec, _STATE)):
        return 1
    if rank == 4 and spec.dtype.kind in "fu":
        last = isinstance(spec.shape[3], int) and spec.shape[3] in (1, 3, 4)
        return 3 if axis == (3 if last else 1) else IMAGE
    # > two axes of floats are waveforms or features: the first layer of a voice model needs more than a sequence of ids
    return SEQUENCE if spec.dtype.kind in "iu" or rank == 3 else WIDTH


_STATE = r"(^|_)(h|c|state|hidden|cell|past|cache|memory)(_?\d+|_in|$|_)"
_MASK = r"mask"
_ZERO = r"token_?type|segment|past"
_POSITION = r"position|pos_ids"
_LENGTH = r"len(gth)?s?($|_)|num_frames"
_RATE = r"^sr$|sample_?rate"
_POWERS = "float8_e8m0fnu"  # has neither sign nor zero


def _draw(
    spec: InputSpec, shape: tuple[int, ...], length: int, rows: int | None, rng: np.random.Generator
) -> Array:
    """One sample of an input. rows: of the table it looks up, where that is known."""
    kind = spec.dtype.kind
    if _is(spec, _MASK):
        return np.ones(shape, spec.dtype)
    if kind in "OUS":
        return np.full(shape, "a", object)
    if kind == "b":
        return np.asarray(rng.random(shape) < 0.5)
    if kind not in "iu":
        value = np.zeros(shape) if _is(spec, _STATE) else _field(shape, rng)
        if spec.dtype.name == _POWERS:
            value = np.maximum(np.abs(value), 2.0**-126)
        return value.astype(spec.dtype)
    if _is(spec, _ZERO):
        return np.zeros(shape, spec.dtype)
    if _is(spec, _POSITION):
        count = np.arange(shape[-1] if shape else 1) % (rows or 2**31)
        return np.broadcast_to(count if shape else count[0], shape).astype(spec.dtype)
    if _is(spec, _LENGTH):
        return np.full(shape, length, spec.dtype)
    if _is(spec, _RATE):
        return np.full(shape, 16000, spec.dtype)
    if spec.dtype.itemsize == 1:
        info = np.iinfo(spec.dtype)
        return rng.integers(info.min, min(info.max, (rows or 256) - 1), shape, spec.dtype, endpoint=True)
    # 0 is padding in most vocabularies
    return rng.integers(1 if (rows or VOCABULARY) > 1 else 0, rows or VOCABULARY, shape).astype(spec.dtype)


def _field(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Normal noise, smooth along the last axes of an image, since white noise excites nothing that a picture does."""
    noise = rng.standard_normal(shape, np.float32)
    if len(shape) != 4 or min(shape[2:]) < 8:
        return noise
    coarse = rng.standard_normal((*shape[:2], 8, 8), np.float32)
    rows = np.arange(shape[2]) * 8 // shape[2]
    columns = np.arange(shape[3]) * 8 // shape[3]
    return np.float32(0.9) * coarse[:, :, rows[:, None], columns] + np.float32(0.4) * noise


def _is(spec: InputSpec, pattern: str) -> bool:
    return re.search(pattern, spec.name.lower()) is not None
