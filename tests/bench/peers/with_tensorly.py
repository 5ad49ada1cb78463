"""Runs in the environment that has tensorly: `python with_tensorly.py IN.onnx OUT.onnx`; prints its version and the seconds it took.

Tucker-2 at half ranks of every k x k Conv, from the singular vectors, its own least squares after it.
"""

import sys
import time

import numpy as np
import onnx
import tensorly
from onnx import helper, numpy_helper
from tensorly.decomposition import partial_tucker

SMALLEST = 4  # channels


def main(source: str, goal: str) -> None:
    """Factors `source` into `goal`."""
    model = onnx.load(source)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    start = time.perf_counter()
    for node in graph.node:
        weight = numpy_helper.to_array(weights[node.input[1]]) if node.op_type == "Conv" else None
        attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if weight is None or not factorable(weight, attrs.get("group", 1)):
            nodes.append(node)
            continue
        ranks = [weight.shape[0] // 2, weight.shape[1] // 2]
        found = partial_tucker(weight.astype(np.float64), rank=ranks, modes=[0, 1], init="svd")
        core, (last, first) = found[0] if isinstance(found[0], tuple) else found
        name = node.output[0]
        for part, value in (("a", first.T[..., None, None]), ("b", core), ("c", last[..., None, None])):
            array = np.ascontiguousarray(value, np.float32)
            graph.initializer.append(numpy_helper.from_array(array, name + part))
        for inputs, output, part, own in (
            ([node.input[0], name + "a"], name + "_a", "a", {}),
            ([name + "_a", name + "b"], name + "_b", "b", attrs),
            ([name + "_b", name + "c", *node.input[2:]], name, "c", {}),
        ):
            nodes.append(helper.make_node("Conv", inputs, [output], name=name + part, **own))
    seconds = time.perf_counter() - start
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    onnx.save(model, goal)
    print(tensorly.__version__, seconds)


def factorable(weight: np.ndarray, group: int) -> bool:
    """Whether Tucker-2 can save anything."""
    return weight.shape[2] * weight.shape[3] > 1 and group == 1 and min(weight.shape[:2]) >= SMALLEST


if __name__ == "__main__":
    main(*sys.argv[1:])
