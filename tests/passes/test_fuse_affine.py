"""fuse-affine: steps after a linear operator go into it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.differential import op_types, optimize, parse, untouched

PASS = "infer-shapes,fuse-affine"

rng = np.random.default_rng(7)


def feed(*shape: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(dtype)}


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def conv_weights(*shape: int) -> dict[str, np.ndarray]:
    return {"w": normal(*shape), "s": normal(shape[0], 1, 1), "t": normal(shape[0], 1, 1)}


def _statistics(size: int) -> dict[str, np.ndarray]:
    return {"g": normal(size), "b": normal(size), "m": normal(size), "v": normal(size) ** 2 + 0.1}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_mul_and_add_after_conv(bias: bool, groups: int) -> None:
    model = parse(
        f"""g (float[n, 4, h, v] x) => (float[n, 8, p, q] y) {{
            a = Conv <pads = [1, 1, 1, 1], group = {groups}> (x, w{", b" if bias else ""})
            m = Mul(s, a)
            y = Add(m, t)
        }}""",
        conv_weights(8, 4 // groups, 3, 3) | ({"b": normal(8)} if bias else {}),
    )
    assert op_types(optimize(model, PASS, feed(2, 4, 5, 6), feed(0, 4, 3, 3))) == ["Conv"]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (8, 1, 1), (1, 8, 1, 1)])
@pytest.mark.parametrize(
    "step", ["Mul(a, c)", "Div(a, c)", "Add(a, c)", "Add(c, a)", "Sub(a, c)", "Sub(c, a)", "Neg(a)"]
)
def test_every_step_in_every_broadcast_form(step: str, shape: tuple[int, ...]) -> None:
    model = parse(
        f"g (float[n, 3, h, v] x) => (float[n, 8, p, q] y) {{ a = Conv(x, w) y = {step} }}",
        {"w": normal(8, 3, 2, 2), "c": normal(*shape) + 3},
    )
    assert op_types(optimize(model, PASS, feed(1, 3, 4, 5))) == ["Conv"]


def test_constant_nodes_count_as_constants() -> None:
    model = parse(
        """g (float[n, 2, h] x) => (float[n, 2, k] y) {
            w = Constant <value = float[2, 2, 1] {1, 2, 3, 4}> ()
            c = Constant <value_float = 2.5> ()
            a = Conv(x, w)
            y = Mul(a, c)
        }"""
    )
    assert op_types(optimize(model, PASS, feed(1, 2, 4))) == ["Conv"]


@pytest.mark.parametrize(
    ("opset", "attributes"), [(7, "spatial = 1"), (9, ""), (14, "training_mode = 0"), (15, "")]
)
def test_batch_normalization_after_conv(opset: int, attributes: str) -> None:
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[n, 3, h, v] x) => (float[n, 4, p, q] y) {{
            a = Conv(x, w)
            y = BatchNormalization <epsilon = 0.01 {", " + attributes if attributes else ""}>
                (a, g, b, m, v)
        }}""",
        {"w": normal(4, 3, 3, 3)} | _statistics(4),
    )
    assert op_types(optimize(model, PASS, feed(2, 3, 5, 5))) == ["Conv"]


@pytest.mark.parametrize("groups", [1, 2])
def test_batch_normalization_after_transposed_conv(groups: int) -> None:
    model = parse(
        f"""g (float[n, 4, h, w0] x) => (float[n, 6, p, q] y) {{
            a = ConvTranspose <group = {groups}, strides = [2, 2], pads = [1, 0, 1, 0]> (x, w, c)
            y = BatchNormalization(a, g, b, m, v)
        }}""",
        {"w": normal(4, 6 // groups, 3, 3), "c": normal(6)} | _statistics(6),
    )
    assert op_types(optimize(model, PASS, feed(2, 4, 3, 4))) == ["ConvTranspose"]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (5,), (1, 5), (3, 5), (1, 1)])
def test_steps_after_gemm(transposed: int, bias: tuple[int, ...] | None) -> None:
    model = parse(
        f"""g (float[3, 4] x) => (float[3, 5] y) {{
            a = Gemm <alpha = 0.5, beta = 3.0, transB = {transposed}>
                (x, w{", b" if bias is not None else ""})
            m = Mul(a, s)
            y = Add(m, t)
        }}""",
        {"w": normal(*((5, 4) if transposed else (4, 5))), "s": normal(5), "t": normal(1, 5)}
        | ({"b": normal(*bias)} if bias is not None else {}),
    )
    assert op_types(optimize(model, PASS, feed(3, 4))) == ["Gemm"]


def test_a_column_of_biases_that_would_grow_stays() -> None:
    model = parse(
        """g (float[3, 4] x) => (float[3, 5] y) { a = Gemm(x, w, b) y = Mul(a, s) }""",
        {"w": normal(4, 5), "b": normal(3, 1), "s": normal(5)},
    )
    untouched(model, PASS, "would grow")


def test_one_scale_after_gemm_of_two_inputs_goes_into_its_coefficients() -> None:
    model = parse(
        """g (float[3, 4] x, float[4, 2] z, float[2] c) => (float[3, 2] y) {
            a = Gemm <alpha = 0.5, beta = 3.0> (x, z, c)
            y = Div(a, s)
        }""",
        {"s": np.array([4], np.float32)},
    )
    feeds = feed(3, 4) | {"z": normal(4, 2), "c": normal(2)}
    optimized = optimize(model, PASS, feeds)
    assert op_types(optimized) == ["Gemm"]
    node = next(iter(optimized.graph))
    assert node.attributes["alpha"].as_float() == 0.125
    assert node.attributes["beta"].as_float() == 0.75


