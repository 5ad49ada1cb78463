"""The channel groups of a model as plain data: what can go as one, and what pins the rest."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Literal

import onnx_graphsurgeon as gs

from onnx_compress.model.channels import Channels
from onnx_compress.model.surgery import Surgery

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from onnx_compress.model.channels import Unit
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape

Role = Literal["makes", "reads", "carries"]


def groups(model: Model, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The kinds of channel units that can go whole, and the weight axes of which none can, with the reason.

    A kind has so many `units`, each of them `width` indices of an axis (a head takes many at once) and `params` parameters. The
    nodes with weights that it takes from are those that make its channels, that read them, and that carry them from input to
    output, by name; its `places` are the weight axes ("name[axis]"), with the indices that one unit takes. What is pinned is an
    `axis` of a weight of `node`, whose "outputs" or "inputs" it is, if either (`side`).
    """
    channels = Channels(Surgery(model), dict(shapes))
    units, pinned = channels.units()
    nodes = _Nodes(channels)
    kinds: dict[frozenset[tuple[str, int, int]], list[Unit]] = defaultdict(list)
    for unit in units:
        kinds[frozenset((*place, len(indices)) for place, indices in unit.places.items())].append(unit)
    sides = {axis: nodes.side(axis) for axis in pinned}
    return {
        "kinds": [_kind(nodes, members) for members in kinds.values()],
        "pinned": [
            {"axis": axis, "why": why, "node": sides[axis][0], "side": sides[axis][1]}
            for axis, why in pinned.items()
        ],
    }


def holders(channels: Channels, pinned: Mapping[str, str]) -> dict[str, str]:
    """What pins the rest, by the node that it is pinned at, "NAME (outputs)", or by the weight's axis where it is neither side."""
    nodes = _Nodes(channels)
    found: dict[str, str] = {}
    for axis, why in pinned.items():
        node, side = nodes.side(axis)
        found.setdefault(place_words(axis, node, side), why)
    return found


def place_words(axis: str, node: str | None, side: str | None) -> str:
    """What a pinned axis is called: by the node and its side, else by the weight.

    >>> place_words("w[0]", "/head/Gemm", "outputs"), place_words("table[0]", "/words/Gather", None)
    ('/head/Gemm (outputs)', 'table[0]')
    """
    return axis if node is None or side is None else f"{node} ({side})"


class _Nodes:
    """Which nodes read each weight, and what their tensors have to do with channels."""

    def __init__(self, channels: Channels) -> None:
        self.channels = channels
        self.readers: dict[str, list[gs.Node]] = defaultdict(list)
        for node in channels.surgery.nodes():
            for tensor in node.inputs:
                if isinstance(tensor, gs.Constant) and node not in self.readers[tensor.name][-1:]:
                    self.readers[tensor.name].append(node)
        self.order = {id(node): place for place, node in enumerate(channels.surgery.nodes())}

    def roles(self, unit: Unit) -> dict[Role, list[str]]:
        """The nodes that a unit takes weights from, by what they do with it."""
        axes: dict[int, set[tuple[str, int]]] = defaultdict(set)
        touched: dict[int, gs.Node] = {}
        for name, axis in unit.places:
            for node in self.readers[name]:
                touched[id(node)] = node
                axes[id(node)].add((name, axis))
        found: dict[Role, list[str]] = {"makes": [], "reads": [], "carries": []}
        for number in sorted(touched, key=self.order.__getitem__):
            node = touched[number]
            made, read = (self._meets(tensors, unit.labels) for tensors in (node.outputs, node.inputs))
            # > a layer between two tensors of one stream takes from both axes of its weight, a depthwise one from one
            both = len({axis for _, axis in axes[number]}) > 1
            if made and (both or not read):
                found["makes"].append(str(node.name))
            if read and (both or not made):
                found["reads"].append(str(node.name))
            if made == read and not both:
                found["carries"].append(str(node.name))
        return found

    def side(self, axis: str) -> tuple[str | None, str | None]:
        """The first node that reads the weight of "name[axis]", and whether the axis is that of its outputs or inputs."""
        name, _, number = axis.rpartition("[")
        labels = self.channels.axes(self.channels.constants[name])[int(number[:-1])]
        node = next(iter(self.readers[name]), None)
        if node is None or labels is None:
            return None, None
        roots = frozenset(self.channels.ties.roots(labels).tolist())
        for side, tensors in (("outputs", node.outputs), ("inputs", node.inputs)):
            if self._meets(tensors, roots):
                return str(node.name), side
        return str(node.name), None

    def _meets(self, tensors: Iterable[gs.Tensor], roots: frozenset[int]) -> bool:
        """Whether any of these tensors, weights left out, has some of these labels."""
        return any(
            labels is not None and not roots.isdisjoint(self.channels.ties.roots(labels).tolist())
            for tensor in tensors
            if not isinstance(tensor, gs.Constant) and not tensor.is_empty()
            for labels in self.channels.axes(tensor)
        )


def _kind(nodes: _Nodes, members: list[Unit]) -> dict[str, Any]:
    places = {f"{name}[{axis}]": len(indices) for (name, axis), indices in members[0].places.items()}
    return {
        "units": len(members),
        "width": max(places.values()),
        "params": _elements(nodes.channels, members[0]),
        **{str(role): names for role, names in nodes.roles(members[0]).items()},
        "places": places,
    }


def _elements(channels: Channels, unit: Unit) -> int:
    """Parameters that go with one unit."""
    left: dict[str, float] = defaultdict(lambda: 1.0)
    for (name, axis), indices in unit.places.items():
        left[name] *= 1 - len(indices) / int(channels.constants[name].shape[axis])
    return sum(round(math.prod(channels.constants[name].shape) * (1 - share)) for name, share in left.items())
