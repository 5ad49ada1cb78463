"""verify --layers finds the layer that was harmed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from onnx_compress import cli
from onnx_compress.compare import compare
from onnx_compress.model.document import Model
from onnx_compress.report import words
from onnx_compress.report.html import to_html
from onnx_compress.report.markdown import to_markdown
from onnx_compress.report.text import to_text

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(0)
WEIGHTS = {name: RNG.standard_normal((8, 8)).astype(np.float32) for name in "abc"}
X = RNG.standard_normal((16, 8)).astype(np.float32)


def model(**changed: np.ndarray[Any, Any]) -> Model:
    body = "h = MatMul(x, a) r = Relu(h) k = MatMul(r, b) s = Relu(k) y = MatMul(s, c)"
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[N, 8] x) => (float[N, 8] y) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    for node in proto.graph.node:
        node.name = f"make{node.output[0]}"
    for name, value in {**WEIGHTS, **changed}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return Model.from_proto(proto)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """The second of three layers is harmed."""
    harmed = model(b=WEIGHTS["b"] + 0.1 * RNG.standard_normal((8, 8)).astype(np.float32))
    return compare(model(), harmed, data=[{"x": X}], layers=True)


def test_tensors_come_in_the_order_of_the_graph_with_their_errors(report: dict[str, Any]) -> None:
    """Before the harmed layer nothing differs; its own error is all its own."""
    tensors = report["layers"]["tensors"]
    assert [item["tensor"] for item in tensors] == ["h", "r", "k", "s", "y"]
    errors = {item["tensor"]: item["error"] for item in tensors}
    assert errors["h"] == errors["r"] == 0
    assert errors["k"] > 0
    added = {item["tensor"]: item["added"] for item in tensors}
    assert added["k"] == errors["k"]
    assert added["y"] == pytest.approx(errors["y"] - errors["s"])


def test_the_layer_that_hurts_is_first_in_every_form(report: dict[str, Any]) -> None:
    assert words.hurting(report)[0][0] == "makek"
    report = {**report, "output": "b.onnx", "recipe": None}
    for form in (to_text, to_markdown, to_html):
        text = form(report)
        assert "makek" in text[text.index("ayers that add most error") :]


def test_equal_models_have_no_layer_that_hurts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model().save("a.onnx")
    np.savez("x.npz", x=X)
    assert cli.main(["verify", "a.onnx", "a.onnx", "--data", "x.npz", "--layers"]) == 0
    assert "add most error" not in capsys.readouterr().out
