"""What a run is after: one budget or bound, and what counts as worth it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from onnx_compress.passes.svd.forms import Method


@dataclass(frozen=True)
class Goal:
    """The options of the pass, defaults resolved. bound: of the error, where no budget (rank.. params) is given."""

    bound: float
    keep_if: Literal["faster", "not-slower", "always"]
    methods: tuple[Method, ...]
    multiple: int = 1
    rank: int | None = None
    energy: float | None = None
    macs: float | None = None
    params: float | None = None
    vbmf: bool = False
    quick: bool = False

    @property
    def bounded(self) -> bool:
        """Whether an error bound decides, which must be judged on data that no fit has seen."""
        return not self.each and self.macs is None and self.params is None

    @property
    def each(self) -> bool:
        """Whether every layer is decided by itself."""
        return self.rank is not None or self.energy is not None or self.vbmf

    @property
    def by(self) -> str:
        """What is to be saved."""
        return "params" if self.params is not None else "macs"

    @property
    def timed(self) -> bool:
        """Whether the clock has a say."""
        return self.keep_if != "always"
