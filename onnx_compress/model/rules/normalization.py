"""Normalisations: their scales and shifts are tied to the channels they scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

    from onnx_compress.model.channels import Channels, Keep


def batch(graph: Channels, node: gs.Node) -> None:
    """BatchNormalization and InstanceNormalization: one parameter a channel (axis 1).

    In training mode the running statistics are outputs, and nothing can go.
    """
    axes = graph.axes(node.inputs[0])
    for parameter in node.inputs[1:]:
        graph.tie(graph.axes(parameter)[0], axes[1])
    if node.attrs.get("training_mode", 0):
        graph.pin(axes[1], "normalised in training mode")
    graph.set(node.outputs[0], axes)


def layer(graph: Channels, node: gs.Node) -> None:
    """LayerNormalization, RMSNormalization: scale and bias over the last axes; the mean is over the channels kept."""
    axes = graph.axes(node.inputs[0])
    for parameter in node.inputs[1:]:
        if not parameter.is_empty():
            tail = graph.axes(parameter)
            for labels, target in zip(reversed(tail), reversed(axes), strict=False):
                if labels is not None and len(labels) > 1:
                    graph.tie(labels, target)
    graph.set(node.outputs[0], axes)
    for statistic in node.outputs[1:]:
        graph.fresh_axes(statistic, "a statistic over channels")


def group(graph: Channels, node: gs.Node) -> None:
    """GroupNormalization: the channels are a grid (groups, channels of one group), and whole groups can go.

    Scales and shifts are one a channel, before opset 21 one a group.
    """
    axes = graph.axes(node.inputs[0])
    channels, groups = axes[1], int(node.attrs["num_groups"])
    graph.set(node.outputs[0], axes)
    if channels is None or len(channels) % groups:
        graph.pin(channels, "groups that do not divide")
        return
    whole = groups == len(channels)
    line = channels if whole else graph.fresh(groups)
    if not whole:
        graph.grid((line, graph.fresh(len(channels) // groups)), channels)
    for parameter in node.inputs[1:]:
        labels = graph.axes(parameter)[0]
        graph.tie(labels, channels if labels is not None and len(labels) == len(channels) else line)

    def edit(keep: Keep) -> None:
        node.attrs["num_groups"] = int(keep(line).sum())

    graph.on_removal(edit)


def local_response(graph: Channels, node: gs.Node) -> None:
    """LRN: a channel is normalised by its neighbours, so none can go."""
    axes = graph.axes(node.inputs[0])
    graph.pin(axes[1], "normalised by neighbouring channels")
    graph.set(node.outputs[0], axes)
