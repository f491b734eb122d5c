import pytest

from onnxopt.analysis.inspection import inspect_model
from onnxopt.model import from_proto
from tests.differential import parse


def cost(text: str, shapes: dict[str, tuple[int, ...]] | None = None) -> tuple[str, int]:
    facts = inspect_model(from_proto(parse(text)), shapes)
    return facts.macs, facts.unknown_macs


@pytest.mark.parametrize(
    ("text", "macs"),
    [
        # 8 outputs of 16 x 16, each a dot product over 3 x 5 x 5
        (
            """g (float[n, 3, 20, 20] x, float[8, 3, 5, 5] w) => (float[n, 8, 16, 16] y) {
                y = Conv(x, w) }""",
            f"{8 * 16 * 16 * 3 * 25}*n",
        ),
        # in groups of 2 channels
        (
            """g (float[1, 4, 8, 8] x, float[6, 2, 1, 1] w) => (float[1, 6, 8, 8] y) {
                y = Conv<group = 2>(x, w) }""",
            str(6 * 64 * 2),
        ),
        # each of 3 x 10 inputs meets 5 kernels of 4
        (
            """g (float[2, 3, 10] x, float[3, 5, 4] w) => (float[2, 5, 13] y) {
                y = ConvTranspose(x, w) }""",
            str(2 * 3 * 10 * 5 * 4),
        ),
        (
            "g (float[3, n] a, float[4, n] b) => (float[3, 4] y) { y = Gemm<transB=1>(a, b) }",
            "12*n",
        ),
        (
            "g (float[n, 3] a, float[n, 4] b) => (float[3, 4] y) { y = Gemm<transA=1>(a, b) }",
            "12*n",
        ),
        (
            "g (float[b, s, 4] x, float[b, 4, s] z) => (float[b, s, s] y) { y = MatMul(x, z) }",
            "4*b*s*s",
        ),
        ("g (float[5] x, float[5] z) => (float y) { y = MatMul(x, z) }", "5"),
        # behind integers that are quantized while it runs, of a length that only symbols tell
        (
            """g (float[b, s, 4] x, int8[4, 5] w) => (int32[b, s, 5] y) {
                shape = Shape(x)
                same = Reshape(x, shape)
                q, scale, zero = DynamicQuantizeLinear(same)
                y = MatMulInteger(q, w) }""",
            "20*b*s",
        ),
        # 4 gates x 7 hidden, 6 inputs
        (
            """g (float[t, b, 6] x, float[1, 28, 6] w, float[1, 28, 7] r) => (float[t, 1, b, 7] y) {
                y = LSTM<hidden_size = 7>(x, w, r) }""",
            f"{28 * 6 + 28 * 7}*b*t",
        ),
        (
            """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
            g (float[t, b, 6] x, int8[1, 6, 28] w, int8[1, 7, 28] r) => (float[t, 1, b, 7] y) {
                y = com.microsoft.DynamicQuantizeLSTM<hidden_size = 7>(x, w, r) }""",
            f"{28 * 6 + 28 * 7}*b*t",
        ),
        (
            "g (float[2, 3] a, float[3, 4] b) => (float[2, 4] y) { "
            'y = Einsum<equation = "ij,jk->ik">(a, b) }',
            "24",
        ),
        ("g (float[n] x) => (float[n] y) { y = Relu(x) }", "0"),
    ],
)
def test_formula(text: str, macs: str) -> None:
    assert cost(text) == (macs, 0)


@pytest.mark.parametrize("layout", ["2, 3, s, 8", "2, s, 24"])
def test_attention(layout: str) -> None:
    heads = "" if layout.count(",") == 3 else "<q_num_heads = 3, kv_num_heads = 3>"
    text = f"""<ir_version: 10, opset_import: ["": 23]>
    g (float[{layout}] q, float[{layout}] k, float[{layout}] v) => (float[{layout}] y) {{
        y = Attention{heads}(q, k, v)
    }}"""
    assert cost(text) == (f"{2 * 3 * 16}*s*s", 0)


def test_unknown_shape_is_counted_as_unknown() -> None:
    text = """g (float[n, 4] x, int64[2] s, float[4, 4] w) => (float[a, b] y) {
        r = Reshape(x, s) y = MatMul(r, w)
    }"""
    assert cost(text) == ("0", 1)


def test_given_shape_binds_its_symbols_everywhere() -> None:
    text = """g (float[n, s] x, float[s, n] z) => (float[n, n] y) {
        y = MatMul(x, z)
    }"""
    assert cost(text) == ("1*n*n*s", 0)
    assert cost(text, {"x": (3, 5)}) == ("45", 0)


def test_dearest_branch_counts() -> None:
    text = """g (bool c, float[4, 4] x) => (float[4, 4] y) {
        y = If (c) <
            then_branch = t () => (float[4, 4] t1) { t0 = MatMul(x, x) t1 = MatMul(t0, x) },
            else_branch = e () => (float[4, 4] e1) { e1 = MatMul(x, x) }
        >
    }"""
    assert cost(text) == ("128", 0)


def test_functions_are_looked_into() -> None:
    text = """<ir_version: 8, opset_import: ["": 18, "mine": 1]>
    g (float[n, 4] x, float[4, 4] w) => (float[n, 4] y) { y = mine.twice(x, w) }
    <domain: "mine", opset_import: ["": 18]>
    twice (a, b) => (c) { d = MatMul(a, b) c = MatMul(d, b) }
    """
    facts = inspect_model(from_proto(parse(text)))
    assert facts.macs == "32*n"
    assert facts.functions == ("mine.twice",)
