"""How symbols are coded: tables, contexts, lanes, Huffman's code, gaps, digits."""

from __future__ import annotations

import lzma
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from archive_cases import kinds, model_of, round_trip
from onnx import numpy_helper

from onnx_compress.archive import huffman, lanes, pack
from onnx_compress.archive.digits import Digits
from onnx_compress.archive.fields import Reader
from onnx_compress.archive.forms import _gaps
from onnx_compress.errors import InputError
from onnx_compress.model.packing import Packing

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray[Any, Any]]:
    return kinds()


@pytest.mark.parametrize("radix", [2, 3, 4, 5, 8, 15, 16, 17, 32, 50, 64, 128, 200])
def test_packed_digits_come_back_each_its_own_symbol(radix: int) -> None:
    """Of every packing that cluster uses, the number of digits filling no whole number; bytes that hold none are told."""
    rng = np.random.default_rng(radix)
    packing = Packing.of(radix)
    places = rng.integers(0, radix, 60 * packing.group + 1).astype(np.uint8)
    data = packing.pack(places).reshape(-1)
    for signed in (False, True) if radix % 2 == 0 and radix & (radix - 1) == 0 else (False,):
        digits = Digits(packing, 7, signed=signed)
        found = digits.unpack(data)
        assert found is not None
        assert np.array_equal(found[: places.size] ^ (radix // 2 if signed else 0), places)
        assert np.array_equal(digits.pack(found), data)
    if radix**packing.group < 256**packing.width:
        assert Digits(packing, 7).unpack(np.full(packing.width, 255, np.uint8)) is None


def clustered(places: np.ndarray[Any, Any], radix: int, path: Path) -> Path:
    """A model whose weight is stored as `cluster` stores it at opset 17."""
    import onnx_graphsurgeon as gs

    from onnx_compress.model.codebook import Codebook, store
    from onnx_compress.model.document import Model
    from onnx_compress.model.surgery import Surgery

    text = (
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 96] x) => (float[N, 128] y) { y = MatMul(x, w) }'
    )
    if places.ndim > 2:
        text = '<ir_version: 8, opset_import: ["": 17]> g (float[N, 48, 9, 9] x) => (float[N, 64, 7, 7] y) { y = Conv(x, w) }'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(places.shape, np.float32), "w"))
    surgery = Surgery(Model.from_proto(proto))
    (node,) = surgery.graph.nodes
    nodes, tensor = store(surgery, "w", Codebook(np.linspace(-1, 1, radix, dtype=np.float32), places))
    assert isinstance(tensor, gs.Variable)
    node.inputs[1] = tensor
    surgery.graph.nodes[0:0] = nodes
    surgery.commit().save(path)
    return path


