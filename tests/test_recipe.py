"""The words of a recipe: SPEC, TOML, and the typed passes they become."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_compress import recipe
from onnx_compress.contract import Job, Result
from onnx_compress.errors import UsageError
from onnx_compress.recipe import Recipe, Step, option, parse


@dataclass(frozen=True)
class Prune:
    name: ClassVar[str] = "prune"
    macs: float | None = option(None, "fraction of MACs to keep", low=0, high=1)
    tolerance: float | None = option(0.01, "what may be added to the error", low=0)
    criterion: Literal["obs", "l1"] = option("obs", "importance")
    repair: Literal["bias", "none"] = option("bias", "repair")
    round_to: Literal["auto"] | int = option("auto", "kept counts are multiples", low=1)
    steps: int = option(1, "rounds", low=1, high=100)
    fast: bool = option(False, "hurry")
    exclude: str | None = option(None, "regular expression")
    method: str = option("a", "one of the words of this machine", choices=("a", "b"))

    def __post_init__(self) -> None:
        if self.fast and self.macs is not None:
            raise ValueError("fast and macs exclude each other")

    def apply(self, job: Job) -> Result:
        return Result(job.model)


@dataclass(frozen=True)
class Svd:
    name: ClassVar[str] = "svd"

    def apply(self, job: Job) -> Result:
        return Result(job.model)


def typed(spec: str) -> list[Any]:
    return list(recipe.resolve(parse(spec), [Prune, Svd]))


def test_spec_is_names_with_options_joined_by_commas() -> None:
    assert parse("prune:macs=0.5:criterion=obs,svd,int8") == Recipe(
        (Step("prune", {"macs": "0.5", "criterion": "obs"}), Step("svd"), Step("int8"))
    )


def test_spaces_around_commas_are_ignored() -> None:
    assert parse(" prune:macs=1 ,\tsvd ") == parse("prune:macs=1,svd")


def test_quotes_protect_commas_colons_and_doubled_quotes() -> None:
    assert parse("prune:exclude='conv{1,3}:a''b',svd").steps[0].options == {"exclude": "conv{1,3}:a'b"}


def test_value_may_hold_an_equals_sign() -> None:
    assert parse("prune:exclude=a=b").steps[0].options == {"exclude": "a=b"}


def test_none_is_the_recipe_without_passes() -> None:
    assert parse(" none ") == Recipe()
    assert recipe.format(Recipe()) == "none"
    assert str(parse("svd , prune")) == "svd,prune"


names = st.from_regex(r"[a-z][a-z0-9_]*", fullmatch=True).filter(lambda name: name != "none")
recipes = st.builds(
    Recipe,
    st.lists(st.builds(Step, names, st.dictionaries(names, st.text(), max_size=3)), max_size=3).map(tuple),
)


@given(recipes)
def test_format_round_trips(asked: Recipe) -> None:
    """The report's text is enough to run the same recipe again, whatever characters the values hold."""
    assert parse(recipe.format(asked)) == asked


@given(st.text())
def test_any_text_is_a_recipe_or_a_usage_error(text: str) -> None:
    try:
        asked = parse(text)
    except UsageError as error:
        assert "\n" not in str(error).replace(repr(text), "") or "\n" in text  # noqa: PT017
    else:
        assert parse(recipe.format(asked)) == asked


