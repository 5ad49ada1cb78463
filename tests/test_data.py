"""Data: every source gives the same samples, and what does not fit is one InputError line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_compress.errors import InputError, UsageError
from onnx_compress.model.document import Model
from onnx_compress.runtime.data import open_data, random_data
from onnx_compress.runtime.data.images import parse_preprocess
from onnx_compress.runtime.session import InputSpec, Session, input_specs

if TYPE_CHECKING:
    from collections.abc import Iterator

ASSETS = Path(__file__).parents[1].parent / "shared" / "assets"
FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)
SPEC = [InputSpec("input", FLOAT, ("N", 3))]
ROWS = np.arange(30, dtype=np.float32).reshape(10, 3)


def spec(name: str, shape: tuple[int | str | None, ...], dtype: np.dtype[Any] = FLOAT) -> InputSpec:
    return InputSpec(name, dtype, shape)


def gathered(data: Any, size: int = 4, name: str = "input") -> Any:
    return np.concatenate([batch[name] for batch in data.batches(size)])


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, input=ROWS, label=np.arange(10), other=np.zeros((2, 2)))
    return path


def test_batches_are_the_samples_in_order_again_and_again(npz: Path) -> None:
    data = open_data(npz, SPEC)
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


def test_arrays_that_count_samples_are_targets_and_others_are_ignored(npz: Path) -> None:
    data = open_data(npz, SPEC, samples=7)
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


def save_set(folder: Path, feed: dict[str, Any], *, named: bool = True) -> None:
    folder.mkdir(parents=True)
    for at, (name, value) in enumerate(feed.items()):
        tensor = onnx.numpy_helper.from_array(np.asarray(value), name if named else "")
        (folder / f"input_{at}.pb").write_bytes(tensor.SerializeToString())


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


def test_unreadable_files_are_one_line(tmp_path: Path, npz: Path) -> None:
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


def test_safe_casts_are_made() -> None:
    data = open_data({"input": ROWS.astype(np.float64)}, SPEC)
    assert gathered(data).dtype == np.float32
    narrow = open_data({"ids": ROWS.astype(np.uint8)}, [spec("ids", ("N", 3), INT)])
    assert gathered(narrow, name="ids").dtype == np.int64


IMAGE = [spec("image", ("N", 3, 8, 8))]


def save_image(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (20, 12)) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.mark.parametrize(("names", "labels"), [(["0003", "0010"], [3, 10, 3]), (["cat", "7"], [0, 1, 0])])
def test_class_folders_are_labels(tmp_path: Path, names: list[str], labels: list[int]) -> None:
    """7 sorts before cat."""
    first, second = sorted(names)
    for path in (f"{first}/a.png", f"{first}/b.PNG", f"{second}/c.png"):
        save_image(tmp_path / path, (10, 20, 30))
    (tmp_path / first / ".hidden.png").write_text("")
    data = open_data(tmp_path, IMAGE, preprocess="size=8:crop=8")
    assert data.labels is not None
    assert data.labels.tolist() == labels


def test_a_picture_becomes_what_the_words_say(tmp_path: Path) -> None:
    """A plain picture has one colour, so resize and crop cannot change it, and the formula is exact."""
    save_image(tmp_path / "a.png", (10, 20, 30))
    one = next(open_data(tmp_path, IMAGE, preprocess="size=8:crop=8:mean=1/2/3:std=2").batches())["image"]
    assert one.shape == (1, 3, 8, 8)
    assert one.dtype == np.float32
    assert one[0, :, 0, 0].tolist() == [4.5, 9.0, 13.5]
    words = "size=8:crop=8:layout=nhwc:channels=bgr"
    other = next(open_data(tmp_path, [spec("image", ("N", 8, 8, 3))], preprocess=words).batches())["image"]
    assert other[0, 0, 0].tolist() == [30, 20, 10]
    gray = next(
        open_data(
            tmp_path, [spec("image", ("N", 1, 8, 8))], preprocess="size=8:crop=8:channels=gray"
        ).batches()
    )["image"]
    assert gray[0, 0, 0, 0] == 18  # ITU-R 601: (299 R + 587 G + 114 B) / 1000


def test_crop_is_the_centre(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.arange(6 * 10, dtype=np.uint8).reshape(6, 10)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = open_data(tmp_path, [spec("image", (None, 1, 4, 4))], preprocess="crop=4:channels=gray")
    assert np.array_equal(next(data.batches())["image"][0, 0], pixels[1:5, 3:7])


def test_pictures_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    save_image(tmp_path / "a" / "a.png", (1, 2, 3))
    save_image(tmp_path / "b" / "b.png", (1, 2, 3), (30, 30))
    with pytest.raises(UsageError, match="needs --preprocess"):
        open_data(tmp_path, IMAGE)
    with pytest.raises(InputError, match="becomes"):
        open_data(tmp_path, IMAGE, preprocess="size=16:crop=16")
    with pytest.raises(InputError, match="smaller than crop"):
        open_data(tmp_path, IMAGE, preprocess="crop=16")
    with pytest.raises(InputError, match="give --preprocess a size and a crop"):
        next(open_data(tmp_path, [spec("image", ("N", 3, "H", "W"))], preprocess="mean=0").batches())
    with pytest.raises(InputError, match="one input of rank 4"):
        open_data(tmp_path, SPEC, preprocess="imagenet")
    (tmp_path / "a" / "a.png").write_bytes((tmp_path / "a" / "a.png").read_bytes()[:50])
    with pytest.raises(InputError, match="not a picture, or truncated"):
        open_data(tmp_path, IMAGE, preprocess="size=8:crop=8")


@pytest.mark.parametrize(
    "words",
    ["imagnet", "size=x", "size=0", "std=0", "mean=1/2", "layout=chw", "size=4:crop=8", "mean=1:deep"],
)
def test_bad_preprocess_words_are_usage_errors(words: str) -> None:
    with pytest.raises(UsageError):
        parse_preprocess(words)


def test_imagenet_is_torchvisions() -> None:
    how = parse_preprocess("imagenet")
    assert (how.size, how.crop, how.resize) == (256, 224, "bilinear")
    assert parse_preprocess("imagenet:crop=192").crop == 192


BERT = """
<ir_version: 8, opset_import: ["" : 17]>
bert (int64[batch,seq] input_ids, int64[batch,seq] attention_mask, int64[batch,seq] token_type_ids,
      int64[batch,seq] position_ids) => (float[batch,seq,4] y)
