"""What a caller asks for, and what it means: passes with options, limits, a clock, the model and its data."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from onnx_compress import recipe as recipes
from onnx_compress.errors import InputError, UsageError
from onnx_compress.model.document import Model
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.data import Data, open_data
from onnx_compress.runtime.machine import physical_cores
from onnx_compress.runtime.session import input_specs
from onnx_compress.verify import Limits, check_targets, metric

if TYPE_CHECKING:
    from onnx_compress.contract import Pass
    from onnx_compress.verify import Score


NO_WORDS = (
    "model",
    "passes",
    "detail",
)  # the report has the first two already; an HTML report asks for the third


@dataclass(frozen=True)
class Request:
    """The arguments of `compress`, as they were given."""

    model: Any
    passes: Any
    data: Any = None
    eval: Any = None
    preprocess: str | None = None
    metric: str = "top1"
    max_drop: float | None = None
    min_sqnr: float | None = None
    min_speedup: float | None = None
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    decisions: Any = None
    threads: int | None = None
    batch: int = 1
    samples: int = 512
    seed: int = 0
    verify: bool = True
    freeze_inputs: bool = False
    detail: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """What was not left at its default, as plain words; data that is no path has none."""
        blank = Request(None, None)
        given = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in NO_WORDS or value == getattr(blank, entry.name):
                continue
            value = str(value) if isinstance(value, os.PathLike) else value
            if isinstance(value, str | int | float | dict):
                given[entry.name] = value
        return given

    @property
    def limits(self) -> Limits:
        """The thresholds."""
        return Limits(self.max_drop, self.min_sqnr, self.min_speedup)


@dataclass(frozen=True)
class Words:
    """A request understood. replay: the decisions of an earlier run, a list for each pass."""

    passes: list[Pass]
    spec: str
    clock: Clock
    score: tuple[str, Score] | None
    replay: list[list[Mapping[str, Any]]] | None


def read_words(request: Request) -> Words:
    """The request understood; nothing is read but --decisions.

    Raises UsageError for words that are wrong or contradict each other.
    """
    if request.threads is not None and request.threads < 1:
        raise UsageError(f"--threads must be at least 1, not {request.threads}")
    if request.batch < 1:
        raise UsageError(f"--batch must be at least 1, not {request.batch}")
    if request.samples < 1:
        raise UsageError(f"--samples must be at least 1, not {request.samples}")
    if request.seed < 0:
        raise UsageError(f"--seed must be at least 0, not {request.seed}")
    check_limits(request)
    passes, spec = _passes(request.passes)
    return Words(
        passes,
        spec,
        Clock(request.threads or physical_cores(), request.seed),
        None if request.eval is None else (request.metric, metric(request.metric)),
        None if request.decisions is None else _replay(request.decisions, passes),
    )


def check_limits(request: Request) -> None:
    """Raises UsageError where a threshold could not be measured."""
    if request.limits and not request.verify:
        raise UsageError("--no-verify measures nothing, so no threshold can be met; leave one of them out")
    if request.max_drop is not None and request.eval is None:
        raise UsageError("--max-drop needs --eval: data with targets to compute the metric on")
    if request.min_sqnr is not None and request.data is None and request.eval is None:
        raise UsageError("--min-sqnr needs --data: agreement on random inputs proves nothing")
    for name, value in vars(request.limits).items():
        if value is not None and math.isnan(value):
            raise UsageError(f"--{name.replace('_', '-')} is no number")


def _passes(passes: Any) -> tuple[list[Pass], str]:
    """The passes and their SPEC; none at all for a lossless copy."""
    from onnx_compress.passes import known_passes

    if isinstance(passes, str):
        passes = recipes.parse(passes)
    if isinstance(passes, recipes.Recipe):
        return recipes.resolve(passes, known_passes()), str(passes)
    if not isinstance(passes, Sequence):
        raise UsageError(
            f"passes are a SPEC, a Recipe or a sequence of passes, not a {type(passes).__name__}"
        )
    for item in passes:
        if isinstance(item, type) or not callable(getattr(item, "apply", None)):
            raise UsageError(f"{item!r} is no pass: it has no method apply")
        recipes.check(item)
    return list(passes), str(recipes.describe(passes))


def _replay(decisions: Any, passes: Sequence[Pass]) -> list[list[Mapping[str, Any]]]:
    """The decisions of each pass in the report of an earlier run."""
    found = decisions
    if isinstance(decisions, str | os.PathLike):
        try:
            found = json.loads(Path(decisions).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--decisions {decisions}: cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise UsageError(f"--decisions {decisions}: no JSON report: {error}") from error
    try:
        steps = [step for step in found["passes"] if step["name"] != "prepare"]
        names = [step["name"] for step in steps]
        replay = [[_checked(entry) for entry in step["decisions"]] for step in steps]
    except (KeyError, TypeError, ValueError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"--decisions: no report of onnx-compress: {why}") from error
    wanted = [item.name for item in passes]
    if names != wanted:
        raise UsageError(f"--decisions is of the passes {', '.join(names)}, not {', '.join(wanted)}")
    return replay


def _checked(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entry, if it has what a replay needs."""
    _ = entry["node"], entry["what"], float(entry["value"]), entry["kept"]
    return entry


def load_model(model: Any) -> Model:
    """The model of a path, a ModelProto, a Model, or anything with `.model_proto`.

    Raises InputError where it is none of these or cannot be read.
    """
    if isinstance(model, Model):
        return model.copy()
    if isinstance(model, str | os.PathLike):
        return Model.load(model)
    proto = getattr(model, "model_proto", model)
    if not isinstance(proto, onnx.ModelProto):
        raise InputError(f"the model is a {type(model).__name__}, not a path or a ModelProto")
    return Model.from_proto(proto)


@dataclass(frozen=True)
class Inputs:
    """The data of a run: to calibrate on, and to evaluate on with targets. single: in batches of one sample."""

    data: Data | None = None
    eval: Data | None = None
    warnings: tuple[str, ...] = ()
    single: bool = False

    def one_by_one(self) -> Inputs:
        """The same, in batches of one sample."""
        data, evaluation = (
            None if part is None else replace(part, fixed=1) for part in (self.data, self.eval)
        )
        return replace(self, data=data, eval=evaluation, single=True)


def open_inputs(model: Model, request: Request) -> Inputs:
    """--data and --eval, opened for the inputs of `model`; none for a model whose inputs are no tensors.

    Raises InputError where they cannot be read or do not fit.
    """
    try:
        specs = input_specs(model)
    except InputError as error:
        return Inputs(warnings=(f"no data can be fed: {error}",))
    data = evaluation = None
    if request.data is not None:
        data = open_data(request.data, specs, samples=request.samples, preprocess=request.preprocess)
    if request.eval is not None:
        evaluation = open_data(request.eval, specs, samples=None, preprocess=request.preprocess)
        check_targets(request.metric, evaluation.targets)
    notes = [note for part in (data, evaluation) if part is not None for note in part.notes]
    return Inputs(data, evaluation, tuple(notes))
