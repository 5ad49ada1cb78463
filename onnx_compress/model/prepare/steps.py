"""The order in which a model is prepared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx_compress.model.inline_functions import inline_functions
from onnx_compress.model.prepare.barriers import barriers
from onnx_compress.model.prepare.cancel_transposes import cancel_transposes
from onnx_compress.model.prepare.edits import Edit, Left
from onnx_compress.model.prepare.fold_affine import fold_affine
from onnx_compress.model.prepare.fold_constants import fold_constants
from onnx_compress.model.prepare.freeze_inputs import freeze_inputs
from onnx_compress.model.prepare.lift_constants import lift_constants
from onnx_compress.model.prepare.names import name_nodes, name_tensors
from onnx_compress.model.prepare.passthrough import drop_passthrough
from onnx_compress.model.prepare.unshare import unshare
from onnx_compress.model.prepare.uses import drop_dead, drop_stale_shapes, drop_weights
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape

ROUNDS = 20  # each undoes at least one thing that hid another; few models need three


@dataclass(frozen=True)
class Prepared:
    """The prepared model, every edit that led to it, and what was left alone."""

    model: Model
    changes: Sequence[Edit]
    skips: Sequence[Left]


def prepare(model: Model, shapes: Mapping[str, Shape] | None = None) -> Prepared:
    """`model` in the form that passes rely on, its outputs the same to rounding; it is not changed itself.

    shapes: of its tensors, as far as they are known; None to infer them. Preparing a prepared model changes nothing.
    Raises InputError for a recursive function, LimitError where functions expand beyond a million nodes.
    """
    result, edits = _inlined(model)
    if result.proto.ir_version < 4:
        edits += freeze_inputs(result)
    edits += name_nodes(result) + name_tensors(result)
    edits += lift_constants(result) + drop_dead(result) + drop_weights(result)
    known = infer(result) | dict(shapes or {})
    for _ in range(ROUNDS):
        folded = fold_constants(result)
        dead = drop_dead(result) if folded else []
        drop_weights(result)  # what was folded: its edit says so
        result, rewritten = _rewrite(result, known)
        edits += folded + dead + rewritten
        if not folded and not rewritten:
            break
    drop_stale_shapes(result)
    result.collect()
    return Prepared(result, edits, barriers(result))


def _rewrite(model: Model, shapes: Mapping[str, Shape]) -> tuple[Model, list[Edit]]:
    """`model` after one turn of the edits that look at neighbours."""
    surgery = Surgery(model)
    edits = drop_passthrough(surgery) + cancel_transposes(surgery)
    edits += fold_affine(surgery, shapes) + unshare(surgery)
    if not edits:
        return model, []
    result = surgery.commit()
    return result, edits + drop_dead(result)


def _inlined(model: Model) -> tuple[Model, list[Edit]]:
    """A copy of `model` without its own functions, as far as they can be inlined."""
    inlined = inline_functions(model)
    result = inlined.copy()
    if inlined is model:
        return result, []
    before = f"{len(model.proto.functions)} functions, {len(model.proto.graph.node)} nodes"
    return result, [Edit("", "inline", before, f"{len(result.proto.graph.node)} nodes")]
