"""Image folders, decoded and preprocessed when a batch is read."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.errors import InputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from onnx_compress.runtime.session import InputSpec

    Array = NDArray[Any]

ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
KEPT = 128 * 2**20  # bytes of cropped pictures kept between sweeps
WORDS = "size=256:crop=224:mean=127:std=128:layout=nchw:channels=rgb, or imagenet"


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes an input: short side to `size`, centre crop, (x - mean) / std on 0..255."""

    size: int | None = None  # pixels of the short side; None: as it is
    resize: str = (
        "bicubic"  # or bilinear; EfficientNet-Lite0 reaches its 89.1 % with bicubic, 88.4 % with bilinear
    )
    crop: int | None = None  # pixels; None: the whole picture
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "nchw"
    channels: str = "rgb"


# as torchvision evaluates its ImageNet models
IMAGENET = Preprocess(256, "bilinear", 224, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def parse_preprocess(words: str) -> Preprocess:
    """The preprocessing that `words` ask for: `imagenet`, or key=value joined by colons, or both.

    Raises UsageError for a word or a value that is none.

    >>> parse_preprocess("size=256:crop=224:mean=127:std=128").std
    (128.0,)
    """
    result = Preprocess()
    for word in filter(None, (part.strip() for part in words.split(":"))):
        if word == "imagenet":
            result = IMAGENET
            continue
        key, equals, value = (part.strip() for part in word.partition("="))
        if not equals or key not in Preprocess.__dataclass_fields__:
            raise UsageError(f"--preprocess: unknown word {word!r}; write for example {WORDS}")
        result = replace(result, **{key: _value(key, value)})
    if result.size and result.crop and result.crop > result.size:
        raise UsageError(f"--preprocess: crop={result.crop} is larger than size={result.size}")
    colours = 1 if result.channels == "gray" else 3
    if any(len(values) not in (1, colours) for values in (result.mean, result.std)):
        raise UsageError(f"--preprocess: mean and std take one value, or {colours} joined by '/'")
    return result


def image_files(folder: Path) -> tuple[list[Path], Array | None]:
    """The pictures of `folder` and their labels, the class folders taking turns (so that the first N show all classes).

    A label is the number that names the folder where all folders are named so, else the folder's sorted position.
    Pictures that lie in `folder` itself have no label: then labels is None.
    """
    folders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    loose = _pictures(folder.glob("*"))
    if loose or not folders:
        return loose, None
    numbered = all(p.name.isdecimal() for p in folders)
    labels = [int(p.name) if numbered else at for at, p in enumerate(folders)]
    classes = [
        [(path, label) for path in _pictures(p.rglob("*"))] for p, label in zip(folders, labels, strict=True)
    ]
    pairs = [pair for turn in zip_longest(*classes) for pair in turn if pair is not None]
    return [path for path, _ in pairs], np.array([label for _, label in pairs], np.int64)


class Images:
    """A reader that decodes pictures into the model's only input.

    Raises InputError where the model does not take one float or uint8 image, or it has another size.
    """

    def __init__(
        self,
        files: Sequence[Path],
        labels: Array | None,
        specs: Sequence[InputSpec],
        how: Preprocess,
        where: str,
    ) -> None:
        self.files = files
        self.how = how
        self.spec = _image_input(specs, where)
        self.groups = np.zeros(len(files), int)
        self._labels = labels
        self._kept: OrderedDict[int, Array] = OrderedDict()
        if files:
            self._check_size(self._pixels(0), files[0])

    def read(self, rows: Array) -> dict[str, Array]:
        """The pictures, decoded, cropped and normalised, in the model's type and layout."""
        crops = [self._pixels(int(row)) for row in rows]
        for row, crop in zip(rows, crops, strict=True):
            if crop.shape != crops[0].shape:
                raise InputError(
                    f"{self.files[int(row)]}: has size {crop.shape[1]}x{crop.shape[0]}, others"
                    f" {crops[0].shape[1]}x{crops[0].shape[0]}; give --preprocess a size and a crop"
                )
        return {self.spec.name: _normalise(np.stack(crops), self.how, self.spec.dtype)}

    def targets(self) -> dict[str, Array]:
        """The class folders as `label`."""
        return {} if self._labels is None else {"label": self._labels}

    def _pixels(self, row: int) -> Array:
        """The cropped picture (height, width, channels) uint8, kept while there is room."""
        if row not in self._kept:
            crop = _decode(self.files[row], self.how)
            if (len(self._kept) + 1) * crop.nbytes > KEPT:
                return crop
            self._kept[row] = crop
        return self._kept[row]

    def _check_size(self, crop: Array, file: Path) -> None:
        shape = _normalise(crop[None], self.how, self.spec.dtype).shape
        for want, got in zip(self.spec.shape[1:], shape[1:], strict=True):
            if isinstance(want, int) and want != got:
                takes = ", ".join("?" if size is None else str(size) for size in self.spec.shape)
                raise InputError(
                    f"{file}: becomes {shape[1:]} after --preprocess, but input {self.spec.name!r} takes ({takes})"
                )


def _image_input(specs: Sequence[InputSpec], where: str) -> InputSpec:
    if len(specs) != 1 or len(specs[0].shape) != 4:
        names = ", ".join(f"{spec.name!r} {spec.shape}" for spec in specs)
        raise InputError(
            f"{where}: an image folder feeds a model with one input of rank 4; this one takes {names}"
        )
    if specs[0].dtype.kind != "f" and specs[0].dtype != np.uint8:
        raise InputError(f"{where}: input {specs[0].name!r} takes {specs[0].dtype}, not pictures")
    return specs[0]


def _decode(file: Path, how: Preprocess) -> Array:
    """The picture as (height, width, channels) uint8: resized, cropped, its channels in order."""
    from PIL import Image

    try:
        with Image.open(file) as opened:
            picture = opened.convert("L" if how.channels == "gray" else "RGB")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        words = " ".join(str(error).split())
        raise InputError(f"{file}: not a picture, or truncated: {words}") from error
    if how.size:
        factor = how.size / min(picture.size)
        width, height = (max(how.size, int(side * factor)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling[how.resize.upper()])
    if how.crop:
        if min(picture.size) < how.crop:
            raise InputError(
                f"{file}: {picture.width}x{picture.height} is smaller than crop={how.crop}; give --preprocess a size"
            )
        left, top = (round((side - how.crop) / 2) for side in picture.size)
        picture = picture.crop((left, top, left + how.crop, top + how.crop))
    pixels = np.array(picture, np.uint8).reshape(picture.height, picture.width, -1)
    return np.ascontiguousarray(pixels[:, :, ::-1]) if how.channels == "bgr" else pixels


def _normalise(pixels: Array, how: Preprocess, dtype: np.dtype[Any]) -> Array:
    """(x - mean) / std of (samples, height, width, channels), in the layout asked for."""
    mean, std = np.array(how.mean, np.float32), np.array(how.std, np.float32)
    if dtype != np.uint8:
        pixels = ((pixels - mean) / std).astype(dtype)
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)) if how.layout == "nchw" else pixels


def _pictures(paths: Any) -> list[Path]:
    return sorted(
        p for p in paths if p.suffix.lower() in ENDINGS and not p.name.startswith(".") and p.is_file()
    )


def _value(key: str, value: str) -> Any:
    choices = {
        "resize": ("bicubic", "bilinear"),
        "layout": ("nchw", "nhwc"),
        "channels": ("rgb", "bgr", "gray"),
    }
    if key in choices:
        if value not in choices[key]:
            raise UsageError(f"--preprocess: {key} is one of {', '.join(choices[key])}, not {value!r}")
        return value
    try:
        if key in ("size", "crop"):
            return _positive(int(value))
        numbers = tuple(float(part) for part in value.split("/"))
    except ValueError as error:
        raise UsageError(f"--preprocess: {key}={value} is no number that makes sense there") from error
    if key == "std" and 0 in numbers:
        raise UsageError("--preprocess: std cannot be 0")
    return numbers


def _positive(number: int) -> int:
    if number < 1:
        raise ValueError(number)
    return number
