"""What decides which units of a kind go first: one function a criterion, all on the same units and with the same repair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from onnx_compress.passes.prune.criteria import activations, outputs, weights

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnx_compress.model.channels import Unit
    from onnx_compress.passes.prune.criteria.context import Context
    from onnx_compress.passes.prune.curves import Curve

    Rank = Callable[[Context, Sequence[Unit]], Curve]

Criterion = Literal[
    "obs",
    "l1",
    "l2",
    "fpgm",
    "bn",
    "activation",
    "apoz",
    "entropy",
    "correlation",
    "lda",
    "taylor",
    "oracle",
    "random-mask",
    "random",
]

CRITERIA: dict[Criterion, Rank] = {
    "obs": weights.obs,
    "l1": weights.l1,
    "l2": weights.l2,
    "fpgm": weights.fpgm,
    "bn": activations.bn,
    "activation": activations.activation,
    "apoz": activations.apoz,
    "entropy": activations.entropy,
    "correlation": activations.correlation,
    "lda": activations.lda,
    "taylor": outputs.taylor,
    "oracle": outputs.oracle,
    "random-mask": outputs.random_mask,
    "random": weights.random,
}

DATA_FREE: tuple[Criterion, ...] = ("l1", "l2", "fpgm", "random")

# neither run the model nor draw: kinds of units can be ranked side by side
PURE: tuple[Criterion, ...] = ("obs", "l1", "l2", "fpgm")
