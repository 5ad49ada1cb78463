"""The shape and the type of every tensor, as far as they are known without running the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from onnx_compress.errors import InputError, UsageError
from onnx_compress.model.inline_functions import BUDGET, expanded_nodes
from onnx_compress.model.sizes import fold_sizes
from onnx_compress.model.stand_ins import put_stand_ins
from onnx_compress.model.walk import graphs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from onnx_compress.model.document import Model

Shape = tuple[int | str | None, ...]
ROUNDS = 30  # of inference, each of which makes more sizes known: a Reshape can depend on the one before it


def infer(model: Model, input_shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Shape]:
    """The shape of every tensor whose rank is known: static axes as int, symbolic ones by name, unknown ones None.

    Inputs, outputs, weights and the tensors of If, Loop and Scan bodies are included; a name that two bodies use for
    different shapes is not. `input_shapes` gives the symbolic axes of inputs their sizes.
    Raises UsageError where `input_shapes` names no input or contradicts its declared shape; never where onnx merely
    cannot infer something.
    """
    found = _all_shapes(model, input_shapes)
    return found if input_shapes else _settled(model, found)


def _all_shapes(model: Model, input_shapes: Mapping[str, tuple[int, ...]] | None) -> dict[str, Shape]:
    found: dict[str, set[Shape]] = {}
    for graph in graphs(_inferred(model, input_shapes).graph):
        for name, shape in _shapes(graph):
            found.setdefault(name, set()).add(shape)
    return {name: shapes.pop() for name, shapes in found.items() if len(shapes) == 1}


def _settled(model: Model, found: dict[str, Shape]) -> dict[str, Shape]:
    """`found`, with the axes whose sizes at two sizes of every symbolic axis of the inputs tell what they are."""
    inputs = {value.name: found.get(value.name) for value in model.proto.graph.input}
    named = {axis for shape in inputs.values() for axis in shape or () if not isinstance(axis, int)}
    axes = {axis for shape in found.values() for axis in shape if not isinstance(axis, int)}
    if not named or not axes - named | (axes & {None}):
        return found
    symbols = dict(zip(sorted(filter(None, named)), _TRIAL_SIZES, strict=False))
    found = _tried(model, found, inputs, symbols)
    if len(symbols) > 1:  # where different names must have the same size, inference stops at different ones
        found = _tried(model, found, inputs, {})
    return found


# multiples of 32, by which detectors stride, below what most position tables hold, with no pattern in their differences
_TRIAL_SIZES = ((64, 192), (96, 416), (128, 288), (160, 352), (224, 448), (320, 480))


def _tried(
    model: Model,
    found: dict[str, Shape],
    inputs: Mapping[str, Shape | None],
    symbols: Mapping[str, tuple[int, int]],
) -> dict[str, Shape]:
    """`found`, with what two sizes of every symbol tell; of tensors that the second sizes make impossible, what nearer ones tell.

    A recognizer takes lines of about one height: at another, what it concatenates no longer fits together.
    """
    first, second = (_trial(model, inputs, symbols, run) for run in (0, 1))
    found = _agreed(found, [first, second], symbols)
    lost = first.keys() - second.keys()
    if not lost:
        return found
    near = {name: (low, low * 5 // 4) for name, (low, _) in {"": _TRIAL_SIZES[0], **symbols}.items()}
    left = {name: first[name] for name in lost}
    return _agreed(found, [left, _trial(model, inputs, near, 1)], near)


def _trial(
    model: Model, inputs: Mapping[str, Shape | None], symbols: Mapping[str, tuple[int, int]], run: int
) -> dict[str, Shape]:
    """All shapes with every symbolic axis of the inputs given the size that it has in this run."""

    def size(axis: int | str | None) -> int:
        return axis if isinstance(axis, int) else symbols.get(axis or "", _TRIAL_SIZES[0])[run]

    fixed = {name: tuple(map(size, shape)) for name, shape in inputs.items() if shape is not None}
    return _all_shapes(model, fixed)


def _agreed(
    found: Mapping[str, Shape], trials: list[dict[str, Shape]], symbols: Mapping[str, tuple[int, int]]
) -> dict[str, Shape]:
    """`found`, an axis of one size in both trials being static, one of the sizes of a symbol being that symbol."""
    names = {sizes: name for name, sizes in symbols.items()}
    result = dict(found)
    for tensor in sorted(trials[0].keys() & trials[1].keys()):
        first, second = trials[0][tensor], trials[1][tensor]
        shape = found.get(tensor, (None,) * len(first))
        if not len(first) == len(second) == len(shape):
            continue
        axes: list[int | str | None] = []
        for axis, a, b in zip(shape, first, second, strict=True):
            if isinstance(axis, int) or axis in symbols or not isinstance(a, int) or not isinstance(b, int):
                axes.append(axis)
            else:
                axes.append(a if a == b else names.get((a, b), axis))
        result[tensor] = tuple(axes)
    return result


def dtypes(model: Model) -> dict[str, int]:
    """The element type (TensorProto.DataType) of every tensor whose type is known, as `infer` gives shapes."""
    found: dict[str, set[int]] = {}
    for graph in graphs(_inferred(model, None).graph):
        for value in [*graph.input, *graph.value_info, *graph.output]:
            if value.type.tensor_type.elem_type:
                found.setdefault(value.name, set()).add(int(value.type.tensor_type.elem_type))
        for tensor in graph.initializer:
            found.setdefault(tensor.name, set()).add(int(tensor.data_type))
    return {name: types.pop() for name, types in found.items() if len(types) == 1}


def shape_of(value: onnx.ValueInfoProto) -> Shape | None:
    """The declared shape of a tensor, None where its rank is unknown or it is no tensor."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(_axis(dim) for dim in value.type.tensor_type.shape.dim)


