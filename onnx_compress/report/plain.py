"""The report as JSON."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(report: dict[str, Any]) -> str:
    """JSON that every reader takes: what is not finite becomes null.

    >>> print(to_json({"sqnr_db": float("inf"), "name": "é"}), end="")
    {
      "sqnr_db": null,
      "name": "é"
    }
    """
    return json.dumps(_finite(report), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist"):  # a numpy number
        return _finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
