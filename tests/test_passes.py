"""The known passes: ours, and those that other packages add."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from onnx_compress.contract import Pass
from onnx_compress.errors import UsageError
from onnx_compress.passes import PASSES, known_passes
from onnx_compress.recipe import Recipe, Step, check, describe, options, parse, resolve

if TYPE_CHECKING:
    from pathlib import Path

PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from onnx_compress.contract import Result
from onnx_compress.recipe import option

@dataclass(frozen=True)
class Halve:
    "Halves something."
    name: ClassVar[str] = "{name}"
    by: int = option(2, "divisor", low=1)
    def apply(self, job):
        return Result(job.model)

function = len
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, entry: str, name: str = "halve") -> None:
    """What pip leaves of a package with a pass of this name."""
    info = folder / "halving-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: halving\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[onnx_compress.passes]\nhalve = {entry}\n")
    (folder / f"halving_{folder.name}.py").write_text(PLUGIN.replace("{name}", name))
    monkeypatch.syspath_prepend(str(folder))


def test_pass_of_another_package_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, f"halving_{tmp_path.name}:Halve")
    assert [kind.name for kind in known_passes()] == [*(kind.name for kind in PASSES), "halve"]
    (made,) = resolve(parse("halve:by=3"), known_passes())
    assert made.by == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("entry", "name", "words"),
    [
        (
            "absent:Halve",
            "halve",
            "the pass 'absent:Halve' of another package cannot be imported: No module named",
        ),
        ("{own}:function", "halve", "of another package is no pass: it needs a name and a method apply"),
        ("{own}:Halve", "int8", "two passes are named 'int8'; uninstall the package of"),
    ],
)
def test_broken_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, name: str, words: str
) -> None:
    install(tmp_path, monkeypatch, entry.replace("{own}", f"halving_{tmp_path.name}"), name)
    with pytest.raises(UsageError, match=r"another package|two passes") as caught:
        known_passes()
    assert words in str(caught.value)


@pytest.mark.parametrize("kind", PASSES, ids=lambda kind: kind.name)
def test_pass_is_a_frozen_dataclass_whose_defaults_can_be_typed(kind: type[Pass]) -> None:
    """So the table of `onnx-compress passes` is a list of words that work."""
    made = kind()
    check(made)
    assert isinstance(made, Pass)
    assert kind.__module__.split(".")[:3] == ["onnx_compress", "passes", kind.name]
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.name = "x"  # type: ignore[misc]
    for choice in options(kind):
        assert choice.help
        typed = "none" if choice.default is None else str(choice.default)
        typed = typed.lower() if isinstance(choice.default, bool) else typed
        assert resolve(Recipe((Step(kind.name, {choice.name: typed}),)), PASSES) == [made]
    assert describe([made]) == Recipe((Step(kind.name),))
