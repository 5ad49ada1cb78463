"""The channel groups of a model as plain data: what can go as one, and what pins the rest."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from onnx_compress.model.channels import Channels
from onnx_compress.model.surgery import Surgery

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnx_compress.model.channels import Unit
    from onnx_compress.model.document import Model
    from onnx_compress.model.shapes import Shape


def groups(model: Model, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The kinds of channel units that can go whole, and the weight axes of which none can, with the reason.

    A kind's `places` are the weight axes ("name[axis]") that a unit of it takes from, with the indices one takes.
    """
    units, pinned = Channels(Surgery(model), dict(shapes)).units()
    kinds: dict[frozenset[tuple[str, int]], list[Unit]] = defaultdict(list)
    for unit in units:
        kinds[unit.kind].append(unit)
    return {
        "kinds": [
            {
                "units": len(members),
                "places": {
                    f"{name}[{axis}]": len(indices) for (name, axis), indices in members[0].places.items()
                },
            }
            for members in kinds.values()
        ],
        "pinned": [{"axis": axis, "why": why} for axis, why in pinned.items()],
    }
