"""Residual branches: found by the graph alone, and gone without a trace where they are zero."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from architectures import ARCHITECTURES
from channel_cases import parse
from onnx import helper, numpy_helper

from onnx_compress.contract import Job
from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.model.prepare import prepare
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.prune import Prune
from onnx_compress.passes.prune.branches import Branch, branches, without
from onnx_compress.passes.prune.consumers import consumers
from onnx_compress.passes.prune.depth import shallower
from onnx_compress.passes.prune.plan import make_plan
from onnx_compress.passes.prune.refit import refit
from onnx_compress.passes.prune.repairer import Repairer
from onnx_compress.passes.prune.speed import Milliseconds
from onnx_compress.runtime.agreement import Reference
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import Session, input_specs

MODELS = Path(__file__).parents[1] / "models"
# an Add of two projections is no residual branch: neither side is there without the other's weights
EXPECTED = {
    "ResNet": 4,
    "MobileNetV2": 3,
    "squeeze-excite": 1,
    "C2f": 4,
    "ViT": 4,
    "grouped convolution": 2,
    "fashion_mobilenet": 3,
    "fashion_resnet": 4,
    "fashion_vit": 6,
}


def prepared(name: str) -> Model:
    known = ARCHITECTURES.get(name)
    model = Model.from_proto(known()) if known else Model.load(MODELS / f"{name}.onnx")
    return prepare(model, infer(model)).model


def feeds(model: Model) -> dict[str, np.ndarray]:
    value = model.proto.graph.input[0]
    shape = [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
    return {value.name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}


def zeroed(model: Model, branch: Branch) -> Model:
    """`model` with the branch's output times zero."""
    proto = onnx.ModelProto.FromString(model.to_proto().SerializeToString())
    place = next(i for i, node in enumerate(proto.graph.node) if node.name == branch.add)
    add = proto.graph.node[place]
    made = next(name for name in add.input if name != branch.source)
    add.input[list(add.input).index(made)] = "nothing"
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "nought"))
    proto.graph.node.insert(place, helper.make_node("Mul", [made, "nought"], ["nothing"]))
    return Model.from_proto(proto)


@pytest.mark.parametrize(
    "name", [*ARCHITECTURES, "fashion_mobilenet", "fashion_resnet", "fashion_vit", "fashion_densenet"]
)
def test_a_branch_that_is_gone_equals_one_that_gives_zero(name: str) -> None:
    """x + 0 is x, so the outputs are equal to the last bit, whichever branches went before."""
    model = prepared(name)
    found = branches(model, infer(model))
    assert len(found) == EXPECTED.get(name, 0)
    rng = np.random.default_rng(1)
    while found:
        branch = found[rng.integers(len(found))]
        smaller = without(model, branch)
        check(smaller)
        names = {node.name for node in smaller.proto.graph.node}
        assert names.isdisjoint({branch.add, *branch.nodes})
        expected, actual = (
            Session(m, optimize=False).run(feeds(model)) for m in (zeroed(model, branch), smaller)
        )
        for output, value in expected.items():
            np.testing.assert_array_equal(actual[output], value)
        model = smaller
        left = branches(model, infer(model))
        assert len(left) == len(found) - 1
        found = left


BLOCK = """g (float[N,4,6,6] x, float[N,4,6,6] z, float[4,4,3,3] w1, float[4,4,3,3] w2) => (float[N,4,6,6] y) {
    a = Relu(x)
    b = Conv<pads=[1,1,1,1]>(a, w1)
    c = Relu(b)
    d = Conv<pads=[1,1,1,1]>(c, w2)
    s = Add(a, d)
    y = Relu(s) }"""


def found_in(text: str) -> list[Branch]:
    model = Model.from_proto(parse(text))
    return branches(model, infer(model))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("y = Relu(s)", "y = Add(s, c)"), "what it makes is read elsewhere"),
        (
            ("d = Conv<pads=[1,1,1,1]>(c, w2)", "e = Conv(c, w2)\n d = GlobalAveragePool(e)"),
            "the sum broadcasts it",
        ),
        (("c = Relu(b)", "c = Add(b, z)"), "it reads another input, too"),
        (("s = Add(a, d)", "s = Sub(a, d)"), "no sum"),
        (("d = Conv<pads=[1,1,1,1]>(c, w2)", "d = Relu(c)"), ""),
        (("s = Add(a, d)", "s = Add(d, x)"), ""),
        (("s = Add(a, d)", "s = Add(z, d)"), "its source is not what it is added to"),
    ],
)
def test_what_is_a_branch(change: tuple[str, str], why: str) -> None:
    """A branch has weights, one source that is what it is added to (or is made of that by an activation), and one reader."""
    assert len(found_in(BLOCK)) == 1
    assert change[0] in BLOCK
    assert (not found_in(BLOCK.replace(*change))) == bool(why)