@pytest.mark.parametrize("radix", [16, 32])
def test_indices_are_coded_as_the_weight_has_them_however_they_are_packed(radix: int, tmp_path: Path) -> None:
    """Rows of unlike spread take fewer bits than one table for all would: the packed bytes have no such rows."""
    rng = np.random.default_rng(0)
    spread = np.geomspace(0.3, radix / 5, 96)[:, np.newaxis] * rng.normal(size=(96, 128))
    places = np.clip(np.rint(spread + radix // 2), 0, radix - 1).astype(np.uint8)
    report = round_trip(clustered(places, radix, tmp_path / "a.onnx"), tmp_path / "f")
    row = max(report["tensors"], key=lambda row: row["raw"])
    shares = np.bincount(places.reshape(-1)) / places.size
    entropy = -float((shares[shares > 0] * np.log2(shares[shares > 0])).sum()) * places.size / 8
    assert row["coded"] < 0.95 * entropy


@pytest.mark.parametrize("radix", [0, 16])
def test_sparse_kernels_are_smaller_than_by_xz(radix: int, tmp_path: Path) -> None:
    """Zeros come in rows, channels and kernels, and neighbours are alike: contexts know it, xz and one table do not."""
    rng = np.random.default_rng(5)
    spread = np.exp(rng.normal(0, 0.4, (64, 1, 1, 1)) + rng.normal(0, 0.4, (1, 48, 1, 1)))
    kernel = spread * (rng.normal(0, 1, (64, 48, 1, 1)) + rng.normal(0, 0.7, (64, 48, 3, 3)))
    kernel[np.abs(kernel) < np.quantile(np.abs(kernel), 0.6)] = 0
    if radix:
        places = np.clip(np.rint(kernel * 2 + radix // 2), 0, radix - 1).astype(np.uint8)
        source = clustered(places, radix, tmp_path / "a.onnx")
    else:
        source = model_of(tmp_path / "a.onnx", np.rint(kernel * 20).clip(-127, 127).astype(np.int8))
    size = round_trip(source, tmp_path / "f")["after"]["bytes"]
    assert size < 0.95 * len(lzma.compress(source.read_bytes(), preset=9))


def test_kernels_of_many_blocks_come_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A block smaller than a tensor, none of whose sizes it divides; the report's columns are measured all the same."""
    from onnx_compress.archive import batches, promises

    rng = np.random.default_rng(1)
    kernels = [
        np.rint(rng.laplace(0, 2, (rows, 48, 3, 3))).clip(-127, 127).astype(np.int8) for rows in (40, 33)
    ]
    source = model_of(tmp_path / "a.onnx", *kernels)
    whole = round_trip(source, tmp_path / "f")["after"]["bytes"]
    for module in (batches, promises):
        monkeypatch.setattr(module, "BLOCK", 1000)
    assert round_trip(source, tmp_path / "f")["after"]["bytes"] < 1.01 * whole
    pack(source=str(source), target=str(tmp_path / "b.ocz"), details=True)


@pytest.mark.parametrize("reach", [1, 127])
def test_taps_that_are_alike_take_far_less_than_each_would(reach: int, tmp_path: Path) -> None:
    """Little is left of taps that are those before them, however singular the equations are that say so."""
    rng = np.random.default_rng(reach)
    one = rng.integers(-reach, reach + 1, (128, 96, 1, 1)).astype(np.int8)
    sizes = [
        round_trip(model_of(tmp_path / "a.onnx", np.tile(one, (1, 1, *taps))), tmp_path / "f")["after"][
            "bytes"
        ]
        for taps in ((1, 1), (3, 3))
    ]
    assert sizes[1] < 0.3 * 9 * sizes[0]


@pytest.mark.parametrize("tables", [1, 5])
def test_lanes_come_near_the_bits_that_frequencies_promise(tables: int) -> None:
    """A lane costs its state, four bytes of which it uses one on average; nothing else is lost."""
    rng = np.random.default_rng(tables)
    weights = rng.integers(0, 1000, (tables, 40)) ** 2
    freq = lanes.frequencies(weights)
    assert (freq.sum(axis=1) == lanes.SLOTS).all()
    assert ((freq > 0) == (weights > 0)).all()
    slots = lanes.lookup(freq)
    which = rng.integers(0, tables, 15_001).astype(np.uint16)
    symbols = np.empty(which.size, np.uint8)
    for table in range(tables):
        at = which == table
        symbols[at] = rng.choice(40, at.sum(), p=weights[table] / weights[table].sum())
    ideal = -np.log2(freq[which, symbols] / lanes.SLOTS).sum() / 8
    for count in (4, 64, 256):
        state = lanes.start(count)
        pieces = []
        for _ in range(2):  # a chain: the second is decoded first
            data, state = lanes.encode(symbols, which, freq, state)
            pieces.append(data)
        assert ideal * 2 < len(pieces[0]) + len(pieces[1]) + 4 * count < 2.002 * ideal + 4.5 * count + 4
        for data in reversed(pieces):
            assert np.array_equal(lanes.decode(memoryview(data), which, slots, state), symbols)
        assert np.array_equal(state, lanes.start(count))
        with pytest.raises(InputError):
            lanes.decode(memoryview(data[:-2]), which, slots, state)


def test_huffman_codes_are_prefix_free_and_as_short_as_huffmans() -> None:
    """Kraft's sum is 1, and the mean length is within what Huffman's theorem allows: entropy to entropy + 1."""
    rng = np.random.default_rng(0)
    for skew in (1, 3, 40):
        weights = (rng.random(200) ** skew * 1e6).astype(np.int64)
        bits = huffman.lengths(weights).astype(int)
        assert ((bits > 0) == (weights > 0)).all()
        assert bits.max() <= huffman.LONGEST
        used = bits[bits > 0]
        assert (0.5**used).sum() <= 1
        shares = weights[weights > 0] / weights.sum()
        entropy = -(shares * np.log2(shares)).sum()
        assert entropy <= (shares * used).sum() <= entropy + 1
        words = {f"{code:0{n}b}" for code, n in zip(huffman.codes(bits)[bits > 0], used, strict=True)}
        assert not any(a != b and b.startswith(a) for a in words for b in words)


def test_gaps_longer_than_a_byte() -> None:
    flags = np.zeros(2000, bool)
    flags[[3, 258, 514, 1700]] = True
    gaps = _gaps(flags)
    places = np.cumsum(gaps.astype(int) + (gaps < 255))[gaps < 255] - 1
    assert places.tolist() == [3, 258, 514, 1700]


def test_taps_that_are_alike_and_rows_of_unlike_spread_beat_their_entropy(
    weights: dict[str, np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    """Order-0 entropy is what a coder reaches that knows no neighbours and one table."""
    rng = np.random.default_rng(4)
    spread = rng.normal(0, 1, (300, 500)) * np.geomspace(2, 40, 300)[:, None]
    spread[rng.random(spread.shape) < np.linspace(0.3, 0.95, 500)] = 0  # density differs by column
    source = model_of(tmp_path / "a.onnx", weights["kernel"], np.rint(spread).clip(-127, 127).astype(np.int8))
    report = pack(source=str(source), target=str(tmp_path / "a.ocz"), details=True)
    for row in report["tensors"]:
        assert row["coded"] < row["entropy_bytes"] < row["zip"]


def test_lanes_give_back_what_they_took_in() -> None:
    """A state begins with two bytes of something else, and is stored in as many bits as it has."""
    rng = np.random.default_rng(3)
    freq = lanes.frequencies(np.arange(1, 31)[np.newaxis])
    for count in (1, 5, 320):
        held = rng.bytes(lanes.SPARE * count - 1)
        which = np.zeros(7 * count + 3, np.uint16)
        symbols = rng.integers(0, 30, which.size).astype(np.uint8)
        data, state = lanes.encode(symbols, which, freq, lanes.start(count, held))
        dumped = lanes.dump(state)
        assert len(dumped) <= 4.5 * count + 1
        back = lanes.load(Reader(dumped), count)
        assert np.array_equal(back, state)
        assert np.array_equal(lanes.decode(memoryview(data), which, lanes.lookup(freq), back), symbols)
        assert lanes.spared(back).tobytes()[: len(held)] == held
        with pytest.raises(InputError):
            lanes.spared(state | np.uint32(1 << 20))


@pytest.mark.parametrize("skew", [1, 4, 30])
def test_frequencies_of_rare_symbols_are_one_and_the_others_share_the_rest(skew: int) -> None:
    """Coded with them, symbols take hardly more than their entropy: rare ones do not take room from the others."""
    weights = (1 + 1e6 * np.random.default_rng(skew).random((3, 256)) ** skew).astype(np.int64)
    found = lanes.frequencies(weights)
    assert (found.sum(axis=1) == lanes.SLOTS).all()
    assert (found >= 1).all()
    shares = weights / weights.sum(axis=1, keepdims=True)
    lost = (shares * np.log2(shares * lanes.SLOTS / found)).sum(axis=1)
    # > what one slot for each of 256 costs at most, -log2(1 - 256 / 4096), and rounding, a slot in sixteen
    assert (lost < 0.094 + 0.01).all()


def test_tensors_alike_share_tables(tmp_path: Path) -> None:
    """Forty tensors of one distribution, but for how far it spreads, take hardly more than one of their size."""
    rng = np.random.default_rng(6)
    whole = rng.laplace(0, 12, (40 * 24, 64)) * np.geomspace(0.5, 2, 40).repeat(24)[:, np.newaxis]
    values = np.rint(whole).clip(-127, 127).astype(np.int8)
    one = round_trip(model_of(tmp_path / "a.onnx", values), tmp_path / "f")["total"]["coded"]
    many = round_trip(model_of(tmp_path / "b.onnx", *np.split(values, 40)), tmp_path / "f")["total"]["coded"]
    assert many < 1.02 * one
