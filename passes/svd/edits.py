"""The edits: a layer's node becomes a row of thinner ones, whose weights are its factors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.svd.layers import bias_holder, is_left, name_of, weight_of
from onnx_compress.runtime.layers import weight_from_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_graphsurgeon as gs
    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.passes.svd.factors import Factors

    Array = NDArray[Any]
    Step = tuple[str, Array, dict[str, Any]]  # op, weight, attributes


def apply_factors(model: Model, plan: Mapping[str, Factors]) -> Model:
    """A model in which the layer that writes each tensor of `plan` is replaced by its factors."""
    surgery = Surgery(model)
    nodes = [node for node in surgery.graph.nodes if name_of(node) in plan]
    for node in nodes:
        replace_node(surgery, node, plan[name_of(node)])
    return surgery.commit()


def replace_node(surgery: Surgery, node: gs.Node, factors: Factors) -> None:
    """`factors` take the place of `node` in the main graph."""
    weight = weight_of(node)
    assert weight is not None
    kind = weight.values.dtype
    if factors.shift is not None:
        _shift_bias(surgery, node, factors.shift.astype(kind))
    if factors.method == "dense":
        _put_weight(surgery, node, factors.parts[0], kind)
        return
    if node.op in ("LSTM", "GRU", "RNN"):
        _narrow_input(surgery, node, factors, kind)
        return
    steps = _STEPS[node.op](node, factors)
    surgery.replace(surgery.graph, node, _chain(surgery, node, steps, kind))


def _chain(surgery: Surgery, node: gs.Node, steps: Sequence[Step], kind: np.dtype[Any]) -> list[gs.Node]:
    """The nodes in a row; the last takes the bias and, once placed, the outputs of `node`."""
    name = node.name or node.outputs[0].name
    weight = weight_of(node)
    source = next(tensor for tensor in node.inputs[:2] if tensor is not weight)
    left = node.inputs[0] is weight and node.op != "Gather"
    made = []
    for number, (op, value, attrs) in enumerate(steps):
        constant = surgery.constant(f"{name}_weight_{number}", np.ascontiguousarray(value.astype(kind)))
        inputs = [constant, source] if op == "Gather" else [constant, source] if left else [source, constant]
        if number == len(steps) - 1:
            inputs += node.inputs[2:]
        elif op == "Gemm" and surgery.graph.opset < OPTIONAL_BIAS:
            inputs.append(surgery.constant(f"{name}_nothing", np.zeros(1, kind)))
        made.append(surgery.node(op, f"{name}_{_ORDINALS[number]}", inputs, **attrs))
        source = made[-1].outputs[0]
    return made


OPTIONAL_BIAS = 11  # the opset from which a Gemm need not add anything
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")


def _conv(node: gs.Node, factors: Factors) -> list[Step]:
    weight = weight_of(node)
    assert weight is not None
    kernel = tuple(weight.values.shape[2:])
    make = {"svd": _channel, "spatial": _spatial, "tucker2": _tucker, "cp": _polyadic}[factors.method]
    return [
        ("Conv", part.reshape(-1, *part.shape[2:]), {**attrs, "kernel_shape": list(part.shape[3:])})
        for part, attrs in make(node.attrs, kernel, factors.parts)
    ]


def _channel(
    attrs: dict[str, Any], kernel: tuple[int, ...], parts: Sequence[Array]
) -> list[tuple[Array, dict[str, Any]]]:
    """K x k to r channels, then 1 x 1. Weights as (groups, outputs, inputs, kernel...)."""
    one = parts[0].reshape(*parts[0].shape[:2], -1, *kernel)
    return [(one, dict(attrs)), (_pointwise(parts[1], kernel), _grouped(attrs))]


def _spatial(
    attrs: dict[str, Any], kernel: tuple[int, ...], parts: Sequence[Array]
) -> list[tuple[Array, dict[str, Any]]]:
    """Along the first axis, then along the others."""
    one = parts[0].reshape(*parts[0].shape, *(1,) * (len(kernel) - 1))
    two = parts[1].reshape(*parts[1].shape[:3], 1, *kernel[1:])
    return [(one, _along(attrs, kernel, {0})), (two, _along(attrs, kernel, set(range(1, len(kernel)))))]


def _tucker(
    attrs: dict[str, Any], kernel: tuple[int, ...], parts: Sequence[Array]
) -> list[tuple[Array, dict[str, Any]]]:
    first, core, last = parts
    middle = core.reshape(*core.shape[:3], *kernel)
    return [
        (_pointwise(first, kernel), _grouped(attrs)),
        (middle, dict(attrs)),
        (_pointwise(last, kernel), _grouped(attrs)),
    ]


def _polyadic(
    attrs: dict[str, Any], kernel: tuple[int, ...], parts: Sequence[Array]
) -> list[tuple[Array, dict[str, Any]]]:
    """The kernel's axes one by one, depthwise: as many groups as there are components."""
    steps = [(_pointwise(parts[0], kernel), _grouped(attrs))]
    for axis, part in enumerate(parts[1:-1]):
        shape = [1] * len(kernel)
        shape[axis] = kernel[axis]
        along = {**_along(attrs, kernel, {axis}), "group": part.shape[0] * part.shape[1]}
        steps.append((part.reshape(*part.shape[:2], 1, *shape), along))
    return [*steps, (_pointwise(parts[-1], kernel), _grouped(attrs))]


