"""Clustered weights in the file: every number of values in as few bits as it needs, read back and folded to what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from cluster_cases import model, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from onnx_compress.archive import pack, unpack
from onnx_compress.contract import Job
from onnx_compress.model.check import check
from onnx_compress.model.codebook import (
    Codebook,
    Storage,
    codebook_of,
    dense_weight,
    index_form,
    opset_of,
    store,
    unfold,
)
from onnx_compress.model.cost import cost
from onnx_compress.model.document import Model
from onnx_compress.model.packing import Packing, packed_tensors
from onnx_compress.model.prepare import prepare
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.passes.cluster import Cluster
from onnx_compress.report.words import comparison
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.session import Session, input_specs

MODELS = Path(__file__).parents[1] / "models"
RNG = np.random.default_rng(3)


def holding(book: Codebook, opset: int = 17, *, storage: Storage = "packed") -> Model:
    """y = x W for W stored as `book`, (48, columns)."""
    ir = 13 if opset >= 25 else 10 if opset >= 21 else 8
    width = book.indices.reshape(48, -1).shape[1]
    proto = onnx.parser.parse_model(
        f"""<ir_version: {ir}, opset_import: ["" : {opset}]>
        g (float[N,48] x) => (float[N,{width}] y) <int64[2] s = {{48, {width}}}> {{
            v = Reshape(w, s)
            y = MatMul(x, v)
        }}"""
    )
    proto.graph.initializer.append(
        onnx.numpy_helper.from_array(np.zeros(book.indices.shape, np.float32), "w")
    )
    surgery = Surgery(Model.from_proto(proto))
    nodes, tensor = store(surgery, "w", book, storage=storage)
    reader = surgery.graph.nodes[0]
    reader.inputs[0] = tensor
    surgery.graph.nodes[0:0] = nodes
    model = surgery.commit()
    check(model)
    return model


def read(model: Model) -> Codebook:
    """The codebook that the Reshape reads."""
    reader = next(node for node in Surgery(model).nodes() if node.inputs[1:] and node.inputs[1].name == "s")
    book = codebook_of(reader.inputs[0])
    assert book is not None
    return book


def codebook(clusters: int, shape: tuple[int, ...], form: str = "tensor") -> Codebook:
    indices = RNG.integers(0, clusters, shape).astype(np.uint8)
    values = np.sort(RNG.standard_normal(clusters)).astype(np.float32)
    if form == "tensor":
        return Codebook(values, indices)
    if form == "scales":
        return Codebook(values, indices, 1, scales=RNG.random(shape[1]).astype(np.float32))
    if form == "channel":
        return Codebook(RNG.standard_normal((shape[0], clusters)).astype(np.float32), indices, 0)
    books = np.arange(shape[0]) % 3
    return Codebook(RNG.standard_normal((3, clusters)).astype(np.float32), indices, 0, books=books)


@settings(deadline=None, max_examples=80)
@given(radix=st.integers(2, 256), count=st.integers(1, 300), seed=st.integers(0, 9))
def test_packed_integers_come_back(radix: int, count: int, seed: int) -> None:
    """And take at most a tenth of a bit more each than their number of values has, and one more number."""
    digits = np.random.default_rng(seed).integers(0, radix, count).astype(np.uint8)
    packing = Packing.of(radix)
    packed = packing.pack(digits)
    assert packed.size == packing.size(count)
    assert np.array_equal(packing.unpack(packed, count), digits)
    assert 8 * packing.width / packing.group <= np.ceil(np.log2(radix)) + 1e-9
    assert radix**packing.group <= 256**packing.width < 2**63


@pytest.mark.parametrize("opset", [9, 10, 13, 17, 21, 25])
@pytest.mark.parametrize("clusters", [2, 3, 4, 5, 10, 16, 32, 64, 128, 256])
def test_every_number_of_values_runs_and_reads_back(clusters: int, opset: int, tmp_path: Path) -> None:
    """onnxruntime, ONNX's reference and `codebook_of` agree to the bit, and onnxruntime runs one MatMul."""
    book = codebook(clusters, (48, 33))
    model = holding(book, opset)
    assert np.array_equal(read(model).indices, book.indices)
    assert np.array_equal(read(model).dense(), book.dense())
    x = RNG.standard_normal((3, 48)).astype(np.float32)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    options.log_severity_level = 4
    session = ort.InferenceSession(model.to_proto().SerializeToString(), options, ["CPUExecutionProvider"])
    assert np.allclose(session.run(None, {"x": x})[0], x @ book.dense(), atol=1e-5)
    assert [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node] == ["MatMul"]
    eye = np.eye(48, dtype=np.float32)
    assert np.array_equal(Session(model).run({"x": eye})["y"], book.dense())
    if opset < 25:  # the reference evaluator has no 2-bit types
        found: Any = ReferenceEvaluator(model.to_proto()).run(None, {"x": eye})
        assert np.array_equal(found[0], book.dense())


