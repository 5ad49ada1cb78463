"""What reached the body of a Loop or Scan, turn by turn, while the calibration data ran: the body returns its inputs beside its outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper

from onnx_compress.model.document import Model
from onnx_compress.runtime.session import Session

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    from onnx_compress.passes.int8.search import Search

    Array = NDArray[Any]

SAMPLES = 64  # whose turns are recorded
EACH = 8  # turns of one sample, evenly spread
KEPT = 256 * 2**20  # bytes of them


def turns(search: Search, proto: onnx.ModelProto, name: str, captured: list[str]) -> list[dict[str, Array]]:
    """A feed of the body of node `name` for each turn seen: its own inputs, and the tensors `captured` around it.

    proto is changed. Raises InputError or LimitError where what reaches the body has another shape in each turn.
    """
    node = next(one for one in proto.graph.node if one.name == name)
    body = next(attribute.g for attribute in node.attribute if attribute.name == "body")
    seen = [f"{name}_turn_{value.name}" for value in body.input]
    missing = len(body.output) - (1 if node.op_type == "Loop" else 0) - len(node.output)
    node.output.extend(f"{name}_unread_{number}" for number in range(missing))
    for value, turn in zip(body.input, seen, strict=True):
        body.node.append(helper.make_node("Identity", [value.name], [f"{turn}_inside"]))
        body.output.add().name = f"{turn}_inside"
        body.output[-1].type.tensor_type.elem_type = value.type.tensor_type.elem_type
        node.output.append(turn)
    for attribute in node.attribute:
        if attribute.name in ("scan_output_axes", "scan_output_directions"):
            attribute.ints.extend([0] * len(seen))
    model = Model.from_proto(proto)
    inputs = {value.name for value in model.proto.graph.input}
    constants = {tensor.name: model.array(tensor) for tensor in model.proto.graph.initializer}
    around = [one for one in captured if one not in inputs and one not in constants]
    session = Session(model, threads=search.job.clock.threads, outputs=[*seen, *around])
    feeds: list[dict[str, Array]] = []
    size = 0
    for part in (search.fit, search.held):
        for batch in part.take(SAMPLES).batches(1):
            values = {**constants, **batch, **session.run(batch, [*seen, *around])}
            count = len(values[seen[0]])
            for at in np.unique(np.linspace(0, count - 1, min(count, EACH)).astype(int)):
                feed = {one: np.asarray(values[one]) for one in captured}
                feed |= {
                    v.name: np.asarray(values[turn][at]) for v, turn in zip(body.input, seen, strict=True)
                }
                size += sum(value.nbytes for value in feed.values())
                if size < KEPT:
                    feeds.append(feed)
    return feeds