def test_options_are_typed_by_their_fields() -> None:
    spec = "prune:macs=0.5:tolerance=none:criterion=l1:repair=none:round_to=8:steps=3:fast=false:exclude=x:method=b"
    assert typed(spec) == [Prune(0.5, None, "l1", "none", 8, 3, False, "x", "b")]
    assert typed("prune,svd,prune:round_to=auto") == [Prune(), Svd(), Prune()]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("prun", "no pass named 'prun'; known passes: prune, svd (did you mean 'prune'?)"),
        ("zzz", "no pass named 'zzz'; known passes: prune, svd"),
        ("svd:rank=2", "svd has no option 'rank'; its options: (none)"),
        ("prune:macs=1.5", "prune: macs=1.5 is not within 0..1"),
        ("prune:macs=nan", "prune: macs=nan is not understood; it takes number 0..1 | none"),
        ("prune:macs=half", "prune: macs=half is not understood; it takes number 0..1 | none"),
        ("prune:steps=0", "prune: steps=0 is not within 1..100"),
        ("prune:steps=1.5", "prune: steps=1.5 is not understood; it takes whole number 1..100"),
        ("prune:tolerance=-1", "prune: tolerance=-1 is not within 0.."),
        (
            "prune:criterion=ob",
            "prune: criterion=ob is not understood; it takes obs | l1 (did you mean 'obs'?)",
        ),
        ("prune:fast=yes", "prune: fast=yes is not understood; it takes true | false"),
        ("prune:round_to=often", "prune: round_to=often is not understood; it takes auto | whole number 1.."),
        ("prune:method=c", "prune: method=c is not understood; it takes a | b"),
        ("prune:fast=true:macs=1", "prune: fast and macs exclude each other"),
        ("prune:macs", "prune: 'macs' is no option; write key=value"),
        ("prune:macs=1:macs=1", "prune: option 'macs' is given twice"),
        ("prune:exclude='a", 'a single quote is never closed in "prune:exclude=\'a"'),
        (
            "prune:exclude=a'b'",
            "prune: exclude=a'b': quotes stand around the whole value; a quote inside is doubled",
        ),
        ("none,prune", "'none' stands alone: no options and no other pass beside it"),
        ("none:a=1", "'none' stands alone: no options and no other pass beside it"),
        ("prune,,svd", "a pass name is missing in 'prune,,svd'; write name:key=value, joined by commas"),
        (" ", "no pass is named; --passes none makes a lossless copy"),
    ],
)
def test_wrong_words_say_what_and_what_to_do(spec: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        typed(spec)
    assert str(caught.value) == words
    assert caught.value.exit_code == 2


def test_unknown_option_lists_the_options_and_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        typed("prune:mac=1")
    assert str(caught.value).startswith(
        "prune has no option 'mac'; its options: macs, tolerance, criterion, "
    )
    assert str(caught.value).endswith("(did you mean 'macs'?)")


def test_toml_is_the_same_recipe(tmp_path: Any) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(
        "[[pass]]\nname = 'prune'\nmacs = 0.5\nfast = false\nexclude = 'a,b'\n[[pass]]\nname = 'svd'\n"
    )
    assert recipe.load_toml(file) == parse("prune:macs=0.5:fast=false:exclude='a,b',svd")
    file.write_text("[[pass]]\nname = 'none'\n")
    assert recipe.load_toml(file) == parse("none")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no [[pass]] table; write one for each pass, with name = '...' in it"),
        ("[pass]\nname='svd'", "no [[pass]] table; write one for each pass, with name = '...' in it"),
        ("[[pass]]\nmacs = 1", "a [[pass]] table has no name"),
        (
            "[[pass]]\nname='svd'\nrank=[1]",
            "svd: option 'rank' is neither a number, true, false nor a string",
        ),
        ("[[passes]]\nname='svd'", "unknown key 'passes'; a recipe holds [[pass]] tables"),
        (
            "[[pass]]\nname='none'\n[[pass]]\nname='svd'",
            "'none' stands alone: no options and no other pass beside it",
        ),
    ],
)
def test_wrong_toml_says_what_and_what_to_do(tmp_path: Any, text: str, words: str) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        recipe.load_toml(file)
    assert str(caught.value) == f"{file}: {words}"


def test_toml_that_cannot_be_read_is_a_usage_error(tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="No such file"):
        recipe.load_toml(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_bytes(b"\xff = [")
    with pytest.raises(UsageError, match="not TOML"):
        recipe.load_toml(tmp_path / "bad.toml")


@given(
    st.builds(
        Prune,
        macs=st.none() | st.floats(0, 1),
        round_to=st.just("auto") | st.integers(1),
        exclude=st.none() | st.text().filter(lambda text: text != "none"),
        fast=st.just(False),
    )
)
def test_passes_made_in_python_have_a_spec(made: Prune) -> None:
    """`describe` then `resolve` gives the same passes, so the report's recipe is complete."""
    assert recipe.resolve(parse(recipe.format(recipe.describe([made]))), [Prune]) == [made]


def test_ranges_of_passes_made_in_python_are_checked() -> None:
    recipe.check(Prune(macs=1))
    with pytest.raises(UsageError, match=r"prune: macs=1.5 is not within 0..1"):
        recipe.check(Prune(macs=1.5))
    with pytest.raises(UsageError, match="macs=nan"):
        recipe.check(Prune(macs=float("nan")))


def test_options_carry_what_help_needs() -> None:
    first = recipe.options(Prune)[0]
    assert (first.name, first.default, first.help) == ("macs", None, "fraction of MACs to keep")
    assert first.words == "number 0..1 | none"
