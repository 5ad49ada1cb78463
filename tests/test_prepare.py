"""Each case is a graph in text, what prepare makes of it, and that its outputs stay what they were."""

from collections import Counter
from pathlib import Path

import onnx
import pytest
from prepare_cases import ops, prepared, read, weights

from onnx_compress.errors import InputError, LimitError
from onnx_compress.model.document import Model
from onnx_compress.model.inline_functions import inline_functions
from onnx_compress.model.prepare import prepare
from onnx_compress.model.walk import graphs

TINY = Path(__file__).parents[1] / "models" / "tiny"
ASSETS = Path(__file__).parents[1].parent / "shared" / "assets"


def test_a_prepared_model_is_left_alone() -> None:
    model = read("""
        g (float[N,3,8,8] x) => (float[N,M] y) <float[4,3,3,3] w, float[4] b, int64[2] s = {0, -1}> {
            [conv] c = Conv (x, w, b)
            [relu] r = Relu (c)
            [flat] y = Reshape (r, s)
        }
    """)
    result = prepared(model)
    assert result.changes == []
    assert result.skips == []
    assert result.model.proto.SerializeToString(deterministic=True) == model.proto.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize(
    "middle",
    [
        "b = Identity (a)",
        "b = Dropout (a)",
        "b = Dropout (a, ratio, off)",
        "b = Transpose <perm = [0, 1]> (a)",
        "c = Identity (a) b = Identity (c)",
    ],
)
def test_what_hands_on_its_input_goes(middle: str) -> None:
    text = f"g (float[N,3] x) => (float[N,3] y) <float ratio = {{0.5}}, bool off = {{0}}> {{ a = Relu (x) {middle} y = Neg (b) }}"
    assert ops(prepared(read(text)).model) == ["Relu", "Neg"]


def test_the_names_of_outputs_survive() -> None:
    result = prepared(
        read("g (float[N,3] x) => (float[N,3] y, float[N,3] z) { a = Relu (x) y = Identity (a) z = Neg (a) }")
    )
    assert ops(result.model) == ["Relu", "Neg"]
    result = prepared(
        read("g (float[N,3] x) => (float[N,3] y, float[N,3] z) { y = Relu (x) z = Identity (y) }")
    )
    assert ops(result.model) == ["Relu", "Identity"]
    result = prepared(read("g (float[N,3] x) => (float[N,3] y) { y = Identity (x) }"))
    assert ops(result.model) == ["Identity"]


def test_a_dropout_in_training_or_whose_mask_is_read_stays() -> None:
    text = "g (float[N,3] x) => (float[N,3] y, bool[N,3] mask) { a = Relu (x) y, mask = Dropout (a) }"
    assert ops(prepared(read(text)).model) == ["Relu", "Dropout"]
    model = read(
        "g (float[3] x) => (float[3] y) <float ratio = {0.5}, bool on = {1}> { a = Dropout (x, ratio, on) y = Neg (a) }"
    )
    assert ops(prepare(model).model) == ["Dropout", "Neg"]


def test_what_nobody_reads_goes() -> None:
    result = prepared(
        read("""
        g (float[N,3] x) => (float[N,3] y) <float[3] k, float[7] unused> { a = Add (x, k) b = Neg (a) y = Relu (x) }
    """)
    )
    assert ops(result.model) == ["Relu"]
    assert weights(result.model) == {}


def test_transposes_that_undo_each_other_go() -> None:
    """As a converter from a channels-last framework leaves them; the bias then is the convolution's."""
    result = prepared(
        read("""
        g (float[N,8,8,3] x) => (float[N,4,4,5] y) <float[4,3,3,3] w, float[4] b, float[5,4,3,3] v> {
            x1 = Transpose <perm = [0, 3, 1, 2]> (x)
            c = Conv (x1, w)
            c1 = Transpose <perm = [0, 2, 3, 1]> (c)
            a = Add (c1, b)
            r = Relu (a)
            r1 = Transpose <perm = [0, 3, 1, 2]> (r)
            d = Conv (r1, v)
            y = Transpose <perm = [0, 2, 3, 1]> (d)
        }
    """)
    )
    assert ops(result.model) == ["Transpose", "Conv", "Relu", "Conv", "Transpose"]


def test_a_channels_last_residual_net_loses_its_inner_transposes() -> None:
    """Both branches come transposed to the Add, and to the Concat: one Transpose behind does for them."""
    result = prepared(
        read("""
        g (float[N,3,8,8] x) => (float[N,8,8,7] y) <float[4,3,3,3] w, float[4,4,3,3] v, float[3,4,1,1] u, float[4] s> {
            a = Conv <pads = [1, 1, 1, 1]> (x, w)
            a1 = Transpose <perm = [0, 2, 3, 1]> (a)
            r = Relu (a1)
            r1 = Transpose <perm = [0, 3, 1, 2]> (r)
            b = Conv <pads = [1, 1, 1, 1]> (r1, v)
            b1 = Transpose <perm = [0, 2, 3, 1]> (b)
            b2 = Mul (b1, s)
            c = Add (b2, r)
            c1 = Clip (c)
            d1 = Transpose <perm = [0, 3, 1, 2]> (c1)
            d = Conv (d1, u)
            d2 = Transpose <perm = [0, 2, 3, 1]> (d)
            y = Concat <axis = -1> (c1, d2)
        }
    """)
    )
    assert ops(result.model) == ["Conv", "Relu", "Conv", "Add", "Clip", "Conv", "Concat", "Transpose"]


