"""The models of the corpus: onnx's backend suite, the zoo, and every .onnx file of the folders that are named."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnx_compress.errors import CompressError
from onnx_compress.model.document import Model
from onnx_compress.runtime.data import open_data, random_data
from onnx_compress.runtime.session import input_specs

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SUITE = Path(onnx.__file__).parent / "backend" / "test" / "data"
LATEST = 13  # version of the format that onnxruntime 1.31 reads; onnx 1.23 writes its own models with 14
SAMPLES = 8  # made-up samples, of a model that comes without


@dataclass(frozen=True)
class Item:
    """A model of the corpus; feeds: its test data, made-up inputs, or None where its inputs are no tensors."""

    group: str
    name: str
    path: Path
    feeds: list[dict[str, Any]] | None


def corpus(scratch: Path, folders: list[Path]) -> Iterator[Item]:
    """Every model; those that are not files are written to `scratch`."""
    yield from _nodes(scratch)
    for path in sorted(SUITE.glob("*/*/model.onnx")):
        yield Item(path.parent.parent.name, path.parent.name, path, _test_data(path) or _made_up(path))
    for path in sorted(SUITE.glob("light/*.onnx")):
        yield Item("light", path.stem, path, _made_up(path, 1))
    yield from _zoo(scratch)
    for folder in folders:
        for path in sorted(folder.rglob("*.onnx")):
            yield Item(folder.name, path.stem, path, _made_up(path, 4))


def _nodes(scratch: Path) -> Iterator[Item]:
    from onnx.backend.test.case.node import collect_testcases

    for case in collect_testcases(None):
        assert case.model is not None
        path = scratch / f"{case.name}.onnx"
        case.model.ir_version = min(case.model.ir_version, LATEST)
        path.write_bytes(case.model.SerializeToString())
        given = {tensor.name for tensor in case.model.graph.initializer}
        names = [value.name for value in case.model.graph.input if value.name not in given]
        sets = [dict(zip(names, inputs, strict=False)) for inputs, _ in case.data_sets or []]
        arrays = all(isinstance(value, np.ndarray | np.generic) for feed in sets for value in feed.values())
        usable = arrays and bool(sets) and all(len(feed) == len(names) for feed in sets)
        yield Item("node", case.name, path, _fitting(path, sets) if usable else _made_up(path))


def _fitting(path: Path, sets: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Test data holds NaN, infinity and empty arrays here and there, which are no calibration data: then made-up inputs."""
    try:
        open_data(sets, input_specs(Model.load(path)))
    except CompressError:
        return _made_up(path)
    return sets


def _test_data(path: Path) -> list[dict[str, Any]] | None:
    try:
        names = [spec.name for spec in input_specs(Model.load(path))]
        feeds = []
        for folder in sorted(path.parent.glob("test_data_set_*")):
            files = [folder / f"input_{index}.pb" for index in range(len(names))]
            tensors = [onnx.TensorProto.FromString(file.read_bytes()) for file in files]
            arrays = [onnx.numpy_helper.to_array(tensor) for tensor in tensors]
            feeds.append(dict(zip(names, arrays, strict=True)))
    except Exception:  # noqa: BLE001 - sequences and strings: then without
        return None
    return _fitting(path, feeds) if feeds else None


def _made_up(path: Path, samples: int = SAMPLES) -> list[dict[str, Any]] | None:
    try:
        model = Model.load(path)
        specs = input_specs(model)
        return list(random_data(specs, samples, 0, None, model).batches(1)) if specs else None
    except (CompressError, ValueError, TypeError, KeyError, MemoryError):
        return None


def _zoo(scratch: Path) -> Iterator[Item]:
    with np.load(ROOT / "models" / "fashion_calib.npz") as calib:
        rows = next(calib[name] for name in calib.files if calib[name].ndim > 1)[:32]
    for path in sorted((ROOT / "models").glob("*.onnx")):
        name = input_specs(Model.load(path))[0].name
        yield Item("zoo", path.stem, path, [{name: rows[i : i + 1]} for i in range(len(rows))])
    for text in sorted((ROOT / "models" / "tiny").glob("*.onnxtxt")):
        path = scratch / f"{text.stem}.onnx"
        onnx.save(onnx.load(text), path)
        yield Item("tiny", text.stem, path, _made_up(path))


def read_results(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The results of an earlier run, by group, model and pass."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["group"], row["model"], row["spec"]): row for row in rows}