def _axis(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return str(dim.dim_param) or None


def _shapes(graph: onnx.GraphProto) -> Iterator[tuple[str, Shape]]:
    weights = {tensor.name for tensor in graph.initializer}
    for tensor in graph.initializer:
        yield tensor.name, tuple(int(size) for size in tensor.dims)
    for sparse in graph.sparse_initializer:
        yield sparse.values.name, tuple(int(size) for size in sparse.dims)
    for value in [*graph.input, *graph.value_info, *graph.output]:
        shape = shape_of(value)
        if shape is not None and value.name not in weights:
            yield value.name, shape


def _inferred(model: Model, input_shapes: Mapping[str, tuple[int, ...]] | None) -> onnx.ModelProto:
    """The skeleton with the value_info that onnx infers, or as it is where onnx stops."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    if not _expands(proto):
        del proto.functions[:]  # > onnx would follow every call, without end
    put_stand_ins(proto.graph)
    known = {value.name: value for value in proto.graph.value_info}
    if input_shapes:
        _fix(proto, input_shapes)
        # > recorded shapes may hold the sizes of another run: what onnx infers goes first
        del proto.graph.value_info[:]
    for _ in range(ROUNDS if input_shapes else 0):
        if not fold_sizes(proto, dict(_shapes(_infer(proto, {}).graph))):
            break
    return _infer(proto, known, keep=not input_shapes)


def _infer(
    proto: onnx.ModelProto, known: Mapping[str, onnx.ValueInfoProto], *, keep: bool = False
) -> onnx.ModelProto:
    """`proto` with the value_info that onnx infers, and of `known` what it does not."""
    for data_prop in (True, False):
        try:
            result = onnx.shape_inference.infer_shapes(proto, data_prop=data_prop)
        except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError):
            continue
        present = {value.name for value in result.graph.value_info}
        result.graph.value_info.extend(value for name, value in known.items() if name not in present)
        return result
    proto.graph.value_info.extend(known[name] for name in known if not keep)
    return proto


def _expands(proto: onnx.ModelProto) -> bool:
    """Whether the functions of `proto` end, and soon."""
    try:
        return expanded_nodes(proto) <= BUDGET
    except InputError:
        return False


def _fix(proto: onnx.ModelProto, input_shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Gives inputs their sizes, and every axis named like one of theirs the same size."""
    inputs = {value.name: value for value in proto.graph.input}
    sizes: dict[str, int] = {}
    for name, given in input_shapes.items():
        if name not in inputs:
            raise UsageError(f"no input named {name!r}; inputs: {', '.join(inputs)}")
        value = inputs[name]
        declared = shape_of(value)
        fits = declared is None or (
            len(declared) == len(given)
            and all(not isinstance(d, int) or d == g for d, g in zip(declared, given, strict=True))
        )
        if not fits:
            raise UsageError(f"input {name!r} is {_words(declared)}, not {_words(given)}")
        for axis, size in zip(declared or (), given, strict=bool(declared)):
            if isinstance(axis, str):
                sizes.setdefault(axis, size)
        _set_shape(value, given)
    for graph in graphs(proto.graph):
        for value in [*graph.input, *graph.value_info, *graph.output]:
            for dim in value.type.tensor_type.shape.dim if shape_of(value) else ():
                if dim.dim_param in sizes:
                    dim.dim_value = sizes[dim.dim_param]


def _set_shape(value: onnx.ValueInfoProto, sizes: tuple[int, ...]) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    shape.SetInParent()
    for size in sizes:
        shape.dim.add(dim_value=size)


def _words(shape: Shape | None) -> str:
    return "x".join("?" if axis is None else str(axis) for axis in shape or ()) or "a scalar"
