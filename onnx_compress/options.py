"""The options of the commands, as typer reads them: one alias an option, shared by the commands that take it."""

from __future__ import annotations

from typing import Annotated

import typer

from onnx_compress.completion import complete_coder, complete_metric, complete_pass, complete_spec

Spec = Annotated[
    str | None,
    typer.Option(
        "--passes",
        metavar="SPEC",
        autocompletion=complete_spec,
        help="name[:key=value]* joined by commas, as prune:macs=0.5,svd,int8; none makes a lossless copy.",
    ),
]
RecipeFile = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="FILE.toml",
        help="The same in TOML, a table for each pass.",
    ),
]
FreezeInputs = Annotated[
    bool,
    typer.Option(
        "--freeze-inputs",
        metavar="",
        help="Treat inputs that have a default value (weights of old exports) as constants.",
    ),
]
DataPath = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Calibration inputs: .npz (an array per input, axis 0 = samples), a folder of .npz, "
        "ONNX test_data_set_* folders, or an image folder (with --preprocess).",
    ),
]
Preprocess = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        metavar="P",
        help="For image folders: imagenet, or size=256:crop=224:mean=127:std=128:layout=nchw:channels=rgb.",
    ),
]
EvalPath = Annotated[
    str | None,
    typer.Option(
        "--eval",
        metavar="PATH",
        help="As --data, with targets (array label, or class folders); always used whole.",
    ),
]
Metric = Annotated[
    str,
    typer.Option(
        "--metric",
        metavar="M",
        autocompletion=complete_metric,
        help="top1, top5, mse, or package.module:function, called as function(outputs, data) -> float.",
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        metavar="X",
        help="The metric may fall by at most X (0.01 = one point), else exit 1.",
    ),
]
MinSqnr = Annotated[
    float | None,
    typer.Option(
        "--min-sqnr",
        metavar="DB",
        help="Every output must agree this well, else exit 1.",
    ),
]
MinSpeedup = Annotated[
    float | None,
    typer.Option(
        "--min-speedup",
        metavar="X",
        min=0.0,
        help="The result must be X times as fast, else exit 1.",
    ),
]
InputShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--input-shapes",
        metavar="N:1,3,224,224",
        help="Sizes for symbolic axes of input N while measuring; repeatable. The model keeps its symbols.",
    ),
]
Samples = Annotated[
    int,
    typer.Option("--samples", metavar="N", min=1, help="Calibration samples used, the first N."),
]
NoVerify = Annotated[
    bool,
    typer.Option("--no-verify", metavar="", help="Do not compare the result with the original."),
]
Decisions = Annotated[
    str | None,
    typer.Option(
        "--decisions",
        metavar="REPORT.json",
        help="Replay the clock decisions of an earlier run.",
    ),
]
SelfTest = Annotated[
    bool,
    typer.Option("--self-test", metavar="", help="Also prove on this model that removed equals masked."),
]
Sensitivity = Annotated[
    str | None,
    typer.Option(
        "--sensitivity",
        metavar="PASS",
        autocompletion=complete_pass,
        help="Also measure what PASS would do to the outputs, place by place.",
    ),
]
Layers = Annotated[
    bool,
    typer.Option(
        "--layers", metavar="", help="Also compare inner tensors whose names match, in graph order."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        max=4096,
        show_default="physical cores",
        help="Of onnxruntime.",
    ),
]
Batch = Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Batch size for latency.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of every random choice.")]
MemoryLimit = Annotated[
    float | None,
    typer.Option(
        "--memory-limit",
        metavar="GB",
        min=0.0,
        show_default="3/4 of what is free",
        help="Memory the run may take; mapped files do not count.",
    ),
]
TimeLimit = Annotated[
    float | None,
    typer.Option("--time-limit", metavar="S", min=0.0, help="Seconds the run may take."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", metavar="", help="All but the write of the model.")]
Report = Annotated[
    list[str] | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="Write the report, .json, .md or .html; repeatable. Written also when a threshold is missed.",
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", metavar="", help="The report as JSON on stdout, nothing else."),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", metavar="", help="Say more; tracebacks with errors."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", metavar="", help="Say nothing but errors.")]
ArchiveOut = Annotated[str, typer.Argument(metavar="FILE.ocz", help="Where the archive goes.")]
ArchiveIn = Annotated[str, typer.Argument(metavar="FILE.ocz", help="The archive.")]
Coder = Annotated[
    str,
    typer.Option(
        "--coder",
        metavar="CODER",
        autocompletion=complete_coder,
        help="auto (for each tensor the best), ans, range, huffman or zstd.",
    ),
]
ArchiveReport = Annotated[
    str | None,
    typer.Option(
        "--report",
        metavar="FILE.json",
        help="Write sizes of every tensor: raw, by zip, by its entropy, and coded.",
    ),
]
