"""How much each layer matters: it alone is factored, and the outputs are looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_compress.passes.svd.forms import Method, can
from onnx_compress.runtime.agreement import Reference

if TYPE_CHECKING:
    from onnx_compress.passes.svd.study import Study

SHARES = (0.25, 0.5, 0.75)  # of a layer's multiply-adds that go
SAMPLES = 128  # whose outputs are compared
QUICK: tuple[Method, ...] = ("svd", "spatial")  # what a look needs


def sensitivity(study: Study, methods: tuple[Method, ...]) -> list[dict[str, Any]]:
    """For each layer alone and each of SHARES: `where`, `share` of its work saved, `units` (its rank), the relative `error`.

    Each layer takes the form that loses least in its own output, fitted to its own input.
    """
    assert study.held is not None
    methods = tuple(method for method in methods if len(methods) == 1 or method in QUICK)
    study.observe(study.layers)
    allowed = {layer.output: tuple(m for m in methods if can(layer, m)) for layer in study.layers}
    study.tabulate(study.layers, allowed, 1, by="macs", only=None)
    reference = Reference(study.job.model, study.held.take(SAMPLES), threads=study.job.clock.threads)
    rows = []
    for done, layer in enumerate(study.layers):
        study.job.progress(done, len(study.layers), "sensitivity")
        options = study.tables[layer.output]
        for share in SHARES:
            found = [item for item in options if item.macs <= (1 - share) * layer.macs]
            if found:
                option = min(found, key=lambda item: item.error)
                error = reference.error(study.build({layer.output: option}))
                rows.append({"where": layer.node, "share": share, "units": option.form.rank, "error": error})
    return rows
