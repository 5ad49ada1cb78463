"""One thread for BLAS: the matrices are small, and a thread that waits costs more than it gives."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from threadpoolctl import ThreadpoolController


def one_thread() -> AbstractContextManager[object]:
    """While it is entered, BLAS has one thread."""
    return _controller().limit(limits=1, user_api="blas")


@cache
def _controller() -> ThreadpoolController:
    """Made once: it looks through all loaded libraries, which takes as long as packing a small model."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
