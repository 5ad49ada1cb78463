"""What the user asks for: passes with typed options, from a SPEC as typed or a TOML recipe.

    SPEC = name[:key=value]* joined by commas        prune:macs=0.5:criterion=obs,svd,int8

Spaces around commas are ignored. A value with a comma or colon stands in single quotes (`exclude='conv{1,3}'`; a quote
inside them is doubled). `none` stands alone: no pass at all.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

from onnx_compress.errors import UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from onnx_compress.contract import Pass


def option(
    default: Any,
    help: str,  # noqa: A002 - the word a pass writer expects
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """A dataclass field that is an option of a pass: its default, one line of help, its range (both ends included).

    The field's annotation is the option's type: int, float, bool, str, Literal[...], any of them `| None` (the user
    types `none`), or a union such as `Literal["auto"] | int`. `choices` is for words known only at run time; prefer
    Literal. A ValueError raised in `__post_init__` (options that exclude each other) becomes the user's error.

        @dataclass(frozen=True)
        class Prune:
            name: ClassVar[str] = "prune"
            macs: float | None = option(None, "fraction of MACs to keep", low=0, high=1)
            criterion: Literal["obs", "l1"] = option("obs", "how a unit's importance is judged")
    """
    return field(default=default, metadata={"help": help, "range": (low, high), "choices": tuple(choices)})


@dataclass(frozen=True)
class Step:
    """One pass of a recipe, its options as typed."""

    name: str
    options: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """The passes to run, in order; none at all is a lossless copy. `str` gives the canonical SPEC."""

    steps: tuple[Step, ...] = ()

    def __str__(self) -> str:
        return format(self)


@dataclass(frozen=True)
class Option:
    """What is known of one option of a pass. `kinds`: types and Literal words it may take, None among them."""

    name: str
    kinds: tuple[Any, ...]
    default: Any
    help: str
    low: float | None
    high: float | None

    @property
    def words(self) -> str:
        """What may be typed: `0..1 | none`, `obs | l1`, `true | false`, `number`, `whole number >= 1`, `text`."""
        return " | ".join(_kind_words(kind, self.low, self.high) for kind in self.kinds)


def parse(spec: str) -> Recipe:
    """The recipe of a SPEC.

    Raises UsageError for words that are no SPEC.

    >>> parse("prune:macs=0.5 , int8").steps
    (Step(name='prune', options={'macs': '0.5'}), Step(name='int8', options={}))
    """
    pieces = _cut(spec)
    if pieces == [["none"]]:
        return Recipe()
    return Recipe(tuple(_step(piece, spec) for piece in pieces))


def load_toml(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in a TOML file: `[[pass]]` tables with `name`, and the options beside it.

    Raises UsageError where it cannot be read or is no recipe.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # > of TOML, of UTF-8, or of a number of thousands of digits
        raise UsageError(f"{path}: not TOML: {error}") from error
    tables = document.pop("pass", None)
    if document:
        raise UsageError(f"{path}: unknown key {next(iter(document))!r}; a recipe holds [[pass]] tables")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{path}: no [[pass]] table; write one for each pass, with name = '...' in it")
    if tables == [{"name": "none"}]:
        return Recipe()
    return Recipe(tuple(_table_step(table, path) for table in tables))


def format(recipe: Recipe) -> str:  # noqa: A001 - read as recipe.format
    """The canonical SPEC of `recipe`: `parse(format(r)) == r`.

    >>> format(parse("svd : rank=4,prune:exclude='a,b'"))
    "svd:rank=4,prune:exclude='a,b'"
    """
    return (
        ",".join(
            ":".join([step.name, *(f"{key}={_quoted(value)}" for key, value in step.options.items())])
            for step in recipe.steps
        )
        or "none"
    )


def resolve(recipe: Recipe, passes: Sequence[type[Pass]]) -> list[Pass]:
    """The passes of a recipe, with typed options.

    Raises UsageError for an unknown pass or option, and for a value of the wrong type or outside its range.
    """
    known = {kind.name: kind for kind in passes}
    return [_build(step, known) for step in recipe.steps]


def describe(passes: Iterable[Pass]) -> Recipe:
    """The recipe of passes made in Python: each with the options that differ from their defaults."""
    return Recipe(
        tuple(
            Step(
                item.name,
                {
                    choice.name: _text(getattr(item, choice.name))
                    for choice in options(type(item))
                    if getattr(item, choice.name) != choice.default
                },
            )
            for item in passes
        )
    )


def options(kind: type[Pass]) -> list[Option]:
    """The options of a pass, in the order of its fields."""
    hints = typing.get_type_hints(kind)
    return [_option(item, hints[item.name]) for item in dataclasses.fields(kind) if item.init]


def check(item: Pass) -> None:
    """Raises UsageError where an option of a pass made in Python is outside its range."""
    for choice in options(type(item)):
        _check_range(item.name, choice, getattr(item, choice.name))


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'prune'?)` where a known word is near, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _cut(spec: str) -> list[list[str]]:
    """The steps of a SPEC, each cut at its colons; quotes are kept, and nothing inside them cuts."""
    pieces: list[list[str]] = [[""]]
    quoted = False
    for letter in spec:
        quoted ^= letter == "'"
        if quoted or letter not in ",:":
            pieces[-1][-1] += letter
        elif letter == ",":
            pieces.append([""])
        else:
            pieces[-1].append("")
    if quoted:
        raise UsageError(f"a single quote is never closed in {spec!r}")
    return [[part.strip() for part in piece] for piece in pieces]


def _step(piece: list[str], spec: str) -> Step:
    name, *parts = piece
    if not name and not spec.strip():
        raise UsageError("no pass is named; --passes none makes a lossless copy")
    if not name:
        raise UsageError(f"a pass name is missing in {spec!r}; write name:key=value, joined by commas")
    if name == "none":
        raise UsageError("'none' stands alone: no options and no other pass beside it")
    found: dict[str, str] = {}
    for part in parts:
        key, equals, value = (word.strip() for word in part.partition("="))
        if not (key and equals):
            raise UsageError(f"{name}: {part!r} is no option; write key=value")
        if key in found:
            raise UsageError(f"{name}: option {key!r} is given twice")
        found[key] = _unquoted(value, name, key)
    return Step(name, found)


def _unquoted(value: str, name: str, key: str) -> str:
    if "'" not in value:
        return value
    inner = value[1:-1].replace("''", "")
    if len(value) < 2 or value[0] != "'" or value[-1] != "'" or "'" in inner:
        raise UsageError(
            f"{name}: {key}={value}: quotes stand around the whole value; a quote inside is doubled"
        )
    return value[1:-1].replace("''", "'")


def _quoted(value: str) -> str:
    if value and value == value.strip() and not re.search("[,:']", value):
        return value
    return "'" + value.replace("'", "''") + "'"


def _table_step(table: dict[str, Any], path: str | os.PathLike[str]) -> Step:
    name = table.get("name")
    if not isinstance(name, str) or not name:
        raise UsageError(f"{path}: a [[pass]] table has no name")
    if name == "none":
        raise UsageError(f"{path}: 'none' stands alone: no options and no other pass beside it")
    for key, value in table.items():
        if not isinstance(value, bool | int | float | str):
            raise UsageError(f"{path}: {name}: option {key!r} is neither a number, true, false nor a string")
    return Step(name, {key: _text(value) for key, value in table.items() if key != "name"})


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _build(step: Step, known: dict[str, type[Pass]]) -> Pass:
    if step.name not in known:
        words = ", ".join(sorted(known)) or "(none)"
        raise UsageError(f"no pass named {step.name!r}; known passes: {words}{nearest(step.name, known)}")
    kind = known[step.name]
    choices = {choice.name: choice for choice in options(kind)}
    values = {}
    for key, text in step.options.items():
        if key not in choices:
            words = ", ".join(choices) or "(none)"
            raise UsageError(
                f"{step.name} has no option {key!r}; its options: {words}{nearest(key, choices)}"
            )
        values[key] = _value(step.name, choices[key], text)
        _check_range(step.name, choices[key], values[key])
    try:
        return kind(**values)
    except ValueError as error:
        raise UsageError(f"{step.name}: {error}") from error


def _option(item: dataclasses.Field[Any], hint: Any) -> Option:
    words = item.metadata.get("choices") or ()
    kinds = tuple(kind for kind in _kinds(hint) if not (words and kind is str)) + tuple(words)
    low, high = item.metadata.get("range", (None, None))
    return Option(item.name, kinds, item.default, item.metadata.get("help", ""), low, high)


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union, Literal words among them."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return tuple(kind for part in typing.get_args(hint) for kind in _kinds(part))
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    return (None,) if hint is type(None) else (hint,)


def _value(name: str, choice: Option, text: str) -> Any:
    """`text` as the first of the option's types that takes it: exact words go before numbers, text comes last."""
    words = [kind for kind in choice.kinds if not isinstance(kind, type)]
    for word in words:
        if _text(word) == text:
            return word
    for kind in sorted((kind for kind in choice.kinds if isinstance(kind, type)), key=_ORDER.index):
        value = _converted(kind, text)
        if value is not None:
            return value
    near = nearest(text, [word for word in words if isinstance(word, str)])
    raise UsageError(f"{name}: {choice.name}={text} is not understood; it takes {choice.words}{near}")


_ORDER = [bool, int, float, str]


def _converted(kind: type, text: str) -> Any:
    """`text` as a bool, int, float or str, or None."""
    if kind is bool:
        return {"true": True, "false": False}.get(text)
    if kind is str:
        return text
    try:
        value = kind(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _check_range(name: str, choice: Option, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    low = -math.inf if choice.low is None else choice.low
    high = math.inf if choice.high is None else choice.high
    # > not low <= value: NaN is outside as well
    if not low <= value <= high and value not in [
        kind for kind in choice.kinds if not isinstance(kind, type)
    ]:
        raise UsageError(
            f"{name}: {choice.name}={value:g} is not within {_range_words(choice.low, choice.high)}"
        )


def _range_words(low: float | None, high: float | None) -> str:
    return f"{'' if low is None else f'{low:g}'}..{'' if high is None else f'{high:g}'}"


def _kind_words(kind: Any, low: float | None, high: float | None) -> str:
    if kind is bool:
        return "true | false"
    if kind is str:
        return "text"
    if kind not in (int, float):
        return _text(kind)
    noun = "whole number" if kind is int else "number"
    return noun if low is None and high is None else f"{noun} {_range_words(low, high)}"
