"""Data that does not fit or cannot be read is one InputError line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from data_cases import INT, ROWS, SPEC, npz_in, save_set, spec

from onnx_compress.errors import InputError
from onnx_compress.runtime.data import open_data

if TYPE_CHECKING:
    from pathlib import Path


BAD = {
    "missing": ({"image": ROWS}, SPEC, "no array for input 'input'; found 'image'"),
    "rank": ({"input": ROWS[0]}, SPEC, "takes (N, 3), but the array has shape (3,)"),
    "size": ({"input": ROWS[:, :2]}, SPEC, "takes (N, 3), axis 0 = samples, but the array has shape (10, 2)"),
    "empty": ({"input": ROWS[:0]}, SPEC, "holds no samples"),
    "no feeds": ([], SPEC, "holds no samples"),
    "integers for floats": (
        {"input": ROWS.astype(np.uint8)},
        SPEC,
        "takes float32, but the array holds uint8",
    ),
    "floats for ids": (
        {"ids": ROWS},
        [spec("ids", ("N", 3), INT)],
        "takes int64, but the array holds float32",
    ),
    "too large": (
        {"ids": ROWS.astype(np.int64) + 2**40},
        [spec("ids", ("N", 3), np.dtype(np.int32))],
        "values",
    ),
    "nan": ({"input": np.where(ROWS == 7, np.nan, ROWS)}, SPEC, "NaN or infinite"),
    "infinite": ({"input": np.where(ROWS == 7, np.inf, ROWS)}, SPEC, "NaN or infinite"),
    "batch": ({"input": ROWS[:2]}, [spec("input", (4, 3))], "batches of exactly 4 samples"),
    "no dict": ([ROWS], SPEC, "not a dict"),
    "nothing": (3, SPEC, "is a int"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line(case: str) -> None:
    source, specs, words = BAD[case]
    with pytest.raises(InputError) as caught:
        open_data(source, specs)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files_are_one_line(tmp_path: Path) -> None:
    npz = npz_in(tmp_path)
    files = {
        name: tmp_path / f"{name}.npz" for name in ("absent", "text", "short", "torn", "pickled", "empty")
    }
    files["text"].write_text("no data")
    files["short"].write_bytes(npz.read_bytes()[:-30])
    content = npz.read_bytes()
    files["torn"].write_bytes(content[:60] + bytes(20) + content[80:])
    np.savez(files["pickled"], input=np.array([{}, []], object))
    files["empty"].write_bytes(b"")
    files["folder"] = tmp_path / "folder"
    files["folder"].mkdir()
    save_set(tmp_path / "set", {"input": ROWS})
    broken = tmp_path / "set" / "input_0.pb"
    broken.write_bytes(broken.read_bytes()[:40])
    files["set"] = tmp_path / "set"
    for path in files.values():
        with pytest.raises(InputError) as caught:
            open_data(path, SPEC)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
