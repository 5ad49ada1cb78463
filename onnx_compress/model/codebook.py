"""Weights stored as a codebook and small indices, in standard ONNX.

    weight = Gather(values, indices)                     one codebook for the whole weight
    weight = Gather(values, Add(indices, offsets))       several, one behind the other in `values`: each channel has its own,
                                                         or shares it with channels like it
    weight = Mul(Gather(values, indices), scales)        one codebook, and a scale for each channel

    indices = Cast(small)                                bytes, or ONNX's own 4 or 2 bits (from opset 21 and 25)
    indices = Reshape(Mod(Div(Cast(bytes), powers), k))  digits of one byte, see `packing`; from opset 10
    indices = Reshape(Mod(Div(MatMul(Cast(bytes), places), powers), k))  digits of a number of several bytes

onnxruntime computes all of it once, when it loads the model: the file is smaller, what runs is the dense weight.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnx_compress.model.domains import is_standard
from onnx_compress.model.packing import Packing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnx_compress.model.document import Model
    from onnx_compress.model.surgery import Surgery

    Array = NDArray[Any]

Shared = dict[tuple[str, bytes], gs.Constant]  # small constants of several weights, by use and value

Storage = Literal["packed", "typed", "bytes"]

LARGEST = 256  # values that indices of one byte can tell apart
PACKED_FROM = 10  # opset of Mod
TYPED: tuple[tuple[int, int, Any], ...] = (
    (2, 25, ml_dtypes.uint2),
    (4, 21, ml_dtypes.uint4),
)  # bits, the opset from which Cast takes the type, the type
SMALL = (np.dtype(np.uint8), *(np.dtype(kind[2]) for kind in TYPED))
PACKED_NODES = 250  # bytes of the nodes that unpack, more than a Cast


@dataclass(frozen=True)
class Codebook:
    """A weight as values and indices.

    values: (clusters,), or (books, clusters); indices: uint8, of the weight's shape; axis: of the weight, whose channels
    differ (None: one codebook for all). books: (channels,), which row of `values` each channel has (None: row i); scales:
    (channels,), by which each channel's values are multiplied, or None; then `values` is one codebook.
    nodes: the nodes that hold it, last the one that gives the weight (empty for one that is in no graph yet).
    """

    values: Array
    indices: Array
    axis: int | None = None
    nodes: tuple[gs.Node, ...] = field(default=(), compare=False)
    books: Array | None = None
    scales: Array | None = None

    @property
    def clusters(self) -> int:
        """How many values a weight may take."""
        return int(self.values.shape[-1])

    def nbytes(self, opset: int, storage: Storage = "packed") -> int:
        """Bytes of values, indices, offsets and scales as `store` stores them."""
        form = index_form(self.clusters, self.indices.size, opset, storage)
        beside = 0 if self.axis is None or self.scales is not None else 4 * self.indices.shape[self.axis]
        beside += 0 if self.scales is None else self.scales.nbytes
        return int(self.values.nbytes + index_bytes(form, self.indices.size) + beside)

    def dense(self) -> Array:
        """The weight.

        >>> Codebook(np.float32([-1, 0, 1]), np.uint8([[0, 2], [1, 1]])).dense()
        array([[-1.,  1.],
               [ 0.,  0.]], dtype=float32)
        """
        places = self.indices.astype(np.int32)
        if self.values.ndim > 1:
            places += self.offsets()
        result: Array = self.values.reshape(-1)[places]
        return result if self.scales is None else result * self.along(self.scales)

    def offsets(self) -> Array:
        """Where each channel's values start, shaped to be added to the indices."""
        assert self.axis is not None
        rows = np.arange(self.indices.shape[self.axis]) if self.books is None else self.books
        return self.along(rows.astype(np.int32) * np.int32(self.clusters))

    def along(self, vector: Array) -> Array:
        """One number a channel, shaped to meet the weight."""
        shape = [1] * self.indices.ndim
        assert self.axis is not None
        shape[self.axis] = -1
        return vector.reshape(shape)


def opset_of(model: Model) -> int:
    """The version of the standard domain, 1 where the model imports none."""
    return next((entry.version for entry in model.proto.opset_import if entry.domain in ("", "ai.onnx")), 1)


def dense_weight(tensor: gs.Tensor) -> Array | None:
    """The value of a weight that a node reads, a constant or stored as a codebook; None where it is computed."""
    if isinstance(tensor, gs.Constant):
        value: Array = tensor.values
        return value
    book = codebook_of(tensor)
    return None if book is None else book.dense()