def test_a_branch_that_a_body_reads_stays() -> None:
    """An If's body sees the tensors around it."""
    text = """g (float[N,4,6,6] x, bool flag, float[4,4,1,1] w1) => (float[N,4,6,6] y, float[N,4,6,6] r) {
        b = Conv(x, w1)
        s = Add(b, x)
        y = Relu(s)
        r = If (flag) <then_branch = t () => (float[N,4,6,6] u) { u = Relu(NAME) },
                       else_branch = e () => (float[N,4,6,6] v) { v = Neg(x) }> }"""
    assert len(found_in(text.replace("NAME", "x"))) == 1
    assert not found_in(text.replace("NAME", "b"))


def test_the_refit_makes_up_for_a_branch() -> None:
    """The layers around it are aimed at the original's sums: less than half of the error is left, on samples not fitted on."""
    model = prepared("fashion_resnet")
    data = open_data(MODELS / "fashion_calib.npz", input_specs(model), samples=128)
    fit, held = data.split(0.5, 0)
    shapes = infer(model)
    for branch in branches(model, shapes)[::3]:
        cut = without(model, branch)
        repaired = refit(
            cut, model, shapes, [], fit, threads=1, damping=1e-3, progress=lambda *_: None, quick=True
        )
        reference = Reference(model, held, threads=1)
        assert reference.error(repaired) < 0.5 * reference.error(cut)


def test_branches_go_until_the_time_is_met() -> None:
    """Where each layer takes a millisecond, a branch of two saves two; what is excluded stays."""
    model = prepared("fashion_resnet")
    data = open_data(MODELS / "fashion_calib.npz", input_specs(model), samples=64)
    fit, held = data.split(0.25, 0)
    shapes = infer(model)
    layers = {reader.name: reader for reader in consumers(Surgery(model), shapes)}
    clock = Milliseconds({name: np.ones((4, 4)) for name in layers}, layers, np.zeros(4))
    job = Job(model, model, data, 0, Clock(1, 0))
    plan = make_plan(job, fit, criterion="l1", exclude=None, multiple=1, budget="latency", known=clock)
    repairer = Repairer(job, plan, "none", fit)
    keep = 1 - 4 / len(layers)
    found = shallower(repairer, held, clock, keep, None)
    assert [len(entry.gone) for entry in found] == [0, 1, 2]
    assert [entry.left for entry in found] == pytest.approx([1 - 2 * n / len(layers) for n in range(3)])
    for entry in found:
        left = {node.name for node in entry.model.proto.graph.node}
        assert all(left.isdisjoint(branch.nodes) for branch in entry.gone)
    reference = Reference(model, held.take(48), threads=1)
    alone = [reference.error(without(model, branch)) for branch in branches(model, shapes)]
    assert reference.error(found[1].model) == pytest.approx(min(alone))
    (first,) = found[1].gone
    spared = shallower(repairer, held, clock, 0.0, min(first.nodes))
    assert len(spared[-1].gone) == EXPECTED["fashion_resnet"] - 1
    assert first not in spared[-1].gone


def test_inspect_names_the_branches() -> None:
    model = prepared("ResNet")
    shapes = infer(model)
    could = [
        change.node for change in Prune().survey(model, shapes).changes if change.what == "remove branch"
    ]
    assert could == [branch.add for branch in branches(model, shapes)]


DEEP = """g (float[N,4,12,12] x, float[16,4,3,3] w0, float[16,16,3,3] w1, float[16,16,3,3] w2, float[16,16,3,3] w3,
    float[16,16,3,3] w4, float[4,16,1,1] w5) => (float[N,4,12,12] y) {
    a = Conv<pads=[1,1,1,1]>(x, w0)
    b = Conv<pads=[1,1,1,1]>(a, w1)
    c = Relu(b)
    d = Conv<pads=[1,1,1,1]>(c, w2)
    e = Add(a, d)
    f = Conv<pads=[1,1,1,1]>(e, w3)
    h = Relu(f)
    i = Conv<pads=[1,1,1,1]>(h, w4)
    j = Add(e, i)
    y = Conv(j, w5) }"""


def test_a_latency_is_replayed() -> None:
    """Whatever the clock said, its decisions give the same model again, and the branches that are reported are gone."""
    model = Model.from_proto(parse(DEEP))
    x = np.random.default_rng(0).normal(size=(64, 4, 12, 12)).astype(np.float32)
    data = open_data([{"x": x}], input_specs(model), samples=64)
    job = Job(model, model, data, 0, Clock(1, 0))
    made = Prune(latency=0.5).apply(job)
    check(made.model)
    Session(made.model).run({"x": x[:2]})
    gone = [change.node for change in made.changes if change.what == "branch"]
    assert {node.name for node in made.model.proto.graph.node}.isdisjoint(gone)
    decisions = [asdict(decision) for decision in made.decisions]
    again = Prune(latency=0.5).apply(replace(job, clock=job.clock.successor(decisions)))
    assert again.model.to_proto().SerializeToString() == made.model.to_proto().SerializeToString()
    assert again.changes == made.changes
