"""Einsum: a letter is an axis, and every operand that has the letter has its labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx_compress.model.rules.elementwise import together

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnx_compress.model.channels import Axes, Channels


def einsum(graph: Channels, node: gs.Node) -> None:
    """Labels of one letter are tied; those of a letter that the output lacks are contracted."""
    terms, result = spelled(node, [len(graph.axes(tensor)) for tensor in node.inputs])
    columns: dict[str, list[tuple[Any, Any]]] = {}
    for tensor, letters in zip(node.inputs, terms, strict=True):
        for letter, labels, size in zip(letters, graph.axes(tensor), graph.shape(tensor), strict=True):
            columns.setdefault(letter, []).append((labels, size))
    known = {letter: together(graph, column) for letter, column in columns.items()}
    out: Axes = [known[letter] for letter in result]
    graph.set(node.outputs[0], out)


def spelled(node: gs.Node, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
    """The letters of each operand's axes and of the result's; an ellipsis is spelled ".1", ".2"... from its right.

    >>> from types import SimpleNamespace as Node
    >>> spelled(Node(attrs={"equation": "...ij, jk"}), [3, 2])
    ([['.1', 'i', 'j'], ['j', 'k']], ['.1', 'i', 'k'])
    """
    equation = node.attrs["equation"].replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = [_letters(term, rank) for term, rank in zip(left.split(","), ranks, strict=True)]
    dots = max((term for term in terms), key=lambda term: sum(letter[0] == "." for letter in term))
    ellipsis = [letter for letter in dots if letter[0] == "."]
    if arrow:
        before, _, after = right.partition("...")
        return terms, [*before, *(ellipsis if "..." in right else []), *after]
    every = [letter for term in terms for letter in term if letter[0] != "."]
    return terms, [*ellipsis, *sorted(letter for letter in set(every) if every.count(letter) == 1)]


def _letters(term: str, rank: int) -> list[str]:
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return [*before, *(f".{i}" for i in range(hidden, 0, -1)), *after]
