"""What each runtime wants of a quantized graph: one row of rules each. ort-cpu is also what all others must still run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx_compress.errors import UsageError
from onnx_compress.passes.int8.ranges import Codes
from onnx_compress.runtime.session import input_specs

if TYPE_CHECKING:
    from onnx_compress.model.document import Model

MOVES = frozenset({
    "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Gather", "Tile", "Expand",
    "Resize", "Split", "Concat", "Pad",
})  # fmt: skip
POOLS = frozenset({"AveragePool", "GlobalAveragePool"})


@dataclass(frozen=True)
class Rules:
    """How to quantize for one runtime.

    codes: type of the activations, by the word of `activations=`; layers: operators with an integer kernel for a constant
    weight; per_channel: those of them whose weight may have one scale a channel; followers: operators without weights that
    run in integers (None: all that this pass knows); int32_bias: biases are integers too, else they stay float32;
    floats: layers that may give float32 where nobody goes on in integers; residual: an Add reads what is quantized anyway in
    codes beside the layer it is fused with; edges: what the graph returns is wanted in integers; folds: clipping activations vanish into a range; recoded: rewrites that only onnxruntime's kernels reward; static: the
    runtime compiles for fixed shapes; widens: where 8 bits miss what is asked, activations take 16 before a layer goes back to
    float, which the runtime would hand to another processor; timed: its kernels are those of this processor, so the clock may decide.
    """

    codes: dict[str, Codes]
    layers: frozenset[str] = frozenset({"Conv", "Gemm", "MatMul"})
    per_channel: frozenset[str] = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
    followers: frozenset[str] | None = None
    floats: frozenset[str] = frozenset({"Gemm", "MatMul"})
    int32_bias: bool = True
    residual: bool = False
    folds: bool = True
    edges: bool = False
    recoded: bool = False
    static: bool = False
    widens: bool = False
    timed: bool = False


BOTH = {"uint8": Codes("uint8"), "int8": Codes("int8")}
WITH_TRANSPOSED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
TARGETS = {
    "ort-cpu": Rules({**BOTH, "uint16": Codes("uint16")}, recoded=True, timed=True),
    # zero points must be 0, so no range ends at 0 and Relu stays; the plugin adds biases in float
    "tensorrt": Rules(
        {"uint8": Codes("int8", symmetric=True), "int8": Codes("int8", symmetric=True)},
        layers=WITH_TRANSPOSED,
        followers=MOVES | POOLS,
        floats=WITH_TRANSPOSED,
        int32_bias=False,
        residual=True,
        folds=False,
    ),
    # the HTP has one scale a weight outside of convolutions, and compiles for fixed shapes
    "qnn": Rules(
        {**BOTH, "uint16": Codes("uint16")},
        layers=WITH_TRANSPOSED,
        per_channel=frozenset({"Conv", "ConvTranspose"}),
        floats=frozenset(),
        edges=True,
        static=True,
        widens=True,
    ),
    # quantization of what enters a layer; where else integers go on, its compiler works out by itself
    "openvino": Rules(
        BOTH,
        layers=WITH_TRANSPOSED,
        followers=MOVES | POOLS | {"Add", "Mul"},
        floats=WITH_TRANSPOSED,
        int32_bias=False,
    ),
}


def codes_for(target: str, activations: str) -> Codes:
    """The integers of the activations.

    Raises ValueError where the target has none of that name.
    """
    known = TARGETS[target].codes
    if activations not in known:
        raise ValueError(f"target={target} takes activations={'|'.join(known)}, not {activations}")
    return known[activations]


def check_static(model: Model, target: str) -> None:
    """Raises UsageError where the target needs fixed shapes and an input has none."""
    if not TARGETS[target].static:
        return
    for spec in input_specs(model):
        for axis, size in enumerate(spec.shape):
            if not isinstance(size, int):
                raise UsageError(
                    f"target={target} needs fixed shapes, but axis {axis} of input {spec.name!r} is symbolic; fix it with "
                    "`python -m onnxruntime.tools.make_dynamic_shape_fixed`"
                )
