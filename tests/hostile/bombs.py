"""Small files that ask for endless time or memory, or crash native code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from hostile.case import RUN, Case, constant, graph, node, of, text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make = Callable[[Path], object]

HUGE = [1 << 20, 1 << 20, 1 << 20]


def _loop(count: int, body: str) -> Make:
    return text(
        f"n = Constant<value = int64 {{{count}}}>() t = Constant<value = bool {{1}}>() "
        f"y = Loop (n, t, x) <body = b (int64 i, bool c, float[a, b] u) => (bool d, float[e, f] v) {{ d = Identity(c) {body} }}>"
    )


def _chain(kind: str, times: int) -> Make:
    """A tensor doubled again and again."""
    nodes, name = [constant("two", [1, 2])], "x"
    for at in range(times):
        nodes.append(node(kind, f"{name} {'two' if kind == 'Tile' else name}", f"t{at}", **_axis(kind)))
        name = f"t{at}"
    return of(graph([*nodes, node("Neg", name)]))


def _axis(kind: str) -> dict[str, Any]:
    return {"axis": 1} if kind == "Concat" else {}


def _fill(op: str, shape: list[int]) -> Make:
    return of(
        graph(
            [constant("s", shape), node(op, "s" if op == "ConstantOfShape" else "x s")],
            None,
            {"y": len(shape)},
        )
    )


def _conv(**attributes: Any) -> Make:
    weight = numpy_helper.from_array(np.ones((4, 4, 3, 3), np.float32), "w")
    return of(graph([node("Conv", "x w", **attributes)], {"x": [1, 4, 8, 8]}, {"y": 4}, weights=[weight]))


def _lstm(hidden: int) -> Make:
    shapes = {"w": (1, 32, 4), "r": (1, 32, 8)}
    weights = [numpy_helper.from_array(np.ones(s, np.float32), n) for n, s in shapes.items()]
    return of(
        graph([node("LSTM", "x w r", "y", hidden_size=hidden)], {"x": [3, 1, 4]}, {"y": 4}, weights=weights)
    )


def _huge_input(*sizes: int) -> Make:
    return of(graph([node("Neg", "x")], {"x": list(sizes)}))


def _strings() -> Make:
    made = graph(
        [node("RegexFullMatch", "x", pattern="(a+)+$")],
        kinds=(TensorProto.STRING, TensorProto.BOOL),
        opset=20,
    )
    return of(made)


CASES: dict[str, Case] = {
    "a constant of 4 exabytes": Case(_fill("ConstantOfShape", HUGE)),
    "a constant of 40 GB": Case(_fill("ConstantOfShape", [10_000_000_000])),
    "a constant of negative size": Case(_fill("ConstantOfShape", [-5])),
    "expanded to 40 GB": Case(_fill("Expand", [2_500_000_000, 2, 4])),
    "expanded to nothing": Case(_fill("Expand", [-1, -1])),
    "reshaped to what it is not": Case(_fill("Reshape", [3, 3])),
    "reshaped to two unknown sizes": Case(_fill("Reshape", [-1, -1])),
    "tiled 2^40 times": Case(_chain("Tile", 40)),
    "joined with itself 40 times": Case(_chain("Concat", 40)),
    "a loop without end": Case(_loop(2**62, "v = Neg(u)")),
    "a loop that doubles its value": Case(_loop(10_000, "v = Concat<axis = 0>(u, u)")),
    "a loop in a loop": Case(
        _loop(2**40, "k = Constant<value = int64 {1099511627776}>() v = Loop (k, c, u) <body = w (int64 j, bool e, "
              "float[a, b] p) => (bool g, float[a, b] q) { g = Identity(e) q = Neg(p) }>"),
    ),
    "a range of 10^12": Case(
        of(graph([constant("a", 0), constant("b", 10**12), constant("c", 1), node("Range", "a b c")], None, {"y": 1},
                 kinds=(TensorProto.FLOAT, TensorProto.INT64))),
    ),
    "a range with step 0": Case(
        of(graph([constant("a", 0), constant("b", 5), constant("c", 0), node("Range", "a b c")], None, {"y": 1},
                 kinds=(TensorProto.FLOAT, TensorProto.INT64))),
    ),
    "a pad of 10^12": Case(
        of(graph([constant("p", [0, 10**12, 0, 0]), node("Pad", "x p")]))
    ),
    "a negative pad": Case(of(graph([constant("p", [0, -9, 0, 0]), node("Pad", "x p")]))),
    "classes without number": Case(
        of(graph([constant("d", 10**12), constant("v", [0, 1]), constant("i", [1, 2, 3]), node("OneHot", "i d v")], None, {"y": 2},
                 kinds=(TensorProto.FLOAT, TensorProto.INT64))),
    ),
    "magnified 10^6 times": Case(
        of(graph([constant("s", [1, 1, 1e6, 1e6], np.float32), node("Resize", "x - s")], {"x": [1, 1, 8, 8]}, {"y": 4}))
    ),
    "a window of 10^9 pixels": Case(_conv(dilations=[10**9, 10**9])),
    "pads of 10^6": Case(_conv(pads=[10**6] * 4)),
    "negative pads": Case(_conv(pads=[-9] * 4)),
    "negative strides": Case(_conv(strides=[-1, -1])),
    "10^9 hidden units": Case(_lstm(10**9)),
    "minus one hidden unit": Case(_lstm(-1)),
    "an input of 4 TB": Case(_huge_input(10**6, 10**6)),
    "an input beyond 64 bits": Case(_huge_input(2**62, 2**62)),
    "an outer product of 40 TB": Case(
        of(graph([node("Flatten", "x", "f", axis=0), node("Einsum", "f f f", equation="ai,bj,ck->ijk")],
                 {"x": [100, 220]}, {"y": 3})),
    ),
    "random numbers without end": Case(
        of(graph([node("RandomNormal", "", shape=[10**6, 10**6])], {}))
    ),
    "a pattern that takes for ever": Case(_strings()),
    "an integer divided by zero": Case(
        of(graph([constant("z", [0]), node("Div", "x z")], kinds=(TensorProto.INT64, TensorProto.INT64)))
    ),
    "the remainder by zero": Case(
        of(graph([constant("z", [0], np.int32), node("Mod", "x z")], kinds=(TensorProto.INT32, TensorProto.INT32))),
    ),
    "the least integer by -1": Case(
        of(graph([constant("a", [-(2**63)]), constant("z", [-1]), node("Div", "a z")], None, {"y": 1},
                 kinds=(TensorProto.FLOAT, TensorProto.INT64))),
    ),
    "10,000 axes": Case(
        of(graph([constant("s", [1] * 10_000), node("Reshape", "x s")], {"x": [1]}, {"y": 10_000})), RUN + "svd"
    ),
    "a weight of 10^12 zeros, sparse": Case(
        of(graph([helper.make_node(
            "Constant", [], ["y"], sparse_value=helper.make_sparse_tensor(
                numpy_helper.from_array(np.ones(1, np.float32), "v"),
                numpy_helper.from_array(np.array([5], np.int64), "i"), [10**6, 10**6]))], {})),
    ),
}  # fmt: skip