@pytest.mark.parametrize("form", ["tensor", "channel", "block", "scales"])
@pytest.mark.parametrize("shape", [(48, 40), (48, 4, 3, 3), (48, 7, 5)])
def test_every_form_reads_back_and_unfolds(form: str, shape: tuple[int, ...]) -> None:
    book = codebook(6, shape, form)
    model = holding(book)
    again = read(model)
    assert again.axis == book.axis
    assert np.array_equal(again.dense(), book.dense())
    surgery = Surgery(model)
    (constant,) = unfold(surgery)
    assert np.array_equal(constant.values, book.dense())
    plain = surgery.commit()
    assert [node.op_type for node in plain.proto.graph.node] == ["Reshape", "MatMul"]
    x = {"x": RNG.standard_normal((2, 48)).astype(np.float32)}
    assert np.array_equal(Session(plain).run(x)["y"], Session(model).run(x)["y"])


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("opset", [17, 25])
def test_the_file_has_the_bits_saved(bits: int, opset: int) -> None:
    """What is not indices is under 3 KB; the indices are bits/8 of their number, 2 and 4 bits also in ONNX's types."""
    count = 48 * 1024
    model = holding(codebook(2**bits, (48, 1024)), opset)
    assert count * bits / 8 < model.nbytes < count * bits / 8 + 3072


def test_a_small_weight_is_not_packed() -> None:
    """The nodes that unpack would be larger than the bits saved."""
    assert index_form(16, 200, 17) == np.uint8
    assert index_form(16, 2000, 17) == Packing.of(16)
    assert index_form(16, 2000, 9) == np.uint8
    assert index_form(16, 2000, 17, "bytes") == np.uint8


@pytest.mark.parametrize("clusters", [3, 32, 256])
def test_indices_count_as_the_weights_they_are(clusters: int) -> None:
    """As parameters: as many as the dense weight has, however they are packed."""
    model = holding(codebook(clusters, (48, 33)))
    assert cost(model, infer(model)).params == 48 * 33


@pytest.mark.parametrize("clusters", [3, 16, 32, 256])
def test_prepare_leaves_it_stored(clusters: int) -> None:
    model = holding(codebook(clusters, (48, 33)))
    prepared = prepare(model, infer(model)).model
    assert prepared.nbytes <= model.nbytes + 100
    weights = [codebook_of(node.inputs[1]) for node in Surgery(prepared).nodes() if node.op == "MatMul"]
    weights += [codebook_of(node.inputs[0]) for node in Surgery(prepared).nodes() if node.op == "Reshape"]
    assert any(book is not None and book.clusters == clusters for book in weights)


@pytest.mark.parametrize("clusters", [3, 5, 16, 32, 128])
def test_an_archive_codes_the_indices_not_their_packed_bytes(clusters: int, tmp_path: Path) -> None:
    """Skewed indices: the archive of packed ones is as small as that of bytes, to the nodes, and unpacks to the bit."""
    share = 0.5 ** np.arange(clusters)
    indices = RNG.choice(clusters, (48, 1000), p=share / share.sum()).astype(np.uint8)
    book = Codebook(np.arange(clusters, dtype=np.float32), indices)
    sizes = []
    stores: tuple[Storage, ...] = ("packed", "bytes")
    for storage in stores:
        source, archive, back = (tmp_path / f"{name}{storage}" for name in ("a.onnx", "a.ocz", "b.onnx"))
        holding(book, storage=storage).save(source)
        pack(source=str(source), target=str(archive))
        unpack(source=str(archive), target=str(back))
        assert back.read_bytes() == source.read_bytes()
        sizes.append(archive.stat().st_size)
    assert sizes[0] < 1.02 * sizes[1] + 400


def test_an_archive_finds_no_packing_where_there_is_none() -> None:
    proto = holding(codebook(32, (48, 33)), storage="bytes").to_proto()
    assert packed_tensors(proto) == {}
    proto = holding(codebook(32, (48, 33))).to_proto()
    assert list(packed_tensors(proto).values()) == [(Packing.of(32), 33, 1)]


