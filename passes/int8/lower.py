"""Float rewrites that change no result and give operators for which onnxruntime has integer kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.model.domains import is_standard
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.int8.placement import ORT, place

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape
    from onnx_compress.passes.int8.targets import Rules

    Rule = Callable[[Surgery, gs.Node, Mapping[str, Shape]], list[gs.Node] | None]


def lower(model: Model, shapes: Mapping[str, Shape], keep: Mapping[str, str], rules: Rules = ORT) -> Model:
    """`model` with nodes of the main graph replaced by RULES, where the new ones will run in integers.

    A float operator is not touched: onnxruntime's float fusions look for the forms that exporters write. keep: nodes
    that stay in float; rules: of the runtime it is for.
    """
    everywhere, made = _lowered(model, shapes, None)
    placement = place(Surgery(everywhere).graph, keep, rules=rules)
    integer = {*placement.layers, *placement.followers}
    wanted = {name for name, new in made.items() if not new or integer & new}
    return _lowered(model, shapes, wanted)[0]


def _lowered(
    model: Model, shapes: Mapping[str, Shape], only: Collection[str] | None
) -> tuple[Model, dict[str, set[str]]]:
    """The model after the rules, at all nodes or only some; and the names of the nodes that each one became."""
    surgery = Surgery(model)
    _name(surgery)
    made: dict[str, set[str]] = {}
    for node in list(surgery.graph.nodes):
        rule = RULES.get(node.op) if is_standard(node) and (only is None or node.name in only) else None
        new = rule(surgery, node, shapes) if rule else None
        if new is None:
            continue
        if new and node.op != "Add":
            new[-1].name = node.name  # the last one goes by the old name in reports and patterns
        made[node.name] = {one.name for one in new}
        surgery.replace(surgery.graph, node, new)
    return surgery.commit(), made


def _name(surgery: Surgery) -> None:
    """Every node of the main graph gets a name of its own: a placement goes by names."""
    used: set[str] = set()
    for node in surgery.graph.nodes:
        if not node.name or node.name in used:
            node.name = surgery.fresh(node.name or f"{node.op}")
        used.add(node.name)


def _spatial_mean(surgery: Surgery, node: gs.Node, shapes: Mapping[str, Shape]) -> list[gs.Node] | None:
    """ReduceMean over all spatial axes is GlobalAveragePool."""
    shape = shapes.get(node.inputs[0].name)
    axes = _axes(node)
    if shape is None or axes is None or len(shape) not in (3, 4):
        return None
    if sorted(axis % len(shape) for axis in axes) != list(range(2, len(shape))):
        return None
    pool = surgery.node("GlobalAveragePool", "pool", [node.inputs[0]])
    if node.attrs.get("keepdims", 1):
        return [pool]
    return [pool, surgery.node("Flatten", "flat", [pool.outputs[0]], axis=1)]


def _axes(node: gs.Node) -> list[int] | None:
    if len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant):
        return [int(axis) for axis in np.asarray(node.inputs[1].values).reshape(-1)]
    axes = node.attrs.get("axes")
    return [int(axis) for axis in axes] if axes else None


def _scale_and_shift(surgery: Surgery, node: gs.Node, shapes: Mapping[str, Shape]) -> list[gs.Node] | None:
    """BatchNormalization that no convolution could take up is a 1x1 convolution of each channel by itself."""
    shape = shapes.get(node.inputs[0].name)
    if shape is None or len(shape) != 4 or node.attrs.get("training_mode", 0) or len(node.outputs) != 1:
        return None
    if not all(isinstance(t, gs.Constant) and np.dtype(t.dtype) == np.float32 for t in node.inputs[1:5]):
        return None
    gain, shift, mean, variance = (np.asarray(t.values, np.float64) for t in node.inputs[1:5])
    weight = gain / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    bias = shift - mean * weight
    return [
        surgery.node(
            "Conv",
            "norm",
            [
                node.inputs[0],
                surgery.constant("norm_weight", weight.astype(np.float32).reshape(-1, 1, 1, 1)),
                surgery.constant("norm_bias", bias.astype(np.float32)),
            ],
            group=len(weight),
            kernel_shape=[1, 1],
        )
    ]


def _hard_swish(surgery: Surgery, node: gs.Node, shapes: Mapping[str, Shape]) -> list[gs.Node] | None:
    """HardSwish(x) = x · HardSigmoid(x)."""
    del shapes
    gate = _gate(surgery, node.inputs[0], 1 / 6, 0.5, alone=False)
    return [*gate, surgery.node("Mul", "swish", [node.inputs[0], gate[-1].outputs[0]])]


def _hard_sigmoid(surgery: Surgery, node: gs.Node, shapes: Mapping[str, Shape]) -> list[gs.Node] | None:
    """HardSigmoid(x) = clip(αx + β, 0, 1) = α · clip(x + β/α, 0, 1/α): an addition that saturates, and a scale."""
    del shapes
    alpha, beta = float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))
    return _gate(surgery, node.inputs[0], alpha, beta) if alpha > 0 else None


def _gate(
    surgery: Surgery, source: gs.Tensor, alpha: float, beta: float, *, alone: bool = True
) -> list[gs.Node]:
    """The nodes of HardSigmoid; alone: the addition goes into the bias of a convolution that nobody else reads."""
    shift = surgery.constant("shift", np.array(beta / alpha, np.float32))
    maker = source.inputs[0] if alone and len(source.inputs) == 1 and len(source.outputs) == 1 else None
    seen = any(output is source for output in surgery.graph.outputs)
    conv = maker is not None and not seen and maker.op == "Conv" and is_standard(maker)
    if conv and _biased(surgery, maker, beta / alpha):
        added, first = source, []
    else:
        first = [surgery.node("Add", "shifted", [source, shift])]
        added = first[0].outputs[0]
    ends = [
        surgery.constant("low", np.array(0, np.float32)),
        surgery.constant("high", np.array(1 / alpha, np.float32)),
    ]
    clip = surgery.node("Clip", "clipped", [added, *ends])
    factor = surgery.constant("factor", np.array(alpha, np.float32))
    return [*first, clip, surgery.node("Mul", "gate", [clip.outputs[0], factor])]


def _biased(surgery: Surgery, conv: gs.Node, shift: float) -> bool:
    """Adds `shift` to the bias of a convolution, if it is a constant or absent."""
    weight = conv.inputs[1]
    if not isinstance(weight, gs.Constant) or np.dtype(weight.dtype) != np.float32:
        return False
    bias = conv.inputs[2] if len(conv.inputs) > 2 and conv.inputs[2].name else None
    if bias is not None and not isinstance(bias, gs.Constant):
        return False
    value = np.zeros(weight.shape[0], np.float32) if bias is None else np.asarray(bias.values)
    moved = surgery.constant("shifted_bias", (value + shift).astype(np.float32))
    if len(conv.inputs) > 2:
        conv.inputs[2] = moved
    else:
        conv.inputs.append(moved)
    return True


def _pad_of_conv(surgery: Surgery, node: gs.Node, shapes: Mapping[str, Shape]) -> list[gs.Node] | None:
    """Zeros around an image that only convolutions read are the convolutions' own padding."""
    del shapes
    pads = node.inputs[1] if len(node.inputs) > 1 else None
    value = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
    if (
        node.attrs.get("mode", "constant") != "constant"
        or not isinstance(pads, gs.Constant)
        or len(node.inputs) > 3
    ):
        return None
    if value is not None and not (isinstance(value, gs.Constant) and not np.any(value.values)):
        return None
    ends = [int(size) for size in np.asarray(pads.values).reshape(-1)]
    rank = len(ends) // 2
    users = node.outputs[0].outputs
    if min(ends) < 0 or any(ends[:2] + ends[rank : rank + 2]) or not users:
        return None
    if any(output is node.outputs[0] for output in surgery.graph.outputs):
        return None
    if not all(
        u.op == "Conv" and u.inputs[0] is node.outputs[0] and "auto_pad" not in u.attrs for u in users
    ):
        return None
    for user in list(users):
        own = user.attrs.get("pads") or [0] * (2 * (rank - 2))
        user.attrs["pads"] = [a + b for a, b in zip(own, ends[2:rank] + ends[rank + 2 :], strict=True)]
        user.inputs[0] = node.inputs[0]
    return []


