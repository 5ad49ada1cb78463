"""Folders of pictures become the arrays that the words of --preprocess say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_cases import SPEC, spec

from onnx_compress.errors import InputError, UsageError
from onnx_compress.model.document import Model
from onnx_compress.runtime.data import open_data
from onnx_compress.runtime.data.images import parse_preprocess
from onnx_compress.runtime.session import Session, input_specs

ASSETS = Path(__file__).parents[1].parent / "shared" / "assets"
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
