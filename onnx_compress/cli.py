"""The command: words in, exit code out. Nothing below prints; the work is done in a child process.

    onnx-compress [run] IN OUT --passes SPEC        inspect, verify, pack, unpack and passes are the other commands

Every failure is one line on stderr; `-v` adds the traceback.
"""

from __future__ import annotations

import math
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onnx_compress import options as o  # noqa: TC001 - typer reads the annotations
from onnx_compress.completion import ASKED, complete_pass, name_run
from onnx_compress.delivery import deliver, detailed, report_places, reported
from onnx_compress.errors import CompressError, UsageError
from onnx_compress.terminal import failed, interruptible, progress_line, show, terminal, unwritable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx_compress.supervise import Signals

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # > boxes take half of the time that --help takes
    help="Makes a trained ONNX model smaller and faster, and proves that it still works.",
    epilog="The first form is usual: onnx-compress IN OUT --passes SPEC. Its options: onnx-compress run --help",
)
ALONE = ("--help", "--version", "--install-completion", "--show-completion")
SHARED = ("data", "preprocess", "input_shapes", "samples")  # words of run, verify and inspect
MEASURED = (
    "eval",
    "metric",
    "max_drop",
    "min_sqnr",
    "min_speedup",
    "threads",
    "batch",
    "seed",
)  # of run and verify
INTERRUPTED = 130  # the exit code, and typer's for Ctrl-C
COMMANDS = ("run", "inspect", "verify", "pack", "unpack", "passes")
Name = Annotated[str | None, typer.Argument(metavar="NAME", help="One pass.", autocompletion=complete_pass)]
Source = Annotated[str, typer.Argument(metavar="IN", help="The model to compress.")]
Out = Annotated[str, typer.Argument(metavar="OUT", help="Where the result goes; may be IN.")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model to look into.")]
PackedModel = Annotated[str, typer.Argument(metavar="MODEL", help="The model to pack.")]
ModelA = Annotated[str, typer.Argument(metavar="A", help="The original.")]
ModelB = Annotated[str, typer.Argument(metavar="B", help="What is compared with it.")]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    verbose = "-v" in words or "--verbose" in words
    try:
        with interruptible():
            name_run(COMMANDS)
            command = typer.main.get_command(app)
            words = words if ASKED in os.environ else with_command(words)
            code = command.main(words, prog_name="onnx-compress", standalone_mode=False)
    except CompressError as error:
        return failed(str(error), error.exit_code, error if verbose else None)
    except typer.TyperException as error:
        return failed(f"{error.format_message()} (--help lists the words)", 2, None)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit:  # typer's way with a reader of --help that went away
        return 0
    except OSError as error:
        return failed(str(unwritable(error)), 4, error if verbose else None)
    except Exception as error:  # noqa: BLE001 - a bug of ours: still one line and an exit code
        line = f"a bug in onnx-compress: {type(error).__name__}: {error}; -v tells where"
        return failed(line, 4, error if verbose else None)
    if code == INTERRUPTED:
        return failed("interrupted; no file is half written", code, None)  # > a report may be missing
    return code if isinstance(code, int) else 0


def with_command(words: list[str]) -> list[str]:
    """The words with their command in front: `run` where none is named.

    >>> with_command(["in.onnx", "out.onnx"]), with_command(["passes"]), with_command(["--help"])
    (['run', 'in.onnx', 'out.onnx'], ['passes'], ['--help'])
    """
    if not words:
        raise UsageError("nothing to do; write onnx-compress IN OUT --passes SPEC, or --help")
    if words[0] in COMMANDS or words[0] in ALONE:
        return words
    lone = [word for word in words if not word.startswith("-")] == words[:1] and len(words) == 1
    if lone and not any(sign in words[0] for sign in "./\\"):
        from onnx_compress.recipe import nearest

        known = ", ".join(COMMANDS)
        raise UsageError(f"no command named {words[0]!r}; commands: {known}{nearest(words[0], COMMANDS)}")
    return ["run", *words]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Say the version.")] = False,
) -> None:
    if version:
        from importlib import metadata

        try:
            show(metadata.version("onnx-compress") + "\n")
        except metadata.PackageNotFoundError as error:
            raise UsageError("onnx-compress is not installed: it runs from its source folder") from error


