"""Initializers that are also inputs become constants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_compress.model.prepare.edits import Edit

if TYPE_CHECKING:
    from onnx_compress.model.document import Model


def freeze_inputs(model: Model) -> list[Edit]:
    """Takes initializers from among the graph's inputs, so that they are constants; IR version 4 at least.

    Before IR version 4 every initializer had to be an input, and onnxruntime takes them for constants; from it on, such
    an input is one that a caller may override.
    """
    graph = model.proto.graph
    given = {tensor.name for tensor in graph.initializer}
    given |= {sparse.values.name for sparse in graph.sparse_initializer}
    frozen = [index for index, value in enumerate(graph.input) if value.name in given]
    edits = [
        Edit(graph.input[index].name, "freeze", "input with an initializer", "constant") for index in frozen
    ]
    for index in reversed(frozen):
        del graph.input[index]
    model.proto.ir_version = max(model.proto.ir_version, 4)
    return edits
