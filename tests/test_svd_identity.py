"""svd: at full rank every form of every layer is the layer itself, whatever its attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from svd_cases import CASES, METHODS, at_full_rank, conv, matmul_like, run, transpose

from onnx_compress.model.check import check
from onnx_compress.model.shapes import infer
from onnx_compress.model.surgery import Surgery
from onnx_compress.numerics.cp import cp_product
from onnx_compress.passes.svd.aim import plain_problem, solve
from onnx_compress.passes.svd.edits import apply_factors
from onnx_compress.passes.svd.forms import Form, Method, can
from onnx_compress.passes.svd.layers import find_layers

if TYPE_CHECKING:
    from onnx_compress.model.document import Model

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)
ROUNDING = 3e-4  # two or three float32 sums of up to a hundred terms instead of one


def fits(name: str, method: Method) -> bool:
    """Whether the case has a form to check: cp is exact at no rank that could be named."""
    (layer,), _ = find_layers(Surgery(CASES[name][0]), infer(CASES[name][0]))
    return method != "cp" and can(layer, method)


@pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name in CASES for method in METHODS if fits(name, method)]
)
def test_full_rank_is_the_identity(name: str, method: Method) -> None:
    """All factors together are then the weight itself, so every attribute must have gone to the right one."""
    model, shape = CASES[name]
    factored, layers = at_full_rank(model, method)
    assert layers == 1
    check(factored)
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(run(factored, x), run(model, x), rtol=ROUNDING, atol=ROUNDING)


def attributes(draw: st.DataObject, axes: int, *, same: bool = True) -> dict[str, Any]:
    """Strides, dilations and pads of a convolution over so many axes."""

    def each(low: int, high: int, count: int = axes) -> list[int]:
        return draw.draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

    attrs: dict[str, Any] = {"strides": each(1, 3), "dilations": each(1, 2)}
    if draw.draw(st.booleans()):
        attrs["pads"] = each(0, 2, 2 * axes)
    elif same and set(attrs["dilations"]) == {1}:
        attrs["auto_pad"] = draw.draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    return attrs


def agree(model: Model, shape: tuple[int, ...]) -> None:
    """Every form that the layer can take, at full rank, gives what the layer gives."""
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    expected = run(model, x)
    for method in METHODS[:3]:
        factored, layers = at_full_rank(model, method)
        if layers:
            np.testing.assert_allclose(
                run(factored, x), expected, rtol=ROUNDING, atol=ROUNDING, err_msg=method
            )


@SETTINGS
@given(draw=st.data(), axes=st.sampled_from([1, 2, 2, 2, 3]))
def test_full_rank_is_the_identity_for_any_convolution(draw: st.DataObject, axes: int) -> None:
    """Stride, dilation and padding split per axis; groups stay together."""
    size = 10 if axes < 3 else 7
    kernel = tuple(draw.draw(st.lists(st.integers(1, 4 if axes < 3 else 3), min_size=axes, max_size=axes)))
    group = draw.draw(st.sampled_from([1, 1, 2, 3]))
    channels, outputs = group * draw.draw(st.integers(4, 6)), group * draw.draw(st.integers(4, 7))
    model = conv(kernel, channels, outputs, size=size, group=group, **attributes(draw, axes))
    agree(model, (2, channels, *(size,) * axes))


@SETTINGS
@given(draw=st.data(), axes=st.sampled_from([1, 2]))
def test_full_rank_is_the_identity_for_any_transposed_convolution(draw: st.DataObject, axes: int) -> None:
    """Its 1 x 1 convolution comes before the products that overlap."""
    kernel = tuple(draw.draw(st.lists(st.integers(3, 4), min_size=axes, max_size=axes)))
    group = draw.draw(st.sampled_from([1, 2]))
    channels, outputs = group * draw.draw(st.integers(4, 6)), group * draw.draw(st.integers(4, 6))
    attrs = attributes(draw, axes, same=False)
    agree(transpose(kernel, channels, outputs, group=group, **attrs), (2, channels, *(9,) * axes))


@SETTINGS
@given(draw=st.data(), op=st.sampled_from(["Gemm", "MatMul"]), left=st.booleans())
def test_full_rank_is_the_identity_for_any_matrix(draw: st.DataObject, op: str, left: bool) -> None:
    """On either side, turned or not, in stacks, scaled, with a bias."""
    n, k, rows = (draw.draw(st.integers(low, 9)) for low in (4, 4, 1))
    attrs: dict[str, Any] = {}
    stack: tuple[int, ...] = ()
    flips = [False, False]
    if op == "Gemm":
        flips = [draw.draw(st.booleans()) for _ in range(2)]
        attrs = {"transA": int(flips[0]), "transB": int(flips[1]), "alpha": 0.5, "beta": 2.0}
        attrs["bias"] = draw.draw(st.sampled_from([(1,), (n, 1) if left else (1, n)]))
    else:
        stack = draw.draw(st.sampled_from([(), (3,), (2, 3)]))
    first, second = ((n, k), (k, rows)) if left else ((rows, k), (k, n))
    shapes = [shape[::-1] if flip else shape for shape, flip in zip((first, second), flips, strict=True)]
    weight, x = (shapes[0], shapes[1]) if left else (shapes[1], shapes[0])
    agree(matmul_like(op, (*stack, *x), (*stack, *weight), left, **attrs), (*stack, *x))


@SETTINGS
@given(draw=st.data(), axes=st.sampled_from([1, 2, 2, 3]), group=st.sampled_from([1, 2]))
def test_components_of_a_known_rank_are_found_with_any_attributes(
    draw: st.DataObject, axes: int, group: int
) -> None:
    """A convolution made of three components becomes these four thin ones, to 1e-3."""
    rng = np.random.default_rng(draw.draw(st.integers(0, 10**6)))
    kernel = tuple(draw.draw(st.lists(st.integers(2, 3), min_size=axes, max_size=axes)))
    channels, outputs = (group * draw.draw(st.integers(4, 7)) for _ in range(2))
    model = conv(kernel, channels, outputs, size=7, group=group, **attributes(draw, axes))
    sides = (channels // group, *kernel)
    parts = [
        cp_product([*(rng.normal(size=(3, side)) for side in sides), rng.normal(size=(outputs // group, 3))])
        for _ in range(group)
    ]
    surgery = Surgery(model)
    surgery.graph.nodes[0].inputs[1].values = np.concatenate(parts).astype(np.float32)
    model = surgery.commit()
    (layer,), _ = find_layers(Surgery(model), infer(model))
    factors = solve(plain_problem(layer, None), layer, Form("cp", 3))
    x = rng.normal(size=(2, channels, *(7,) * axes)).astype(np.float32)
    expected = run(model, x)
    found = run(apply_factors(model, {layer.output: factors}), x)
    assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)
