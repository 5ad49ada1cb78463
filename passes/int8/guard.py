"""What the pass keeps to: `tolerance`, and what the user asks of the whole run, --min-sqnr and --max-drop, as one error and its bound."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnx_compress.runtime.agreement import Reference
from onnx_compress.runtime.session import Session
from onnx_compress.verify import stacked

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx_compress.contract import Job
    from onnx_compress.model.document import Model
    from onnx_compress.runtime.data import Data

    Judge = Callable[[Model], float]

ROOM_DB = 0.3  # above --min-sqnr on held-out samples: others differ
SCORED = 512  # samples at most whose metric is taken: their inputs are in memory


def guard(job: Job, held: Data, tolerance: float | None, *, exact: bool = False) -> tuple[Judge, float]:
    """An error of a model, and its bound, that is met where all that is asked for is met.

    held: samples that are not fitted on; exact: of each `Session`. Where nothing is asked for, the bound is infinite.
    """
    reference = Reference(job.original, held, threads=job.clock.threads, exact=exact)
    bound = math.inf if tolerance is None else tolerance
    if tolerance is not None and job.model is not job.original:
        bound += reference.error(job.model)
    if job.min_sqnr is None and job.max_drop is None:
        return reference.error, bound
    limit = bound if math.isfinite(bound) else 1.0
    drop = None if job.max_drop is None else fall(job, exact=exact)

    def judge(model: Model) -> float:
        error = reference.error(model)
        # > without a tolerance the error only tells two models apart that both keep to the rest
        found = error if math.isfinite(bound) else limit * error / (1 + error)
        if job.min_sqnr is not None:
            rows = (row.sqnr_db for row in reference.agreements(model))
            worst = min((ratio for ratio in rows if ratio is not None), default=math.inf)
            found = max(found, limit * 10 ** ((job.min_sqnr + ROOM_DB - worst) / 10))
        if drop is not None and job.max_drop is not None:
            over = drop(model) - job.max_drop
            found = max(found, limit * (1 + over) if over > 1e-9 else 0.0)
        return found if not math.isnan(found) else math.inf

    return judge, limit


def fall(job: Job, *, exact: bool = False) -> Judge:
    """How far a model's metric falls below the original's on the calibration data.

    Where that has no targets, the share of rows whose largest value is another than the original's, which no fall of top-1
    exceeds; zero where no output looks like classes.
    """
    assert job.data is not None
    data, threads, score = job.data.take(SCORED), job.clock.threads, job.score
    if score is None or not data.targets:
        reference = Reference(job.original, data, threads=threads, exact=exact)
        return lambda model: max(
            (1 - row.argmax for row in reference.agreements(model) if row.argmax is not None), default=0.0
        )
    given = {**stacked(list(data.batches())), **data.targets}

    def scored(model: Model) -> float:
        session = Session(model, threads=threads, exact=exact)
        return score(stacked([session.run(feeds) for feeds in data.batches()]), given)

    before = scored(job.original)
    return lambda model: before - scored(model)


def asked(job: Job, tolerance: float | None) -> str:
    """What the pass keeps to, in words."""
    words = {"tolerance": tolerance, "--min-sqnr": job.min_sqnr, "--max-drop": job.max_drop}
    return " or ".join(f"{name} {value:g}" for name, value in words.items() if value is not None)
