"""Every source of data gives the same samples, in batches that fit the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_compress.runtime.data import open_data

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
from data_cases import INT, ROWS, SPEC, gathered, npz_in, save_set, spec


def test_batches_are_the_samples_in_order_again_and_again(tmp_path: Path) -> None:
    data = open_data(npz_in(tmp_path), SPEC)
    assert [len(b["input"]) for b in data.batches(4)] == [4, 4, 2]
    for _ in range(2):
        assert np.array_equal(gathered(data), ROWS)


def test_stored_npz_reads_as_the_packed_one(tmp_path: Path) -> None:
    """Stored members are mapped at an offset of our own making; Fortran order and a long local header included."""
    np.savez(tmp_path / "a.npz", input=np.asfortranarray(ROWS), label=np.arange(10))
    data = open_data(tmp_path / "a.npz", SPEC)
    assert np.array_equal(gathered(data), ROWS)
    assert data.labels is not None
    assert data.labels.tolist() == list(range(10))


def test_arrays_that_count_samples_are_targets_and_others_are_ignored(tmp_path: Path) -> None:
    data = open_data(npz_in(tmp_path), SPEC, samples=7)
    assert data.targets.keys() == {"label"}
    assert data.samples == len(data.targets["label"]) == 7


def test_folder_of_npz_is_their_concatenation(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", input=ROWS[:4], label=np.arange(4))
    np.savez_compressed(tmp_path / "1.npz", input=ROWS[4:].astype(np.float64), label=np.arange(4, 10))
    data = open_data(tmp_path, SPEC)
    assert np.array_equal(gathered(data, 3), ROWS)
    assert data.labels is not None
    assert data.labels.tolist() == list(range(10))


def test_pieces_of_other_shapes_never_share_a_batch(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", input=np.ones((3, 5), np.float32))
    np.savez(tmp_path / "1.npz", input=np.ones((3, 7), np.float32))
    data = open_data(tmp_path, [spec("input", ("N", "T"))])
    assert [b["input"].shape for b in data.batches(2)] == [(2, 5), (1, 5), (2, 7), (1, 7)]


@pytest.mark.parametrize("named", [True, False])
def test_test_data_sets_are_read_by_name_else_by_number(tmp_path: Path, named: bool) -> None:
    for at in range(11):  # > 10: set 10 comes after set 9, not after set 1
        save_set(tmp_path / f"test_data_set_{at}", {"input": ROWS[at % 10 : at % 10 + 1]}, named=named)
    data = open_data(tmp_path, SPEC)
    assert np.array_equal(gathered(data), np.concatenate([ROWS, ROWS[:1]]))
    assert open_data(tmp_path / "test_data_set_3", SPEC).samples == 1


def test_inputs_without_a_common_batch_axis_are_one_run_a_sample(tmp_path: Path) -> None:
    specs = [spec("x", (1, "T")), spec("state", (2, 1, 4)), spec("sr", (), INT)]
    feed = {"x": np.ones((1, 5), np.float32), "state": np.zeros((2, 1, 4), np.float32), "sr": 16000}
    for at in range(3):
        save_set(tmp_path / f"test_data_set_{at}", feed)
    data = open_data(tmp_path, specs)
    batches = list(data.batches(8))
    assert data.samples == len(batches) == 3
    assert batches[0]["state"].shape == (2, 1, 4)
    assert batches[0]["sr"].shape == ()


def test_feeds_may_be_stacked_along_a_new_axis(tmp_path: Path) -> None:
    specs = [spec("x", (1, "T")), spec("state", (2, 1, 4)), spec("sr", (), INT)]
    x = np.arange(30, dtype=np.float32).reshape(6, 1, 5)
    state, sr = np.zeros((6, 2, 1, 4), np.float32), np.full(6, 8000)
    np.savez(tmp_path / "a.npz", x=x, state=state, sr=sr, label=np.arange(6))
    data = open_data(tmp_path / "a.npz", specs)
    assert [b["x"].tolist() for b in data.batches()] == x.tolist()
    assert next(data.batches())["sr"].shape == ()
    assert data.labels is not None
    assert data.labels.tolist() == list(range(6))


def test_a_scalar_goes_with_every_sample() -> None:
    specs = [*SPEC, spec("scale", ())]
    data = open_data({"input": ROWS, "scale": np.float32(2)}, specs)
    assert [len(b["input"]) for b in data.batches(4)] == [4, 4, 2]
    assert all(b["scale"] == 2 for b in data.batches(4))


def test_samples_of_different_scalars_never_share_a_batch() -> None:
    """A flag, a sampling rate or a time step belongs to its feed: the first of a batch is not everybody's."""
    specs = [*SPEC, spec("scale", ())]
    feeds = [{"input": ROWS[at : at + 2], "scale": np.float32(at // 4)} for at in range(0, 10, 2)]
    for source in (feeds, iter(feeds)):
        batches = list(open_data(source, specs).batches(32))
        assert [(len(batch["input"]), float(batch["scale"])) for batch in batches] == [(4, 0), (4, 1), (2, 2)]


class Reader:
    """As onnxruntime.quantization.CalibrationDataReader."""

    def __init__(self) -> None:
        self.rewind()

    def rewind(self) -> None:
        self.feeds = ({"input": ROWS[at : at + 2]} for at in range(0, 10, 2))

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def reused() -> Iterator[dict[str, Any]]:
    buffer = np.empty((1, 3), np.float32)
    for row in ROWS:
        buffer[:] = row
        yield {"input": buffer}


@pytest.mark.parametrize("source", [Reader(), reused(), [{"input": r[None]} for r in ROWS], {"input": ROWS}])
def test_feeds_from_python_are_the_same_samples(source: Any) -> None:
    assert np.array_equal(gathered(open_data(source, SPEC)), ROWS)
    if isinstance(source, Reader):
        assert source.get_next() is not None  # rewound


def test_feeds_beyond_the_budget_come_back_from_a_scratch_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_compress.runtime.data.feeds.IN_MEMORY", 40)
    assert np.array_equal(gathered(open_data(reused(), SPEC)), ROWS)


@given(count=st.integers(2, 60), fraction=st.floats(0.05, 0.9), seed=st.integers(0, 5))
def test_split_is_a_partition_in_order(count: int, fraction: float, seed: int) -> None:
    rows = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    fit, held = open_data({"input": rows}, SPEC).split(fraction, seed)
    both = np.concatenate([fit.rows, held.rows])
    assert sorted(both.tolist()) == list(range(count))
    assert all(np.array_equal(d.rows, np.sort(d.rows)) and d.samples for d in (fit, held))


def test_split_follows_no_period_of_the_samples() -> None:
    """Class folders take turns, so every k-th sample would be always the same class."""
    _, held = open_data({"input": np.zeros((400, 3), np.float32)}, SPEC).split(0.25)
    assert np.bincount(held.rows % 4).min() >= 20


def test_one_sample_is_fitted_and_held_out() -> None:
    fit, held = open_data({"input": ROWS[:1]}, SPEC).split()
    assert fit.samples == held.samples == 1


def test_fixed_batch_gets_batches_of_exactly_that_size() -> None:
    data = open_data({"input": ROWS, "label": np.arange(10)}, [spec("input", (4, 3))])
    assert [len(b["input"]) for b in data.batches(32)] == [4, 4]
    assert data.samples == 8
    assert data.labels is not None
    assert len(data.labels) == 8
    assert "last 2 samples" in data.notes[0]
    fit, held = data.split()
    assert fit.samples == held.samples == 4
    assert data.take(1).samples == 4


def test_safe_casts_are_made() -> None:
    data = open_data({"input": ROWS.astype(np.float64)}, SPEC)
    assert gathered(data).dtype == np.float32
    narrow = open_data({"ids": ROWS.astype(np.uint8)}, [spec("ids", ("N", 3), INT)])
    assert gathered(narrow, name="ids").dtype == np.int64
