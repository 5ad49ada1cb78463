"""What the user asks for: passes with typed options, from a SPEC as typed or a TOML recipe.

    SPEC = name[:key=value]* joined by commas        prune:macs=0.5:criterion=obs,svd,int8

Spaces around commas are ignored. A value with a comma or colon stands in single quotes (`exclude='conv{1,3}'`; a quote
inside them is doubled). `none` stands alone: no pass at all.
"""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def option(
    default: Any,
    help: str,  # noqa: A002 - the word a pass writer expects
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """A dataclass field that is an option of a pass: its default, one line of help, its range (both ends included).

    The field's annotation is the option's type: int, float, bool, str, Literal[...], any of them `| None` (the user types
    `none`), or a union such as `Literal["auto"] | int`. `choices` is for words known only at run time; prefer Literal.

        @dataclass(frozen=True)
        class Prune:
            name: ClassVar[str] = "prune"
            macs: float | None = option(None, "fraction of MACs to keep", low=0, high=1)
            criterion: Literal["obs", "l1"] = option("obs", "how a unit's importance is judged")
    """
    return field(
        default=default, metadata={"help": help, "low": low, "high": high, "choices": tuple(choices)}
    )
