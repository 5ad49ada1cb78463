"""What a pass is given, what it returns, and what it may say.

A pass is a frozen dataclass whose fields are its options, and one method. A valid model in, a valid model out;
the input is never changed.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from onnx_compress.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnx_compress.model.document import Model
    from onnx_compress.runtime.clock import Clock
    from onnx_compress.runtime.data import Data

# a Decision is made below, by the clock; passes find it here
__all__ = ["Change", "Curve", "Decision", "Job", "Pass", "Result", "Skip"]


@dataclass(frozen=True)
class Change:
    """One edit: `node` went from `before` to `after`; `error` is the edit's own relative output error, if known."""

    node: str
    what: str
    before: str
    after: str
    error: float | None = None


@dataclass(frozen=True)
class Skip:
    """Why a node was left alone."""

    node: str
    why: str


@dataclass(frozen=True)
class Curve:
    """What was found of `where` on data: errors[i], relative, once the share shares[i] of it (0..1) is gone; `kept` is the share that stays."""

    where: str
    shares: Sequence[float]
    errors: Sequence[float]
    kept: float


@dataclass(frozen=True)
class Result:
    """What a pass returns: the new model, and everything it did and did not do."""

    model: Model
    changes: Sequence[Change] = ()
    skips: Sequence[Skip] = ()
    decisions: Sequence[Decision] = ()
    warnings: Sequence[str] = ()
    curves: Sequence[Curve] = ()


def _identity(model: Model) -> Model:
    return model


def silent(done: int, total: int, what: str) -> None:
    """Progress goes nowhere."""


@dataclass(frozen=True)
class Job:
    """What a pass gets.

    model: the model as it now is, prepared; original: the prepared input of the whole run, whose outputs repair aims at;
    data: calibration batches, or None; seed: of every random choice; clock: measures or replays;
    finish: a model as the later passes of the recipe will leave it, quickly (for clock decisions);
    progress(done, total, what): to be called now and then; batch: samples in one run when the clock decides;
    min_sqnr: dB that the outputs must keep, and max_drop: by how much the metric may fall, as the user asked of the whole run,
    or None; score: that metric, of outputs and data (inputs and targets), where `data` has the targets that --eval has.
    """

    model: Model
    original: Model
    data: Data | None
    seed: int
    clock: Clock
    finish: Callable[[Model], Model] = _identity
    progress: Callable[[int, int, str], None] = silent
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    batch: int = 1
    min_sqnr: float | None = None
    max_drop: float | None = None
    score: Callable[[Mapping[str, Any], Mapping[str, Any]], float] | None = None
    warnings: list[str] = field(default_factory=list)


@runtime_checkable
class Pass(Protocol):
    """A frozen dataclass: its fields are its options, `name` is the word the user types.

    A pass may also have `preview(job: Job) -> Model`: the job's model as the pass would leave it, roughly and quickly.
    Passes before it in the recipe see their candidates through it, as `Job.finish`. And it may have
    `survey(model, shapes) -> Result`: what it could change and what it must leave alone, for `inspect`.
    """

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def apply(self, job: Job) -> Result:
        """The job's model, compressed, and what was done to it."""
        ...
