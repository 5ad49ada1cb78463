"""The HTML report of a real run: one file, nothing fetched, numbers of the JSON, and a search that works."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
import subprocess
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from onnx_compress import cli
from onnx_compress.errors import UsageError
from onnx_compress.inspect import inspect
from onnx_compress.report import words
from onnx_compress.report.charts import costly, curve
from onnx_compress.report.html import _command, check_installed, to_html
from onnx_compress.report.layers import brief
from onnx_compress.request import Request
from onnx_compress.runtime.profile import Kernel, by_layer

if TYPE_CHECKING:
    from onnx_compress.model.document import Model

MODELS = Path(__file__).parents[1] / "models"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000", "--dump-dom"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of two passes on a real model, its page and its JSON."""
    folder = tmp_path_factory.mktemp("html")
    page, plain = folder / "out.html", folder / "out.json"
    given = ["--data", str(MODELS / "fashion_calib.npz"), "--samples", "64", "-q"]
    spec = "prune:channels=0.75:criterion=l1,int8:keep_if=always"
    source = str(MODELS / "fashion_lstm.onnx")
    reports = ["--report", str(page), "--report", str(plain)]
    assert cli.main([source, str(folder / "out.onnx"), "--passes", spec, *given, *reports]) == 0
    return page, json.loads(plain.read_text(encoding="utf-8"))


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


