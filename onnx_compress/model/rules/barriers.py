"""What stops channels: ops with no rule, and why each of the standard ones has none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

if TYPE_CHECKING:
    from onnx_compress.model.channels import Channels


def barrier(graph: Channels, node: gs.Node, reason: str | None = None) -> None:
    """Nothing that this node reads or makes can go (its bodies read outer tensors too)."""
    from onnx_compress.model.rules import RULES

    name = op_name(node)
    reason = (
        reason or BARRIERS.get(name) or ("its shapes or operands are not known" if name in RULES else None)
    )
    why = f"{node.op}: {reason}" if reason else f"no rule for {node.op}"
    for tensor in node.inputs:
        if not tensor.is_empty():
            graph.pin_all(tensor, why)
    for body in _bodies(node):
        for inner in body.nodes:
            _pin_inside(graph, inner, why)
        for tensor in body.outputs:
            graph.pin_all(tensor, why)
    for tensor in node.outputs:
        if not tensor.is_empty():
            graph.fresh_axes(tensor, why)


def _pin_inside(graph: Channels, node: gs.Node, why: str) -> None:
    """A body may read any tensor around it."""
    for tensor in node.inputs:
        if not tensor.is_empty():
            graph.pin_all(tensor, why)
    for body in _bodies(node):
        for inner in body.nodes:
            _pin_inside(graph, inner, why)
        for tensor in body.outputs:
            graph.pin_all(tensor, why)


def op_name(node: gs.Node) -> str:
    """The key of a node in the table: the op, of another domain than ONNX's with the domain before it."""
    return str(node.op) if (node.domain or "") in {"", "ai.onnx"} else f"{node.domain}.{node.op}"


def _bodies(node: gs.Node) -> list[gs.Graph]:
    found = []
    for value in node.attrs.values():
        found += [value] if isinstance(value, gs.Graph) else []
        found += [item for item in value if isinstance(item, gs.Graph)] if isinstance(value, list) else []
    return found


def _all(names: str, reason: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


BARRIERS: dict[str, str] = {
    "SequenceMap": "sequences are not followed",
    **_all(
        "ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt SequenceConstruct SequenceEmpty "
        "SequenceErase SequenceInsert SequenceLength SplitToSequence",
        "sequences are not followed",
    ),
    **_all("RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer", "it reads text"),
    "ImageDecoder": "it reads files",
    **_all(
        "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike",
        "each draw depends on how many are drawn",
    ),
    **_all("NonZero Unique", "how much it returns depends on the values"),
    "NonMaxSuppression": "what it returns are indices of boxes and classes",
    "OneHot": "the new axis counts values",
    "Size": "it counts all elements",
    **_all("Range EyeLike", "its values are places"),
    **_all("BlackmanWindow HammingWindow HannWindow MelWeightMatrix", "its values depend on its length"),
    **_all("DFT STFT", "a transform mixes what it runs over"),
    **_all("Det AffineGrid", "its axes are those of small matrices"),
    "MaxUnpool": "its places are counted over channels",
    **_all("NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss", "a loss: a model for training"),
    **_all("ConvInteger MatMulInteger QLinearConv QLinearMatMul", "already quantized: prune the float model"),
    "DynamicQuantizeLinear": "its scale is taken over all channels",
    **_all(
        "CausalConvWithState LinearAttention SwiGLU",
        "newer than the onnxruntime that would have to prove its removal right",
    ),
    "Constant": "a constant that is no weight",
    **_all(
        "com.microsoft.DynamicQuantizeLSTM com.microsoft.DynamicQuantizeMatMul com.microsoft.MatMulInteger16 "
        "com.microsoft.MatMulIntegerToFloat com.microsoft.MatMulNBits com.microsoft.QAttention com.microsoft.QGemm "
        "com.microsoft.QLinearAdd com.microsoft.QLinearAveragePool com.microsoft.QLinearConcat "
        "com.microsoft.QLinearGlobalAveragePool com.microsoft.QLinearLeakyRelu com.microsoft.QLinearMul "
        "com.microsoft.QLinearSigmoid com.microsoft.QLinearSoftmax",
        "already quantized: prune the float model",
    ),
    "com.microsoft.GroupQueryAttention": "its cache is shared between calls",
}
