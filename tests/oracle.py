"""What must hold of any model after any pass, whoever made the model: asked by the corpus run and by the fuzz tests."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onnx_compress.errors import CompressError, InputError, UsageError
from onnx_compress.model.check import check
from onnx_compress.model.document import Model
from onnx_compress.passes import known_passes
from onnx_compress.passes.cluster import cluster
from onnx_compress.passes.svd import svd
from onnx_compress.pipeline import compress
from onnx_compress.recipe import parse, resolve
from onnx_compress.runtime.agreement import output_error
from onnx_compress.runtime.data import open_data, random_data
from onnx_compress.runtime.session import Session, input_specs

ROUNDING = 1e-4  # output error that folding a normalization, and other sums in another order, may add
AUTO = {"svd": svd.DEFAULT_TOLERANCE, "cluster": cluster.TOLERANCE}  # where none is typed
UNBOUNDED = 0.05  # output error of a pass without data, which bounds the weights' errors only


@dataclass(frozen=True)
class Verdict:
    """kind: valid, refused (with the reason), or failed; changed: whether the pass did anything."""

    kind: str
    words: str = ""
    changed: bool = False


def judge(path: Path, spec: str, feeds: list[dict[str, Any]] | None, **options: Any) -> Verdict:
    """The model at `path` through the passes of `spec`: a refusal is one line, a result is right in every respect."""
    before = path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.onnx"
        try:
            made = compress(path, spec, data=feeds, threads=1, verify=False, **options)
            made.save(out)
        except (InputError, UsageError) as error:
            return _refused(error)
        except CompressError as error:
            return Verdict("failed", f"exit {error.exit_code}: {error}")
        except Exception as error:  # noqa: BLE001 - what must not happen is what is looked for
            return Verdict("failed", f"{type(error).__name__}: {error}")
        changed = any(step["changes"] for step in made.report["passes"] if step["name"] != "prepare")
        try:
            wrong = _wrong(path, out, spec, feeds)
        except Exception as error:  # noqa: BLE001 - as above
            wrong = f"the result: {type(error).__name__}: {error}"
        if path.read_bytes() != before:
            wrong = "the input was changed"
        if spec == "none" and not _external(path) and out.read_bytes() != before:
            wrong = "the lossless copy differs"
        return Verdict("failed", wrong, changed) if wrong else Verdict("valid", changed=changed)


def _refused(error: CompressError) -> Verdict:
    words = str(error)
    if not words.strip() or "\n" in words:
        return Verdict("failed", f"a refusal that is not one line: {words!r}")
    return Verdict("refused", words)


def _wrong(path: Path, out: Path, spec: str, feeds: list[dict[str, Any]] | None) -> str:
    """What is wrong with the result, or nothing."""
    original, result = Model.load(path), Model.load(out)
    check(result)
    for words in (unlike(original, result, stamped=spec != "none"), _strays(out)):
        if words:
            return words
    try:
        Session(original, threads=1)
        specs = input_specs(original)
    except InputError:
        return ""  # onnxruntime runs neither
    Session(result, threads=1)
    data = open_data(feeds, specs) if feeds else random_data(specs, 4, 0, None, original)
    # > a tolerance is of the samples held out; on the others a steep function (a normalization of two values is a sign) may flip
    data = data.split()[1] if feeds else data
    try:
        noise = output_error(original, original, data, threads=1)
    except CompressError:
        return ""  # random inputs need not run
    if noise > 0:
        return ""  # the model draws random numbers
    error = output_error(original, result, data, threads=1)
    limit = bound(spec) if feeds or spec == "none" else max(bound(spec), UNBOUNDED)
    return "" if error <= limit else f"the outputs are off by {error:.3g}, more than {limit:.3g}"


def bound(spec: str) -> float:
    """The output error that the passes of `spec` may add together on the samples that they hold out."""
    if spec == "none":
        return 0.0
    total = ROUNDING
    for item in resolve(parse(spec), known_passes()):
        limit = getattr(item, "tolerance", 0.0)
        total += AUTO[item.name] if limit == "auto" else float(limit)
    return total


def unlike(original: Model, result: Model, *, stamped: bool) -> str:
    """Which part of the model that no pass may touch is not what it was."""
    a, b = original.proto, result.proto
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if getattr(a, name) != getattr(b, name):
            return f"{name} went from {getattr(a, name)!r} to {getattr(b, name)!r}"
    if a.training_info != b.training_info:
        return "training_info differs"
    kept = [(p.key, p.value) for p in b.metadata_props if not p.key.startswith("onnx_compress.")]
    if kept != [(p.key, p.value) for p in a.metadata_props if not p.key.startswith("onnx_compress.")]:
        return "metadata_props differ"
    if stamped and not any(p.key == "onnx_compress.recipe" for p in b.metadata_props):
        return "the result does not say what made it"
    for name in ("name", "doc_string"):
        if getattr(a.graph, name) != getattr(b.graph, name):
            return f"the graph's {name} differs"
    if _values(a.graph.output) != _values(b.graph.output):
        return "the outputs differ"
    # > before version 4 of the format every weight had to be an input, too; those may go with their weights
    weights = {tensor.name for tensor in a.graph.initializer} if a.ir_version < 4 else set()
    if [value for value in _values(a.graph.input) if value[0] not in weights] != [
        value for value in _values(b.graph.input) if value[0] not in weights
    ]:
        return "the inputs differ"
    return ""


def _values(values: Any) -> list[tuple[str, bytes]]:
    return [(value.name, value.type.SerializeToString(deterministic=True)) for value in values]


def _strays(out: Path) -> str:
    left = [p.name for p in out.parent.iterdir() if not p.name.startswith(out.name)]
    return f"left behind: {left}" if left else ""


def _external(path: Path) -> bool:
    proto = onnx.load(path, load_external_data=False)
    return any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer)
