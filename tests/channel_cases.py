"""For every op of the rule table: a small graph as ONNX text, and how many units of it can go.

Inputs whose name starts with `w` become random weights. The graph's one data input is x.
"""

from __future__ import annotations

import numpy as np
import onnx

THROUGH = (
    "Abs Asinh Atan Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Mish Neg "
    "Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Swish Tan Tanh ThresholdedRelu"
)
LIMITED = "Acos Acosh Asin Atanh Log Sqrt"  # on some numbers only: NaN times zero is no zero
BROADCAST = "Add Div Max Mean Min Mul Sub Sum PRelu"
COMPARE = "Equal Greater GreaterOrEqual Less LessOrEqual"
LOGIC = "And Or Xor"
BITS = "BitwiseAnd BitwiseOr BitwiseXor"
REDUCE = "ReduceSum ReduceMean ReduceL1 ReduceL2 ReduceSumSquare"
EXTREME = "ReduceMax ReduceMin ReduceProd ReduceLogSum ReduceLogSumExp"


def image(body: str, weights: str = "", out: str = "N, 3, 6, 6", channels: int = 6) -> str:
    """conv (4 -> 6 channels), `body` from h to g, conv (6 -> 3)."""
    return f"""
        g (float[N,4,6,6] x, float[6,4,1,1] w1, float[6] wb, float[3,{channels},1,1] w2{weights}) => (float[{out}] y) {{
            h = Conv(x, w1, wb)
            {body}
            y = Conv(g, w2)
        }}"""


def rows(body: str, weights: str = "", out: str = "N, 3", width: int = 6) -> str:
    """linear (4 -> 6), `body` from h to g, linear (width -> 3)."""
    return f"""
        g (float[N,4] x, float[4,6] w1, float[{width},3] w2{weights}) => (float[{out}] y) {{
            h = MatMul(x, w1)
            {body}
            y = MatMul(g, w2)
        }}"""


def sequence(body: str, weights: str, out: str) -> str:
    return f"g (float[5,2,4] x{weights}) => (float[{out}] y) {{ {body} }}"


