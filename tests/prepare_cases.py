"""Graph text prepared, and what must hold of that for every model."""

import numpy as np
import onnx

from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.model.prepare import Prepared, prepare
from onnx_compress.model.walk import graphs
from onnx_compress.runtime.session import Session, input_specs


def read(text: str, opset: int = 17, ir: int = 8) -> Model:
    """The model of graph text; a weight without a value gets a random one."""
    own = ', "own": 1' if "own." in text else ""
    proto = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["": {opset}{own}]>' + text)
    rng = np.random.default_rng(0)
    made = {name for node in proto.graph.node for name in node.output}
    for value in [v for v in proto.graph.value_info if v.name not in made]:
        kind = value.type.tensor_type
        shape = [dim.dim_value for dim in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        # > 0 throughout: a variance must be
        array = (
            (rng.random(shape) + 0.5).astype(dtype)
            if dtype.kind == "f"
            else rng.integers(0, 16, shape).astype(dtype)
        )
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        proto.graph.value_info.remove(value)
    return Model.from_proto(proto)


def feeds_of(model: Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    feeds = {}
    for spec in input_specs(model):
        shape = [size if isinstance(size, int) else 2 for size in spec.shape]
        feeds[spec.name] = (
            rng.standard_normal(shape).astype(spec.dtype)
            if spec.dtype.kind == "f"
            else np.ones(shape, spec.dtype)
        )
    return feeds


def prepared(model: Model, tolerance: float = 1e-5) -> Prepared:
    """`model` prepared, after all that must hold for every model has been seen to hold."""
    before = model.proto.SerializeToString()
    result = prepare(model)
    assert model.proto.SerializeToString() == before, "the input was changed"
    check(result.model)
    assert prepare(result.model).changes == [], "a second time changes more"
    old, new = model.proto.graph, result.model.proto.graph
    assert [v.SerializeToString() for v in old.output] == [v.SerializeToString() for v in new.output]
    names = [node.name for graph in graphs(new) for node in graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    feeds = feeds_of(model)
    expected = Session(model, threads=1, optimize=False).run(feeds)
    got = Session(result.model, threads=1, optimize=False).run(feeds)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_allclose(
            got[name], value, rtol=tolerance, atol=tolerance * (np.abs(value).max() if value.size else 0)
        )
    return result


def ops(model: Model) -> list[str]:
    return [node.op_type for node in model.proto.graph.node]


def weights(model: Model) -> dict[str, tuple[int, ...]]:
    return {
        tensor.name: tuple(tensor.dims) for graph in graphs(model.proto.graph) for tensor in graph.initializer
    }
