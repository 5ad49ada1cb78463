"""Models drawn at random go through every pass, and real ones, spoilt at random, through the command: nothing ever goes wrong.

The long mode: `pytest -m fuzz --fuzz-minutes 30 tests/test_fuzz.py`. It prints what it ran.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from command import Command
from graphs import feeds_of, models
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from mutate import MODELS, mutant
from oracle import judge

from onnx_compress.model.document import Model
from onnx_compress.model.prepare import prepare
from onnx_compress.passes import PASSES
from onnx_compress.preflight import preflight
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.selftest import prove
from onnx_compress.runtime.session import input_specs

if TYPE_CHECKING:
    from onnx import ModelProto

SPECS = ["none", *(kind.name for kind in PASSES)]
LENIENT = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
BATCH = 25  # graphs between two looks at the clock


@pytest.fixture(autouse=True)
def _short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the clock decides is not the question here."""
    monkeypatch.setattr("onnx_compress.runtime.race.SAMPLE", 0.0001)


def go(proto: ModelProto, specs: list[str]) -> None:
    """Through each of `specs`, and through the proof that removing channels is masking them."""
    feeds = feeds_of(proto)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.onnx"
        path.write_bytes(proto.SerializeToString())
        for spec in specs:
            found = judge(path, spec, feeds)
            assert found.kind == "valid", f"{spec}: {found.kind}: {found.words}"
        model = Model.load(path)
        flight = preflight(model, data=open_data(feeds, input_specs(model)), threads=1)
        prepared = prepare(model, flight.shapes).model
        assert prove(prepared, flight.shapes, flight.feeds, 0).sound


@settings(max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=LENIENT)
@given(models(8), st.sampled_from(SPECS))
def test_drawn_models(proto: ModelProto, spec: str) -> None:
    go(proto, [spec])


@pytest.mark.fuzz
def test_drawn_models_for_minutes(fuzz_minutes: float, capsys: pytest.CaptureFixture[str]) -> None:
    """Every model through every pass, new ones each time."""
    count, until, start = (
        0,
        time.monotonic() + 60 * fuzz_minutes,
        int(np.random.default_rng().integers(2**62)),
    )

    def run(proto: ModelProto) -> None:
        nonlocal count
        if time.monotonic() < until:
            count += 1
            try:
                go(proto, SPECS)
            except BaseException as error:
                error.add_note(f"the model: {_kept(proto)}")
                raise

    while time.monotonic() < until:
        # > not shrunk: that takes longer than the search, and the model that failed is at hand
        short = settings(
            max_examples=BATCH,
            deadline=None,
            database=None,
            suppress_health_check=LENIENT,
            phases=[Phase.generate],
            report_multiple_bugs=False,
        )
        seed(start + count)(short(given(models())(run)))()
    with capsys.disabled():
        print(f"\n{count} models drawn, each through {len(SPECS)} passes")  # noqa: T201


def _kept(proto: ModelProto) -> Path:
    """Where a model that failed stays for whoever looks into it."""
    with tempfile.NamedTemporaryFile(prefix="onnx-compress-fuzz-", suffix=".onnx", delete=False) as file:
        file.write(proto.SerializeToString())
    return Path(file.name)


def spoil(command: Command, name: str, number: int, folder: Path) -> None:
    """A mutant through the command: the documented exit codes, one line, no file."""
    work, scratch = folder / "work", folder / "scratch"
    work.mkdir()
    scratch.mkdir()
    rng = np.random.default_rng(number)
    content, how = mutant(name, rng)
    (work / "in.onnx").write_bytes(content)
    spec = SPECS[number % len(SPECS)]
    words = [
        "in.onnx",
        "out.onnx",
        "--passes",
        spec,
        "--no-verify",
        "-q",
        "--time-limit",
        "20",
        "--memory-limit",
        "2",
    ]
    found = command.run(words, work, scratch, 40)
    said = f"{name}, mutant {number} ({how}), {spec}: {found}"
    assert found.code in (0, 2, 3, 4), said
    assert "a bug in" not in found.err, said
    assert "Traceback" not in found.err + found.out, said
    assert "broke the model" not in found.err, said
    assert "failed after" not in found.err, said
    assert found.err.count("\n") == (1 if found.code else 0), said
    assert found.out == "", said
    left = sorted(path.name for path in [*work.iterdir(), *scratch.iterdir()])
    assert left == (["in.onnx"] if found.code else ["in.onnx", "out.onnx"]), said
    if not found.code:
        Model.load(work / "out.onnx")


def test_mutants(tmp_path: Path) -> None:
    with Command() as command:
        for number in range(12):
            (tmp_path / str(number)).mkdir()
            spoil(command, MODELS[number % len(MODELS)], number, tmp_path / str(number))


@pytest.mark.fuzz
def test_mutants_for_minutes(fuzz_minutes: float, capsys: pytest.CaptureFixture[str]) -> None:
    until = time.monotonic() + 60 * fuzz_minutes
    first = number = int(np.random.default_rng().integers(2**31))
    with Command() as command:
        while time.monotonic() < until:
            with tempfile.TemporaryDirectory() as folder:
                spoil(command, MODELS[number % len(MODELS)], number, Path(folder))
            number += 1
    with capsys.disabled():
        print(f"\n{number - first} mutants, from number {first} on")  # noqa: T201