def test_scale_by_channel_after_gemm_of_two_inputs_stays() -> None:
    model = parse(
        "g (float[3, 4] x, float[4, 2] z) => (float[3, 2] y) { a = Gemm(x, z) y = Mul(a, s) }",
        {"s": normal(2)},
    )
    untouched(model, PASS, "not constant")


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 3, 4)])
def test_scale_after_matmul(shape: tuple[int, ...]) -> None:
    dims = ", ".join(f"d{i}" for i in range(len(shape) - 1)) + (", " if len(shape) > 1 else "")
    model = parse(
        f"g (float[{dims}4] x) => (float[{dims}5] y) {{ a = MatMul(x, w) y = Mul(a, s) }}",
        {"w": normal(4, 5), "s": normal(5)},
    )
    assert op_types(optimize(model, PASS, feed(*shape))) == ["MatMul"]


def test_scale_after_matmul_and_its_bias() -> None:
    model = parse(
        """g (float[n, m, 4] x) => (float[n, m, 5] y) {
            a = MatMul(x, w) c = Add(b, a) d = Mul(c, s) y = Sub(d, t)
        }""",
        {"w": normal(4, 5), "b": normal(5), "s": normal(5), "t": normal(1)},
    )
    assert op_types(optimize(model, PASS, feed(2, 3, 4))) == ["MatMul", "Add"]


def test_batch_normalization_after_matmul() -> None:
    model = parse(
        """g (float[n, 4] x) => (float[n, 5] y) {
            a = MatMul(x, w) c = Add(a, t) y = BatchNormalization(c, g, b, m, v)
        }""",
        {"w": normal(4, 5), "t": normal(5)} | _statistics(5),
    )
    assert op_types(optimize(model, PASS, feed(3, 4))) == ["MatMul", "Add"]


def test_one_scale_goes_into_weights_on_the_left() -> None:
    model = parse(
        "g (float[4, n] x) => (float[3, n] y) { a = MatMul(w, x) y = Mul(a, s) }",
        {"w": normal(3, 4), "s": normal(1)},
    )
    assert op_types(optimize(model, PASS, feed(4, 2))) == ["MatMul"]


def test_a_scale_along_the_columns_of_weights_on_the_left_stays() -> None:
    model = parse(
        "g (float[4, 2] x) => (float[3, 2] y) { a = MatMul(w, x) y = Mul(a, s) }",
        {"w": normal(3, 4), "s": normal(2)},
    )
    untouched(model, PASS, "stand on the left")


def test_shift_after_matmul_stays() -> None:
    model = parse(
        "g (float[n, 4] x) => (float[n, 5] y) { a = MatMul(x, w) y = Add(a, t) }",
        {"w": normal(4, 5), "t": normal(5)},
    )
    untouched(model, PASS)


@pytest.mark.parametrize("path", ["Relu", "MaxPool <kernel_shape = [2, 2]>", "GlobalAveragePool"])
def test_positive_scale_goes_up_to_the_conv(path: str) -> None:
    model = parse(
        f"""g (float[n, 3, h, v] x) => (float[n, 4, p, q] y) {{
            a = Conv(x, w) b = {path} (a) c = Mul(b, s) y = Sigmoid(c)
        }}""",
        {"w": normal(4, 3, 2, 2), "s": np.abs(normal(4, 1, 1)) + 0.1},
    )
    assert op_types(optimize(model, PASS, feed(2, 3, 5, 5))) == [
        "Conv",
        path.split()[0],
        "Sigmoid",
    ]


@pytest.mark.parametrize("path", ["Relu", "MaxPool <kernel_shape = [2, 2]>"])
def test_negative_scale_stays_behind_a_maximum(path: str) -> None:
    model = parse(
        f"""g (float[1, 3, 4, 4] x) => (float[1, 4, p, q] y) {{
            a = Conv(x, w) b = {path} (a) c = Mul(b, s) y = Sigmoid(c)
        }}""",
        {"w": normal(4, 3, 2, 2), "s": -np.abs(normal(1)) - 0.1},
    )
    optimized = optimize(model, PASS, feed(1, 3, 4, 4))
    assert op_types(optimized) == ["Conv", path.split()[0], "Mul", "Sigmoid"]


@pytest.mark.parametrize("opset", [17, 18])
def test_steps_after_layer_normalization(opset: int) -> None:
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[n, m, 6] x) => (float[n, m, 6] y) {{
            a = LayerNormalization(x, w) b = Mul(a, s) y = Add(b, t)
        }}""",
        {"w": normal(6), "s": normal(6), "t": normal(1, 6)[0]},
    )
    assert op_types(optimize(model, PASS, feed(2, 3, 6))) == ["LayerNormalization"]


def test_constant_over_another_axis_stays_behind_layer_normalization() -> None:
    model = parse(
        "g (float[2, 3, 6] x) => (float[2, 3, 6] y) { a = LayerNormalization(x, w) y = Mul(a, s) }",
        {"w": normal(6), "s": normal(3, 1)},
    )
    untouched(model, PASS, "another axis than the normalized")


def test_steps_after_instance_normalization() -> None:
    model = parse(
        """g (float[n, 3, h] x) => (float[n, 3, h] y) {
            a = InstanceNormalization(x, w, b) c = Mul(a, s) y = Add(c, t)
        }""",
        {"w": normal(3), "b": normal(3), "s": normal(3, 1), "t": normal(1, 1)},
    )
    assert op_types(optimize(model, PASS, feed(2, 3, 8))) == ["InstanceNormalization"]
