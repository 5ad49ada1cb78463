"""A walk through a model, stopped and taken up again, gives the tensors of one run."""

from __future__ import annotations

import numpy as np
from svd_cases import images, net

from onnx_compress.runtime.session import Session
from onnx_compress.runtime.walk import Walk


def test_a_walk_sees_what_a_run_sees() -> None:
    """Stopping anywhere, and going on, gives the tensors of one run from start to end."""
    model = net()
    data = images(model, 10)
    walk = Walk(model, data, {"r1": 4, "r0": 5, "y": 10}, batch=4)
    whole = Session(model, outputs=["r1", "r0", "y"]).run(next(iter(data.batches(10))))
    for place, name in ((2, "r0"), (4, "r1"), (4, "r0"), (10, "y")):
        walk.advance(place)
        found = np.concatenate([held[name] for held in walk.batches])
        np.testing.assert_allclose(found, whole[name], rtol=1e-5, atol=1e-5)
    assert set(walk.batches[0]) == {"y"}
