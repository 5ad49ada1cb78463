"""Small models, and the pass on them: what the tests of cluster share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import onnx.parser
from threadpoolctl import threadpool_limits

from onnx_compress.contract import Job, Result
from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.passes.cluster import Cluster
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import input_specs

if TYPE_CHECKING:
    from pathlib import Path


HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


def model(text: str, **weights: Any) -> Model:
    proto = onnx.parser.parse_model(HEAD + text)
    for name, value in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    onnx.checker.check_model(proto)
    return Model.from_proto(proto)


def normal(*shape: int, seed: int = 0) -> Any:
    """Weights of this shape: the same for the same shape and seed, whatever was drawn before."""
    rng = np.random.default_rng([seed, *shape])
    return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def mlp(*, dead: float = 0.0) -> Model:
    """A small net of Conv, MatMul and Gemm; `dead`: share of its weights that are 0."""
    weights = {"k": normal(16, 2, 3, 3), "w": normal(576, 48), "v": normal(10, 48)}
    rng = np.random.default_rng(5)
    for weight in weights.values():
        weight[rng.random(weight.shape) < dead] = 0
    text = """g (float[N,2,8,8] x) => (float[N,10] y) {
        a = Conv(x, k, c)
        b = Relu(a)
        f = Flatten(b)
        m = MatMul(f, w)
        r = Relu(m)
        y = Gemm<transB=1>(r, v, d)
    }"""
    return model(text, c=normal(16), d=normal(10), **weights)


def cluster(source: Model, data: Any = None, **options: Any) -> Result:
    opened = None if data is None else open_data(data, input_specs(source))
    with threadpool_limits(1, "blas"):  # as the pipeline does
        result = Cluster(**options).apply(Job(source, source, opened, 0, cast("Any", None)))
    check(result.model)
    return result


def feeds(samples: int = 64) -> dict[str, Any]:
    return {"x": np.random.default_rng(1).standard_normal((samples, 2, 8, 8)).astype(np.float32) + 0.3}


def operators(path: Path, result: Model) -> list[str]:
    """The operators of the graph that onnxruntime really runs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(result.to_proto().SerializeToString(), options, providers=["CPUExecutionProvider"])
    graphs = [onnx.load(path).graph]
    found = []
    for graph in graphs:
        for node in graph.node:
            found.append(node.op_type)
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found
