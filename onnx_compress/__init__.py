"""Makes a trained ONNX model smaller and faster, and proves that it still works.

from onnx_compress import compress
compress("in.onnx", "prune,svd,int8", data="calib.npz", eval="eval.npz").save("out.onnx")
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers; at run time _PLACES says where
    from onnx_compress.compare import compare as verify  # noqa: TC004
    from onnx_compress.inspect import inspect as inspect  # noqa: TC004
    from onnx_compress.pipeline import Compressed as Compressed  # noqa: TC004
    from onnx_compress.pipeline import compress as compress  # noqa: TC004

    __version__: str

__all__ = ["Compressed", "__version__", "compress", "inspect", "verify"]

_PLACES = {
    "Compressed": ("pipeline", "Compressed"),
    "compress": ("pipeline", "compress"),
    "inspect": ("inspect", "inspect"),
    "verify": ("compare", "compare"),
}


class _Package(ModuleType):
    """Exports are imported when first asked for: `import onnx_compress` is instant."""

    def __getattr__(self, name: str) -> Any:
        import importlib

        if name in _PLACES:
            module, word = _PLACES[name]
            value: Any = getattr(importlib.import_module(f"onnx_compress.{module}"), word)
        elif name == "__version__":
            value = importlib.import_module("onnx_compress.runtime.machine").package_version("onnx-compress")
        else:
            raise AttributeError(f"module 'onnx_compress' has no attribute {name!r}")
        vars(self)[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # the modules verify and inspect have the names of functions, which go first
        if not (name in _PLACES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