CASES: dict[str, tuple[str, int]] = {
    **{op: (image(f"g = {op}(h)"), 6) for op in THROUGH.split()},
    **{op: (image(f"z = Sigmoid(h)\n g = {op}(z)"), 6) for op in LIMITED.split()},
    "Acosh": (image("z = Abs(h)\n e = Exp(z)\n g = Acosh(e)"), 6),
    "Pow": (image("z = Sigmoid(h)\n g = Pow(z, wm)", ", float[1,6,1,1] wm"), 6),
    **{op: (image(f"g = {op}(h, wm)", ", float[1,6,1,1] wm"), 6) for op in BROADCAST.split()},
    **{op: (image(f"c = {op}(h, wm)\n g = Cast<to=1>(c)", ", float[1,6,1,1] wm"), 6) for op in COMPARE.split()},
    **{
        op: (image(f"z = Greater(h, wm)\n v = Less(h, wm)\n c = {op}(z, v)\n g = Cast<to=1>(c)", ", float[1,6,1,1] wm"), 6)
        for op in LOGIC.split()
    },
    **{
        op: (image(f"z = Cast<to=7>(h)\n c = {op}(z, z)\n g = Cast<to=1>(c)"), 6)
        for op in BITS.split()
    },
    "Mod": (image("g = Mod<fmod=1>(h, wm)", ", float[1,6,1,1] wm"), 6),
    "BitShift": (image('z = Cast<to=13>(h)\n c = BitShift<direction="LEFT">(z, z)\n g = Cast<to=1>(c)'), 6),
    "BitwiseNot": (image("z = Cast<to=7>(h)\n c = BitwiseNot(z)\n g = Cast<to=1>(c)"), 6),
    "Cast": (image("z = Cast<to=11>(h)\n g = Cast<to=1>(z)"), 6),
    "Not": (image("z = Greater(h, wm)\n c = Not(z)\n g = Cast<to=1>(c)", ", float[1,6,1,1] wm"), 6),
    "IsNaN": (image("c = IsNaN(h)\n g = Cast<to=1>(c)"), 6),
    "IsInf": (image("c = IsInf(h)\n g = Cast<to=1>(c)"), 6),
    "Where": (image("c = Greater(h, wm)\n g = Where(c, h, wm)", ", float[1,6,1,1] wm"), 6),
    "Clip": (image("lo = Constant<value_float=-0.5>()\n hi = Constant<value_float=0.5>()\n g = Clip(h, lo, hi)"), 6),
    "Dropout": (image("g = Dropout(h)"), 6),
    "Softmax": (image("g = Softmax<axis=-1>(h)"), 6),
    "LogSoftmax": (image("g = LogSoftmax<axis=1>(h)"), 0),
    "Conv": (image("g = Conv<group=3, pads=[1,1,1,1]>(h, wc)", ", float[6,2,3,3] wc"), 7),
    "ConvTranspose": (image("g = ConvTranspose(h, wc)", ", float[6,5,2,2] wc", "N, 3, 7, 7", 5), 11),
    "Gemm": (rows("g = Gemm<transB=1, alpha=0.5>(h, wc, wd)", ", float[5,6] wc, float[5] wd", width=5), 11),
    "MatMul": (rows("g = MatMul(h, wc)", ", float[6,5] wc", width=5), 11),
    "LSTM": (
        sequence("h, e, f = LSTM<hidden_size=3>(x, w1, w2, w3)\n y = MatMul(h, w4)",
                 ", float[1,12,4] w1, float[1,12,3] w2, float[1,24] w3, float[3,2] w4", "5,1,2,2"), 3),
    "GRU": (
        sequence("h, e = GRU<hidden_size=3>(x, w1, w2, w3)\n y = MatMul(h, w4)",
                 ", float[1,9,4] w1, float[1,9,3] w2, float[1,18] w3, float[3,2] w4", "5,1,2,2"), 3),
    "RNN": (
        sequence('h, e = RNN<hidden_size=3, direction="bidirectional">(x, w1, w2, w3)\n y = MatMul(h, w4)',
                 ", float[2,3,4] w1, float[2,3,3] w2, float[2,6] w3, float[3,2] w4", "5,2,2,2"), 3),
    "BatchNormalization": (
        image("g = BatchNormalization(h, ws, wt, wm, wv)", ", float[6] ws, float[6] wt, float[6] wm, float[6] wv"), 6),
    "InstanceNormalization": (image("g = InstanceNormalization(h, ws, wt)", ", float[6] ws, float[6] wt"), 6),
    "LayerNormalization": (rows("g = LayerNormalization(h, ws, wt)", ", float[6] ws, float[6] wt"), 6),
    "RMSNormalization": (rows("g = RMSNormalization(h, ws)", ", float[6] ws"), 6),
    "GroupNormalization": (
        image("g = GroupNormalization<num_groups=6>(h, ws, wt)", ", float[6] ws, float[6] wt"), 0),
    "LRN": (image("g = LRN<size=3>(h)"), 0),
    "Transpose": (image("t = Transpose<perm=[0,2,3,1]>(h)\n r = Relu(t)\n g = Transpose<perm=[0,3,1,2]>(r)"), 6),
    "Concat": (image("e = Conv(x, wc)\n g = Concat<axis=1>(h, e)", ", float[2,4,1,1] wc", channels=8), 8),
    "Split": (image("a, b = Split<axis=1, num_outputs=2>(h)\n g = Concat<axis=1>(b, a)"), 6),
    "Slice": (image("s = Constant<value_ints=[1]>()\n e = Constant<value_ints=[5]>()\n a = Constant<value_ints=[1]>()\n"
                    "g = Slice(h, s, e, a)", channels=4), 6),
    "Gather": (image("i = Constant<value_ints=[4,2,0]>()\n g = Gather<axis=1>(h, i)", channels=3), 6),
    "Pad": (image("p = Constant<value_ints=[0,1,0,0,0,1,0,0]>()\n g = Pad(h, p)", channels=8), 6),
    "Tile": (image("p = Constant<value_ints=[1,2,1,1]>()\n g = Tile(h, p)", channels=12), 6),
    "DepthToSpace": ("""g (float[N,4,6,6] x, float[8,4,1,1] w1, float[3,2,1,1] w2) => (float[N,3,12,12] y) {
        h = Conv(x, w1)
        g = DepthToSpace<blocksize=2>(h)
        y = Conv(g, w2) }""", 2),
    "SpaceToDepth": (image("g = SpaceToDepth<blocksize=2>(h)", "", "N, 3, 3, 3", 24), 6),
    "Reshape": (image("s = Constant<value_ints=[0,216]>()\n f = Reshape(h, s)\n r = Relu(f)\n"
                      "t = Constant<value_ints=[-1,6,6,6]>()\n g = Reshape(r, t)"), 6),
    "Flatten": ("""g (float[N,4,3,3] x, float[6,4,1,1] w1, float[54,3] w2) => (float[N,3] y) {
        h = Conv(x, w1)
        f = Flatten(h)
        y = Gemm(f, w2) }""", 6),
    "Squeeze": ("""g (float[N,4,1,1] x, float[6,4,1,1] w1, float[6,3] w2) => (float[N,3] y) {
        h = Conv(x, w1)
        a = Constant<value_ints=[2,3]>()
        f = Squeeze(h, a)
        y = MatMul(f, w2) }""", 6),
    "Unsqueeze": (rows("a = Constant<value_ints=[1]>()\n u = Unsqueeze(h, a)\n g = Squeeze(u, a)"), 6),
    "Expand": (image("s = Constant<value_ints=[1,6,6,6]>()\n e = Expand(wm, s)\n g = Mul(h, e)",
                     ", float[1,6,1,1] wm"), 6),
    "ConstantOfShape": (rows("s = Constant<value_ints=[6]>()\n e = ConstantOfShape(s)\n g = Add(h, e)"), 6),
    "Shape": (rows("s = Shape(h)\n c = Cast<to=1>(s)\n m = ReduceMax(c)\n g = Div(h, m)"), 6),
    "MaxPool": (image("g = MaxPool<kernel_shape=[2,2]>(h)", "", "N, 3, 5, 5"), 6),
    "AveragePool": (image("g = AveragePool<kernel_shape=[2,2]>(h)", "", "N, 3, 5, 5"), 6),
    "LpPool": (image("g = LpPool<kernel_shape=[2,2]>(h)", "", "N, 3, 5, 5"), 6),
    "GlobalAveragePool": (image("g = GlobalAveragePool(h)", "", "N, 3, 1, 1"), 6),
    "GlobalMaxPool": (image("g = GlobalMaxPool(h)", "", "N, 3, 1, 1"), 6),
    "GlobalLpPool": (image("g = GlobalLpPool(h)", "", "N, 3, 1, 1"), 6),
    "Resize": (image("s = Constant<value_floats=[1.0,1.0,2.0,2.0]>()\n g = Resize(h, , s)", "", "N, 3, 12, 12"), 6),
    "Upsample": (image("s = Constant<value_floats=[1.0,1.0,2.0,2.0]>()\n g = Upsample(h, s)", "", "N, 3, 12, 12"), 6),
    **{
        op: (f"""g (float[N,4] x, float[4,6] w1) => (float[N,1] y) {{
            h = MatMul(x, w1)
            a = Constant<value_ints=[1]>()
            y = {op}(h, a) }}""", 6)
        for op in REDUCE.split()
    },
    **{
        op: (f"""g (float[N,4] x, float[4,6] w1) => (float[N,1] y) {{
            h = MatMul(x, w1)
            a = Constant<value_ints=[1]>()
            y = {op}(h, a) }}""", 0)
        for op in EXTREME.split()
    },
    **{
        op: (f"""g (float[N,4] x, float[4,6] w1) => (int64[N,1] y) {{
            h = MatMul(x, w1)
            y = {op}<axis=1>(h) }}""", 0)
        for op in ("ArgMax", "ArgMin")
    },
}  # fmt: skip

OPSETS = {"RMSNormalization": 23, "Swish": 24, "Upsample": 9, "Gelu": 20, "GroupNormalization": 21}


def build(op: str) -> onnx.ModelProto:
    """The case of `op` as a model with random weights."""
    text = CASES[op][0]
    return parse(text, OPSETS.get(op, 18))


def parse(text: str, opset: int = 18) -> onnx.ModelProto:
    """The model of this graph text: inputs that start with `w` become random weights."""
    if opset < 13:  # Constant has no value_ints yet, and Squeeze takes attributes
        text = text.replace(
            "s = Constant<value_floats=[1.0,1.0,2.0,2.0]>()",
            "s = Constant<value = float[4] {1.0,1.0,2.0,2.0}>()",
        )
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    rng = np.random.default_rng(0)
    for value in [v for v in model.graph.input if v.name.startswith("w")]:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = rng.uniform(0.2, 0.9, shape).astype(np.float32) * rng.choice([-1, 1], shape).astype(
            np.float32
        )
        if value.name == "wv":
            array = np.abs(array)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        model.graph.input.remove(value)
    for i, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{i}"
    return model
