"""Small models for the tests of int8, and what runs the pass on them."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnx_compress.contract import Job, Result
from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.model.prepare import prepare
from onnx_compress.passes.int8 import Int8
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import Data, open_data
from onnx_compress.runtime.session import Session, input_specs

Array = NDArray[Any]
MODELS = Path(__file__).parents[1] / "models"
RNG = np.random.default_rng(0)
PLAIN = Int8(keep_if="always", tolerance=None, calibrate="minmax", rounding="nearest", bias_correction=False)


def build(
    nodes: str, weights: dict[str, Array], inputs: str = "float[N,3,8,8] x", opset: int = 17, ir: int = 8
) -> Model:
    """A model from `inputs` to y."""
    text = f'<ir_version: {ir}, opset_import: ["": {opset}]> test ({inputs}) => (float y) {{ {nodes} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in weights.items()
    )
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(proto).graph.output[0]
    proto.graph.output[0].CopyFrom(inferred)
    for number, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}{number}"
    return Model.from_proto(proto)


def normal(*shape: int) -> Array:
    return (RNG.normal(size=shape) / math.sqrt(max(math.prod(shape[1:]), 1))).astype(np.float32)


def data_of(model: Model, samples: int = 24) -> Data:
    rng = np.random.default_rng(1)
    feeds = {}
    for spec in input_specs(model):
        shape = [
            samples if at == 0 else int(size or 1)
            for at, size in enumerate(spec.shape)
            if size != "N" or at == 0
        ]
        kind = spec.dtype
        feeds[spec.name] = (
            rng.normal(size=shape).astype(kind) if kind == np.float32 else np.zeros(shape, kind)
        )
    return open_data([feeds], input_specs(model))


def job_of(model: Model, data: Data | None = None) -> Job:
    return Job(model, model, data or data_of(model), 0, Clock(1))


def run(pass_: Int8, model: Model, data: Data | None = None) -> Result:
    result = pass_.apply(job_of(model, data))
    check(result.model)
    Session(result.model)
    return result


def executed(model: Model) -> Counter[str]:
    """How often onnxruntime runs each operator after its own optimisation."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 4
        proto = model.to_proto().SerializeToString()
        ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


FOLLOWERS = {  # from `a` (and `c`), which convolutions made, (N,8,6,6), to `b`
    "Add": "b = Add(a, c)",
    "Mul": "b = Mul(a, c)",
    "AveragePool": "b = AveragePool<kernel_shape=[2,2]>(a)",
    "GlobalAveragePool": "b = GlobalAveragePool(a)",
    "LeakyRelu": "b = LeakyRelu<alpha=0.1>(a)",
    "Relu": "d = MaxPool<kernel_shape=[2,2]>(a) b = Relu(d)",
    "Sigmoid": "b = Sigmoid(a)",
    "Softmax": "b = Softmax<axis=-1>(a)",
    "MatMul": "b = MatMul(a, c)",
    "Where": "b = Where(flags, a, c)",
    "ReduceMax": "b = ReduceMax<axes=[3]>(a)",
    "ReduceMin": "b = ReduceMin<axes=[3]>(a)",
    "DepthToSpace": "b = DepthToSpace<blocksize=2>(a)",
    "MaxPool": "b = MaxPool<kernel_shape=[2,2]>(a)",
    "Reshape": "s = Constant<value_ints=[0,4,-1]>() b = Reshape(a, s)",
    "Transpose": "b = Transpose<perm=[0,2,3,1]>(a)",
    "Flatten": "b = Flatten(a)",
    "Squeeze": "s = Constant<value_ints=[0,8,36,1]>() t = Constant<value_ints=[3]>() d = Reshape(a, s) b = Squeeze(d, t)",
    "Unsqueeze": "t = Constant<value_ints=[1]>() b = Unsqueeze(a, t)",
    "Slice": "s = Constant<value_ints=[1]>() e = Constant<value_ints=[5]>() t = Constant<value_ints=[2]>()"
    " b = Slice(a, s, e, t)",
    "Gather": "i = Constant<value_ints=[2,0]>() b = Gather<axis=1>(a, i)",
    "GatherElements": "b = GatherElements<axis=3>(a, indices)",
    "Tile": "r = Constant<value_ints=[1,2,1,1]>() b = Tile(a, r)",
    "Expand": "s = Constant<value_ints=[1,8,6,6]>() b = Expand(a, s)",
    "Resize": 'b = Resize<mode="nearest">(a, , scales)',
    "Split": "d, e = Split<axis=1>(a) b = Concat<axis=1>(e, d)",
    "Concat": "b = Concat<axis=1>(a, c)",
    "Pad": "p = Constant<value_ints=[0,1,1,0,0,0,0,0]>() b = Pad(a, p)",
}


def follower_model(op: str) -> Model:
    weights = {"w": normal(8, 3, 3, 3), "v": normal(8, 3, 3, 3)}
    weights["indices"] = np.zeros((1, 8, 6, 2), np.int64)
    weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    weights["flags"] = np.arange(288).reshape(8, 6, 6) % 3 == 0
    body = f"a = Conv(x, w) {'c = Conv(x, v)' if 'a, c)' in FOLLOWERS[op] else ''} {FOLLOWERS[op]}"
    used = {
        name: value for name, value in weights.items() if name in body.replace("(", " ").replace(")", " ")
    }
    feeds = {"x": normal(1, 3, 8, 8)}
    width = Session(build(f"{body} y = Flatten(b)", used, "float[1,3,8,8] x")).run(feeds)["y"].shape[1]
    inputs = "float[1,3,8,8] x" if op == "GatherElements" else "float[N,3,8,8] x"
    model = build(f"{body} f = Flatten(b) y = Gemm(f, g)", {**used, "g": normal(width, 5)}, inputs)
    return prepare(model, None).model


def two_layers() -> Model:
    weights = {"w": normal(8, 3, 3, 3), "u": normal(4, 8, 3, 3)}
    return build("a = Conv(x, w) r = Relu(a) y = Conv(r, u)", weights)
