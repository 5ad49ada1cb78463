"""Weights stored as a codebook and small indices, in standard ONNX.

    weight = Gather(values, Cast(indices))                      one codebook for the whole weight
    weight = Gather(values, Add(Cast(indices), offsets))        one for each channel, one behind the other in `values`

onnxruntime computes both once, when it loads the model: the file is smaller, what runs is the dense weight.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.model.surgery import Surgery

    Array = NDArray[Any]

LARGEST = 256  # values that indices of one byte can tell apart


@dataclass(frozen=True)
class Codebook:
    """A weight as values and indices.

    values: (clusters,), or (channels, clusters); indices: uint8, of the weight's shape;
    axis: of the weight, along which channels have their own values (None: one codebook).
    nodes: the nodes that hold it, last the one that gives the weight (empty for one that is in no graph yet).
    """

    values: Array
    indices: Array
    axis: int | None = None
    nodes: tuple[gs.Node, ...] = field(default=(), compare=False)

    @property
    def clusters(self) -> int:
        """How many values a weight may take."""
        return int(self.values.shape[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of values, indices and offsets as stored."""
        offsets = 0 if self.axis is None else 4 * len(self.values)
        return int(self.values.nbytes + self.indices.size + offsets)

    def dense(self) -> Array:
        """The weight.

        >>> Codebook(np.float32([-1, 0, 1]), np.uint8([[0, 2], [1, 1]])).dense()
        array([[-1.,  1.],
               [ 0.,  0.]], dtype=float32)
        """
        places = self.indices.astype(np.int32)
        if self.axis is not None:
            places += self._offsets()
        result: Array = self.values.reshape(-1)[places]
        return result

    def _offsets(self) -> Array:
        shape = [1] * self.indices.ndim
        assert self.axis is not None
        shape[self.axis] = -1
        return (np.arange(len(self.values), dtype=np.int32) * self.clusters).reshape(shape)


def dense_weight(tensor: gs.Tensor) -> Array | None:
    """The value of a weight that a node reads, a constant or stored as a codebook; None where it is computed."""
    if isinstance(tensor, gs.Constant):
        value: Array = tensor.values
        return value
    book = codebook_of(tensor)
    return None if book is None else book.dense()


def codebook_of(tensor: gs.Tensor) -> Codebook | None:
    """How `tensor` is stored, if it is the output of `store`'s nodes."""
    gather = _maker(tensor, "Gather")
    if gather is None or gather.attrs.get("axis", 0) or len(gather.inputs) != 2:
        return None
    values, places = gather.inputs
    add = _maker(places, "Add")
    cast = _maker(places if add is None else add.inputs[0], "Cast")
    if cast is None or not isinstance(cast.inputs[0], gs.Constant) or not isinstance(values, gs.Constant):
        return None
    indices = cast.inputs[0]
    if indices.dtype != np.uint8 or len(values.shape) != 1:
        return None
    if add is None:
        return Codebook(values.values, indices.values, None, (cast, gather))
    offsets = add.inputs[1]
    if not isinstance(offsets, gs.Constant) or len(offsets.shape) != len(indices.shape):
        return None
    axis = int(np.argmax(offsets.shape))
    channels = offsets.shape[axis]
    if channels != np.prod(offsets.shape) or channels != indices.shape[axis] or values.shape[0] % channels:
        return None
    book = Codebook(values.values.reshape(channels, -1), indices.values, axis, (cast, add, gather))
    return book if np.array_equal(offsets.values, book._offsets()) else None  # noqa: SLF001 - its own


def store(surgery: Surgery, name: str, book: Codebook) -> tuple[list[gs.Node], gs.Variable]:
    """New nodes, in no graph yet, that hold `book`, and the tensor they give."""
    values = surgery.constant(f"{name}_codebook", book.values.reshape(-1))
    indices = surgery.constant(f"{name}_indices", book.indices)
    cast = surgery.node("Cast", f"{name}_Cast", [indices], to=TensorProto.INT32)
    nodes = [cast]
    if book.axis is not None:
        offsets = surgery.constant(f"{name}_offsets", book._offsets())  # noqa: SLF001 - its own
        nodes.append(surgery.node("Add", f"{name}_Add", [cast.outputs[0], offsets]))
    weight = surgery.variable(f"{name}_clustered")
    nodes.append(surgery.node("Gather", f"{name}_Gather", [values, nodes[-1].outputs[0]], [weight], axis=0))
    return nodes, weight


def unfold(surgery: Surgery) -> list[gs.Constant]:
    """Makes every weight that is stored as a codebook a plain constant again, for a pass that only works on those."""
    unfolded: dict[int, gs.Constant] = {}
    gone: set[int] = set()
    returned = {id(tensor) for graph in surgery.graphs() for tensor in graph.outputs}
    for node in list(surgery.nodes()):
        for index, tensor in enumerate(node.inputs):
            if id(tensor) not in unfolded:
                book = codebook_of(tensor)
                if book is None or id(tensor) in returned:
                    continue
                name = tensor.name.removesuffix("_clustered")
                unfolded[id(tensor)] = surgery.constant(name, book.dense())
                gone |= {id(part) for part in book.nodes}
            node.inputs[index] = unfolded[id(tensor)]
    for graph in surgery.graphs():
        graph.nodes[:] = [node for node in graph.nodes if id(node) not in gone]
    return list(unfolded.values())


def _maker(tensor: gs.Tensor, op: str) -> gs.Node | None:
    """The node of type `op` that computes `tensor`."""
    if isinstance(tensor, gs.Constant) or len(tensor.inputs) != 1:
        return None
    node = tensor.inputs[0]
    return node if node.op == op and node.domain in (None, "", "ai.onnx") else None