def _pointwise(part: Array, kernel: tuple[int, ...]) -> Array:
    return part.reshape(*part.shape, *(1,) * len(kernel))


def _grouped(attrs: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a 1 x 1 Conv beside the one that keeps `attrs`."""
    return {"group": attrs["group"]} if attrs.get("group", 1) > 1 else {}


def _along(attrs: dict[str, Any], kernel: tuple[int, ...], axes: set[int]) -> dict[str, Any]:
    """The attributes of the part of a Conv that works along `axes` only."""
    half = dict(attrs)
    for other in set(range(len(kernel))) - axes:
        for key in ("strides", "dilations"):
            if key in half:
                half[key] = list(half[key])
                half[key][other] = 1
        if "pads" in half:
            half["pads"] = list(half["pads"])
            half["pads"][other] = half["pads"][other + len(kernel)] = 0
    return half


def _transposed(node: gs.Node, factors: Factors) -> list[Step]:
    """A 1 x 1 Conv to r channels, then the ConvTranspose from these."""
    weight = weight_of(node)
    assert weight is not None
    kernel = tuple(weight.values.shape[2:])
    first, second = factors.parts
    one = _pointwise(first, kernel)
    return [
        (
            "Conv",
            one.reshape(-1, *one.shape[2:]),
            {**_grouped(node.attrs), "kernel_shape": [1] * len(kernel)},
        ),
        ("ConvTranspose", weight_from_rows(node, second, kernel), dict(node.attrs)),
    ]


def _gemm(node: gs.Node, factors: Factors) -> list[Step]:
    """Gemm's alpha is in the factors, its beta stays with the bias."""
    one, two = factors.parts[0][0], factors.parts[1][0]
    flag, other = ("transA", "transB") if node.inputs[0] is weight_of(node) else ("transB", "transA")
    flipped = bool(node.attrs.get(flag, 0))
    keep = {flag: 1} if flipped else {}
    # a weight on the right is stored (K, N) unless flipped, one on the left (N, K)
    turn = flipped == (flag == "transA")
    before = {**keep, **{key: value for key, value in node.attrs.items() if key == other}}
    after = {**keep, **{key: value for key, value in node.attrs.items() if key == "beta"}}
    return [("Gemm", one.T if turn else one, before), ("Gemm", two.T if turn else two, after)]


def _matmul(node: gs.Node, factors: Factors) -> list[Step]:
    weight = weight_of(node)
    assert weight is not None
    stack = tuple(weight.values.shape[:-2])
    steps: list[Step] = []
    for part in factors.parts:
        value = part if is_left(node) else part.swapaxes(1, 2)
        steps.append(("MatMul", value.reshape(*stack, *value.shape[1:]), {}))
    return steps


def _gather(_node: gs.Node, factors: Factors) -> list[Step]:
    """A narrow table, and a MatMul behind it."""
    first, second = factors.parts
    return [("Gather", first[0].T, {}), ("MatMul", second[0].T, {})]


_STEPS = {
    "Conv": _conv,
    "ConvTranspose": _transposed,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Gather": _gather,
}


def _narrow_input(surgery: Surgery, node: gs.Node, factors: Factors, kind: np.dtype[Any]) -> None:
    """A MatMul before a recurrent node, whose input weights become those on the narrow input."""
    name = node.name or name_of(node)
    first, second = factors.parts[0][0], factors.parts[1][0]
    narrow = surgery.constant(f"{name}_weight_0", np.ascontiguousarray(first.T.astype(kind)))
    before = surgery.node("MatMul", f"{name}_first", [node.inputs[0], narrow])
    directions = node.inputs[1].shape[0]
    wide = second.reshape(directions, -1, second.shape[1]).astype(kind)
    node.inputs[0] = before.outputs[0]
    node.inputs[1] = surgery.constant(f"{name}_weight_1", np.ascontiguousarray(wide))
    at = next(i for i, other in enumerate(surgery.graph.nodes) if other is node)
    surgery.graph.nodes.insert(at, before)


def _put_weight(surgery: Surgery, node: gs.Node, rows: Array, kind: np.dtype[Any]) -> None:
    """The weight of `node` becomes `rows` (groups, N / groups, K)."""
    weight = weight_of(node)
    assert weight is not None
    node.attrs.pop("alpha", None)
    kernel = tuple(weight.values.shape[2:])
    value = weight_from_rows(node, rows, kernel) if rows.shape[0] == 1 or kernel else rows
    place = next(i for i, tensor in enumerate(node.inputs) if tensor is weight)
    node.inputs[place] = surgery.constant(f"{weight.name}_refitted", np.ascontiguousarray(value.astype(kind)))


def _shift_bias(surgery: Surgery, node: gs.Node, shift: Array) -> None:
    """Adds `shift` to the layer's bias, in a constant of its own: torch exports share biases between layers."""
    holder = bias_holder(node)
    if holder is None:
        assert node.op not in ("MatMul", "ConvTranspose")
        node.inputs.append(surgery.constant(f"{node.name}_bias", shift))
        return
    owner, place = holder
    bias = owner.inputs[place]
    value = np.asarray(bias.values, np.float64)
    if owner.op == "Gemm":
        value = value * owner.attrs.pop("beta", 1.0)
    total = (value + shift.reshape(value.shape)).astype(bias.values.dtype)
    owner.inputs[place] = surgery.constant(f"{bias.name}_shifted", total)
