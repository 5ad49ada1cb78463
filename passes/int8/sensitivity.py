"""How much each layer's 8 bits matter, measured both ways: it alone in integers, and it alone in float."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_compress.runtime.agreement import Reference

if TYPE_CHECKING:
    from onnx_compress.contract import Job
    from onnx_compress.passes.int8.quantizer import Quantizer
    from onnx_compress.runtime.data import Data

SAMPLES = 64  # whose outputs are compared


def sensitivity(job: Job, quantizer: Quantizer, held: Data) -> list[dict[str, Any]]:
    """For each layer two rows: it alone in int8, and all but it. `where`, `share` of the layers in int8, `units`, `error`."""
    judge = Reference(job.original, held.take(SAMPLES), threads=job.clock.threads).error
    quantizer.observe()
    rows = []
    count = len(quantizer.layers)
    for number, name in enumerate(quantizer.layers):
        others = {other: "" for other in quantizer.layers if other != name}
        alone, without = (judge(quantizer.quantized(keep)[0]) for keep in (others, {name: ""}))
        for units, error in ((1, alone), (count - 1, without)):
            rows.append({"where": name, "share": units / count, "units": units, "error": error})
        job.progress(number + 1, count, "sensitivity")
    return rows
