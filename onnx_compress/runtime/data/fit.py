"""Whether arrays fit a model's inputs, and how: as rows, as stacked feeds, or as one feed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnx_compress.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from onnx_compress.runtime.session import InputSpec

    Array = NDArray[Any]
    Layout = Literal["rows", "stacked", "feed"]


def batch_size(specs: Sequence[InputSpec]) -> int | Literal["none"] | None:
    """The batch size that the inputs declare: a number, None where it is free, "none" where they share no batch axis.

    A first axis of size 0 counts no samples.
    """
    sizes = {spec.shape[0] if spec.shape and spec.shape[0] != 0 else "none" for spec in specs}
    fixed = {size for size in sizes if isinstance(size, int)}
    if "none" in sizes or len(fixed) > 1 or (fixed and len(sizes) > 1):
        return "none"
    return fixed.pop() if fixed else None


def layout(specs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]], where: str) -> Layout:
    """How arrays of these shapes feed the inputs `specs`.

    "rows": axis 0 of every array counts samples and is the model's batch axis; "stacked": one axis 0 more than the
    model's, each index a whole feed; "feed": the arrays are one feed. A scalar input given as a scalar goes with every
    sample. Raises InputError where an array is missing or its shape fits in no way.
    """
    missing = [spec.name for spec in specs if spec.name not in shapes]
    if missing:
        found = ", ".join(repr(name) for name in shapes) or "nothing"
        raise InputError(f"{where}: no array for input {missing[0]!r}; found {found}")
    specs = [_ranked(spec, shapes[spec.name]) for spec in specs]
    counted = [spec for spec in specs if spec.shape or shapes[spec.name]]
    if not counted:
        return "feed"
    extra = {len(shapes[spec.name]) - len(spec.shape) for spec in counted}
    counts = {shapes[spec.name][0] if shapes[spec.name] else None for spec in counted}
    kind: Layout = "feed"
    if extra == {1} and len(counts) == 1:
        kind = "stacked"
    elif extra == {0} and len(counts) == 1 and batch_size(counted) != "none":
        kind = "rows"
    for spec in counted:
        _check_shape(spec, shapes[spec.name], kind, where)
    return kind


def _ranked(spec: InputSpec, shape: tuple[int, ...]) -> InputSpec:
    """An input of unknown rank (declared as a scalar, given with two axes or more) takes the rank of its array."""
    return spec if spec.shape or len(shape) < 2 else replace(spec, shape=(None,) * len(shape))


def _check_shape(spec: InputSpec, shape: tuple[int, ...], kind: Layout, where: str) -> None:
    given = shape[1:] if kind in ("rows", "stacked") else shape
    declared = spec.shape[1:] if kind == "rows" else spec.shape
    # > an empty array holds nothing to learn from, unless the model takes no other
    fits = len(given) == len(declared) and all(
        want == size or (size and not isinstance(want, int))
        for want, size in zip(declared, given, strict=True)
    )
    if fits:
        return
    expected = "(" + ", ".join("?" if size is None else str(size) for size in spec.shape) + ")"
    if kind == "rows":
        expected += ", axis 0 = samples"
    raise InputError(f"{where}: input {spec.name!r} takes {expected}, but the array has shape {shape}")


def check_type(spec: InputSpec, dtype: np.dtype[Any], where: str) -> None:
    """Raises InputError unless values of `dtype` can be cast to the input's type: the same kind of number."""
    if _kind(dtype) != _kind(spec.dtype):
        raise InputError(f"{where}: input {spec.name!r} takes {spec.dtype}, but the array holds {dtype}")


def convert(spec: InputSpec, value: Array, where: str) -> Array:
    """`value` in the input's type, contiguous.

    Raises InputError for NaN, infinity, or a number out of the type's range.
    """
    if _kind(value.dtype) == "float" and not np.isfinite(value.astype(np.float64, copy=False)).all():
        raise InputError(f"{where}: the array for input {spec.name!r} holds NaN or infinite values")
    if value.dtype == spec.dtype:
        return np.ascontiguousarray(value).reshape(value.shape)
    if _kind(value.dtype) == "integer" and value.size:
        low, high = int(value.min()), int(value.max())
        info = np.iinfo(spec.dtype)
        if low < info.min or high > info.max:
            raise InputError(
                f"{where}: input {spec.name!r} takes {spec.dtype}, but the array holds values {low} to {high}"
            )
    with np.errstate(over="ignore"):
        found: Array = value.astype(spec.dtype)
    if _kind(spec.dtype) == "float" and not np.isfinite(found.astype(np.float64, copy=False)).all():
        raise InputError(f"{where}: input {spec.name!r} takes {spec.dtype}, whose range the array exceeds")
    return found


def common_batch(specs: Sequence[InputSpec], kinds: Iterable[Layout]) -> int | None:
    """The batch size to be kept to: the declared one where all is rows, else None."""
    if set(kinds) != {"rows"}:
        return None
    size = batch_size([spec for spec in specs if spec.shape])
    return size if isinstance(size, int) else None


def _kind(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "iu":
        return "integer"
    if dtype.kind in "SUO":
        return "string"
    # ml_dtypes types (bfloat16, float8) are of kind V
    return {"f": "float", "V": "float", "b": "boolean"}.get(dtype.kind, dtype.name)
