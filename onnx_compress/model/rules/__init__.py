"""The op table: one short rule an op says what happens to channel labels. An op that is not here pins all it touches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_compress.model.rules import (
    attention,
    bodies,
    einsum,
    elementwise,
    fused,
    indexing,
    linear,
    movement,
    normalization,
    shape,
    spatial,
)
from onnx_compress.model.rules.barriers import BARRIERS, barrier, op_name

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_graphsurgeon as gs

    from onnx_compress.model.channels import Channels

    Rule = Callable[[Channels, gs.Node], None]

__all__ = ["BARRIERS", "RULES", "barrier", "op_name"]

_THROUGH = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitCast BitwiseNot Cast CastLike Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
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
    "If": bodies.branch,
    "Loop": bodies.loop,
    "Scan": bodies.scan,
    "Clip": elementwise.clip,
    "Dropout": elementwise.dropout,
    "PRelu": elementwise.prelu,
    "Softmax": elementwise.softmax,
    "LogSoftmax": elementwise.softmax,
    "Hardmax": elementwise.softmax,
    "Conv": linear.conv,
    "ConvTranspose": linear.conv_transpose,
    "Gemm": linear.gemm,
    "MatMul": linear.matmul,
    "DeformConv": linear.deformable,
    "Einsum": einsum.einsum,
    "LSTM": linear.recurrent,
    "GRU": linear.recurrent,
    "RNN": linear.recurrent,
    "BatchNormalization": normalization.batch,
    "InstanceNormalization": normalization.batch,
    "LayerNormalization": normalization.layer,
    "RMSNormalization": normalization.layer,
    "GroupNormalization": normalization.group,
    "LRN": normalization.local_response,
    "LpNormalization": elementwise.passes_through,
    "MeanVarianceNormalization": indexing.mean_variance,
    "Attention": attention.attention,
    "RotaryEmbedding": attention.rotary,
    "GatherElements": indexing.elements,
    "ScatterElements": indexing.elements,
    "Scatter": indexing.elements,
    "GatherND": indexing.gather_nd,
    "ScatterND": indexing.scatter_nd,
    "TensorScatter": indexing.tensor_scatter,
    "CumSum": indexing.cumulative,
    "CumProd": indexing.cumulative,
    "TopK": indexing.top_k,
    "Trilu": indexing.trilu,
    "ReverseSequence": indexing.reverse_sequence,
    "Compress": indexing.compress,
    "CenterCropPad": indexing.center_crop_pad,
    "RoiAlign": indexing.regions,
    "MaxRoiPool": indexing.regions,
    "GridSample": indexing.regions,
    "Col2Im": indexing.col2im,
    "QuantizeLinear": indexing.quantize,
    "DequantizeLinear": indexing.quantize,
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
    "com.microsoft.Attention": attention.packed_attention,
    "com.microsoft.MultiHeadAttention": attention.multi_head_attention,
    "com.microsoft.RotaryEmbedding": attention.rotary,
    "com.microsoft.SkipLayerNormalization": fused.skip_layer_norm,
    "com.microsoft.SkipSimplifiedLayerNormalization": fused.skip_layer_norm,
    "com.microsoft.EmbedLayerNormalization": fused.embed_layer_norm,
    "com.microsoft.Gelu": elementwise.passes_through,
    "com.microsoft.QuickGelu": elementwise.passes_through,
    "com.microsoft.FastGelu": elementwise.broadcast,
    "com.microsoft.BiasGelu": elementwise.broadcast,
    "com.microsoft.FusedMatMul": fused.matmul,
    "com.microsoft.FusedGemm": linear.gemm,
    "com.microsoft.FusedConv": fused.conv,
}
