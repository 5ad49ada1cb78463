"""What is known of a node by itself: whether it can run in integers, and what it does to its input."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.model.domains import is_standard
from onnx_compress.runtime.layers import own_bias

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FLOAT_ONLY = {  # work that onnxruntime's CPU provider does in float only
    "ConvTranspose": "onnxruntime's CPU provider has no integer ConvTranspose",
    "LSTM": "a recurrent layer runs in float",
    "GRU": "a recurrent layer runs in float",
    "RNN": "a recurrent layer runs in float",
    "Einsum": "onnxruntime's CPU provider has no integer Einsum",
}
SHARED = {  # values only move: the output has the input's scale and onnxruntime drops the conversions around it
    "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "GatherElements",
    "Tile", "Expand", "Resize", "Split", "Concat", "Pad", "ReduceMax", "ReduceMin",
    "DepthToSpace",
}  # fmt: skip
REQUANTIZED = {
    "Add", "Mul", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Relu", "Sigmoid", "Softmax", "MatMul", "Where",
}  # fmt: skip
LARGEST = 1e4  # of a constant that shares a tensor with activations: a mask's -inf would take all codes
FIXED = {"Sigmoid": (0.0, 255 / 256), "Softmax": (0.0, 255 / 256)}  # outputs whose range is known


def weight_of(node: gs.Node) -> gs.Constant | None:
    """The constant that a layer multiplies with, if it is one."""
    at = 1
    if len(node.inputs) > at and isinstance(node.inputs[at], gs.Constant):
        return node.inputs[at]
    if node.op in ("MatMul", "Gemm", "Einsum") and node.inputs and isinstance(node.inputs[0], gs.Constant):
        return node.inputs[0]
    return None


def unfit(node: gs.Node) -> str | None:
    """Why a layer cannot run in integers, or None."""
    if not is_standard(node):
        return f"{node.domain}.{node.op} is no standard layer"
    weight = weight_of(node)
    if weight is None:
        given = len(node.inputs) > 1 and not node.inputs[1].inputs
        return "its weight is an input of the graph" if given else "its weight is computed in the graph"
    if weight is not node.inputs[1]:
        return "its weight is the left factor, for which there are no per-channel scales"
    if np.dtype(weight.dtype) != np.float32:
        return f"its weight is {np.dtype(weight.dtype).name}, not float32"
    if not isinstance(node.inputs[0], gs.Variable) or node.inputs[0].name == "":
        return "its input is constant"
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and bias.name and not isinstance(bias, gs.Constant):
        return "its bias is computed in the graph"
    if node.op == "MatMul" and len(weight.shape) != 2:
        return "its weight is no matrix"
    if node.op == "ConvTranspose" and int(node.attrs.get("group", 1)) != 1:
        return "a grouped ConvTranspose has no axis that counts its output channels"
    if node.op == "Gemm" and own_bias(node, weight.shape[0 if node.attrs.get("transB", 0) else 1]) is None:
        return "its bias differs by row"
    if 0 in weight.shape:
        return "its weight is empty"
    if not np.all(np.isfinite(weight.values)):
        return "its weight is not finite"
    return None


def data_inputs(node: gs.Node) -> list[int]:
    """Which inputs of an integer node carry the values that are quantized."""
    if node.op in ("Add", "Mul", "Concat"):
        return list(range(len(node.inputs)))
    if node.op == "MatMul" and not isinstance(node.inputs[1], gs.Constant):
        return [0, 1]
    if node.op == "Where":
        return [1, 2]
    return [0]


def can_follow(node: gs.Node) -> bool:
    """Whether onnxruntime has an integer form of this node, as far as the node alone tells."""
    if not is_standard(node):
        return False
    inputs = [node.inputs[at] for at in data_inputs(node)] if node.inputs else []
    if not inputs or all(isinstance(tensor, gs.Constant) for tensor in inputs):
        return False
    if node.op in ("Add", "Mul", "Where"):
        constants = [t for t in inputs if isinstance(t, gs.Constant)]
        return all(_moderate(t) for t in constants)
    if node.op == "MatMul":
        return not any(isinstance(tensor, gs.Constant) for tensor in inputs)
    if node.op == "Resize":
        mode = node.attrs.get("mode", "nearest")
        return mode == "nearest" and node.attrs.get("coordinate_transformation_mode") != "tf_crop_and_resize"
    if node.op == "Split":
        return True
    if node.op == "Pad":
        value = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
        zero = value is None or (isinstance(value, gs.Constant) and not np.any(value.values))
        return bool(zero or node.attrs.get("mode", "constant") != "constant")
    if any(isinstance(tensor, gs.Constant) for tensor in inputs):
        return False
    return node.op in SHARED | REQUANTIZED and len(node.outputs) == 1


def _moderate(constant: gs.Constant) -> bool:
    if np.dtype(constant.dtype) != np.float32:
        return False
    return bool(np.all(np.abs(constant.values) < LARGEST))  # > NaN is not less


def clips(node: gs.Node) -> bool:
    """Whether this node only clips, to bounds that are known and include zero."""
    if not is_standard(node):
        return False
    if node.op == "Relu":
        return True
    if node.op != "Clip":
        return False
    bounds = [t for t in node.inputs[1:] if t.name]
    low, high = clip_bounds(node) if all(isinstance(t, gs.Constant) for t in bounds) else (1.0, 0.0)
    return low <= 0.0 <= high


def clip_bounds(node: gs.Node) -> tuple[float, float]:
    """Between what a Relu or Clip of constant bounds leaves its input."""
    if node.op == "Relu":
        return 0.0, float("inf")
    bounds = [node.attrs.get("min", -np.inf), node.attrs.get("max", np.inf)]
    for at, tensor in enumerate(node.inputs[1:3]):
        if tensor.name:
            bounds[at] = float(np.asarray(tensor.values).reshape(-1)[0])
    return float(bounds[0]), float(bounds[1])


def factor_of(node: gs.Node) -> float | None:
    """By what a node multiplies every value, if it is a positive constant."""
    constants = [tensor for tensor in node.inputs if isinstance(tensor, gs.Constant)]
    if node.op != "Mul" or len(constants) != 1 or int(np.prod(constants[0].shape)) != 1:
        return None
    if len(constants[0].shape) > 1:
        return None  # it may add axes
    factor = float(np.asarray(constants[0].values).reshape(-1)[0])
    return factor if 1e-6 < factor < 1e6 else None