@app.command()
def run(
    context: typer.Context,
    source: Source,
    out: Out,
    passes: o.Spec = None,
    recipe: o.RecipeFile = None,
    freeze_inputs: o.FreezeInputs = False,
    data: o.DataPath = None,
    preprocess: o.Preprocess = None,
    eval: o.EvalPath = None,
    metric: o.Metric = "top1",
    max_drop: o.MaxDrop = None,
    min_sqnr: o.MinSqnr = None,
    min_speedup: o.MinSpeedup = None,
    input_shapes: o.InputShapes = None,
    samples: o.Samples = 512,
    no_verify: o.NoVerify = False,
    decisions: o.Decisions = None,
    threads: o.Threads = None,
    batch: o.Batch = 1,
    seed: o.Seed = 0,
    memory_limit: o.MemoryLimit = None,
    time_limit: o.TimeLimit = None,
    dry_run: o.DryRun = False,
    report: o.Report = None,
    json: o.Json = False,
    verbose: o.Verbose = False,
    quiet: o.Quiet = False,
) -> None:
    """Compress IN into OUT; the command when none is named.

    Each pass is bounded by a tolerance unless its options say otherwise; see onnx-compress passes.
    """
    from onnx_compress.supervise import catch_signals
    from onnx_compress.target import Target, check_place

    asked = _recipe(passes, recipe)
    inputs = [data, eval, decisions, recipe]
    reports = report_places(report or [], [source, out, *inputs])
    keywords = _given(context, *SHARED, *MEASURED, "decisions", "freeze_inputs")
    keywords |= {"verify": not no_verify, "detail": detailed(reports)}
    arguments = {"source": source, "passes": asked, "keywords": keywords, "places": [out, *reports]}
    limits = _limits(memory_limit, time_limit, verbose=verbose, quiet=quiet or json)
    job = "onnx_compress.worker:compress_to"
    with catch_signals() as signals, reported(reports, json=json):
        if dry_run:
            check_place(out, inputs)
            found = _work(job, {**arguments, "target": None}, limits, signals)
        else:
            with Target(out, inputs) as target:
                found = _work(job, {**arguments, "target": str(target.staged)}, limits, signals)
                signals.check()
                target.publish()
    found["output"] = None if dry_run else out
    deliver(found, reports, json=json, quiet=quiet)


@app.command()
def verify(
    context: typer.Context,
    a: ModelA,
    b: ModelB,
    data: o.DataPath = None,
    preprocess: o.Preprocess = None,
    eval: o.EvalPath = None,
    metric: o.Metric = "top1",
    max_drop: o.MaxDrop = None,
    min_sqnr: o.MinSqnr = None,
    min_speedup: o.MinSpeedup = None,
    input_shapes: o.InputShapes = None,
    samples: o.Samples = 512,
    layers: o.Layers = False,
    threads: o.Threads = None,
    batch: o.Batch = 1,
    seed: o.Seed = 0,
    memory_limit: o.MemoryLimit = None,
    time_limit: o.TimeLimit = None,
    report: o.Report = None,
    json: o.Json = False,
    verbose: o.Verbose = False,
    quiet: o.Quiet = False,
) -> None:
    """Compare two models: agreement, metric, latency; with --layers, where they part."""
    from onnx_compress.supervise import catch_signals

    reports = report_places(report or [], [a, b, data, eval])
    arguments = {"before": a, "after": b, "detail": detailed(reports)}
    arguments |= _given(context, *SHARED, *MEASURED, "layers")
    limits = _limits(memory_limit, time_limit, verbose=verbose, quiet=quiet or json)
    with catch_signals() as signals, reported(reports, json=json):
        found = _work("onnx_compress.compare:compare", arguments, limits, signals)
    found = {**found, "output": b, "recipe": None}
    deliver(found, reports, json=json, quiet=quiet)


@app.command()
def inspect(
    context: typer.Context,
    model: Model,
    data: o.DataPath = None,
    preprocess: o.Preprocess = None,
    input_shapes: o.InputShapes = None,
    freeze_inputs: o.FreezeInputs = False,
    samples: o.Samples = 512,
    self_test: o.SelfTest = False,
    sensitivity: o.Sensitivity = None,
    memory_limit: o.MemoryLimit = None,
    time_limit: o.TimeLimit = None,
    json: o.Json = False,
    verbose: o.Verbose = False,
) -> None:
    """Show layers and their time, channel units, and what passes could do.

    For each pass: what it could change in this model, and why not the rest.
    """
    from onnx_compress.supervise import catch_signals

    arguments = _given(context, "model", *SHARED, "freeze_inputs", "self_test", "sensitivity")
    limits = _limits(memory_limit, time_limit, verbose=verbose, quiet=json)
    with catch_signals() as signals:
        found = _work("onnx_compress.inspect:inspect", arguments, limits, signals)
    if json:
        from onnx_compress.report.plain import to_json

        show(to_json(found))
        return
    from onnx_compress.report.layers import to_text

    show(to_text(found, **terminal()))