def test_two_transposes_in_a_row_become_one() -> None:
    result = prepared(
        read("""
        g (float[2,3,4] x) => (float[3,4,2] y) {
            r = Relu (x)
            a = Transpose <perm = [0, 2, 1]> (r)
            b = Transpose <perm = [2, 1, 0]> (a)
            y = Neg (b)
        }
    """)
    )
    assert ops(result.model) == ["Relu", "Transpose", "Neg"]


def test_a_transposed_value_that_others_read_stays() -> None:
    result = prepared(
        read("""
        g (float[2,3] x) => (float[2,3] y, float[3,2] z) {
            a = Transpose <perm = [1, 0]> (x)
            z = Relu (a)
            y = Transpose <perm = [1, 0]> (z)
        }
    """)
    )
    assert ops(result.model) == ["Transpose", "Relu", "Transpose"]


def test_a_bias_shared_by_chance_is_copied_and_a_tied_kernel_stays_tied() -> None:
    result = prepared(
        read("""
        g (float[N,4,9,9] x) => (float[N,4,3,3] y) <float[4,4,3,3] w, float[4,4,3,3] v, float[4] b> {
            c = Conv (x, w, b)
            r = Relu (c)
            d = Conv (r, w, b)
            s = Relu (d)
            y = Conv (s, v, b)
        }
    """)
    )
    convolutions = [node for node in result.model.proto.graph.node if node.op_type == "Conv"]
    assert len({node.input[2] for node in convolutions}) == 3
    assert [node.input[1] for node in convolutions] == ["w", "w", "v"]


def test_nodes_get_names_of_their_own() -> None:
    model = read("g (float[N,3] x) => (float[N,3] y) { [Relu_1] a = Relu (x) b = Relu (a) y = Relu (b) }")
    result = prepared(model)
    assert [node.name for node in result.model.proto.graph.node] == ["Relu_1", "Relu_0", "Relu_2"]


def test_tensors_of_two_bodies_get_names_of_their_own() -> None:
    result = prepared(
        read("""
        g (float[N,3] x, bool f) => (float[N,3] y) {
            y = If (f) < then_branch = t () => (float[N,3] o) { a = Relu (x) o = Neg (a) },
                         else_branch = e () => (float[N,3] o) { a = Neg (x) o = Abs (a) } >
        }
    """)
    )
    names = Counter(
        name for graph in graphs(result.model.proto.graph) for node in graph.node for name in node.output
    )
    assert max(names.values()) == 1


def test_functions_are_inlined() -> None:
    result = prepared(
        read("""
        g (float[N,3] x) => (float[N,3] y) { a = own.Twice (x) y = own.Twice (a) }
        <domain: "own", opset_import: ["": 17]> Twice (t) => (o) { k = Constant <value = float[3] {1, 2, 3}> () m = Mul (t, k) o = Relu (m) }
    """)
    )
    assert ops(result.model) == ["Mul", "Relu", "Mul", "Relu"]
    assert not result.model.proto.functions


def recursive() -> Model:
    return read("""
        g (float[N] x) => (float[N] y) { y = own.A (x) }
        <domain: "own", opset_import: ["": 17, "own": 1]> A (t) => (o) { o = own.B (t) }
        <domain: "own", opset_import: ["": 17, "own": 1]> B (t) => (o) { o = own.A (t) }
    """)


def test_a_recursive_function_is_refused() -> None:
    with pytest.raises(InputError, match="calls itself"):
        prepare(recursive())


def test_functions_that_expand_without_end_are_refused() -> None:
    """Each of 30 functions calls the one before twice: 2^30 nodes."""
    text = "g (float[N] x) => (float[N] y) { y = own.F29 (x) }"
    text += '<domain: "own", opset_import: ["": 17]> F0 (t) => (o) { o = Relu (t) }'
    for i in range(1, 30):
        text += f'<domain: "own", opset_import: ["": 17, "own": 1]> F{i} (t) => (o) {{ a = own.F{i - 1} (t) o = own.F{i - 1} (a) }}'
    model = read(text)
    with pytest.raises(LimitError, match="1000000"):
        prepare(model)
    with pytest.raises(LimitError, match="1000000"):
        inline_functions(model)


def test_barriers_are_kept_and_named() -> None:
    model = read("""
        g (float[N,3] x) => (float[N,3] y) {
            [mystery] a = own.Mystery (x)
            [pair] s = SequenceConstruct (a, x)
            [joined] y = ConcatFromSequence <axis = 0> (s)
        }
    """)
    result = prepare(model)
    assert ops(result.model) == ["Mystery", "SequenceConstruct", "ConcatFromSequence"]
    assert [left.node for left in result.skips] == ["mystery", "pair", "joined"]


@pytest.mark.parametrize("path", sorted(TINY.glob("*.onnxtxt")), ids=lambda path: path.stem)
def test_tiny_graphs(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    prepared(Model.from_proto(onnx.parser.parse_model("\n".join(lines))))


@pytest.mark.parametrize(("name", "nodes"), [("cifar10/resnet20", 55), ("imagenet/efficientnet_lite0", 115)])
def test_real_models(name: str, nodes: int) -> None:
    path = ASSETS / f"{name}.onnx"
    if not path.exists():
        pytest.skip("assets absent")
    result = prepared(Model.load(path)).model
    assert len(result.proto.graph.node) == nodes
    assert result.nbytes <= Model.load(path).nbytes