def test_the_report_tells_disk_from_memory() -> None:
    """The file shrinks, the weights that onnxruntime holds do not; and only a model that unfolds has the line."""
    stored = holding(codebook(16, (48, 1000)))
    surgery = Surgery(stored)
    unfold(surgery)
    dense = surgery.commit()
    costs = [cost(model, infer(model)) for model in (dense, stored)]
    assert costs[0].memory == costs[1].memory == 4 * 48 * 1000
    assert costs[1].bytes < costs[0].bytes / 6
    sides = [{"bytes": each.bytes, "memory": each.memory} for each in costs]
    rows = {row[0]: row[1:] for row in comparison({"before": sides[0], "after": sides[1]})}
    assert rows["weights in memory"][0] == rows["weights in memory"][1]
    assert rows["size"][0] != rows["size"][1]
    assert "weights in memory" not in {row[0] for row in comparison({"before": sides[0], "after": sides[0]})}


@pytest.mark.parametrize(
    ("bits", "kind"), [(2, TensorProto.UINT2), (3, TensorProto.UINT4), (4, TensorProto.UINT4)]
)
def test_a_model_is_raised_to_the_opset_that_has_the_type(bits: int, kind: int) -> None:
    """By onnx's converter, its outputs those of packed indices; the 5th bit takes a byte."""
    source = Model.load(MODELS / "fashion_mlp.onnx")
    data = open_data(str(MODELS / "fashion_calib.npz"), input_specs(source), samples=16)
    job = Job(source, source, data, 0, cast("Any", None))
    typed = Cluster(bits=bits, storage="typed", rounding="nearest").apply(job).model
    packed = Cluster(bits=bits, rounding="nearest").apply(job).model
    wide = Cluster(bits=5, storage="typed", rounding="nearest").apply(job).model
    types = [tensor.data_type for tensor in typed.proto.graph.initializer]
    assert kind in types
    assert TensorProto.UINT8 not in types
    assert TensorProto.UINT8 in [tensor.data_type for tensor in wide.proto.graph.initializer]
    assert opset_of(typed) == (25 if bits == 2 else 21)
    assert opset_of(source) == opset_of(packed) < 21
    batch = next(iter(data.batches(16)))
    outputs = [next(iter(Session(model).run(batch).values())) for model in (typed, packed)]
    assert np.allclose(outputs[0], outputs[1], atol=1e-5)


def test_an_opset_that_cannot_be_raised_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_compress.passes.cluster.cluster.raised", lambda *_: "onnx says no")
    source = Model.load(MODELS / "fashion_mlp.onnx")
    data = open_data(str(MODELS / "fashion_calib.npz"), input_specs(source), samples=16)
    job = Job(source, source, data, 0, cast("Any", None))
    result = Cluster(bits=4, storage="typed", rounding="nearest").apply(job)
    assert [skip.why for skip in result.skips] == ["onnx says no; indices take more bits than they need"]
    assert TensorProto.UINT8 in [tensor.data_type for tensor in result.model.proto.graph.initializer]


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_a_stored_codebook_reads_back(axis: int | None) -> None:
    source = model("g (float[N,3] x) => (float[N,3] y) { y = Identity(x) }")
    shape = (4, 3, 5)
    clusters = (7,) if axis is None else (shape[axis], 7)
    book = Codebook(normal(*clusters), RNG.integers(0, 7, shape).astype(np.uint8), axis)
    surgery = Surgery(source)
    nodes, tensor = store(surgery, "w", book)
    surgery.graph.nodes[0:0] = nodes
    surgery.graph.outputs.append(tensor)
    tensor.dtype = np.dtype(np.float32)
    again = codebook_of(tensor)
    assert again is not None
    assert again.axis == axis
    assert np.array_equal(again.dense(), book.dense())
    value = dense_weight(tensor)
    assert value is not None
    assert np.array_equal(value, book.dense())
    stored = surgery.commit().proto
    stored.graph.output.append(onnx.helper.make_tensor_value_info("w_clustered", 1, shape))
    ran = ReferenceEvaluator(Model(stored, source.blobs).to_proto()).run(None, {"x": normal(1, 3)})
    computed = cast("list[Any]", ran)[1]
    assert np.array_equal(computed, book.dense())
