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
    """`found`, with the axes that have the same size at two sizes of every symbolic axis of the inputs."""
    inputs = {value.name: found.get(value.name) for value in model.proto.graph.input}
    named = {axis for shape in inputs.values() for axis in shape or () if not isinstance(axis, int)}
    axes = {axis for shape in found.values() for axis in shape if not isinstance(axis, int)}
    if not named or not axes - named | (axes & {None}):
        return found
    runs = []
    for size in _TRIAL_SIZES:
        fixed = {
            name: tuple(axis if isinstance(axis, int) else size for axis in shape)
            for name, shape in inputs.items()
            if shape is not None
        }
        runs.append(_all_shapes(model, fixed))
    names = found.keys() | set.intersection(*(set(run) for run in runs))
    agreed = {name: _agreed(found.get(name), [run.get(name) for run in runs]) for name in sorted(names)}
    return {name: shape for name, shape in agreed.items() if shape is not None}


_TRIAL_SIZES = (64, 192)  # multiples of what detectors stride by, below what most position tables hold


def _agreed(shape: Shape | None, trials: list[Shape | None]) -> Shape | None:
    """`shape`, its axes that have one size in all trials static; what has no rank without sizes gets that of the trials."""
    known = [trial for trial in trials if trial is not None]
    if len(known) < len(trials) or len({len(trial) for trial in [shape or known[0], *known]}) > 1:
        return shape
    if shape is None:
        shape = (None,) * len(known[0])
    first, *others = known
    return tuple(
        first[i]
        if not isinstance(axis, int) and isinstance(first[i], int) and all(t[i] == first[i] for t in others)
        else axis
        for i, axis in enumerate(shape)
    )


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
