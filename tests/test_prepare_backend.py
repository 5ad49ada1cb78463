"""Every model of onnx's own backend tests that onnxruntime runs gives the same after prepare."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_compress.model.document import Model
from onnx_compress.model.prepare import prepare
from onnx_compress.runtime.session import Session

DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
Feeds = dict[str, Any]


def same(a: Any, b: Any) -> bool:
    """Equal, or floats to 1e-5 of the largest."""
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if a is None or b is None or isinstance(a, dict):
        return bool(a == b)
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind != "f":
        return bool((a == b).all())
    with np.errstate(all="ignore"):
        largest = max(np.nan_to_num(np.abs(a.astype(np.float64))).max(initial=0), 1e-30)
        return np.allclose(a.astype(np.float64), b, rtol=0, atol=1e-5 * largest, equal_nan=True)


def differs(model: Model, batches: list[Feeds]) -> str | None:
    """What is wrong with the prepared model, "not run" where onnxruntime does not run the model at all."""
    result = prepare(model).model
    if prepare(result).changes:
        return "a second time changes more"
    try:
        session = Session(model, threads=1)._session
        expected = [session.run(None, feeds) for feeds in batches]
    except Exception:  # noqa: BLE001 - onnxruntime's own exceptions share no base class
        return "not run"
    prepared = Session(result, threads=1)._session
    got = [prepared.run(None, feeds) for feeds in batches]
    return None if all(map(same, expected, got)) else "outputs differ"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_node_models() -> None:
    from onnx.backend.test.case.node import collect_testcases

    cases = collect_testcases(None)
    found = {}
    for case in cases:
        assert case.model is not None
        names = [value.name for value in case.model.graph.input]
        batches = [dict(zip(names, inputs, strict=False)) for inputs, _ in case.data_sets or []]
        found[case.name] = differs(Model.from_proto(case.model), batches)
    ran = [name for name, words in found.items() if words != "not run"]
    assert {name: found[name] for name in ran if found[name]} == {}
    assert len(ran) > 1300


def data_models() -> Iterator[Path]:
    yield from DATA.glob("*/*/model.onnx")
    yield from DATA.glob("light/*.onnx")


def batches_of(path: Path, model: Model) -> list[Feeds]:
    """The test data beside a model; random images for the light models, which have none."""
    graph = model.proto.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if path.parent.name == "light":
        rng = np.random.default_rng(0)
        shapes = [[dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim] for value in inputs]
        return [{v.name: rng.random(s).astype(np.float32) for v, s in zip(inputs, shapes, strict=True)}]
    batches = []
    for folder in sorted(path.parent.glob("test_data_set_*")):
        feeds = {}
        for index, value in enumerate(inputs):
            raw = (folder / f"input_{index}.pb").read_bytes()
            feeds[value.name] = _read(raw, value.type.WhichOneof("value"))
        batches.append(feeds)
    return batches


def _read(raw: bytes, kind: str | None) -> Any:
    if kind == "sequence_type":
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(raw))
    if kind == "optional_type":
        return onnx.numpy_helper.to_optional(onnx.OptionalProto.FromString(raw))
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(raw))


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(data_models()), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_data_models(path: Path) -> None:
    model = Model.load(path)
    assert differs(model, batches_of(path, model)) in (None, "not run")
