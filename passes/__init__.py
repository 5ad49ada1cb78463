"""The passes: each takes a valid model and returns a smaller or faster valid one.

This folder installs as `onnx_compress.passes`. A new pass is a file or folder here and a name in PASSES; one of another
package is an entry point in the group `onnx_compress.passes`.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if __name__ == "passes":
    raise ImportError(
        "this folder is the package onnx_compress.passes: import that (is the working folder on sys.path?)"
    )

from onnx_compress.errors import UsageError
from onnx_compress.passes.cluster import Cluster
from onnx_compress.passes.fp16 import Fp16
from onnx_compress.passes.int4 import Int4
from onnx_compress.passes.int8 import Int8
from onnx_compress.passes.prune import Prune
from onnx_compress.passes.sparsify import Sparsify
from onnx_compress.passes.svd import Svd

if TYPE_CHECKING:
    from onnx_compress.contract import Pass

PASSES: tuple[type[Pass], ...] = (Cluster, Fp16, Int4, Int8, Prune, Sparsify, Svd)

GROUP = "onnx_compress.passes"


def known_passes() -> tuple[type[Pass], ...]:
    """PASSES and those that installed packages add.

    Raises UsageError where such a package cannot be imported or its pass has the name of another.
    """
    found = {kind.name: kind for kind in PASSES}
    for entry in entry_points(group=GROUP):
        try:
            kind: type[Pass] = entry.load()
        except Exception as error:
            words = " ".join(str(error).split())
            raise UsageError(
                f"the pass {entry.value!r} of another package cannot be imported: {words}"
            ) from error
        name = getattr(kind, "name", None)
        if not isinstance(name, str) or not callable(getattr(kind, "apply", None)):
            raise UsageError(
                f"{entry.value!r} of another package is no pass: it needs a name and a method apply"
            )
        if name in found and found[name] is not kind:
            raise UsageError(f"two passes are named {name!r}; uninstall the package of {entry.value!r}")
        found[name] = kind
    return tuple(found.values())
