"""Half of every kind of unit goes in thirteen kinds of networks: nothing is left uncovered, and all of it is sound."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from architectures import ARCHITECTURES

from onnx_compress.contract import Job
from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.model.prepare import prepare
from onnx_compress.model.shapes import infer
from onnx_compress.passes.prune import Prune
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.selftest import TOLERANCE, self_test
from onnx_compress.runtime.session import Session


def prepared(name: str) -> Model:
    model = Model.from_proto(ARCHITECTURES[name]())
    return prepare(model, infer(model)).model


def halved(model: Model) -> Model:
    options = {"channels": 0.5, "criterion": "l1", "repair": "none", "round_to": 1}
    return Prune(**options).apply(Job(model, model, None, 0, Clock(1, 0))).model  # type: ignore[arg-type]


def params(model: Model) -> int:
    """Elements of the float weights, the last layer's not counted."""
    tensors = model.proto.graph.initializer
    return sum(
        int(np.prod(t.dims)) for t in tensors if t.data_type == t.FLOAT and not t.name.startswith("last")
    )


def feeds(model: Model) -> dict[str, np.ndarray]:
    value = model.proto.graph.input[0]
    shape = [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
    return {value.name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_half_of_every_kind_goes(name: str) -> None:
    """Half of the inputs and half of the outputs of a layer are a quarter of its weights; the rest is vectors, the
    first layer's inputs and kinds that do not halve evenly. Less than a fifth would be more than was asked for.
    """
    model = prepared(name)
    pruned = halved(model)
    check(pruned)
    assert 0.2 <= params(pruned) / params(model) <= 0.32
    Session(pruned, optimize=False).run(feeds(model))
    assert self_test(model, infer(model), feeds(model), 0, share=0.5) < TOLERANCE


def sizes(model: Model) -> dict[str, list[int]]:
    return {t.name: list(t.dims) for t in model.proto.graph.initializer}


def test_a_vit_shrinks_in_every_way() -> None:
    """Residual width, heads, the width of a head and the MLP's: seen at the shapes of its weights and Reshapes."""
    model = prepared("ViT")
    pruned = halved(model)
    before, after = sizes(model), sizes(pruned)
    square = [name for name, dims in before.items() if dims == [32, 32]]
    wide = [name for name, dims in before.items() if dims == [32, 64]]
    assert len(square) == 8
    assert len(wide) == 2
    for name in wide:
        assert after[name] == [16, 32]
    for name in square:
        assert 16 in after[name]  # the residual stream
    heads = {tuple(after[name]) for name in square} - {(16, 16)}
    assert heads  # three heads of five or six channels where there were four of eight
    assert all(12 <= size <= 20 for dims in heads for size in dims)


def test_an_lstm_shrinks_in_both_layers() -> None:
    pruned = halved(prepared("LSTM + MLP"))
    hidden = [a.i for node in pruned.proto.graph.node for a in node.attribute if a.name == "hidden_size"]
    assert hidden == [16, 16]


def test_a_scale_computed_from_a_shape_keeps_its_value() -> None:
    """Tracing exports the softmax scale as 1 / sqrt(Shape(q)[-1]); a narrower head would change it."""
    model = Model.from_proto(ARCHITECTURES["ViT"]())
    assert any(re.match("Sqrt", node.op_type) for node in model.proto.graph.node)
    shapes = infer(model)
    assert self_test(model, shapes, feeds(model), 1, share=0.5) < TOLERANCE


LIGHT = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("light_*.onnx"))
FEW = {"light_squeezenet", "light_inception_v1"}


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=() if p.stem in FEW else pytest.mark.slow) for p in LIGHT],
)
def test_models_of_the_onnx_wheel_prune_and_run(path: Path) -> None:
    """Their weights are made by ConstantOfShape: the sizes it reads shrink. What is pinned has a reason."""
    loaded = Model.load(path)
    model = prepare(loaded, infer(loaded)).model
    result = Prune(channels=0.7, criterion="l1", repair="none", round_to=1).apply(
        Job(model, model, None, 0, Clock(1, 0))
    )
    check(result.model)
    assert result.changes
    assert all(skip.why for skip in result.skips)
    Session(result.model, optimize=False).run(feeds(model))
    assert self_test(model, infer(model), feeds(model), 0) < TOLERANCE
