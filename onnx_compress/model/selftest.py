"""What a pruned model must equal: the original with the removed channels zeroed at their consumers.

A sum over channels loses the terms of the removed ones, so their weights, or the activation itself where the consumer
has no weight, are multiplied by zero there; a mean and a normalisation over channels are taken over those that stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnx_compress.model.channels import Channels
from onnx_compress.model.masked_norms import NORMALISATIONS
from onnx_compress.model.masked_sums import CONTRACTIONS
from onnx_compress.model.masks import Mask
from onnx_compress.model.rules import op_name
from onnx_compress.model.surgery import Surgery

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from onnx_compress.model.channels import Unit
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape


def masked(
    model: Model, shapes: Mapping[str, Shape], units: Iterable[Unit], dtype: Any = np.float32
) -> Model:
    """`model`, all its tensors of their old shapes, with the channels of `units` zeroed wherever they are consumed.

    dtype: of its floats.
    """
    surgery = Surgery(model)
    channels = Channels(surgery, dict(shapes))
    dead = frozenset().union(*(unit.labels for unit in units))
    mask = Mask(surgery, channels, dead, dtype)
    edits = {**CONTRACTIONS, **NORMALISATIONS}
    for node in list(surgery.nodes()):
        edit = edits.get(op_name(node))
        if edit is not None and id(node) in channels.followed:
            edit(mask, node)
    return surgery.commit()
