"""What inspect says of a model agrees with counting by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_compress.errors import InputError, UsageError
from onnx_compress.inspect import inspect
from onnx_compress.model.channels import Channels
from onnx_compress.model.cost import cost
from onnx_compress.model.document import Model
from onnx_compress.model.groups import groups
from onnx_compress.model.prepare import prepare
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes import known_passes

MODELS = Path(__file__).parents[1] / "models"
GRAPH = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N, 3, 8, 8] x) => (float[N, 5] y)
{
  h = Conv <kernel_shape = [3, 3]> (x, w, b)
  r = Relu (h)
  p = GlobalAveragePool (r)
  f = Flatten (p)
  y = Gemm <transB = 1> (f, v)
}
"""


def model() -> Model:
    proto = onnx.parser.parse_model(GRAPH)
    for name, shape in (("w", (4, 3, 3, 3)), ("b", (4,)), ("v", (5, 4))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    return Model.from_proto(proto)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return inspect(model())


def test_layers_are_counted(found: dict[str, Any]) -> None:
    """Conv: 4·3·3·3 weights at 6·6 places, 4 biases; Gemm: 5·4."""
    conv, gemm = found["layers"]
    assert (conv["op"], conv["macs"], conv["params"], conv["bytes"]) == ("Conv", 108 * 36, 112, 448)
    assert (conv["input"], conv["weight"], conv["output"]) == ([1, 3, 8, 8], [4, 3, 3, 3], [1, 4, 6, 6])
    assert (gemm["op"], gemm["macs"], gemm["params"], gemm["bytes"]) == ("Gemm", 20, 20, 80)
    assert (found["params"], found["macs"]) == (132, 108 * 36 + 20)


def test_channels_that_go_together_are_one_kind(found: dict[str, Any]) -> None:
    """A channel of the convolution takes its filter, its bias and its column of the Gemm."""
    (kind,) = found["units"]["kinds"]
    assert kind["units"] == 4
    assert kind["places"] == {"w[0]": 1, "b[0]": 1, "v[1]": 1}
    reasons = {item["axis"]: item["why"] for item in found["units"]["pinned"]}
    assert reasons["w[1]"] == "a graph input"
    assert reasons["v[0]"] == "a graph output"


def test_inputs_and_outputs_keep_their_symbols(found: dict[str, Any]) -> None:
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["N", 3, 8, 8]}]
    assert found["outputs"] == [{"name": "y", "shape": ["N", 5]}]


def test_every_pass_says_what_it_could_do(found: dict[str, Any]) -> None:
    """The Gemm's 20 weights are too few to share values; prune cannot touch inputs and outputs."""
    assert [item["name"] for item in found["passes"]] == [kind.name for kind in known_passes()]
    could = {item["name"]: [change["node"] for change in item["could"]] for item in found["passes"]}
    names = [layer["name"] for layer in found["layers"]]
    assert could["int8"] == names
    assert could["svd"] == names
    assert len(could["prune"]) == 1
    assert could["cluster"] == names[:1]
    why = {item["name"]: [skip["why"] for skip in item["skips"]] for item in found["passes"]}
    assert {"a graph input", "a graph output"} <= set(why["prune"])


def test_missing_model_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no such file"):
        inspect("absent.onnx")


def test_layers_are_timed_and_the_rest_of_the_model_is_said(found: dict[str, Any]) -> None:
    """The convolution bears the name of its Relu in onnxruntime's fused graph: its time is found all the same."""
    times = [layer["ms"] for layer in found["layers"]]
    assert all(time > 0 for time in times)
    assert sum(times) <= found["ms"]
    assert not found["quantized"]


def test_self_test_removes_what_it_masks() -> None:
    result = inspect(model(), self_test=True)["self_test"]
    assert result["sound"]
    assert result["difference"] <= result["allowed"]


def test_units_that_others_make_up_for_are_not_missed() -> None:
    """Four equal filters: unrepaired, the share that goes is the share of the output that is missing, and its square the
    error. The others make up for them but for the ridge, which 32 samples leave at a tenth of the fit.
    """
    result = inspect(model(), sensitivity="prune")["sensitivity"]
    assert result["random"]
    assert [row["units"] for row in result["rows"]] == [1, 2, 3]
    assert all(row["error"] < row["share"] ** 2 / 20 for row in result["rows"])


def test_sensitivity_of_a_pass_that_measures_none_names_those_that_do() -> None:
    with pytest.raises(UsageError, match=r"passes that measure it: .*prune"):
        inspect(model(), sensitivity="absent")


DEPTHWISE = """
<ir_version: 8, opset_import: ["": 17]>
net (float[N, 3, 8, 8] x) => (float[N, 5] y)
{
  h = Conv (x, w)
  d = Conv <group = 4> (h, k)
  p = GlobalAveragePool (d)
  f = Flatten (p)
  y = Gemm <transB = 1> (f, v)
}
"""


def test_a_kind_names_the_nodes_that_make_carry_and_read_it() -> None:
    """A depthwise convolution has weights of its own, but carries the channels of the one before."""
    proto = onnx.parser.parse_model(DEPTHWISE)
    for name, shape in (("w", (4, 3, 3, 3)), ("k", (4, 1, 3, 3)), ("v", (5, 4))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    for node in proto.graph.node:
        node.name = f"make {node.output[0]}"
    found = inspect(Model.from_proto(proto))["units"]
    (kind,) = found["kinds"]
    assert (kind["makes"], kind["carries"], kind["reads"]) == (["make h"], ["make d"], ["make y"])
    sides = {(item["node"], item["side"]): item["why"] for item in found["pinned"]}
    assert sides == {("make h", "inputs"): "a graph input", ("make y", "outputs"): "a graph output"}


def test_parameters_of_a_unit_are_those_that_go_with_it() -> None:
    """Residual width, heads, their width and the MLP's: of each kind of a transformer one unit is removed and what is left counted."""
    whole = prepare(Model.load(MODELS / "fashion_vit.onnx")).model
    shapes = infer(whole)
    kinds = groups(whole, shapes)["kinds"]
    assert {(kind["units"], kind["width"]) for kind in kinds} == {(128, 1), (512, 1), (4, 32), (32, 4)}
    for kind in kinds[:7]:
        surgery = Surgery(whole)
        channels = Channels(surgery, dict(shapes))
        places = {tuple(place[:-1].rsplit("[", 1)): count for place, count in kind["places"].items()}
        unit = next(
            unit
            for unit in channels.units()[0]
            if {(name, str(axis)): len(at) for (name, axis), at in unit.places.items()} == places
        )
        channels.remove([unit])
        gone = cost(whole, shapes).params - cost(surgery.commit(), shapes).params
        assert gone == kind["params"]


def test_a_model_comes_as_compress_takes_it(tmp_path: Path) -> None:
    """A path, a ModelProto, a Model or a holder; and in the sizes, and one sample at a time, that it runs with."""
    proto = model().to_proto()
    onnx.save(proto, tmp_path / "in.onnx")

    class Holder:
        model_proto = proto

    for given in (tmp_path / "in.onnx", str(tmp_path / "in.onnx"), proto, Holder()):
        assert inspect(given)["params"] == 132
    with pytest.raises(InputError, match="not a path or a ModelProto"):
        inspect(5)
    pictures = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N,3,H,W] x) => (float[N,40] y) {
            one = Constant<value_ints=[1,3072]>() f = Reshape(x, one) y = MatMul(f, w)
        }"""
    )
    weight = np.random.default_rng(0).standard_normal((3072, 40)).astype(np.float32)
    pictures.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    assert inspect(pictures, sensitivity="int8")["sensitivity"]["rows"]