@app.command()
def pack(
    model: PackedModel,
    file: o.ArchiveOut,
    coder: o.Coder = "auto",
    memory_limit: o.MemoryLimit = None,
    time_limit: o.TimeLimit = None,
    report: o.ArchiveReport = None,
    verbose: o.Verbose = False,
    quiet: o.Quiet = False,
) -> None:
    """Make an entropy-coded archive of MODEL and its data files, lossless."""
    from onnx_compress.supervise import catch_signals
    from onnx_compress.target import Target
    from onnx_compress.terminal import archive_line

    reports = report_places([report] if report is not None else [], [model, file], (".json",))
    limits = _limits(memory_limit, time_limit, verbose=verbose, quiet=quiet)
    with catch_signals() as signals, Target(file, [model]) as target:
        arguments = {
            "source": model,
            "target": str(target.staged),
            "coder": coder,
            "details": bool(reports),
            "places": [file, *reports],
        }
        found = _work("onnx_compress.worker:pack_to", arguments, limits, signals)
        signals.check()
        target.publish()
    found["output"] = file
    deliver(found, reports, json=False, quiet=True)
    if not quiet:
        show(archive_line(found))


@app.command()
def unpack(
    file: o.ArchiveIn,
    model: Out,
    memory_limit: o.MemoryLimit = None,
    time_limit: o.TimeLimit = None,
    verbose: o.Verbose = False,
    quiet: o.Quiet = False,
) -> None:
    """Restore the very files that an archive was made from."""
    from onnx_compress.supervise import catch_signals
    from onnx_compress.target import Target
    from onnx_compress.terminal import archive_line

    limits = _limits(memory_limit, time_limit, verbose=verbose, quiet=quiet)
    with catch_signals() as signals, Target(model, [file]) as target:
        arguments = {"source": file, "target": str(target.staged), "memory": limits["memory"]}
        found = _work("onnx_compress.archive:unpack", arguments, limits, signals)
        signals.check()
        target.publish(beside=found["external"])
    found["output"] = model
    if not quiet:
        show(archive_line(found))


@app.command()
def passes(name: Name = None, json: o.Json = False) -> None:
    """List the passes, or the options of one with their defaults."""
    from onnx_compress.choices import passes_data, passes_text
    from onnx_compress.passes import known_passes

    found = passes_data(known_passes(), name)
    if json:
        from onnx_compress.report.plain import to_json

        show(to_json({"passes": found}))
        return
    show(passes_text(found, **terminal()))


def _given(context: typer.Context, *names: str) -> dict[str, Any]:
    """What was typed for the options `names`, as the functions behind the commands call them."""
    given = {name: context.params[name] for name in names}
    return given | {"input_shapes": parse_shapes(given["input_shapes"] or []) or None}


def parse_shapes(words: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`--input-shapes` as a dictionary; the last colon ends the name.

    >>> parse_shapes(["a:0:1,3", "scalar:"])
    {'a:0': (1, 3), 'scalar': ()}
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for word in words:
        name, colon, sizes = word.rpartition(":")
        try:
            shape = tuple(int(size) for size in sizes.split(",")) if sizes.strip() else ()
        except ValueError:
            shape = (0,)
        if not (name and colon) or any(size < 1 for size in shape):
            raise UsageError(f"--input-shapes {word!r}: write NAME:1,3,224,224, sizes from 1 on")
        shapes[name] = shape
    return shapes


def _recipe(spec: str | None, file: str | None) -> Any:
    from onnx_compress.recipe import load_toml, parse

    if (spec is None) == (file is None):
        what = "either, not both" if spec is not None else "--passes none makes a lossless copy"
        raise UsageError(f"say what to do with --passes SPEC or --recipe FILE.toml; {what}")
    return parse(spec) if spec is not None else load_toml(str(file))


def _limits(memory: float | None, seconds: float | None, *, verbose: bool, quiet: bool) -> dict[str, Any]:
    """What `supervise.call` is to watch; 0 is no limit that a run could keep, infinity is none."""
    if any(value is not None and not 0 < value < math.inf for value in (memory, seconds)):
        raise UsageError("--memory-limit and --time-limit are numbers more than 0")
    limit = None if memory is None else int(memory * 1e9)
    return {"memory": limit, "seconds": seconds, "verbose": verbose, "bars": not quiet}


def _work(target: str, arguments: dict[str, Any], limits: dict[str, Any], signals: Signals) -> Any:
    """The job's result, with progress on a terminal meanwhile."""
    from onnx_compress import supervise

    with progress_line(show=limits.pop("bars") and not limits["verbose"]) as progress:
        return supervise.call(target, arguments, signals=signals, progress=progress, **limits)
