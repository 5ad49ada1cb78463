"""What a layer adds to its product is no part of its weight: computed, by row or a scalar, every pass leaves it where it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnx_compress.contract import Job
from onnx_compress.model.document import Model
from onnx_compress.model.prepare import prepare
from onnx_compress.model.shapes import infer
from onnx_compress.passes import PASSES
from onnx_compress.recipe import parse, resolve
from onnx_compress.runtime.agreement import output_error
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import input_specs

ADDED = {
    "computed": "c = MatMul(x, u) y = Gemm(r, v, c)",
    "computed for a convolution": """two = Constant<value_ints=[2,3]>() p = Unsqueeze(r, two) b = ReduceMean<axes=[0,1], keepdims=0>(x)
        e = Expand(b, size) q = Conv(p, k, e) y = Flatten(q)""",
    "by row": "y = Gemm(r, v, rows)",
    "scalar": "y = Gemm(r, v, one)",
    "left, by row": "t = Transpose<perm=[1,0]>(r) z = Gemm<transA=1>(v, t, column) y = Transpose<perm=[1,0]>(z)",
    "left, by column": "t = Transpose<perm=[1,0]>(r) z = Gemm<transA=1>(v, t, batch) y = Transpose<perm=[1,0]>(z)",
    "left product, by column": """t = Transpose<perm=[1,0]>(r) m = MatMul(vt, t) z = Add(m, batch)
        y = Transpose<perm=[1,0]>(z)""",
    "nothing, by beta": "y = Gemm<beta=0.0>(r, v, vector)",
}
SPECS = [
    "cluster:bits=8",
    "sparsify:sparsity=0.02:tolerance=none",
    "svd:energy=0.999999:keep_if=always",
    "prune:channels=0.98:round_to=1",
    "int8:keep_if=always:tolerance=none",
    "int4:block=32:tolerance=none",
]


def model(added: str, width: int) -> Model:
    """Two layers, the first with a unit that never fires, the second with something large beside its product."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return (rng.standard_normal(shape) / 8).astype(np.float32)

    weights = {
        "w": normal(32, 64),
        "dead": np.zeros(64, np.float32),
        "u": 20 * normal(32, width),
        "v": normal(64, width),
    }
    weights["dead"][7] = -100
    weights |= {
        "rows": 20 * normal(16, 1),
        "one": np.float32(30),
        "column": 20 * normal(width, 1),
        "vector": 20 * normal(width),
    }
    weights |= {
        "batch": 20 * normal(16),
        "k": weights["v"].T.reshape(width, 64, 1, 1),
        "size": np.array([width]),
    }
    weights["vt"] = np.ascontiguousarray(weights["v"].T)
    text = f"h = Gemm(x, w, dead) r = Relu(h) {ADDED[added]}"
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[16,32] x) => (float[16,{width}] y) {{ {text} }}'
    )
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(value), name)
        for name, value in weights.items()
        if name in read
    )
    made = Model.from_proto(proto)
    return prepare(made, infer(made)).model


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    ("added", "width"),
    [
        *((added, 40) for added in ADDED),
        *((added, 16) for added in ADDED if added.endswith(("row", "column"))),
    ],
)
def test_what_a_layer_adds_is_no_part_of_its_weight(added: str, width: int, spec: str) -> None:
    """Of 40 outputs and 16 rows; where there are as many of both, shapes alone do not tell one from the other."""
    source = model(added, width)
    x = np.random.default_rng(1).standard_normal((128, 32)).astype(np.float32)
    data = open_data({"x": x}, input_specs(source))
    (item,) = resolve(parse(spec), PASSES)
    result = item.apply(Job(source, source, data, 0, Clock(1)))
    # > 4 bits in blocks of 32 cost 0.5 % of a product's energy; all else here is finer or removes what is dead
    assert output_error(source, result.model, data) < 0.02
