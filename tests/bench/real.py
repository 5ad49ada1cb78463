"""Real models without three tenths of every kind of unit: `python -m tests.bench real [--only NAME] [MODEL.onnx ...]`.

The `light_*` models of the onnx wheel, the zoo, rapidocr's models where the package `rapidocr_onnxruntime` is installed, and the
files named. Each is prepared and loses 30 % of its units, unrepaired; the result is checked and run; channels removed are compared
with channels masked; what is left alone is counted by its reason. Writes `tests/bench/real.md`; ends with 1 where a result does not
run or is not sound, or something is left alone without a reason.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from onnx_compress.contract import Job
from onnx_compress.errors import CompressError
from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.model.groups import groups
from onnx_compress.model.prepare import prepare
from onnx_compress.model.shapes import infer
from onnx_compress.model.walk import graphs
from onnx_compress.passes.prune import Prune
from onnx_compress.preflight import preflight
from onnx_compress.runtime.clock import Clock
from onnx_compress.runtime.selftest import prove
from onnx_compress.runtime.session import Session
from onnx_compress.stages import cost_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx_compress.contract import Skip
    from onnx_compress.runtime.selftest import Proof

HERE = Path(__file__).parent
MODELS = HERE.parents[1] / "models"
PRUNE = Prune(channels=0.7, criterion="l1", repair="none", round_to=1)


@dataclass(frozen=True)
class Row:
    """What became of one model. sizes, macs: before and after; kinds: of units, and how many of them lost some."""

    name: str
    sizes: tuple[int, int]
    macs: tuple[int, int]
    kinds: tuple[int, int]
    proof: Proof
    reasons: Mapping[str, int]
    seconds: float

    @property
    def sound(self) -> bool:
        """Whether removed is masked, and all that is left alone has a reason."""
        return self.proof.sound and "" not in self.reasons

    def cells(self) -> list[str]:
        """The row of the table."""
        (before, after), (work, left), (kinds, cut) = self.sizes, self.macs, self.kinds
        why = "; ".join(f"{count} {reason}" for reason, count in self.reasons.items()) or "nothing"
        words = f"{self.proof.difference:.1e} ({self.proof.precision})"
        return [
            self.name,
            f"{before:,} → {after:,}",
            f"{after / max(before, 1):.2f}",
            f"{left / max(work, 1):.2f}",
            f"{cut} of {kinds}",
            words,
            why,
            f"{self.seconds:.1f}",
        ]


def subjects() -> list[Path]:
    """The models that are here."""
    light = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    found = sorted(light.glob("light_*.onnx")) + sorted(MODELS.glob("*.onnx"))
    package = importlib.util.find_spec("rapidocr_onnxruntime")
    if package is not None and package.origin is not None:
        found += sorted((Path(package.origin).parent / "models").glob("*.onnx"))
    return found


def filled(model: Model) -> Model:
    """`model` with random weights where a ConstantOfShape makes them, and without the Softmax at its end.

    With equal weights every channel is like any other, and a Softmax of large numbers is 1 for one of them whatever they are.
    """
    rng, shapes, proto = np.random.default_rng(0), infer(model), model.to_proto()
    last = proto.graph.node[-1]
    made = [node for node in proto.graph.node if node.op_type == "ConstantOfShape"]
    for node in made:
        shape = shapes[node.output[0]]
        sizes = [int(size) for size in shape if isinstance(size, int)]
        if len(sizes) < len(shape):
            continue
        fans = math.prod(sizes[1:])
        values = rng.normal(0, math.sqrt(2 / fans), sizes) if len(sizes) > 1 else rng.uniform(0.5, 1.5, sizes)
        tensor = onnx.numpy_helper.from_array(values.astype(np.float32), node.output[0])
        proto.graph.initializer.append(tensor)
        proto.graph.node.remove(node)
    if made and last.op_type == "Softmax":
        proto.graph.output[0].name = last.input[0]
        proto.graph.node.remove(last)
    return Model.from_proto(proto) if made else model


def measure(path: Path) -> Row:
    """The model pruned, run and tested. Raises CompressError where the result is not valid or does not run."""
    start = time.perf_counter()
    loaded = Model.load(path)
    flight = preflight(loaded)
    model = prepare(loaded, flight.shapes).model
    shapes = infer(model)
    result = PRUNE.apply(Job(model, model, None, 0, Clock(1, 0), input_shapes=flight.input_shapes))
    check(result.model)
    Session(result.model, optimize=False).run(flight.feeds)
    tried = prepare(filled(loaded), flight.shapes).model if path.stem.startswith("light_") else model
    proof = prove(tried, infer(tried), flight.feeds, 0)
    costs = [cost_of(each, flight.feeds) for each in (model, result.model)]
    kinds = groups(model, shapes)["kinds"]
    cut = sum(change.what == "units" for change in result.changes)
    return Row(
        path.stem,
        (_weights(model), _weights(result.model)),
        (costs[0].macs, costs[1].macs),
        (len(kinds), cut),
        proof,
        _reasons(result.skips),
        time.perf_counter() - start,
    )


def _weights(model: Model) -> int:
    """Elements of the float weights, those that a ConstantOfShape makes included: the light models have no others."""
    shapes, parts = infer(model), list(graphs(model.proto.graph))
    made = (n.output[0] for part in parts for n in part.node if n.op_type == "ConstantOfShape")
    computed = (shapes.get(name, ()) for name in made)
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    kept = (tuple(t.dims) for part in parts for t in part.initializer if t.data_type in floats)
    sizes = [shape for shape in (*kept, *computed) if all(isinstance(size, int) for size in shape)]
    return sum(math.prod(int(size or 0) for size in shape) for shape in sizes)


def _reasons(skips: Sequence[Skip]) -> dict[str, int]:
    """How many things were left alone for each reason, the commonest first."""
    return dict(Counter(skip.why for skip in skips).most_common())


def _table(rows: Sequence[Row], failed: Sequence[str]) -> str:
    lines = [
        f"Of {len(rows) + len(failed)} models {sum(row.sound for row in rows)} run, are sound, and say why what is left alone is.",
        "",
        "`prune:channels=0.7:criterion=l1:repair=none:round_to=1`. Difference: of the largest output, channels removed against channels",
        "masked in the model as it was (the light models with random weights: they are shipped with constants). Left alone: places (a node's inputs or outputs, or a weight's axis) by their reason.",
        "",
        "| model | weights | left | MACs left | kinds cut | difference | left alone, and why | s |",
        "|" + "---|" * 8,
        *("| " + " | ".join(row.cells()) + " |" for row in rows),
        *(f"| {line} |" for line in failed),
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measures every model and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, help="more models")
    parser.add_argument("--only", default="", help="models whose name contains this")
    words = parser.parse_args(argv)
    rows, failed = [], []
    for path in [*subjects(), *words.models]:
        if words.only not in path.stem:
            continue
        try:
            rows.append(measure(path))
        except CompressError as error:
            failed.append(f"{path.stem}: {error}")
            print(failed[-1], flush=True)
        else:
            print(" | ".join(rows[-1].cells()), flush=True)
    if not words.only:
        (HERE / "real.md").write_text(_table(rows, failed), encoding="utf-8")
    if failed or not all(row.sound for row in rows):
        sys.exit(1)
