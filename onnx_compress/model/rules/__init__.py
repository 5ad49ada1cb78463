"""The op table: one short rule an op says what happens to channel labels. An op that is not here pins all it touches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_compress.model.rules import elementwise, linear, movement, normalization, shape, spatial

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_graphsurgeon as gs

    from onnx_compress.model.channels import Channels

    Rule = Callable[[Channels, gs.Node], None]


def barrier(graph: Channels, node: gs.Node) -> None:
    """Nothing that this node reads or makes can go (its bodies read outer tensors too)."""
    why = f"no rule for {node.op}"
    for tensor in node.inputs:
        if not tensor.is_empty():
            graph.pin_all(tensor, why)
    for body in _bodies(node):
        for inner in body.nodes:
            barrier(graph, inner)
        for tensor in body.outputs:
            graph.pin_all(tensor, why)
    for tensor in node.outputs:
        if not tensor.is_empty():
            graph.fresh_axes(tensor, why)


def _bodies(node: gs.Node) -> list[gs.Graph]:
    import onnx_graphsurgeon as gs

    found = []
    for value in node.attrs.values():
        found += [value] if isinstance(value, gs.Graph) else []
        found += [item for item in value if isinstance(item, gs.Graph)] if isinstance(value, list) else []
    return found


_THROUGH = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh "
    "Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
_BROADCAST = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod "
    "Mul Or Pow Sub Sum Where Xor"
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(_THROUGH.split(), elementwise.passes_through),
    **dict.fromkeys(_BROADCAST.split(), elementwise.broadcast),
    "Clip": elementwise.clip,
    "Dropout": elementwise.dropout,
    "PRelu": elementwise.prelu,
    "Softmax": elementwise.softmax,
    "LogSoftmax": elementwise.softmax,
    "Conv": linear.conv,
    "ConvTranspose": linear.conv_transpose,
    "Gemm": linear.gemm,
    "MatMul": linear.matmul,
    "LSTM": linear.recurrent,
    "GRU": linear.recurrent,
    "RNN": linear.recurrent,
    "BatchNormalization": normalization.batch,
    "InstanceNormalization": normalization.batch,
    "LayerNormalization": normalization.layer,
    "RMSNormalization": normalization.layer,
    "GroupNormalization": normalization.group,
    "LRN": normalization.local_response,
    "Transpose": movement.transpose,
    "Concat": movement.concat,
    "Split": movement.split,
    "Slice": movement.slice_,
    "Gather": movement.gather,
    "Pad": movement.pad,
    "Tile": movement.tile,
    "DepthToSpace": movement.depth_to_space,
    "SpaceToDepth": movement.space_to_depth,
    "Reshape": shape.reshape,
    "Flatten": shape.flatten,
    "Squeeze": shape.squeeze,
    "Unsqueeze": shape.squeeze,
    "Expand": shape.expand,
    "ConstantOfShape": shape.constant_of_shape,
    "Shape": shape.shape_of,
    **dict.fromkeys(["MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"], spatial.pool),
    "GlobalLpPool": spatial.pool,
    "Resize": spatial.resize,
    "Upsample": spatial.resize,
    **dict.fromkeys(["ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare"], spatial.reduce),
    **dict.fromkeys(
        ["ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp"], spatial.reduce
    ),
    "ArgMax": spatial.arg_reduce,
    "ArgMin": spatial.arg_reduce,
}
