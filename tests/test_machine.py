"""What is asked of the machine."""

from __future__ import annotations

import os

from onnx_compress.runtime.machine import physical_cores, products_saturate


def test_this_machine_has_a_core_and_an_answer() -> None:
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
    assert products_saturate() in {True, False}
