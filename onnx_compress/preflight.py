"""Whether a model can be worked on: it is valid, loads and runs; and the shape of every tensor, from running it if need be."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnx_compress.errors import InputError, LimitError, UsageError
from onnx_compress.model.check import check
from onnx_compress.model.shapes import Shape, dtypes, infer
from onnx_compress.model.sound import refuse_names_that_are_no_text
from onnx_compress.runtime.session import INLINE, Session, input_specs
from onnx_compress.runtime.workload import first_feeds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.runtime.data import Data

    Array = NDArray[Any]

PICTURES = ((48, 320), (32, 320), (64, 64), (32, 32), (224, 224), (256, 256), (640, 640))  # height, width
BATCH = 2  # samples: what a model that takes any number of them is tried with
CHUNK = 100  # tensors fetched by one run: their values are in memory together
# what onnxruntime says of an operator that it knows but has no kernel for, or of a domain that is not its own
_NOT_RUNNABLE = re.compile(
    r"NOT_IMPLEMENTED|Could not find an implementation|is not a registered function/op|not currently registered"
)


@dataclass(frozen=True)
class Preflight:
    """What one run showed.

    feeds: one batch that runs; shapes: of the tensors of the main graph at least, symbolic axes by name or None;
    dtypes: TensorProto types; runs: False where onnxruntime lacks an operator of the model, which is then a warning;
    single: True where the model runs on one sample at a time only, although its batch axis is symbolic.
    """

    feeds: dict[str, Array]
    shapes: dict[str, Shape]
    dtypes: dict[str, int]
    runs: bool = True
    single: bool = False
    warnings: list[str] = field(default_factory=list)
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def preflight(
    model: Model,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    data: Data | None = None,
    seed: int = 0,
    batch: int = 1,
    threads: int = 0,
) -> Preflight:
    """The model checked, loaded and run on the first batch of `data`, or on random inputs of `input_shapes`.

    Raises InputError where it is not valid, or does not load or run; UsageError where `input_shapes` does not fit it.
    """
    refuse_names_that_are_no_text(model.proto)
    check(model)
    if not model.proto.graph.output:
        raise InputError("the model has no outputs, so there is nothing to run or to compare")
    if input_shapes:
        infer(model, input_shapes)  # the words first: a wrong size is a UsageError
    session, why = _load(model, threads)
    if session is None:
        warning = f"the model cannot be run, so nothing is measured or verified: {why}"
        return Preflight({}, infer(model, input_shapes), dtypes(model), runs=False, warnings=[warning])
    given = dict(input_shapes or {})
    warnings = []
    feeds = first_feeds(model, given, data, seed, batch)
    try:
        session.run(feeds)
    except LimitError as error:
        how = "random inputs: give --data, or sizes with --input-shapes" if data is None else data.source
        usual = None if data is not None or given else _usual_shapes(model, session, seed)
        if usual is None:
            raise InputError(f"the model loads but does not run on {how}: {error}") from error
        given = usual
        feeds = first_feeds(model, given, data, seed, batch)
        words = " ".join(
            f"--input-shapes {name}:{','.join(map(str, shape))}" for name, shape in given.items()
        )
        warnings.append(f"sizes that the model runs with were found by trial: as if {words} had been given")
    shapes, types = _symbolic(model, feeds, threads)
    single = not _runs_in_batches(model, session, given, data, seed)
    return Preflight(feeds, shapes, types, single=single, warnings=warnings, input_shapes=given)


def _usual_shapes(model: Model, session: Session, seed: int) -> dict[str, tuple[int, ...]] | None:
    """Sizes of pictures that the model runs with, where the first guess was wrong; None where none of them is right."""
    pictures = [spec for spec in input_specs(model) if len(spec.shape) == 4 and spec.dtype.kind == "f"]
    for height, width in PICTURES:
        shapes = {}
        for spec in pictures:
            usual = (1, 3, height, width)
            shapes[spec.name] = tuple(
                size if isinstance(size, int) else guess
                for size, guess in zip(spec.shape, usual, strict=True)
            )
        try:
            session.run(first_feeds(model, shapes, None, seed, 1))
        except (LimitError, UsageError):
            continue
        return shapes or None
    return None


def _runs_in_batches(
    model: Model,
    session: Session,
    input_shapes: Mapping[str, tuple[int, ...]] | None,
    data: Data | None,
    seed: int,
) -> bool:
    """Exports often fix the batch in a Reshape and still declare it symbolic."""
    try:
        session.run(first_feeds(model, input_shapes, data, seed, BATCH))
    except LimitError:
        return False
    return True


def shapes_at(model: Model, feeds: Mapping[str, Array], threads: int = 0) -> dict[str, Shape]:
    """The shape of every tensor when the model is fed `feeds`: from inference, and where that stops from a run."""
    shapes = infer(model, {name: value.shape for name, value in feeds.items()})
    unknown = _unknown(model, shapes)
    return {**shapes, **{name: seen.shape for name, seen in _run(model, feeds, unknown, threads).items()}}


def _load(model: Model, threads: int) -> tuple[Session | None, str]:
    """A session, or why there can be none although the model is valid."""
    try:
        input_specs(model)
    except InputError as error:
        return None, str(error)
    try:
        # > it runs twice: laying a large model's weights out in blocks takes longer than that
        return Session(model, threads=threads, layout=model.nbytes <= INLINE), ""
    except InputError as error:
        if _NOT_RUNNABLE.search(str(error)) is None:
            raise
        return None, str(error)


def _symbolic(model: Model, feeds: dict[str, Array], threads: int) -> tuple[dict[str, Shape], dict[str, int]]:
    """Shapes with symbolic axes and types. What inference does not know is run twice, with different symbolic sizes:
    axes that differ are symbolic, the rest static.
    """
    shapes, types = infer(model), dtypes(model)
    unknown = _unknown(model, shapes)
    if not unknown:
        return shapes, types
    base = _run(model, feeds, unknown, threads)
    symbols = {
        (spec.name, axis): size
        for spec in input_specs(model)
        for axis, size in enumerate(spec.shape)
        if not isinstance(size, int)
    }
    other = _varied(model, feeds, symbols, unknown, threads) if symbols else base
    names, declared = _names(feeds, symbols), set(symbols.values()) - {None}
    for name, seen in base.items():
        if seen.dtype.kind not in "OU":
            types.setdefault(name, int(onnx.helper.np_dtype_to_tensor_dtype(seen.dtype)))
        again = other[name].shape if name in other else None
        shapes[name] = _merged(shapes.get(name), seen.shape, again, names, declared)
    return shapes, types


def _merged(
    inferred: Shape | None,
    base: tuple[int, ...],
    again: tuple[int, ...] | None,
    names: dict[tuple[int, int], str],
    declared: set[str | None],
) -> Shape:
    """One shape of what inference, a run and a run at other sizes say."""
    if again is None or len(again) != len(base):
        again = (-1,) * len(base)
    found: list[int | str | None] = [
        size if size == other else names.get((size, other)) for size, other in zip(base, again, strict=True)
    ]
    if inferred is None or len(inferred) != len(base):
        return tuple(found)
    return tuple(
        old if isinstance(old, int) or old in declared else new
        for old, new in zip(inferred, found, strict=True)
    )


def _varied(
    model: Model,
    feeds: dict[str, Array],
    symbols: Mapping[tuple[str, int], str | None],
    unknown: list[str],
    threads: int,
) -> dict[str, _Seen]:
    """The tensors with every symbolic axis doubled, or where the model does not run so, only the batch, or all but it."""
    batch = [(name, axis) for name, axis in symbols if axis == 0]
    for axes in (list(symbols), batch, [place for place in symbols if place not in batch]):
        doubled = dict(feeds)
        for name, axis in axes:
            doubled[name] = np.concatenate([doubled[name]] * 2, axis)
        try:
            return _run(model, doubled, unknown, threads)
        except (InputError, LimitError):
            continue
    return {}


def _names(
    feeds: Mapping[str, Array], symbols: Mapping[tuple[str, int], str | None]
) -> dict[tuple[int, int], str]:
    """The symbol that goes from one size to its double, where only one does."""
    found: dict[tuple[int, int], set[str]] = {}
    for (name, axis), symbol in symbols.items():
        size = feeds[name].shape[axis]
        found.setdefault((size, 2 * size), set()).add(symbol or "")
    return {sizes: next(iter(words)) for sizes, words in found.items() if len(words) == 1 and words != {""}}


def _unknown(model: Model, shapes: Mapping[str, Shape]) -> list[str]:
    """Tensors of the main graph with an axis that inference does not know, or only gives a symbol of its own."""
    declared = {size for spec in input_specs(model) for size in shapes.get(spec.name, spec.shape)} - {None}
    names = (name for node in model.proto.graph.node for name in node.output if name)
    return [
        name
        for name in names
        if name not in shapes
        or any(not isinstance(size, int) and size not in declared for size in shapes[name])
    ]


@dataclass(frozen=True)
class _Seen:
    """What a run showed of a tensor; its value is not kept."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def _run(model: Model, feeds: Mapping[str, Array], names: list[str], threads: int) -> dict[str, _Seen]:
    """Shape and type of these tensors; those that are no tensors are left out."""
    if not names:
        return {}
    session = Session(model, threads=threads, optimize=False, outputs=names)
    seen: dict[str, _Seen] = {}
    for at in range(0, len(names), CHUNK):
        values = session.run(feeds, names[at : at + CHUNK])
        seen |= {
            name: _Seen(value.shape, value.dtype)
            for name, value in values.items()
            if isinstance(value, np.ndarray)
        }
    return seen