def test_page_is_one_small_file_that_fetches_nothing(made: tuple[Path, dict[str, Any]]) -> None:
    page = made[0].read_text(encoding="utf-8")
    assert len(page.encode()) < 300_000  # a third pass adds rows and histograms: 1 MB is the bound
    addresses = set(re.findall(r"https?://[^\"'\s<)]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not addresses
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page)


def test_page_shows_the_numbers_of_the_json(made: tuple[Path, dict[str, Any]]) -> None:
    page, report = text_of(made[0].read_text(encoding="utf-8")), made[1]
    for row in words.comparison(report):
        assert all(cell in page for cell in row)
    for step in report["passes"]:
        for change in step["changes"]:
            assert change["node"] in page
        for skip in step["skips"]:
            assert skip["why"] in page


def test_json_has_what_the_charts_draw(made: tuple[Path, dict[str, Any]]) -> None:
    """Each recurrent layer was timed in both models; weights and errors are counts of every value."""
    layers = made[1]["layers"]
    for side in ("before", "after"):
        assert all(layer["ms"] > 0 for layer in layers[side] if layer["op"] == "LSTM")
        total = sum(kernel["ms"] for kernel in layers["kernels"][side])
        assert sum(layer["ms"] or 0 for layer in layers[side]) <= total + 1e-9
    assert {item["name"] for item in layers["weights"]} == {layer["name"] for layer in layers["before"]}
    for item in layers["weights"]:
        for side in ("before", "after"):
            assert sum(item[side]["counts"]) == np.prod(item[side]["shape"])
    assert sum(layers["errors"][0]["counts"]) == 64 * 10


def test_the_page_says_how_the_run_is_made_again(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The command on the page, typed, gives a run with the same arguments."""
    page, report = made[0].read_text(encoding="utf-8"), made[1]
    found = re.search(r"<h2>Make it again</h2>\s*<div class=\"card\"><pre>(.*?)</pre>", page, re.DOTALL)
    assert found is not None
    words = shlex.split(html.unescape(found[1]))
    assert words[:2] == ["onnx-compress", str(MODELS / "fashion_lstm.onnx")]
    words[2] = str(tmp_path / "again.onnx")
    again = tmp_path / "again.json"
    assert cli.main([*words[1:], "--no-verify", "-q", "--report", str(again)]) == 0
    expected = {**report["arguments"], "verify": False}
    assert json.loads(again.read_text(encoding="utf-8"))["arguments"] == expected


def test_every_argument_is_in_the_command() -> None:
    """What `Request.arguments` gives is words that `run` takes, with its values."""
    given: dict[str, Any] = {
        "data": "a b.npz",
        "max_drop": 0.5,
        "input_shapes": {"x:0": (1, 3)},
        "freeze_inputs": True,
    }
    asked = Request("in.onnx", "int8", **given, verify=False, detail=True, seed=0, threads=None)
    command = _command({"input": "in.onnx", "recipe": "int8", "arguments": asked.arguments})
    assert command == (
        "onnx-compress in.onnx OUT.onnx --passes int8 --input-shapes x:0:1,3 --no-verify "
        "--data 'a b.npz' --max-drop 0.5 --freeze-inputs"
    )


def test_page_shows_the_channels_that_go_together(made: tuple[Path, dict[str, Any]]) -> None:
    page, report = text_of(made[0].read_text(encoding="utf-8")), made[1]
    channels = report["layers"]["channels"]
    assert channels == inspect(MODELS / "fashion_lstm.onnx")["units"]
    assert all(brief(kind["makes"][0]) in page for kind in channels["kinds"] if kind["makes"])
    assert all(item["why"] in page for item in channels["pinned"])


def test_a_pass_that_measured_curves_shows_them(made: tuple[Path, dict[str, Any]]) -> None:
    """Each kind of unit has a curve from nothing gone, where the error is 0; what stays is what the change says."""
    page, report = text_of(made[0].read_text(encoding="utf-8")), made[1]
    step = next(step for step in report["passes"] if step["name"] == "prune")
    assert step["curves"]
    sizes = {item["node"]: int(item["after"]) / int(item["before"]) for item in step["changes"]}
    for item in step["curves"]:
        assert item["where"] in page
        assert (item["shares"][0], item["errors"][0]) == (0, 0)
        assert item["shares"] == sorted(item["shares"])
        assert item["kept"] == pytest.approx(sizes.get(item["where"], 1.0))


def test_a_curve_is_drawn_with_its_mark() -> None:
    """The mark is at the measured share nearest to what went."""
    drawn = [curve((0, 0.5, 0.9), (0, 0.01, 0.5), gone, "salt") for gone in (0.0, 0.5, 0.6, 1.0)]
    assert len(set(drawn)) == 3
    assert drawn[1] == drawn[2]
    assert "var(--after)" in drawn[0]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("word", ["", "Gemm", "graph output", "nothing is like this"])
def test_search_shows_the_rows_with_all_words(
    made: tuple[Path, dict[str, Any]], word: str, tmp_path: Path
) -> None:
    """The page searches for what stands after #q=; its script fails nowhere."""
    address = made[0].as_uri() + f"#q={word.replace(' ', '+')}"
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    table = re.search(r"<table id=\"rows\">.*?<tbody>(.*?)</tbody>", done.stdout, re.DOTALL)
    assert table is not None
    rows = re.findall(r"<tr( hidden=\"\")?>(.*?)</tr>", table[1], re.DOTALL)
    fits = [all(part.lower() in text_of(row).lower() for part in word.split()) for _, row in rows]
    assert [not hidden for hidden, _ in rows] == fits
    assert f">{sum(fits)} of {len(rows)}<" in done.stdout


def test_missing_libraries_are_named_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "jinja2" else find(name))
    with pytest.raises(UsageError, match="needs jinja2"):
        check_installed()
    absent, page = str(tmp_path / "absent.onnx"), str(tmp_path / "r.html")
    assert cli.main([absent, str(tmp_path / "o.onnx"), "--passes", "int8", "--report", page]) == 2
    assert "pip install 'onnx-compress[report]'" in capsys.readouterr().err


def test_no_name_becomes_markup_or_a_formula() -> None:
    name = "<script>alert('1')</script> $x^2$"
    costs = {"bytes": 10, "params": 2, "macs": 3, "nodes": 1}
    layer = {"name": name, "op": "Conv", "macs": 3, "params": 2, "bytes": 10}
    step = {"name": "svd", "options": {}, "seconds": 0.1, "before": costs, "after": costs, "decisions": []}
    report: dict[str, Any] = {
        **dict.fromkeys(("metric", "latency", "seconds", "peak_rss_bytes", "output")),
        **{key: {} for key in ("data", "environment", "stages")},
        **{key: [] for key in ("agreement", "thresholds")},
        **dict.fromkeys(("before", "after"), costs),
        **dict.fromkeys(("input", "recipe"), name),
        "seed": 0,
        "passes": [{**step, "changes": [], "skips": [{"node": name, "why": name}]}],
        "warnings": [name],
        "layers": {"before": [layer], "after": [layer]},
    }
    page = to_html(report)
    assert page.count("<script>") == 1
    assert "alert('1')</script>" not in page
    assert "$x^2$" in page


def test_parts_of_a_split_layer_count_as_the_layer() -> None:
    """conv1 became conv1_a and conv1_b; conv10, whose name starts alike, is another layer."""
    before = [{"name": name, "macs": 8} for name in ("conv1", "conv10")]
    after = [{"name": name, "macs": 3} for name in ("conv1_a", "conv1_b", "conv10")]
    found = costly({"layers": {"before": before, "after": after}}, "macs")
    assert found == [("conv1", 8, 6), ("conv10", 8, 3)]


def test_a_fused_kernel_is_the_time_of_its_layer() -> None:
    """onnxruntime names a fused convolution by its last node or tensor, a quantized one by itself and a number."""
    from onnx_compress.model.document import Model

    graph = "f (float[1,1,4,4] x, float[1,1,1,1] w) => (float[1,1,4,4] y) { c = Conv(x, w) y = Relu(c) }"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> {graph}')
    proto.graph.node[0].name, proto.graph.node[1].name = "conv", "relu"
    model: Model = Model.from_proto(proto)
    for kernel in (
        Kernel("y_nchwc", "Conv", 2.0),
        Kernel("conv_token_7", "QLinearConv", 2.0),
        Kernel("relu", "FusedConv", 2.0),
        Kernel("fused conv", "FusedConv", 2.0),
    ):
        assert by_layer(model, [kernel], ["conv"]) == {"conv": 2.0}
    assert by_layer(model, [Kernel("relu", "Relu", 2.0)], ["conv"]) == {}
