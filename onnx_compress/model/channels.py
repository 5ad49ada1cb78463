"""Which channels live together: integer labels carried through the graph, and the units that can be removed whole.

Each index of each static axis of each tensor carries a label; symbolic axes carry none. Ops that move indices move
labels, elementwise ops tie them, Conv and MatMul consume the labels of the contracted axis and create new ones, and a
Reshape that merges or splits axes records a grid. What cannot go is pinned, with a reason. The rules, one an op, are in
`model/rules`; there is no matching of topologies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_graphsurgeon as gs

from onnx_compress.model.ties import Ties
from onnx_compress.model.units import Closure, Grid, Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from onnx_compress.model.shapes import Shape
    from onnx_compress.model.surgery import Surgery

    Array = NDArray[Any]
    Labels = NDArray[np.int64]
    Axes = list[Labels | None]  # of one tensor; None: a symbolic axis
    Keep = Callable[[Labels], NDArray[np.bool_]]  # which of these labels survive a removal


__all__ = ["Axes", "Channels", "Grid", "Keep", "Labels", "Unit"]


class Channels:
    """The labels of every tensor of `surgery`, the bodies of If, Loop and Scan included.

    shapes: of every tensor, ints for static and strings or None for symbolic axes (`model.shapes.infer`).
    """

    def __init__(self, surgery: Surgery, shapes: dict[str, Shape]) -> None:
        self.surgery = surgery
        self.shapes = shapes
        self.constants: dict[str, gs.Constant] = {}
        self.grids: list[Grid] = []
        self._axes: dict[str, Axes] = {}
        self.ties = Ties()
        self.followed: set[int] = set()  # id of every node whose rule could be applied
        self.reused: set[str] | None = None  # names that two graphs define, once a rule asks
        self._removals: list[Callable[[Keep], None]] = []
        for value in surgery.graph.inputs:
            self.fresh_axes(value, "a graph input")
        self.follow(surgery.graph.nodes)
        for value in surgery.graph.outputs:
            self.pin_all(value, "a graph output")

    # what rules say

    def follow(self, nodes: Iterable[gs.Node]) -> None:
        """Applies the rule of every node, in order."""
        from onnx_compress.model.rules import RULES, barrier, op_name

        for node in nodes:
            rule = RULES.get(op_name(node))
            # > onnx does not tell what leaves a Loop; its rule does
            made = [] if node.op in {"If", "Loop", "Scan"} else node.outputs
            if rule is None or not all(self._known(t) for t in [*node.inputs, *made]):
                barrier(self, node)
            else:
                self._apply(rule, node)
            for output in node.outputs:
                self._settle(node, output)

    def axes(self, tensor: gs.Tensor) -> Axes:
        """The labels of `tensor`, one entry an axis; those of a weight are made when it is first asked for."""
        if tensor.name not in self._axes:
            if isinstance(tensor, gs.Constant):
                self.constants[tensor.name] = tensor
                self._axes[tensor.name] = [self.fresh(size) for size in tensor.shape]
            else:
                self.fresh_axes(tensor, "made where no label is followed")
        return self._axes[tensor.name]

    def set(self, tensor: gs.Tensor, axes: Axes) -> None:
        """These are the labels of `tensor`."""
        self._axes[tensor.name] = list(axes)

    def fresh(self, size: int, pin: str | None = None) -> Labels:
        """New labels; a single one cannot go, so it is pinned."""
        labels = self.ties.fresh(size)
        if pin is not None or size == 1:
            self.pin(labels, pin or "the only one of its axis")
        return labels

    def fresh_axes(self, tensor: gs.Tensor, pin: str | None) -> None:
        """New labels on every static axis of `tensor`."""
        shape = self.shapes.get(tensor.name) or ()
        self.set(tensor, [self.fresh(size, pin) if isinstance(size, int) else None for size in shape])

    def tie(self, a: Labels | None, b: Labels | None, why: str = "meets a symbolic axis") -> None:
        """These labels are the same, one by one. A static axis that meets a symbolic one is pinned."""
        if a is None or b is None or len(a) != len(b):
            for labels in (a, b):
                if labels is not None:
                    self.pin(labels, why)
            return
        self.ties.tie(a, b)

    def pin(self, labels: Labels | None, why: str) -> None:
        """These labels cannot go."""
        if labels is not None:
            self.ties.pin(labels, why)

    def pin_all(self, tensor: gs.Tensor, why: str) -> None:
        """No label of `tensor` can go."""
        for labels in self.axes(tensor):
            self.pin(labels, why)

    def grid(self, lines: Sequence[Labels], cells: Labels) -> None:
        """Records a merge or a split: `cells`, in C order, against the labels of their axes."""
        if not cells.size:
            for line in lines:
                self.pin(line, "a tensor without values")
            return
        shape = tuple(len(line) for line in lines)
        self.grids.append(Grid(tuple(lines), cells.reshape(shape)))

    def on_removal(self, edit: Callable[[Keep], None]) -> None:
        """`edit` is called when channels are removed, to rewrite what counts them."""
        self._removals.append(edit)

    def shape(self, tensor: gs.Tensor) -> Shape:
        """The shape of `tensor`."""
        if isinstance(tensor, gs.Constant):
            return tuple(int(size) for size in tensor.shape)
        return self.shapes[tensor.name]

    # what passes ask

    def units(self) -> tuple[list[Unit], dict[str, str]]:
        """Every unit that can be removed, and for each weight axis with none ("name[axis]"), what pins it."""
        return Closure(self).units()

    def remove(self, units: Iterable[Unit]) -> list[Unit]:
        """Removes the union of these units from the view: weights, attributes and the constants that count channels.

        Of units that together would take all of an axis, the last ones stay. Returns the units that went.
        """
        going = self.removable(units)
        if not going:
            return going
        gone = self._gone(going)

        def keep(labels: Labels) -> NDArray[np.bool_]:
            return ~gone[self.ties.roots(labels)]

        for edit in self._removals:
            edit(keep)
        changed = []
        for name, axes in self._axes.items():
            masks = [None if labels is None else keep(labels) for labels in axes]
            if all(mask is None or mask.all() for mask in masks):
                continue
            changed.append(name)
            if name in self.constants:
                constant = self.constants[name]
                value = constant.values
                for axis, mask in enumerate(masks):
                    if mask is not None and not mask.all():
                        value = np.compress(mask, value, axis=axis)
                constant.values = np.ascontiguousarray(value)
        self.surgery.forget_shapes(changed)
        return going

    def every_axis(self) -> Iterator[Labels]:
        """The roots of the labels of each static axis of each tensor."""
        return (
            self.ties.roots(labels) for axes in self._axes.values() for labels in axes if labels is not None
        )

    def removable(self, units: Iterable[Unit]) -> list[Unit]:
        """`units` without the last of those that together would take all of an axis: kinds may overlap."""
        going = list(units)
        axes = list(self.every_axis())
        while True:
            gone = self._gone(going)
            emptied = next((roots for roots in axes if roots.size and gone[roots].all()), None)
            if emptied is None:
                return going
            del going[max(i for i, unit in enumerate(going) if not unit.labels.isdisjoint(emptied.tolist()))]

    # inside

    def _apply(self, rule: Callable[[Channels, gs.Node], None], node: gs.Node) -> None:
        from onnx_compress.model.rules import barrier

        try:
            rule(self, node)
            self.followed.add(id(node))
        except (AssertionError, IndexError, KeyError, TypeError, ValueError):
            # > a node may lack what its op demands, or have a rank that its rule does not know: it then stops channels
            barrier(self, node)

    def _gone(self, units: Iterable[Unit]) -> NDArray[np.bool_]:
        """Which labels go with `units`."""
        gone = np.zeros(self.ties.size, bool)
        for unit in units:
            gone[list(unit.labels)] = True
        return gone

    def _known(self, tensor: gs.Tensor) -> bool:
        return (
            tensor.is_empty() or isinstance(tensor, gs.Constant) or self.shapes.get(tensor.name) is not None
        )

    def _settle(self, node: gs.Node, output: gs.Tensor) -> None:
        """Every output has labels as long as its axes; where a rule disagrees with the shapes, nothing can go."""
        if output.is_empty():
            return
        shape = self.shapes.get(output.name) or ()
        axes = self._axes.get(output.name)
        if axes is None:
            self.fresh_axes(output, f"made by {node.op}")
            return
        fits = len(axes) == len(shape) and all(
            labels is None or not isinstance(size, int) or len(labels) == size
            for labels, size in zip(axes, shape, strict=False)
        )
        if not fits:
            for tensor in [*node.inputs, output]:
                if not tensor.is_empty():
                    self.pin_all(tensor, f"the shapes around {node.name} are not understood")
            self.fresh_axes(output, f"the shapes around {node.name} are not understood")
