"""What anybody types wrong one day; every test run has all of these."""

from __future__ import annotations

import numpy as np

from hostile.case import RUN, Case
from hostile.data import GOOD, ROWS, arrays, data

INT8 = RUN + "int8 --data d.npz"
_PROVED = "in.onnx out.onnx --passes int8 --data d.npz"


def _words(words: str) -> Case:
    return Case(data(GOOD), words)


CASES: dict[str, Case] = {
    "a bad pass": _words(RUN + "prun"),
    "a bad option": _words(RUN + "int8:tol=1"),
    "a bad value": _words(RUN + "prune:macs=1.5"),
    "a threshold that nothing measures": _words(f"{_PROVED} --max-drop 0.1"),
    "an unknown input": _words(RUN + "int8 --input-shapes z:1,3"),
    "an unknown metric": Case(
        data(arrays(x=ROWS, label=np.zeros(8, np.int64))), f"{_PROVED} --eval d.npz --metric top9"
    ),
    "no model": _words("absent.onnx out.onnx --passes none"),
    "a folder for a model": _words(". out.onnx --passes none"),
    "no data": _words(RUN + "int8 --data absent.npz"),
    "a missed threshold": _words("in.onnx out.onnx --passes int8:keep_if=always --data d.npz --min-sqnr 900"),
    "a time limit": _words(INT8 + " --time-limit 0.01"),
    "a memory limit": _words(INT8 + " --memory-limit 0.03"),
    "all is right": _words(_PROVED + " -q"),
}
