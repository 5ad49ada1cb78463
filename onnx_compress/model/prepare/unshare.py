"""Vectors that several layers share, each by chance, become one of each layer's own; weights stay tied."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_graphsurgeon as gs

from onnx_compress.model.domains import is_standard
from onnx_compress.model.prepare.edits import Edit

if TYPE_CHECKING:
    from onnx_compress.model.surgery import Surgery

# inputs that are vectors of a layer's own: biases, norms, slopes. Exporters store equal ones once
_OWN = {
    "Conv": (2,),
    "ConvTranspose": (2,),
    "Gemm": (2,),
    "BatchNormalization": (1, 2, 3, 4),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "PRelu": (1,),
    "Add": (0, 1),
    "Sub": (0, 1),
    "Mul": (0, 1),
    "Div": (0, 1),
}


def unshare(surgery: Surgery) -> list[Edit]:
    """Gives each layer but the first its own copy of a vector that it shares with others."""
    edits = []
    for graph in surgery.graphs():
        for node in graph.nodes:
            if not is_standard(node):
                continue
            for index in _OWN.get(node.op, ()):
                if index >= len(node.inputs) or not _is_vector(node.inputs[index]):
                    continue
                shared = node.inputs[index]
                if node is not shared.outputs[0]:
                    node.inputs[index] = surgery.constant(shared.name, shared.values)
                    after = node.inputs[index].name
                    edits.append(Edit(node.name, "un-share", f"{shared.name}, shared", after))
    return edits


def _is_vector(tensor: gs.Tensor) -> bool:
    """Whether `tensor` is a float weight with exactly one axis longer than 1."""
    if not isinstance(tensor, gs.Constant) or tensor.dtype.kind != "f":
        return False
    return len([size for size in tensor.shape if size > 1]) == 1
