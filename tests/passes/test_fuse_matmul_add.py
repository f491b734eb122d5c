"""fuse-matmul-add: products with a bias, and Gemm of transposed operands."""

from __future__ import annotations

import numpy as np
import pytest

from tests.differential import op_types, optimize, parse, untouched

PASS = "infer-shapes,fuse-matmul-add"

rng = np.random.default_rng(5)


def feed(*shape: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(dtype)}


def normal(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 5), (1, 1)])
@pytest.mark.parametrize("form", ["Add(a, b)", "Add(b, a)"])
@pytest.mark.parametrize("opset", [7, 11, 13])
def test_matmul_and_bias(shape: tuple[int, ...], form: str, opset: int) -> None:
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[n, 4] x) => (float[n, 5] y) {{ a = MatMul(x, w) y = {form} }}""",
        {"w": normal(4, 5), "b": normal(*shape)},
    )
    assert op_types(optimize(model, PASS, feed(3, 4), feed(0, 4))) == ["Gemm"]


@pytest.mark.parametrize("shape", [(3, 1), (3, 5)])
def test_bias_by_row_of_a_known_number_of_rows(shape: tuple[int, ...]) -> None:
    model = parse(
        "g (float[3, 4] x) => (float[3, 5] y) { a = MatMul(x, w) y = Add(a, b) }",
        {"w": normal(4, 5), "b": normal(*shape)},
    )
    assert op_types(optimize(model, PASS, feed(3, 4))) == ["Gemm"]


def test_doubles() -> None:
    model = parse(
        "g (double[n, 4] x) => (double[n, 5] y) { a = MatMul(x, w) y = Add(a, b) }",
        {"w": normal(4, 5, dtype=np.float64), "b": normal(5, dtype=np.float64)},
    )
    optimized = optimize(model, PASS, feed(3, 4, dtype=np.float64), rtol=1e-12, atol=1e-13)
    assert op_types(optimized) == ["Gemm"]


@pytest.mark.parametrize(
    ("inputs", "constants", "reason"),
    [
        ("float[2, 3, 4] x", {"w": (4, 5), "b": (5,)}, "two matrices"),
        ("float[4] x", {"w": (4, 5), "b": (5,)}, "two matrices"),
        ("float[3, 4] x", {"w": (2, 4, 5), "b": (5,)}, "two matrices"),
        ("float[3, 4] x", {"w": (4, 5), "b": (2, 1, 5)}, "two matrices"),
        ("float[4] x", {"w": (2, 4, 5), "b": (5,)}, "two matrices"),
        ("float[3, 4] x", {"w": (4, 1), "b": (5,)}, "shape of the product"),
        ("float[1, 4] x", {"w": (4, 5), "b": (3, 5)}, "shape of the product"),
        ("float[n, 4] x", {"w": (4, 5), "b": (3, 5)}, "shape of the product"),
        ("float[3, 4] x, float[4, 5] w", {"b": (5,)}, "right matrix is not constant"),
        ("float[3, 4] x, float[5] b", {"w": (4, 5)}, "summand is not constant"),
    ],
)
def test_other_products_stay(
    inputs: str, constants: dict[str, tuple[int, ...]], reason: str
) -> None:
    model = parse(
        f"g ({inputs}) => (float y) {{ a = MatMul(x, w) y = Add(a, b) }}",
        {name: normal(*shape) for name, shape in constants.items()},
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    untouched(model, PASS, reason)


def test_product_of_unknown_rank_stays() -> None:
    model = parse(
        """g (float[n, 4] x, int64[k] shape) => (float[n, 5] y) {
            r = Reshape(x, shape) a = MatMul(r, w) y = Add(a, b)
        }""",
        {"w": normal(4, 5), "b": normal(5)},
    )
    untouched(model, PASS, "rank of the product is unknown")


@pytest.mark.parametrize("dtype", [np.float16, np.int32])
def test_other_element_types_stay(dtype: type) -> None:
    name = np.dtype(dtype).name
    model = parse(
        f"g ({name}[3, 4] x) => ({name}[3, 5] y) {{ a = MatMul(x, w) y = Add(a, b) }}",
        {"w": normal(4, 5, dtype=dtype), "b": normal(5, dtype=dtype)},
    )
    untouched(model, PASS, "float or double")


def test_product_with_another_reader_stays() -> None:
    model = parse(
        """g (float[3, 4] x) => (float[3, 5] y, float[3, 5] z) {
            a = MatMul(x, w) y = Add(a, b) z = Relu(a)
        }""",
        {"w": normal(4, 5), "b": normal(5)},
    )
    untouched(model, PASS, "something else reads")


def test_product_of_an_outer_graph_stays() -> None:
    model = parse(
        """g (bool c, float[3, 4] x) => (float[3, 5] y) {
            a = MatMul(x, w)
            y = If (c) <
                then_branch = t () => (float[3, 5] t1) { t1 = Add(a, b) },
                else_branch = e () => (float[3, 5] e1) { e1 = ConstantOfShape(shape) }
            >
        }""",
        {"w": normal(4, 5), "b": normal(5), "shape": np.array([3, 5])},
    )
    untouched(model, PASS, "another graph")


@pytest.mark.parametrize(
    "gelu",
    [
        "y = Gelu(s)",
        "d = Div(s, c) e = Erf(d) f = Add(e, c) g = Mul(s, f) y = Mul(g, c)",
        """p = Pow(s, c) q = Mul(p, c) r = Add(s, q) t = Mul(r, c) u = Tanh(t) v = Add(u, c)
           z = Mul(s, v) y = Mul(z, c)""",
    ],
)
def test_bias_of_a_gelu_stays(gelu: str) -> None:
    model = parse(
        f"""<ir_version: 9, opset_import: ["" : 20]>
        g (float[3, 4] x) => (float[3, 5] y) {{ a = MatMul(x, w) s = Add(a, b) {gelu} }}""",
        {"w": normal(4, 5), "b": normal(5), "c": np.array(0.5, np.float32)},
    )
    untouched(model, PASS, "GELU")


def test_tanh_alone_is_no_gelu() -> None:
    model = parse(
        "g (float[3, 4] x) => (float[3, 5] y) { a = MatMul(x, w) s = Add(a, b) y = Tanh(s) }",
        {"w": normal(4, 5), "b": normal(5)},
    )
    assert op_types(optimize(model, PASS, feed(3, 4))) == ["Gemm", "Tanh"]


# Gemm


def test_gemm_without_a_bias_gets_one() -> None:
    model = parse(
        """g (float[n, 4] x, float[5, 4] z) => (float[n, 5] y) {
            a = Gemm <alpha = 0.5, beta = 3.0, transB = 1> (x, z) y = Add(a, b)
        }""",
        {"b": normal(5)},
    )
    assert op_types(optimize(model, PASS, feed(3, 4) | {"z": normal(5, 4)})) == ["Gemm"]


def test_gemm_with_a_bias_stays() -> None:
    model = parse(
        """g (float[3, 4] x, float[4, 5] z) => (float[3, 5] y) {
            a = Gemm(x, z, b) y = Add(a, b)
        }""",
        {"b": normal(5)},
    )
    untouched(model, PASS, "has a bias already")


@pytest.mark.parametrize("flag", [0, 1])
@pytest.mark.parametrize("perm", ["", "<perm = [1, 0]>"])
def test_gemm_of_transposed_operands(flag: int, perm: str) -> None:
    model = parse(
        f"""g (float[3, 4] x, float[p, q] z) => (float[k, m] y) {{
            s = Transpose {perm} (x) t = Transpose {perm} (z)
            y = Gemm <transA = {flag}, transB = {1 - flag}> (s, t)
        }}"""
    )
    feeds = feed(3, 4) | {"z": normal(*((5, 4) if flag else (3, 5)))}
    assert op_types(optimize(model, PASS, feeds)) == ["Gemm"]


def test_transposed_operand_with_another_reader_stays() -> None:
    model = parse(
        """g (float[3, 4] x) => (float[4, 5] y, float[4, 3] z) {
            t = Transpose(x) y = Gemm(t, w) z = Relu(t)
        }""",
        {"w": normal(3, 5)},
    )
    untouched(model, PASS)


def test_transposed_operand_that_is_an_output_stays() -> None:
    model = parse(
        "g (float[3, 4] x) => (float[4, 5] y, float[4, 3] t) { t = Transpose(x) y = Gemm(t, w) }",
        {"w": normal(3, 5)},
    )
    untouched(model, PASS, "is an output")


def test_transpose_that_moves_nothing_stays() -> None:
    model = parse(
        """g (float[3, 4] x) => (float[3, 5] y) {
            t = Transpose <perm = [0, 1]> (x) y = Gemm(t, w)
        }""",
        {"w": normal(4, 5)},
    )
    untouched(model, PASS, "transposes nothing")


def test_inside_a_branch() -> None:
    model = parse(
        """g (bool c, float[3, 4] x) => (float[3, 5] y) {
            y = If (c) <
                then_branch = t () => (float[3, 5] t1) { a = MatMul(x, w) t1 = Add(a, b) },
                else_branch = e () => (float[3, 5] e1) { e1 = MatMul(x, w) }
            >
        }""",
        {"w": normal(4, 5), "b": normal(5)},
    )
    for flag in (True, False):
        optimized = optimize(model, PASS, feed(3, 4) | {"c": np.array(flag)})
        assert op_types(optimized) == ["If", "Gemm", "MatMul"]


def test_a_parameter_of_a_function_is_left_alone() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "f" : 1]>
        g (float[3, 4] x, float[4, 5] w) => (float[k, m] y) { y = f.product <flag = 0> (x, w) }
        <domain: "f", opset_import: ["" : 18]>
        product <flag> (x, w) => (y) {
            t = Transpose <perm = [1, 0]> (x)
            y = Gemm <transA: int = @flag> (t, w)
        }"""
    )
    untouched(model, PASS, "parameter of the function")
