"""The words of the command: what they become, and what is said of wrong ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onnx_compress import cli, supervise
from onnx_compress.errors import InputError, ThresholdError
from onnx_compress.recipe import parse

SIZES = {"bytes": 10, "params": 2, "macs": 3, "nodes": 1}
REPORT = {"schema": 1, "input": "in.onnx", "recipe": "none", "before": SIZES, "after": SIZES, "passes": []}


class Worker:
    """In the place of `supervise.call`: keeps what it is asked, writes a model, answers with a report."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.error: BaseException | None = None

    def __call__(self, target: str, arguments: dict[str, Any], **limits: Any) -> Any:
        self.asked = {"job": target, **arguments, **limits}
        if arguments.get("target"):
            Path(arguments["target"]).write_bytes(b"new")
        if self.error is not None:
            raise self.error
        return dict(REPORT)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Worker:
    monkeypatch.chdir(tmp_path)
    fake = Worker()
    monkeypatch.setattr(supervise, "call", fake)
    return fake


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_run_is_the_default_word(worker: Worker) -> None:
    for words in (
        ["in.onnx", "out.onnx", "--passes", "none"],
        ["run", "in.onnx", "out.onnx", "--passes", "none"],
        ["--passes", "none", "in.onnx", "out.onnx"],
    ):
        worker.asked = {}
        assert cli.main(words) == 0
        assert worker.asked["job"] == "onnx_compress.worker:compress_to"
        assert worker.asked["source"] == "in.onnx"
        assert worker.asked["passes"] == parse("none")


def test_every_word_reaches_its_place(worker: Worker) -> None:
    words = (
        "in out --passes prune:macs=0.5,int8 --data d --preprocess imagenet --eval e --metric mse --max-drop 0.01 "
        "--min-sqnr 30 --min-speedup 1.5 --input-shapes a:0:1,3 --input-shapes b: --decisions r.json --threads 2 "
        "--batch 4 --samples 64 --seed 7 --no-verify --freeze-inputs --memory-limit 0.5 --time-limit 9 -v"
    )
    assert cli.main(words.split()) == 0
    assert worker.asked["passes"] == parse("prune:macs=0.5,int8")
    assert worker.asked["keywords"] == {
        "data": "d",
        "preprocess": "imagenet",
        "eval": "e",
        "metric": "mse",
        "max_drop": 0.01,
        "min_sqnr": 30.0,
        "min_speedup": 1.5,
        "input_shapes": {"a:0": (1, 3), "b": ()},
        "decisions": "r.json",
        "threads": 2,
        "batch": 4,
        "samples": 64,
        "seed": 7,
        "verify": False,
        "freeze_inputs": True,
        "detail": False,
    }
    assert (worker.asked["memory"], worker.asked["seconds"], worker.asked["verbose"]) == (
        500_000_000,
        9.0,
        True,
    )


def test_defaults_are_those_of_the_design(worker: Worker) -> None:
    assert cli.main(["in", "out", "--passes", "none"]) == 0
    found = {key: value for key, value in worker.asked["keywords"].items() if value is not None}
    assert found == {
        "metric": "top1",
        "samples": 512,
        "seed": 0,
        "batch": 1,
        "verify": True,
        "freeze_inputs": False,
        "detail": False,
    }


