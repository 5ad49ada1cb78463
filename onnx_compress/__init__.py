"""Makes a trained ONNX model smaller and faster, and proves that it still works.

from onnx_compress import compress
compress("in.onnx", "prune,svd,int8", data="calib.npz", eval="eval.npz").save("out.onnx")
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers; at run time _PLACES says where
    from onnx_compress.inspect import inspect as inspect
    from onnx_compress.pipeline import Compressed as Compressed
    from onnx_compress.pipeline import compare as verify
    from onnx_compress.pipeline import compress as compress

    __version__: str

__all__ = ["Compressed", "__version__", "compress", "inspect", "verify"]

_PLACES = {
    "Compressed": ("pipeline", "Compressed"),
    "compress": ("pipeline", "compress"),
    "inspect": ("inspect", "inspect"),
    "verify": ("pipeline", "compare"),
}


class _Package(ModuleType):
    """Exports are imported when first asked for: `import onnx_compress` is instant."""

    def __getattr__(self, name: str) -> Any:
        import importlib
        from importlib.metadata import PackageNotFoundError, version

        if name == "__version__":
            try:
                value: Any = version("onnx-compress")
            except PackageNotFoundError:  # run from its source
                value = "unknown"
        elif name in _PLACES:
            module, word = _PLACES[name]
            value = getattr(importlib.import_module(f"onnx_compress.{module}"), word)
        else:
            raise AttributeError(f"module 'onnx_compress' has no attribute {name!r}")
        vars(self)[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # the modules verify and inspect have the names of functions, which go first
        if not (name in _PLACES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
