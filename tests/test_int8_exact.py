"""int8: what onnxruntime's integer kernels compute is what the graph of conversions says, in NumPy, for each operator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from int8_cases import FOLLOWERS, PLAIN, follower_model, run
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onnx_compress.runtime.session import Session

Array = NDArray[Any]


class QuantizeLinear(OpRun):
    """As ONNX defines it, in NumPy: halves to even."""

    op_domain = ""

    def _run(self, x: Array, scale: Array, zero: Array, **_: Any) -> tuple[Array]:
        info = np.iinfo(zero.dtype)
        return (np.clip(np.rint(x / scale) + zero, info.min, info.max).astype(zero.dtype),)


class DequantizeLinear(OpRun):
    """As ONNX defines it, in NumPy, in float64: the sums of a layer are then exact."""

    op_domain = ""

    def _run(
        self, x: Array, scale: Array, zero: Array | None = None, axis: int = 1, **_: Any
    ) -> tuple[Array]:
        shape = [1] * x.ndim
        if scale.ndim:
            shape[axis] = -1
        zero = np.zeros(scale.shape, x.dtype) if zero is None else zero
        real = (x.astype(np.int64) - zero.astype(np.int64).reshape(shape)) * scale.astype(np.float64).reshape(
            shape
        )
        return (real,)


def _parts(proto: onnx.ModelProto) -> list[tuple[str, onnx.ModelProto]]:
    """Each quantized tensor with the model that computes it from the quantized tensors (and inputs) before it."""
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    kinds = {value.name: value for value in (*graph.input, *graph.value_info)}
    makers = {name: node for node in graph.node for name in node.output}
    known = {value.name for value in graph.input}
    found = []
    for node in graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        needed, inputs, waiting = [], set(), [node.output[0]]
        while waiting:
            name = waiting.pop()
            if name in known:
                inputs.add(name)
            elif name in makers and makers[name] not in needed:
                needed.append(makers[name])
                waiting += makers[name].input
        order = [one for one in graph.node if one in needed]
        part = helper.make_graph(
            order,
            "part",
            [kinds[name] for name in sorted(inputs)],
            [helper.make_tensor_value_info(node.output[0], TensorProto.UINT8, None)],
            list(graph.initializer),
        )
        found.append(
            (node.output[0], helper.make_model(part, opset_imports=proto.opset_import, ir_version=8))
        )
        known.add(node.output[0])
    return found


@pytest.mark.parametrize("op", sorted(FOLLOWERS))
def test_integer_kernels_give_the_codes_of_the_graph(op: str) -> None:
    """Each quantized tensor, from the codes before it, in NumPy (onnx's reference) and by onnxruntime's kernels.

    Codes differ by one where a kernel's float32 product of scales rounds the other way at a half, and nowhere else; tables
    (Sigmoid, Softmax) and multipliers in fixed point are as near.
    """
    quantized = run(PLAIN, follower_model(op)).model
    proto = quantized.to_proto()
    parts = _parts(proto)
    assert len(parts) > 1
    feeds = {"x": np.random.default_rng(2).normal(size=(1, 3, 8, 8)).astype(np.float32)}
    got = {**feeds, **Session(quantized, outputs=[name for name, _ in parts]).run(feeds)}
    for name, part in parts:
        given = {value.name: got[value.name] for value in part.graph.input}
        (exact,) = ReferenceEvaluator(part, new_ops=[QuantizeLinear, DequantizeLinear]).run([name], given)
        apart = np.abs(np.asarray(got[name], np.int64) - np.asarray(exact, np.int64))
        assert apart.max(initial=0) <= 1
        assert (apart == 0).mean() > 0.97