@pytest.mark.usefixtures("worker")
def test_result_takes_its_place_and_nothing_else_is_left(tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_bytes(b"old")
    (tmp_path / "out.onnx").chmod(0o640)
    assert (
        cli.main(["in.onnx", "out.onnx", "--passes", "none", "--report", "r.json", "--report", "r.md"]) == 0
    )
    assert files(tmp_path) == ["out.onnx", "r.json", "r.md"]
    assert (tmp_path / "out.onnx").read_bytes() == b"new"
    assert (tmp_path / "out.onnx").stat().st_mode & 0o777 == 0o640
    assert json.loads((tmp_path / "r.json").read_text())["output"] == "out.onnx"
    assert (tmp_path / "r.md").read_text().startswith("# onnx-compress: `in.onnx`")


@pytest.mark.usefixtures("worker")
def test_linked_target_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out.onnx").symlink_to("real/model.onnx")
    assert cli.main(["in.onnx", "out.onnx", "--passes", "none"]) == 0
    assert files(tmp_path) == ["out.onnx", "real", "real/model.onnx"]
    assert (tmp_path / "out.onnx").is_symlink()


@pytest.mark.usefixtures("worker")
def test_external_data_gets_a_name_that_no_old_model_refers_to(tmp_path: Path) -> None:
    """The old model stays whole until the new one is in its place."""
    from onnx_compress.target import Target

    (tmp_path / "m.onnx").write_bytes(b"old")
    (tmp_path / "m.onnx.0.data").write_bytes(b"old data")
    with Target("m.onnx") as target:
        assert [path.name for path in target.folder.iterdir()] == ["m.onnx.0.data"]
        target.staged.write_bytes(b"new")
        (target.folder / "m.onnx.1.data").write_bytes(b"new data")
        target.publish()
    assert files(tmp_path) == ["m.onnx", "m.onnx.0.data", "m.onnx.1.data"]
    assert (tmp_path / "m.onnx.0.data").read_bytes() == b"old data"


def test_dry_run_writes_reports_only(worker: Worker, tmp_path: Path) -> None:
    assert cli.main(["in.onnx", "out.onnx", "--passes", "none", "--dry-run", "--report", "r.json"]) == 0
    assert files(tmp_path) == ["r.json"]
    assert worker.asked["target"] is None
    assert json.loads((tmp_path / "r.json").read_text())["output"] is None


@pytest.mark.parametrize(
    ("error", "code"), [(ThresholdError("top1 fell"), 1), (InputError("a\nb\x1b[1m"), 3)]
)
def test_failed_run_is_one_line_and_leaves_no_file(
    worker: Worker, tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    worker.error = error
    (tmp_path / "out.onnx").write_bytes(b"old")
    assert cli.main(["in.onnx", "out.onnx", "--passes", "none", "--report", "r.json", "--json"]) == code
    assert files(tmp_path) == ["out.onnx"]
    assert (tmp_path / "out.onnx").read_bytes() == b"old"
    out, err = capsys.readouterr()
    assert out == ""
    assert err in {"onnx-compress: top1 fell\n", "onnx-compress: a b\\x1b[1m\n"}


def test_missed_threshold_is_reported_but_no_model_is_written(
    worker: Worker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reports are the only files: they are where a failed run is looked up."""
    worker.error = ThresholdError("top1 fell")
    worker.error.report = dict(REPORT)  # type: ignore[attr-defined]
    assert cli.main(["in.onnx", "out.onnx", "--passes", "none", "--report", "r.md", "--json"]) == 1
    assert files(tmp_path) == ["r.md"]
    out, err = capsys.readouterr()
    assert json.loads(out)["output"] is None
    assert err == "onnx-compress: top1 fell\n"


def test_bug_is_one_line_and_verbose_adds_the_traceback(
    worker: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.error = RuntimeError("odd")
    assert cli.main(["in", "out", "--passes", "none"]) == 4
    assert (
        capsys.readouterr().err
        == "onnx-compress: a bug in onnx-compress: RuntimeError: odd; -v tells where\n"
    )
    assert cli.main(["in", "out", "--passes", "none", "-v"]) == 4
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.usefixtures("worker")
def test_output_is_the_report_json_or_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["in", "out", "--passes", "none"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith("in.onnx -> out")
    assert err == ""
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == 1
    assert cli.main([*words, "-q"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "nothing to do; write onnx-compress IN OUT --passes SPEC, or --help"),
        (
            "inspct",
            "no command named 'inspct'; commands: run, inspect, verify, pack, unpack, passes (did you mean 'inspect'?)",
        ),
        ("in.onnx", "Missing argument 'OUT'."),
        (
            "in out",
            "say what to do with --passes SPEC or --recipe FILE.toml; --passes none makes a lossless copy",
        ),
        (
            "in out --passes none --recipe r",
            "say what to do with --passes SPEC or --recipe FILE.toml; either, not both",
        ),
        ("in out --passes none,int8", "'none' stands alone: no options and no other pass beside it"),
        ("in out --recipe absent.toml", "absent.toml: cannot be read: No such file or directory"),
        ("in out --pases none", "No such option: --pases"),
        ("in out --passes none --seed x", "Invalid value for '--seed'"),
        ("in out --passes none --threads 0", "Invalid value for '--threads'"),
        (
            "in out --passes none --input-shapes 1,3",
            "--input-shapes '1,3': write NAME:1,3,224,224, sizes from 1 on",
        ),
        (
            "in out --passes none --input-shapes a:0",
            "--input-shapes 'a:0': write NAME:1,3,224,224, sizes from 1 on",
        ),
        (
            "in out --passes none --report r.pdf",
            "--report r.pdf: its ending is not known; write .json, .md or .html",
        ),
        ("in out --passes none --report no/r.md", "no/r.md: there is no folder"),
        (
            "in out --passes none --report in.md --eval in.md",
            "in.md is read by this run; write to another file",
        ),
        ("in out --passes none --memory-limit 0", "--memory-limit and --time-limit are numbers more than 0"),
        ("in no/out --passes none", "no/out: there is no folder"),
        ("in . --passes none", "'.' is a folder; name the file to write"),
        ("in new/ --passes none", "'new/' is a folder; name the file to write"),
        ("in /dev/null --passes none", "/dev/null is no regular file"),
        ("in out --passes none --data out", "out is read by this run; write to another file"),
        (f"in {'o' * 300} --passes none", "o" * 300 + ": cannot"),
        ("passes prun", "no pass named 'prun'; known passes: "),
    ],
)
def test_wrong_words_are_one_line_and_exit_code_2(
    worker: Worker, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    """Found before any work: the worker is never asked, and no file is left."""
    assert cli.main(words.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"onnx-compress: {said}")
    assert err.count("\n") == 1
    assert worker.asked == {}
    assert files(tmp_path) == []


def test_read_only_target_is_found_before_the_work(
    worker: Worker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`os.access` is asked, since root may write anywhere."""
    monkeypatch.setattr("os.access", lambda *_: False)
    assert cli.main(["in", "out", "--passes", "none"]) == 2
    assert capsys.readouterr().err == "onnx-compress: out cannot be written: permission denied\n"
    assert worker.asked == {}


@pytest.mark.usefixtures("worker")
def test_model_may_be_replaced_by_its_result(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"old")
    assert cli.main(["m.onnx", "m.onnx", "--passes", "none"]) == 0
    assert (tmp_path / "m.onnx").read_bytes() == b"new"


def test_passes_lists_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    from onnx_compress.passes import known_passes
    from onnx_compress.recipe import options

    assert cli.main(["passes", "--json"]) == 0
    listed = {item["name"]: item for item in json.loads(capsys.readouterr().out)["passes"]}
    assert list(listed) == [kind.name for kind in known_passes()]
    for kind in known_passes():
        assert [item["name"] for item in listed[kind.name]["options"]] == [
            item.name for item in options(kind)
        ]
        assert all(item["help"] for item in listed[kind.name]["options"])
        assert cli.main(["passes", kind.name]) == 0
        text = capsys.readouterr().out
        assert all(item.name in text for item in options(kind))


def test_help_imports_nothing_slow() -> None:
    """The half second of CPU that --help may take is gone with any of these imports."""
    code = (
        "import sys; from onnx_compress.cli import main; code = main(['run', '--help']);"
        "slow = {'numpy', 'onnx', 'onnxruntime', 'sklearn', 'scipy', 'onnx_graphsurgeon', 'PIL'} & set(sys.modules);"
        "sys.exit(f'imported {slow}' if slow or code else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for option in (
        "--data",
        "--preprocess",
        "--eval",
        "--metric",
        "--max-drop",
        "--min-sqnr",
        "--min-speedup",
    ):
        assert option in done.stdout
    for option in (
        "--input-shapes",
        "--report",
        "--json",
        "--decisions",
        "--threads",
        "--batch",
        "--samples",
    ):
        assert option in done.stdout
    for option in ("--seed", "--dry-run", "--no-verify", "--freeze-inputs", "--memory-limit", "--time-limit"):
        assert option in done.stdout


def test_folder_of_passes_refuses_to_be_a_package_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import passes"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[-1].startswith(
        "ImportError: this folder is the package onnx_compress.passes"
    )


def test_reader_that_goes_away_is_no_failure() -> None:
    """`onnx-compress passes | head -0` must not fail."""
    code = "import sys; from onnx_compress.terminal import show; show('x' * 1000000); sys.exit(0)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize("word", ["--help", "passes"])
def test_output_that_cannot_be_written_is_exit_code_4(word: str) -> None:
    code = "import sys; from onnx_compress import cli; sys.exit(cli.main([*sys.argv[1:]]))"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, word], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 4
    assert done.stderr == "onnx-compress: the output cannot be written: No space left on device\n"
