"""Every pass, alone and after any other: valid, and within its tolerance. Here on the two smallest models of the zoo, each pair on one of
them in turn; `pytest -m slow tests/test_pairs.py` runs all on all.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.passes import PASSES
from onnx_compress.pipeline import compress
from onnx_compress.runtime.agreement import output_error
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import input_specs

MODELS = Path(__file__).parents[1] / "models"
SMALLEST = sorted(MODELS.glob("fashion_*.onnx"), key=lambda path: path.stat().st_size)[:2]
ALL = sorted(MODELS.glob("fashion_*.onnx"))
NAMES = [kind.name for kind in PASSES]
SINGLE = NAMES
PAIRS = [f"{a},{b}" for a, b in itertools.permutations(NAMES, 2)]
BOUND = (
    0.2  # of the output error: each pass adds at most its tolerance on held-out data, and 64 samples are few
)


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the clock decides is not the question here: whatever it is, the result is valid and near."""
    monkeypatch.setattr("onnx_compress.runtime.race.SAMPLE", 0.0001)


def run(path: Path, spec: str) -> None:
    data = MODELS / "fashion_calib.npz"
    result = compress(path, spec, data=data, samples=64, verify=False)
    check(result.model)
    original = Model.load(path)
    unseen = open_data(MODELS / "fashion_eval.npz", input_specs(original), samples=256)
    assert output_error(original, result.model, unseen) < BOUND
    assert [step["name"] for step in result.report["passes"]][1:] == spec.split(",")
    for step in result.report["passes"][1:]:
        assert step["changes"] or step["skips"], f"{step['name']} did nothing and does not say why"


@pytest.mark.parametrize("path", SMALLEST, ids=lambda path: path.stem)
@pytest.mark.parametrize("spec", SINGLE)
def test_alone_on_the_smallest(path: Path, spec: str) -> None:
    run(path, spec)


@pytest.mark.parametrize(("path", "spec"), list(zip(itertools.cycle(SMALLEST), PAIRS, strict=False)))
def test_after_any_other_on_the_smallest(path: Path, spec: str) -> None:
    run(path, spec)


@pytest.mark.slow
@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
@pytest.mark.parametrize("spec", [*SINGLE, *PAIRS, "prune,svd,int8", "prune,svd,cluster"])
def test_on_all(path: Path, spec: str) -> None:
    run(path, spec)
