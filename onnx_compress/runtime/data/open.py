"""What kind of data a path or an object is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_compress.errors import InputError, UsageError
from onnx_compress.runtime.data.batches import Data
from onnx_compress.runtime.data.feeds import data_sets, feed_pieces, set_pieces
from onnx_compress.runtime.data.fit import batch_size
from onnx_compress.runtime.data.images import Images, image_files, parse_preprocess
from onnx_compress.runtime.data.npz import npz_piece
from onnx_compress.runtime.data.pieces import from_pieces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx_compress.runtime.session import InputSpec


def open_data(
    source: Any, specs: Sequence[InputSpec], *, samples: int | None = None, preprocess: str | None = None
) -> Data:
    """The first `samples` samples (all where None) of `source`, fit for the inputs `specs`.

    source: a path (npz file; folder of npz files, of ONNX test data sets, or of images with `preprocess`), a feed, an
    iterable of feeds, an onnxruntime CalibrationDataReader, or Data, of which the first `samples` are taken.
    Raises InputError, in one line, where it cannot be read or does not fit; UsageError for a bad `preprocess`.
    """
    if isinstance(source, Data):
        return source if samples is None else source.take(samples)
    if samples is not None and samples < 1:
        raise UsageError(f"--samples must be at least 1, not {samples}")
    how = parse_preprocess(preprocess) if preprocess else None
    if not isinstance(source, str | os.PathLike):
        if not hasattr(source, "get_next") and not hasattr(source, "__iter__"):
            raise InputError(
                f"the data is a {type(source).__name__}, not a path, an iterable of feeds or a CalibrationDataReader"
            )
        return from_pieces("feeds from Python", feed_pieces(source), specs, samples)
    path = Path(source)
    try:
        if path.is_dir():
            files = sorted(file for file in path.glob("*.npz") if not file.name.startswith("."))
            if files:
                return from_pieces(str(path), map(npz_piece, files), specs, samples)
            sets = data_sets(path)
            if sets:
                return from_pieces(str(path), set_pieces(sets, specs), specs, samples)
            pictures, labels = image_files(path)
        elif path.is_file():
            if path.suffix.lower() == ".npy":
                raise InputError(f"{path}: a bare .npy has no input names; save it with numpy.savez as .npz")
            return from_pieces(str(path), iter([npz_piece(path)]), specs, samples)
        else:
            there = os.path.lexists(path)
            raise InputError(f"{path}: {'is no regular file' if there else 'no such file or folder'}")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not pictures:
        raise InputError(f"{path}: holds no .npz file, no test_data_set and no picture")
    if how is None:
        raise UsageError(f"{path}: an image folder needs --preprocess, for example --preprocess imagenet")
    fixed = batch_size(specs)
    reader = Images(pictures, labels, specs, how, str(path))
    return Data.of(str(path), reader, fixed=fixed if isinstance(fixed, int) else None, samples=samples)