def codebook_of(tensor: gs.Tensor) -> Codebook | None:
    """How `tensor` is stored, if it is the output of `store`'s nodes."""
    last: list[gs.Node] = []
    scales = None
    mul = _maker(tensor, "Mul")
    if mul is not None:
        if not isinstance(mul.inputs[1], gs.Constant):
            return None
        tensor, scales, last = mul.inputs[0], mul.inputs[1].values, [mul]
    gather = _maker(tensor, "Gather")
    if gather is None or gather.attrs.get("axis", 0) or len(gather.inputs) != 2:
        return None
    values, places = gather.inputs
    if not isinstance(values, gs.Constant) or len(values.shape) != 1 or isinstance(places, gs.Constant):
        return None
    last.insert(0, gather)
    add = _maker(places, "Add")
    if add is not None:
        last.insert(0, add)
    found = _indices_of(places if add is None else add.inputs[0])
    if found is None:
        return None
    indices, nodes = found
    nodes = (*nodes, *last)
    if add is not None:
        return None if scales is not None else _by_channel(values.values, indices, add.inputs[1], nodes)
    if scales is None:
        return Codebook(values.values, indices, None, nodes)
    axis = _axis_of(scales.shape, indices.shape)
    return None if axis is None else Codebook(values.values, indices, axis, nodes, None, scales.reshape(-1))


def _by_channel(
    values: Array, indices: Array, offsets: gs.Tensor, nodes: tuple[gs.Node, ...]
) -> Codebook | None:
    """Several codebooks, as their offsets into `values` say."""
    if not isinstance(offsets, gs.Constant):
        return None
    axis = _axis_of(offsets.shape, indices.shape)
    starts = offsets.values.reshape(-1)
    count = len(np.unique(starts))
    if axis is None or len(values) % count:
        return None
    clusters = len(values) // count
    rows = starts // clusters
    plain = np.array_equal(rows, np.arange(len(rows)))
    book = Codebook(values.reshape(count, -1), indices, axis, nodes, None if plain else rows)
    return book if np.array_equal(offsets.values, book.offsets()) else None


def _axis_of(shape: tuple[int, ...], of: tuple[int, ...]) -> int | None:
    """The axis of a tensor shaped `of` along which one of `shape` differs."""
    if len(shape) != len(of):
        return None
    axis = int(np.argmax(shape))
    channels = shape[axis]
    return axis if channels == int(np.prod(shape)) and channels == of[axis] else None


def _indices_of(tensor: gs.Tensor) -> tuple[Array, tuple[gs.Node, ...]] | None:
    """The indices that `tensor` holds, uint8, and the nodes that make them."""
    cast = _maker(tensor, "Cast")
    if cast is not None:
        small = cast.inputs[0]
        fits = isinstance(small, gs.Constant) and small.dtype in SMALL
        return (np.asarray(small.values).astype(np.uint8), (cast,)) if fits else None
    nodes: list[gs.Node] = []
    shape = None
    for op, optional in (
        ("Reshape", False), ("Slice", True), ("Reshape", True), ("Mod", False), ("Div", False), ("MatMul", True),
        ("Cast", False),
    ):  # fmt: skip
        node = _maker(tensor, op)
        if node is None:
            if optional:
                continue
            return None
        if not all(isinstance(other, gs.Constant) for other in node.inputs[1:]):
            return None
        if op == "Reshape" and shape is None:
            shape = tuple(int(size) for size in node.inputs[1].values)
        nodes.insert(0, node)
        tensor = node.inputs[0]
    if not isinstance(tensor, gs.Constant) or tensor.dtype != np.uint8 or len(tensor.shape) != 2:
        return None
    return _unpacked(tensor.values, shape or (), nodes)


def _unpacked(
    packed: Array, shape: tuple[int, ...], nodes: list[gs.Node]
) -> tuple[Array, tuple[gs.Node, ...]] | None:
    by_op = {node.op: node for node in nodes}
    radix, powers = int(by_op["Mod"].inputs[1].values), by_op["Div"].inputs[1].values
    packing = Packing(radix, powers.size, packed.shape[1])
    count = int(np.prod(shape))
    places = by_op["MatMul"].inputs[1].values.reshape(-1) if "MatMul" in by_op else np.ones(1, np.int64)
    if (
        not np.array_equal(powers, packing.powers())
        or not np.array_equal(places, packing.places())
        or packing.size(count) != packed.size
    ):
        return None
    return packing.unpack(packed, count).reshape(shape), tuple(nodes)


