"""Nodes that are not in order are put in order; all else stays, and a cycle is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_compress import compress
from onnx_compress.errors import InputError
from onnx_compress.model.document import Model
from onnx_compress.model.order import sort_nodes
from onnx_compress.runtime.session import Session


def model(body: str) -> Model:
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x, bool c) => (float[N, 4] y) {{ {body} }}'
    )
    return Model.from_proto(onnx.parser.parse_model(text))


BODY = "If (c) <then_branch = t () => (float[N, 4] p) { p = Neg(b) }, else_branch = e () => (float[N, 4] q) { q = Abs(a) }>"


def test_what_is_in_order_is_the_same_model() -> None:
    given = model("a = Neg(x) y = Abs(a)")
    assert sort_nodes(given) == (given, [])


def test_a_body_comes_after_what_it_reads_outside() -> None:
    given = model(f"y = {BODY} b = Abs(a) a = Neg(x)")
    result, notes = sort_nodes(given)
    assert [node.output[0] for node in result.proto.graph.node] == ["a", "b", "y"]
    assert [node.output[0] for node in given.proto.graph.node] == ["y", "b", "a"]
    assert len(notes) == 1
    x = np.ones((2, 4), np.float32)
    assert (Session(result).run({"x": x, "c": np.array(True)})["y"] == -1).all()


def test_nodes_of_a_body_are_sorted() -> None:
    inner = BODY.replace("p = Neg(b)", "p = Neg(u) u = Neg(x)").replace("Abs(a)", "Abs(x)")
    result, _ = sort_nodes(model(f"y = {inner}"))
    assert (Session(result).run({"x": np.ones((2, 4), np.float32), "c": np.array(True)})["y"] == 1).all()


def test_nodes_that_are_in_order_keep_it() -> None:
    result, _ = sort_nodes(model("z = Neg(x) y = Add(d, z) d = Neg(x) e = Neg(x)"))
    assert [node.output[0] for node in result.proto.graph.node] == ["z", "d", "e", "y"]


@pytest.mark.parametrize("body", ["y = Add(x, y)", "y = Neg(a) a = Neg(b) b = Neg(a)"])
def test_a_cycle_is_refused(body: str) -> None:
    with pytest.raises(InputError, match="cycle"):
        sort_nodes(model(body))


def test_the_report_says_that_nodes_were_sorted() -> None:
    made = compress(model("y = Abs(a) a = Neg(x)").to_proto(), "svd", verify=False)
    assert any("not in the order" in words for words in made.report["warnings"])