<float[11,4] words, float[2,4] kinds, float[6,4] places>
{
  a = Gather(words, input_ids)
  b = Gather(kinds, token_type_ids)
  c = Gather(places, position_ids)
  d = Add(a, b)
  e = Add(d, c)
  mask = Cast<to = 1>(attention_mask)
  wide = Unsqueeze(mask, two)
  y = Mul(e, wide)
}
"""


def bert() -> Model:
    proto = onnx.parser.parse_model(BERT.replace("places>", "places, int64[1] two = {2}>"))
    for name, rows in (("words", 11), ("kinds", 2), ("places", 6)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((rows, 4), np.float32), name))
    del proto.graph.input[4:]
    return Model.from_proto(proto)


def test_random_inputs_run_a_bert() -> None:
    """Ids stay inside their tables, which a Gather out of range would refuse."""
    model = bert()
    data = random_data(input_specs(model), 5, seed=1, model=model)
    feeds = next(data.batches(5))
    assert Session(model).run(feeds)["y"].shape == (5, 32, 4)
    assert feeds["input_ids"].max() < 11
    assert feeds["attention_mask"].all()
    assert not feeds["token_type_ids"].any()
    assert feeds["position_ids"].max() == 5
    assert data.random
    assert data.samples == 5


def test_random_inputs_depend_on_the_seed_and_the_sample_only() -> None:
    specs = [spec("image", ("N", 3, 16, "W"))]
    one, same, other = (random_data(specs, 6, seed, {"image": (1, 3, 16, 20)}) for seed in (0, 0, 1))
    assert np.array_equal(gathered(one, 4, "image"), gathered(same, 2, "image"))
    assert not np.array_equal(gathered(one, 4, "image"), gathered(other, 4, "image"))
    assert gathered(one, 4, "image").shape == (6, 3, 16, 20)
    assert np.array_equal(gathered(one.take(2), 4, "image"), gathered(one, 6, "image")[:2])


def test_random_inputs_of_a_recurrent_voice_model() -> None:
    specs = [spec("input", (None, None)), spec("state", (2, None, 128)), spec("sr", (), INT)]
    feeds = next(random_data(specs, 2).batches())
    assert feeds["input"].shape == (1, 512)
    assert feeds["state"].shape == (2, 1, 128)
    assert not feeds["state"].any()
    assert feeds["sr"] == 16000


@pytest.mark.skipif(not ASSETS.exists(), reason="needs the assets")
def test_efficientnet_reaches_its_known_accuracy_on_the_image_folder() -> None:
    """On the first 90 of 450 pictures as on the whole (89.1 %) within three standard deviations: 0.1."""
    model = Model.load(ASSETS / "imagenet" / "efficientnet_lite0.onnx")
    session = Session(model)
    data = open_data(
        ASSETS / "imagenet" / "eval",
        input_specs(model),
        samples=90,
        preprocess="size=256:crop=224:mean=127:std=128",
    )
    output = session.outputs[0]
    answers = np.concatenate(
        [session.run(batch)[output].reshape(-1, 1000).argmax(1) for batch in data.batches()]
    )
    assert abs((answers == data.labels).mean() - 0.891) < 0.1