def index_form(clusters: int, count: int, opset: int, storage: Storage = "packed") -> Any:
    """How `count` indices below `clusters` are stored: np.uint8, one of ONNX's own small types, or a Packing.

    storage: "packed": in as few bytes as any of them takes, the nodes that unpack counted; "typed": in ONNX's own types;
    "bytes": a byte each.
    """
    forms: list[Any] = [np.uint8]
    if storage != "bytes":
        forms += [kind[2] for kind in TYPED if clusters <= 2 ** kind[0] and opset >= kind[1]]
    if storage == "packed" and opset >= PACKED_FROM:
        forms.append(Packing.of(max(clusters, 2)))
    return min(forms, key=lambda form: index_bytes(form, count))


def index_bytes(form: Any, count: int) -> int:
    """Bytes of `count` indices in a form of `index_form`, and of the nodes that unpack them."""
    if isinstance(form, Packing):
        return form.size(count) + PACKED_NODES
    bits = next((kind[0] for kind in TYPED if form is kind[2]), 8)
    return -(-count * bits // 8)


def store(
    surgery: Surgery,
    name: str,
    book: Codebook,
    shared: Shared | None = None,
    *,
    storage: Storage = "packed",
) -> tuple[list[gs.Node], gs.Variable]:
    """New nodes, in no graph yet, that hold `book`, and the tensor they give.

    shared: small constants that several weights need, filled here. storage: see `index_form`.
    """
    shared = {} if shared is None else shared
    values = surgery.constant(f"{name}_codebook", book.values.reshape(-1))
    opset = opset_of(surgery.model)
    form = index_form(book.clusters, book.indices.size, opset, storage)
    packing = form if isinstance(form, Packing) else None
    kind = np.int64 if packing is not None and packing.width > 3 else np.int32
    small = packing.pack(book.indices) if packing is not None else book.indices.astype(form)
    chain = _Chain(surgery, surgery.constant(f"{name}_indices", small), shared)
    chain.then("Cast", to=TensorProto.INT64 if kind is np.int64 else TensorProto.INT32)
    if packing is not None:
        _unpack(chain, packing, book.indices.shape, kind)
    if book.values.ndim > 1:
        chain.then("Add", surgery.constant(f"{name}_offsets", book.offsets().astype(kind)))
    chain.tensor = [values, chain.tensor]
    chain.then("Gather", axis=0)
    if book.scales is not None:
        chain.then("Mul", surgery.constant(f"{name}_scales", book.along(book.scales)))
    weight = surgery.variable(f"{name}_clustered")
    chain.nodes[-1].outputs = [weight]
    return chain.nodes, weight


class _Chain:
    """Nodes each of which reads what the one before gives. Their names are short: in a small model they are what is left."""

    def __init__(self, surgery: Surgery, start: gs.Constant, shared: Shared) -> None:
        self.surgery = surgery
        self.tensor: Any = start
        self.nodes: list[gs.Node] = []
        self._shared = shared

    def then(self, op: str, *others: gs.Constant, **attributes: Any) -> None:
        """The next node."""
        inputs = [*self.tensor, *others] if isinstance(self.tensor, list) else [self.tensor, *others]
        output = self.surgery.variable("c")
        self.nodes.append(self.surgery.node(op, "c", inputs, [output], **attributes))
        self.tensor = output

    def small(self, what: str, value: Array) -> gs.Constant:
        """A constant that other weights may need, too."""
        key = what, value.tobytes() + value.dtype.char.encode()
        if key not in self._shared:
            self._shared[key] = self.surgery.constant(f"cluster_{what}", value)
        return self._shared[key]


def _unpack(chain: _Chain, packing: Packing, shape: tuple[int, ...], kind: Any) -> None:
    """Goes on from packed integers to indices of this shape. kind: int32 where numbers are of 3 bytes at most."""
    count = int(np.prod(shape))
    if packing.width > 1:
        chain.then("MatMul", chain.small("places", packing.places().astype(kind)[:, np.newaxis]))
    chain.then("Div", chain.small("powers", packing.powers().astype(kind)))
    chain.then("Mod", chain.small("radix", np.asarray(packing.radix, kind)))
    if count % packing.group:
        chain.then("Reshape", chain.small("flat", np.array([-1])))
        chain.then("Slice", chain.small("start", np.array([0])), chain.small("end", np.array([count])))
    chain.then("Reshape", chain.small("shape", np.array(shape, np.int64)))


def unfold(surgery: Surgery) -> list[gs.Constant]:
    """Makes every weight that is stored as a codebook a plain constant again, for a pass that only works on those."""
    unfolded: dict[int, gs.Constant] = {}
    gone: set[int] = set()
    returned = {id(tensor) for graph in surgery.graphs() for tensor in graph.outputs}
    for node in list(surgery.nodes()):
        if node.op == "Mul" and codebook_of(node.outputs[0]) is not None:
            continue  # > what it scales is a codebook too, and no weight
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
    return node if node.op == op and is_standard(node) else None
