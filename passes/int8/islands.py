"""What of a model somebody quantized before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_compress.model.domains import is_standard
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.int8.kinds import LAYERS, weight_of

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnx_compress.model.document import Model

CODED = {
    "QLinearConv",
    "QLinearMatMul",
    "MatMulInteger",
    "ConvInteger",
    "MatMulNBits",
    "DynamicQuantizeLSTM",
    "QGemm",
}
CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


def islands(model: Model) -> dict[str, str] | None:
    """Nodes that run on codes or stand beside a conversion, each with why it is left alone; None where most layers do.

    A model of which most is quantized was meant to be as it is; islands in a float model are left, and the rest is free.
    """
    surgery = Surgery(model)
    found: dict[str, str] = {}
    coded = floats = 0
    for node in surgery.nodes():
        if node.op in CODED or node.op.startswith("QLinear"):
            coded += node.op in CODED
            found[node.name] = "it is quantized already"
        elif node.op not in CONVERSIONS and _beside(node):
            coded += node.op in LAYERS
            found[node.name] = "it stands beside a conversion of a model that is quantized in part"
        elif node.op in LAYERS and is_standard(node) and weight_of(node) is not None:
            floats += 1
    return None if coded > floats or (coded and not floats) else found


def _beside(node: gs.Node) -> bool:
    before = {maker.op for tensor in node.inputs for maker in tensor.inputs}
    after = {user.op for tensor in node.outputs for user in tensor.outputs}
    return bool(before & {"DequantizeLinear"} or after & {"QuantizeLinear", "DynamicQuantizeLinear"})