def _by_constant(surgery: Surgery, node: gs.Node, shapes: Mapping[str, Shape]) -> list[gs.Node] | None:
    """X / c = x · (1/c), x − c = x + (−c)."""
    del shapes
    constant = node.inputs[1]
    if not isinstance(constant, gs.Constant) or np.dtype(constant.dtype) != np.float32:
        return None
    if isinstance(node.inputs[0], gs.Constant):
        return None
    value = np.asarray(constant.values)
    if node.op == "Sub":
        return [surgery.node("Add", "plus", [node.inputs[0], surgery.constant("minus", -value)])]
    if not np.all(np.abs(value) > 1e-30):
        return None
    return [surgery.node("Mul", "times", [node.inputs[0], surgery.constant("inverse", 1 / value)])]


def _product_and_bias(surgery: Surgery, node: gs.Node, shapes: Mapping[str, Shape]) -> list[gs.Node] | None:
    """MatMul and the addition of a bias are Gemm, on rows where the input has more axes. It goes by MatMul's name."""
    product = next((t for t in node.inputs if isinstance(t, gs.Variable) and t.inputs), None)
    bias = next((t for t in node.inputs if isinstance(t, gs.Constant)), None)
    if product is None or bias is None or product.inputs[0].op != "MatMul" or len(product.outputs) != 1:
        return None
    matmul = product.inputs[0]
    if not is_standard(matmul):
        return None
    source, weight = matmul.inputs
    shape = shapes.get(source.name)
    if not isinstance(weight, gs.Constant) or len(weight.shape) != 2 or not shape or len(shape) < 2:
        return None
    known = [size for size in shape[:-1] if isinstance(size, int)]
    columns = int(weight.shape[1])
    if len(known) < len(shape) - 2 or list(bias.shape) != [columns] or np.dtype(weight.dtype) != np.float32:
        return None
    if any(output is product for output in surgery.graph.outputs):
        return None
    rows: list[gs.Node] = []
    if len(shape) > 2:
        flat = _flattened(surgery, source, node)
        if flat is None:
            size = surgery.constant("rows", np.array([-1, weight.shape[0]], np.int64))
            rows = [surgery.node("Reshape", "flat", [source, size])]
            flat = rows[0].outputs[0]
        source = flat
    gemm = surgery.node("Gemm", "gemm", [source, weight, bias])
    gemm.name = matmul.name
    surgery.replace(surgery.graph, matmul, [])
    if len(shape) == 2:
        return [gemm]
    sizes = [size if isinstance(size, int) else -1 for size in shape[:-1]]
    back = surgery.constant("axes", np.array([*sizes, columns], np.int64))
    return [*rows, gemm, surgery.node("Reshape", "back", [gemm.outputs[0], back])]


def _flattened(surgery: Surgery, source: gs.Tensor, before: gs.Node) -> gs.Tensor | None:
    """The rows of `source`, if an earlier product took them already: q, k and v read the same."""
    for node in surgery.graph.nodes:
        if node is before:
            return None
        if node.op == "Reshape" and node.inputs[0] is source and node.inputs[1].name.startswith("rows"):
            return node.outputs[0]
    return None


def _sum_of_two(surgery: Surgery, node: gs.Node, shapes: Mapping[str, Shape]) -> list[gs.Node] | None:
    """Sum of two tensors is Add."""
    del shapes
    return [surgery.node("Add", "sum", list(node.inputs))] if len(node.inputs) == 2 else None


RULES: dict[str, Rule] = {
    "ReduceMean": _spatial_mean,
    "BatchNormalization": _scale_and_shift,
    "Add": _product_and_bias,
    "Div": _by_constant,
    "Sum": _sum_of_two,
    "Sub": _by_constant,
    "Pad": _pad_of_conv,
    "HardSwish": _hard_swish,
    "HardSigmoid": _hard_sigmoid,
}
