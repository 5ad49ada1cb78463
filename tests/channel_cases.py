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


def steps(body: str, weights: str = "", out: str = "N, 5, 3", width: int = 6) -> str:
    """linear (4 -> 6) on five steps, `body` from h to g, linear (width -> 3)."""
    return f"""
        g (float[N,5,4] x, float[4,6] w1, float[{width},3] w2{weights}) => (float[{out}] y) {{
            h = MatMul(x, w1)
            {body}
            y = MatMul(g, w2)
        }}"""


def heads(body: str, weights: str = "") -> str:
    """Query, key and value (8 -> 12), `body` from q, k and v to c, linear (12 -> 2)."""
    return f"""
        g (float[2,5,8] x, float[8,12] wq, float[8,12] wk, float[8,12] wu, float[12,2] wo{weights}) => (float[2,5,2] y) {{
            q = MatMul(x, wq)
            k = MatMul(x, wk)
            v = MatMul(x, wu)
            {body}
            y = MatMul(c, wo)
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
        image("g = GroupNormalization<num_groups=2>(h, ws, wt)", ", float[6] ws, float[6] wt"), 5),
    "LRN": (image("g = LRN<size=3>(h)"), 0),
    "Transpose": (image("t = Transpose<perm=[0,2,3,1]>(h)\n r = Relu(t)\n g = Transpose<perm=[0,3,1,2]>(r)"), 6),
    "Concat": (image("e = Conv(x, wc)\n g = Concat<axis=1>(h, e)", ", float[2,4,1,1] wc", channels=8), 8),
    "Split": (image("a, b = Split<axis=1, num_outputs=2>(h)\n g = Concat<axis=1>(b, a)"), 6),
    "Slice": (image("s = Constant<value_ints=[1]>()\n e = Constant<value_ints=[5]>()\n a = Constant<value_ints=[1]>()\n"
                    "g = Slice(h, s, e, a)", channels=4), 6),
    "Gather": (image("i = Constant<value_ints=[4,2,0]>()\n g = Gather<axis=1>(h, i)", channels=3), 6),
    "Pad": (image("p = Constant<value_ints=[0,1,0,0,0,2,0,0]>()\n g = Pad(h, p)", channels=9), 9),
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
                     ", float[1,1,6,1] wm"), 6),
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
    "BitCast": (image("c = BitCast<to=6>(h)\n g = BitCast<to=1>(c)"), 6),
    "CastLike": (image("g = CastLike(h, wm)", ", float[1] wm"), 6),
    "Hardmax": (rows("g = Hardmax<axis=-1>(h)"), 0),
    "LpNormalization": (rows("g = LpNormalization<axis=-1>(h)"), 6),
    "MeanVarianceNormalization": (image("g = MeanVarianceNormalization(h)"), 6),
    "Einsum": (rows('g = Einsum<equation="nc,cd->nd">(h, wc)', ", float[6,5] wc", width=5), 11),
    "DeformConv": (
        image("o = Conv(x, wo)\n g = DeformConv(h, wc, o)", ", float[2,4,1,1] wo, float[5,6,1,1] wc", channels=5), 11),
    "Attention": (heads("c = Attention<q_num_heads=3, kv_num_heads=3>(q, k, v)"), 11),
    "RotaryEmbedding": (
        heads("c = RotaryEmbedding<num_heads=3>(q, wc, ws)", ", float[2,5,2] wc, float[2,5,2] ws"), 3),
    "GatherElements": (
        rows("i = Constant<value = int64[1,6] {0,1,0,1,0,1}>()\n g = GatherElements<axis=0>(h, i)", "", "1, 3"), 6),
    **{
        op: (rows(f"i = Constant<value = int64[1,6] {{0,1,0,1,0,1}}>()\n g = {op}<axis=0>(h, i, wu)", ", float[1,6] wu"), 6)
        for op in ("ScatterElements", "Scatter")
    },
    "GatherND": (rows("i = Constant<value = int64[2,1] {1,0}>()\n g = GatherND(h, i)", "", "2, 3"), 6),
    "ScatterND": (rows("i = Constant<value = int64[1,1] {1}>()\n g = ScatterND(h, i, wu)", ", float[1,6] wu"), 6),
    "TensorScatter": ("""g (float[2,1,4] x, float[4,6] w1, float[2,3,6] wc, float[6,3] w2) => (float[2,3,3] y) {
        h = MatMul(x, w1)
        i = Constant<value_ints=[0,1]>()
        g = TensorScatter(wc, h, i)
        y = MatMul(g, w2) }""", 6),
    **{op: (image(f"a = Constant<value_int=2>()\n g = {op}(h, a)"), 6) for op in ("CumSum", "CumProd")},
    "TopK": (steps("k = Constant<value_ints=[2]>()\n g, i = TopK<axis=1>(h, k)", "", "N, 2, 3"), 6),
    "Trilu": (image("g = Trilu(h)"), 6),
    "ReverseSequence": ("""g (float[5,2,4] x, float[4,6] w1, float[6,3] w2) => (float[5,2,3] y) {
        h = MatMul(x, w1)
        l = Constant<value_ints=[3,4]>()
        g = ReverseSequence(h, l)
        y = MatMul(g, w2) }""", 6),
    "Compress": (steps("c = Constant<value = bool[5] {1,0,1,0,1}>()\n g = Compress<axis=1>(h, c)", "", "N, 3, 3"), 6),
    "CenterCropPad": (image("s = Constant<value_ints=[4,8]>()\n g = CenterCropPad<axes=[2,3]>(h, s)", "", "N, 3, 4, 8"), 6),
    "RoiAlign": (
        image("r = Constant<value = float[2,4] {0,0,4,4,1,1,5,5}>()\n b = Constant<value_ints=[0,1]>()\n"
              "g = RoiAlign<output_height=2, output_width=2>(h, r, b)", "", "2, 3, 2, 2"), 6),
    "MaxRoiPool": (
        image("r = Constant<value = float[2,5] {0,0,0,4,4,1,1,1,5,5}>()\n g = MaxRoiPool<pooled_shape=[2,2]>(h, r)",
              "", "2, 3, 2, 2"), 6),
    "GridSample": (image("g = GridSample(h, wg)", ", float[2,3,3,2] wg", "2, 3, 3, 3"), 6),
    "Col2Im": ("""g (float[N,4,9] x, float[12,4,1] w1, float[5,3,1,1] w2) => (float[N,5,4,4] y) {
        h = Conv(x, w1)
        s = Constant<value_ints=[4,4]>()
        b = Constant<value_ints=[2,2]>()
        g = Col2Im(h, s, b)
        y = Conv(g, w2) }""", 3),
    **{
        op: (image("q = QuantizeLinear<axis=1>(h, wv)\n g = DequantizeLinear<axis=1>(q, wv)", ", float[6] wv"), 6)
        for op in ("QuantizeLinear", "DequantizeLinear")
    },
    "com.microsoft.Attention": (
        """g (float[2,5,8] x, float[8,36] w1, float[36] wb, float[12,2] wo) => (float[2,5,2] y) {
        c = com.microsoft.Attention<num_heads=3>(x, w1, wb)
        y = MatMul(c, wo) }""", 11),
    "com.microsoft.MultiHeadAttention": (
        heads("c = com.microsoft.MultiHeadAttention<num_heads=3>(q, k, v, wb)", ", float[36] wb"), 11),
    "com.microsoft.RotaryEmbedding": (
        heads("p = Constant<value_ints=[0]>()\n c = com.microsoft.RotaryEmbedding<num_heads=3>(q, p, wc, ws)",
              ", float[9,2] wc, float[9,2] ws"), 3),
    "com.microsoft.SkipLayerNormalization": (
        steps("s = Relu(h)\n g = com.microsoft.SkipLayerNormalization(h, s, wg, wb, wc)",
              ", float[6] wg, float[6] wb, float[6] wc"), 6),
    "com.microsoft.SkipSimplifiedLayerNormalization": (
        steps("s = Relu(h)\n g = com.microsoft.SkipSimplifiedLayerNormalization(h, s, wg, wc)",
              ", float[6] wg, float[6] wc"), 6),
    "com.microsoft.EmbedLayerNormalization": (
        """g (float[2,4] x, float[3,6] w1, float[9,6] wp, float[2,6] ws, float[6] wg, float[6] wb, float[6,3] w2)
            => (float[2,4,3] y) {
        a = Abs(x)
        i = Cast<to=6>(a)
        h, m = com.microsoft.EmbedLayerNormalization(i, i, w1, wp, ws, wg, wb)
        y = MatMul(h, w2) }""", 6),
    **{f"com.microsoft.{op}": (rows(f"g = com.microsoft.{op}(h)"), 6) for op in ("Gelu", "QuickGelu")},
    **{f"com.microsoft.{op}": (rows(f"g = com.microsoft.{op}(h, wb)", ", float[6] wb"), 6) for op in ("FastGelu", "BiasGelu")},
    "com.microsoft.FusedMatMul": (
        rows("g = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(h, wc)", ", float[5,6] wc", width=5), 11),
    "com.microsoft.FusedGemm": (
        rows('g = com.microsoft.FusedGemm<transB=1, activation="Relu">(h, wc, wd)', ", float[5,6] wc, float[5] wd", width=5),
        11),
    "com.microsoft.FusedConv": (
        image('z = Conv(x, wz)\n g = com.microsoft.FusedConv<activation="Relu">(h, wc, wd, z)',
              ", float[5,4,1,1] wz, float[5,6,1,1] wc, float[5] wd", channels=5), 11),
}  # fmt: skip

CASES |= {
    "If": ("""g (float[N,4] x, float[4,6] w1, float[6,6] w3, float[6] wm, float[6,3] w2, bool[1] c) => (float[N,3] y) {
        h = MatMul(x, w1)
        g = If (c) <
            then_branch = t () => (float[N,6] a) { a0 = MatMul(h, w3)
                a = Relu(a0) },
            else_branch = e () => (float[N,6] b) { b = Mul(h, wm) }
        >
        y = MatMul(g, w2) }""", 6),
    "Loop": ("""g (float[2,4] x, float[4,6] w1, float[6,5] w3, float[5,6] w4, float[6,3] w2, float[5,2] w5)
        => (float[2,3] y, float[3,2,2] z) {
        h = MatMul(x, w1)
        n = Constant<value_int = 3>()
        e = Constant<value_int = 1>()
        c = Cast<to=9>(e)
        g, s = Loop (n, c, h) <
            body = b (int64 i, bool c0, float[2,6] h0) => (bool c1, float[2,6] h1, float[2,5] r) {
                c1 = Identity(c0)
                m = MatMul(h0, w3)
                r = Tanh(m)
                d = MatMul(r, w4)
                h1 = Add(h, d) }
        >
        y = MatMul(g, w2)
        z = MatMul(s, w5) }""", 11),
    "Scan": ("""g (float[3,2,4] x, float[4,6] w1, float[4,6] wr, float[6,3] w2, float[2,4] wi) => (float[3,2,3] y) {
        h = MatMul(x, w1)
        e = MatMul(wi, wr)
        k, g = Scan (e, h) <num_scan_inputs=1,
            body = b (float[2,6] s0, float[2,6] p) => (float[2,6] s1, float[2,6] q) {
                t = Add(s0, p)
                s1 = Tanh(t)
                q = Relu(s1) }
        >
        y = MatMul(g, w2) }""", 6),
}  # fmt: skip

OPSETS = {
    "RMSNormalization": 23,
    "Swish": 24,
    "Upsample": 9,
    "Gelu": 20,
    "GroupNormalization": 21,
    "Attention": 23,
    "RotaryEmbedding": 23,
    "TensorScatter": 24,
    "Scatter": 10,
    "DeformConv": 19,
    "BitCast": 26,
    "CumProd": 26,
}


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
    imports = f'"" : {opset}' + (', "com.microsoft" : 1' if "com.microsoft" in text else "")
    model = onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]>\n{text}")
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
