"""fuse-affine: steps after and before linear operators, chains of steps, and what must stay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.differential import apply, op_types, optimize, parse, untouched

PASS = "infer-shapes,fuse-affine"

rng = np.random.default_rng(7)


def feed(*shape: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(dtype)}


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def conv_weights(*shape: int) -> dict[str, np.ndarray]:
    return {"w": normal(*shape), "s": normal(shape[0], 1, 1), "t": normal(shape[0], 1, 1)}


# After a linear operator


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


def _statistics(size: int) -> dict[str, np.ndarray]:
    return {"g": normal(size), "b": normal(size), "m": normal(size), "v": normal(size) ** 2 + 0.1}


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


# What must stay after a linear operator


def test_constant_along_the_width_stays() -> None:
    """The trap: as many numbers as channels, but along the last axis."""
    model = parse(
        "g (float[1, 3, 6, 6] x) => (float[1, 6, 6, 6] y) { a = Conv(x, w) y = Mul(a, s) }",
        {"w": normal(6, 3, 1, 1), "s": normal(6)},
    )
    untouched(model, PASS, "another axis than the channels")


def test_constant_that_adds_channels_stays() -> None:
    model = parse(
        "g (float[1, 3, 2, 2] x) => (float[1, 5, 2, 2] y) { a = Conv(x, w) y = Mul(a, s) }",
        {"w": normal(1, 3, 1, 1), "s": normal(5, 1, 1)},
    )
    untouched(model, PASS, "longer than the channel axis")


def test_constant_that_adds_a_dimension_stays() -> None:
    model = parse(
        "g (float[1, 3, 2, 2] x) => (float[1, 1, 4, 2, 2] y) { a = Conv(x, w) y = Mul(a, s) }",
        {"w": normal(4, 3, 1, 1), "s": normal(1, 1, 1, 1, 1)},
    )
    untouched(model, PASS, "more dimensions")


def test_conv_with_another_reader_stays() -> None:
    model = parse(
        """g (float[1, 3, 2, 2] x) => (float[1, 4, 2, 2] y) {
            a = Conv(x, w) b = Mul(a, s) y = Add(a, b)
        }""",
        {"w": normal(4, 3, 1, 1), "s": normal(1)},
    )
    untouched(model, PASS, "something else reads")


def test_conv_that_makes_an_output_stays() -> None:
    model = parse(
        """g (float[1, 3, 2, 2] x) => (float[1, 4, 2, 2] a, float[1, 4, 2, 2] y) {
            a = Conv(x, w) y = Mul(a, s)
        }""",
        {"w": normal(4, 3, 1, 1), "s": normal(1)},
    )
    untouched(model, PASS, "something else reads")


def test_large_weights_with_another_reader_stay() -> None:
    model = parse(
        """g (float[1, 16, 5, 5] x) => (float[1, 16, 5, 5] y, float[1, 16, 5, 5] z) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w) y = Mul(a, s)
            z = Conv <pads = [1, 1, 1, 1]> (x, w)
        }""",
        {"w": normal(16, 16, 3, 3), "s": normal(1)},
    )
    untouched(model, PASS, "other readers")


def test_weights_from_an_input_stay() -> None:
    model = parse(
        """g (float[1, 3, 2, 2] x, float[4, 3, 1, 1] w) => (float[1, 4, 2, 2] y) {
            a = Conv(x, w) y = Mul(a, s)
        }""",
        {"s": normal(1)},
    )
    untouched(model, PASS, "weights are not constant")


def test_overridable_weights_stay() -> None:
    model = parse(
        """g (float[1, 3, 2, 2] x, float[4, 3, 1, 1] w) => (float[1, 4, 2, 2] y) {
            a = Conv(x, w) y = Mul(a, s)
        }""",
        {"w": normal(4, 3, 1, 1), "s": normal(1)},
    )
    untouched(model, PASS, "weights are not constant")


def test_overridable_scale_stays() -> None:
    model = parse(
        """g (float[1, 3, 2, 2] x, float[1] s) => (float[1, 4, 2, 2] y) {
            a = Conv(x, w) y = Mul(a, s)
        }""",
        {"w": normal(4, 3, 1, 1), "s": normal(1)},
    )
    untouched(model, PASS)


def test_quantized_weights_stay() -> None:
    model = parse(
        """g (float[1, 3, 2, 2] x) => (float[1, 4, 2, 2] y) <float d = {0.1}> {
            w = DequantizeLinear(q, d) a = Conv(x, w) y = Mul(a, s)
        }""",
        {"q": rng.integers(-9, 9, (4, 3, 1, 1)).astype(np.int8), "s": normal(1)},
    )
    untouched(model, PASS, "weights are not constant")


def test_bias_from_an_input_stays() -> None:
    model = parse(
        """g (float[1, 3, 2, 2] x, float[4] b) => (float[1, 4, 2, 2] y) {
            a = Conv(x, w, b) y = Mul(a, s)
        }""",
        {"w": normal(4, 3, 1, 1), "s": normal(1)},
    )
    untouched(model, PASS, "bias is not constant")


def test_batch_normalization_that_trains_stays() -> None:
    model = parse(
        """g (float[2, 3, 2, 2] x) => (float[2, 4, 2, 2] y) {
            a = Conv(x, w)
            y, mean, var = BatchNormalization <training_mode = 1> (a, g, b, m, v)
        }""",
        {"w": normal(4, 3, 1, 1)} | _statistics(4),
    )
    untouched(model, PASS, "trains")


def test_batch_normalization_with_statistics_from_an_input_stays() -> None:
    model = parse(
        """g (float[2, 3, 2, 2] x, float[4] m) => (float[2, 4, 2, 2] y) {
            a = Conv(x, w) y = BatchNormalization(a, g, b, m, v)
        }""",
        {"w": normal(4, 3, 1, 1)} | {k: v for k, v in _statistics(4).items() if k != "m"},
    )
    untouched(model, PASS, "statistics of BatchNormalization are not constant")


def test_constant_divided_by_a_tensor_is_no_step() -> None:
    model = parse(
        "g (float[1, 3, 2, 2] x) => (float[1, 4, 2, 2] y) { a = Conv(x, w) y = Div(s, a) }",
        {"w": normal(4, 3, 1, 1), "s": normal(1)},
    )
    untouched(model, PASS)


def test_division_by_zero_stays() -> None:
    model = parse(
        "g (float[1, 3, 2, 2] x) => (float[1, 4, 2, 2] y) { a = Conv(x, w) y = Div(a, s) }",
        {"w": normal(4, 3, 1, 1), "s": np.zeros(1, np.float32)},
    )
    untouched(model, PASS, "divides by zero")


def test_infinite_constants_stay() -> None:
    model = parse(
        "g (float[1, 3, 2, 2] x) => (float[1, 4, 2, 2] y) { a = Conv(x, w) y = Add(a, s) }",
        {"w": normal(4, 3, 1, 1), "s": np.full(1, -np.inf, np.float32)},
    )
    untouched(model, PASS, "not finite")


def test_adding_and_subtracting_a_huge_number_rounds_and_stays() -> None:
    model = parse(
        "g (float[n] x) => (float[n] y) { a = Add(x, c) y = Sub(a, c) }",
        {"c": np.array(1.5 * 2**23, np.float32)},
    )
    untouched(model, PASS, "adding it rounds")


def test_integers_are_no_steps() -> None:
    model = parse(
        """g (int64[n] x) => (int64[n] y) <int64 a = {3}, int64 b = {2}> {
            m = Div(x, a) y = Mul(m, b)
        }"""
    )
    untouched(model, PASS)


def test_half_precision_folds_when_it_fits() -> None:
    half = {k: v.astype(np.float16) for k, v in conv_weights(4, 3, 1, 1).items()}
    model = parse(
        """g (float16[1, 3, 2, 2] x) => (float16[1, 4, 2, 2] y) {
            a = Conv(x, w) m = Mul(a, s) y = Add(m, t)
        }""",
        half,
    )
    optimized = optimize(model, PASS, feed(1, 3, 2, 2, dtype=np.float16), rtol=4e-3, atol=4e-3)
    assert op_types(optimized) == ["Conv"]


@pytest.mark.parametrize(("factor", "reason"), [(6e4, "overflow"), (1e-4, "too small")])
def test_half_precision_that_does_not_fit_stays(factor: float, reason: str) -> None:
    model = parse(
        """g (float16[1, 3, 2, 2] x) => (float16[1, 4, 2, 2] y) { a = Conv(x, w) y = Mul(a, s) }""",
        {"w": np.full((4, 3, 1, 1), 0.5 if factor < 1 else 2, np.float16)}
        | {"s": np.array([factor], np.float16)},
    )
    untouched(model, PASS, reason)


def test_half_precision_biases_may_be_small() -> None:
    model = parse(
        "g (float16[1, 3, 2] x) => (float16[1, 2, 2] y) { a = Conv(x, w, b) y = Mul(a, s) }",
        {"w": np.ones((2, 3, 1), np.float16), "b": np.full(2, 1e-4, np.float16)}
        | {"s": np.array([0.25], np.float16)},
    )
    optimized = optimize(model, PASS, feed(1, 3, 2, dtype=np.float16), rtol=4e-3, atol=4e-3)
    assert op_types(optimized) == ["Conv"]


def test_doubles_keep_their_precision() -> None:
    model = parse(
        "g (double[2, 3] x) => (double[2, 4] y) { a = MatMul(x, w) y = Mul(a, s) }",
        {"w": normal(3, 4).astype(np.float64), "s": np.array([1 / 3])},
    )
    optimized = optimize(model, PASS, feed(2, 3, dtype=np.float64), rtol=1e-12, atol=1e-13)
    assert op_types(optimized) == ["MatMul"]


def test_coefficients_of_gemm_hold_no_doubles() -> None:
    model = parse(
        "g (double[2, 3] x, double[3, 4] w) => (double[2, 4] y) { a = Gemm(x, w) y = Mul(a, s) }",
        {"s": np.array([1 / 3])},
    )
    untouched(model, PASS, "no doubles")


def test_zero_scale_keeps_nan() -> None:
    model = parse(
        "g (float[1, 1, 2] x) => (float[1, 1, 2] y) { a = Conv(x, w) y = Mul(a, s) }",
        {"w": np.ones((1, 1, 1), np.float32), "s": np.zeros(1, np.float32)},
    )
    poisoned = {"x": np.array([[[np.nan, 1]]], np.float32)}
    assert op_types(optimize(model, PASS, poisoned)) == ["Conv"]


def test_branch_does_not_touch_an_outer_conv() -> None:
    model = parse(
        """g (bool c, float[1, 3, 2, 2] x) => (float[1, 4, 2, 2] y) {
            a = Conv(x, w)
            y = If (c) <
                then_branch = t () => (float[1, 4, 2, 2] t1) { t1 = Mul(a, s) },
                else_branch = e () => (float[1, 4, 2, 2] e1) { e1 = ConstantOfShape(shape) }
            >
        }""",
        {"w": normal(4, 3, 1, 1), "s": normal(1), "shape": np.array([1, 4, 2, 2])},
    )
    untouched(model, PASS, "another graph")


def test_inside_a_branch() -> None:
    model = parse(
        """g (bool c, float[1, 3, 2, 2] x) => (float[1, 4, 2, 2] y) {
            y = If (c) <
                then_branch = t () => (float[1, 4, 2, 2] t1) { a = Conv(x, w) t1 = Mul(a, s) },
                else_branch = e () => (float[1, 4, 2, 2] e1) { e1 = Conv(x, w) }
            >
        }""",
        {"w": normal(4, 3, 1, 1), "s": normal(1)},
    )
    for flag in (True, False):
        optimized = optimize(model, PASS, feed(1, 3, 2, 2) | {"c": np.array(flag)})
        assert op_types(optimized) == ["If", "Conv", "Conv"]


def test_inside_a_function() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "f" : 1]>
        g (float[1, 2, 3] x) => (float[1, 2, 3] y) { y = f.scaled(x) }
        <domain: "f", opset_import: ["" : 18]>
        scaled (x) => (y) {
            w = Constant <value = float[2, 2, 1] {1, 2, 3, 4}> ()
            s = Constant <value_floats = [0.5]> ()
            t = Constant <value = float[2, 1] {3, 4}> ()
            a = Conv(x, w)
            b = Mul(a, s)
            y = Add(b, t)
        }"""
    )
    optimized = optimize(model, PASS, feed(1, 2, 3))
    (function,) = optimized.functions.values()
    assert [node.op_type for node in function.all_nodes()] == ["Constant", "Constant", "Conv"]


@pytest.mark.parametrize(
    ("opset", "spatial", "reason"), [(8, "<spatial = 0>", "not spatial"), (9, "", "not finite")]
)
def test_unusual_batch_normalization_stays(opset: int, spatial: str, reason: str) -> None:
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[2, 3, 2, 2] x) => (float[2, 4, 2, 2] y) {{
            a = Conv(x, w) y = BatchNormalization {spatial} (a, g, b, m, v)
        }}""",
        {"w": normal(4, 3, 1, 1)} | _statistics(4) | {"v": np.full(4, -1, np.float32)}
        if opset == 9
        else {"w": normal(4, 3, 1, 1)} | _statistics(4),
    )
    untouched(model, PASS, reason)


def test_batch_normalization_of_unknown_rank_stays() -> None:
    model = parse(
        """g (float[n, 4] x, int64[k] shape) => (float[p, 4, q] y) {
            r = Reshape(x, shape) y = BatchNormalization(r, g, b, m, v)
        }""",
        _statistics(4),
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    untouched(model, PASS, "rank is unknown")


def test_shift_after_gemm_of_two_inputs_stays() -> None:
    model = parse(
        """g (float[3, 4] x, float[4, 2] z, float[2] c) => (float[3, 2] y) {
            a = Gemm(x, z, c) y = Sub(s, a)
        }""",
        {"s": normal(1)},
    )
    untouched(model, PASS, "needs constant weights")


@pytest.mark.parametrize(
    ("shape", "value", "reason"), [((1, 1, 1), 2.0, "more dimensions"), ((1,), 1e-35, "the range")]
)
def test_other_scales_after_gemm_of_two_inputs_stay(
    shape: tuple[int, ...], value: float, reason: str
) -> None:
    model = parse(
        "g (float[3, 4] x, float[4, 2] z) => (float y) { a = Gemm(x, z) y = Mul(a, s) }",
        {"s": np.full(shape, value, np.float32)},
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    untouched(model, PASS, reason)


# Chains


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = Mul(x, c) y = Mul(a, d)", ["Mul"]),
        ("a = Add(x, c) y = Sub(a, d)", ["Add"]),
        ("a = Mul(x, c) b = Add(a, d) e = Mul(b, d) y = Add(e, c)", ["Mul", "Add"]),
        ("a = Add(x, c) b = Mul(a, d) y = Add(b, d)", ["Mul", "Add"]),
        ("a = Sub(c, x) b = Neg(a) y = Div(b, d)", ["Add", "Div"]),
        ("a = Mul(x, two) y = Mul(a, half)", ["Mul"]),
        ("a = Add(x, two) b = Sub(a, two) y = Mul(b, wide)", ["Mul"]),
    ],
)
@pytest.mark.parametrize("shape", [(2, 3), (4, 2, 3), (0, 3)])
def test_chains_merge(body: str, expected: list[str], shape: tuple[int, ...]) -> None:
    dims = ", ".join(f"d{i}" for i in range(len(shape) - 1))
    model = parse(
        f"g (float[{dims}, 3] x) => (float[{dims}, 3] y) {{ {body} }}",
        {"c": normal(3) + 3, "d": normal(1) + 3, "wide": normal(3)}
        | {"two": number(2), "half": number(0.5)},
    )
    assert op_types(optimize(model, PASS, feed(*shape))) == expected


def test_what_broadcasts_still_broadcasts() -> None:
    model = parse(
        "g (float[n, 1] x) => (float[n, 3] y) { a = Add(x, c) b = Sub(a, c) y = Mul(b, two) }",
        {"c": np.arange(3, dtype=np.float32), "two": number(2)},
    )
    assert op_types(optimize(model, PASS, feed(2, 1))) == ["Mul"]


def test_steps_around_batch_normalization_merge_into_it() -> None:
    model = parse(
        """g (float[n, 3, h] x) => (float[n, 3, h] y) {
            p = Mul(x, s) q = Add(p, t)
            r = BatchNormalization <epsilon = 0.1> (q, g, b, m, v)
            u = Mul(r, t) y = Add(u, s)
        }""",
        {"s": normal(3, 1), "t": normal(1)} | _statistics(3),
    )
    assert op_types(optimize(model, PASS, feed(2, 3, 4))) == ["BatchNormalization"]


def test_chain_whose_value_is_read_elsewhere_stays() -> None:
    model = parse(
        "g (float[n] x) => (float[n] y) { a = Mul(x, c) b = Mul(a, c) y = Max(a, b) }",
        {"c": normal(1)},
    )
    untouched(model, PASS)


def test_chain_whose_constants_would_grow_stays() -> None:
    model = parse(
        "g (float[n, 40, 40] x) => (float[n, 40, 40] y) { a = Mul(x, c) y = Mul(a, d) }",
        {"c": normal(40, 1), "d": normal(1, 40)},
    )
    untouched(model, PASS, "would be larger")


# Before a linear operator


@pytest.mark.parametrize("groups", [1, 2])
def test_batch_normalization_before_an_unpadded_conv(groups: int) -> None:
    model = parse(
        f"""g (float[n, 4, h, w0] x) => (float[n, 6, p, q] y) {{
            a = BatchNormalization(x, g, b, m, v)
            y = Conv <group = {groups}> (a, w)
        }}""",
        {"w": normal(6, 4 // groups, 3, 3)} | _statistics(4),
    )
    assert op_types(optimize(model, PASS, feed(2, 4, 5, 5))) == ["Conv"]


@pytest.mark.parametrize(
    ("attributes", "kernel"), [('auto_pad = "VALID"', 3), ('auto_pad = "SAME_UPPER"', 1)]
)
def test_auto_pad_that_pads_nothing(attributes: str, kernel: int) -> None:
    model = parse(
        f"""g (float[n, 4, h, v] x) => (float[n, 6, p, q] y) {{
            a = Add(x, t) y = Conv <{attributes}, strides = [2, 2]> (a, w)
        }}""",
        {"w": normal(6, 4, kernel, kernel), "t": normal(4, 1, 1)},
    )
    assert op_types(optimize(model, PASS, feed(2, 4, 5, 5))) == ["Conv"]


@pytest.mark.parametrize("attributes", ["pads = [0, 1, 0, 0]", 'auto_pad = "SAME_LOWER"'])
def test_shift_stays_before_a_padded_conv(attributes: str) -> None:
    model = parse(
        f"""g (float[1, 4, 5, 5] x) => (float[1, 6, p, q] y) {{
            a = Add(x, t) y = Conv <{attributes}> (a, w)
        }}""",
        {"w": normal(6, 4, 3, 3), "t": normal(1)},
    )
    untouched(model, PASS, "pads with zeros")


@pytest.mark.parametrize("groups", [1, 4])
def test_scale_goes_into_a_padded_conv_past_the_shift(groups: int) -> None:
    model = parse(
        f"""g (float[n, 4, h, v] x) => (float[n, 8, p, q] y) {{
            a = Mul(x, s) c = Add(a, t)
            y = Conv <pads = [1, 1, 1, 1], group = {groups}> (c, w, b)
        }}""",
        {"w": normal(8, 4 // groups, 3, 3), "b": normal(8), "s": normal(4, 1, 1), "t": normal(1)},
    )
    assert op_types(optimize(model, PASS, feed(2, 4, 5, 5))) == ["Add", "Conv"]


def test_zero_scale_does_not_go_past_a_shift() -> None:
    model = parse(
        """g (float[1, 4, 5, 5] x) => (float[1, 8, 5, 5] y) {
            a = Mul(x, s) c = Add(a, t) y = Conv <pads = [1, 1, 1, 1]> (c, w)
        }""",
        {"w": normal(8, 4, 3, 3), "s": np.array([0], np.float32), "t": normal(1)},
    )
    untouched(model, PASS, "scale is zero")


def test_scale_before_a_transposed_conv() -> None:
    model = parse(
        """g (float[n, 4, h, v] x) => (float[n, 6, p, q] y) {
            a = Mul(x, s) y = ConvTranspose <group = 2, strides = [2, 2]> (a, w)
        }""",
        {"w": normal(4, 3, 3, 3), "s": normal(4, 1, 1)},
    )
    assert op_types(optimize(model, PASS, feed(2, 4, 3, 3))) == ["ConvTranspose"]


def test_shift_before_a_transposed_conv_stays() -> None:
    model = parse(
        """g (float[1, 4, 3, 3] x) => (float[1, 6, p, q] y) {
            a = Add(x, s) y = ConvTranspose(a, w)
        }""",
        {"w": normal(4, 6, 3, 3), "s": normal(1)},
    )
    untouched(model, PASS, "transposed convolution")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [0, 1])
def test_steps_before_gemm(transposed: int, bias: bool) -> None:
    model = parse(
        f"""g (float[n, 4] x) => (float[n, 5] y) {{
            a = Mul(x, s) c = Add(a, t)
            y = Gemm <alpha = 0.5, beta = 2.0, transB = {transposed}> (c, w{", b" if bias else ""})
        }}""",
        {"w": normal(*((5, 4) if transposed else (4, 5))), "s": normal(4), "t": normal(1)}
        | ({"b": normal(5)} if bias else {}),
    )
    assert op_types(optimize(model, PASS, feed(3, 4))) == ["Gemm"]


def test_scale_by_column_before_a_transposed_operand_stays() -> None:
    model = parse(
        "g (float[4, 4] x) => (float[4, 5] y) { a = Mul(x, s) y = Gemm <transA = 1> (a, w) }",
        {"w": normal(4, 5), "s": normal(4)},
    )
    untouched(model, PASS, "operand is transposed")


def test_scale_before_every_reader() -> None:
    model = parse(
        """g (float[n, m, 4] x) => (float[n, m, 5] y) {
            a = Mul(x, s) q = MatMul(a, u) k = MatMul(a, v) w = MatMul(a, z)
            p = Mul(q, k) y = Mul(p, w)
        }""",
        {"s": normal(4), "u": normal(4, 5), "v": normal(4, 5), "z": normal(4, 5)},
    )
    optimized = optimize(model, PASS, feed(2, 3, 4))
    assert op_types(optimized) == ["MatMul", "MatMul", "MatMul", "Mul", "Mul"]


def test_scale_with_one_reader_that_cannot_take_it_stays() -> None:
    model = parse(
        """g (float[2, 4] x) => (float[2, 5] y, float[2, 4] z) {
            a = Mul(x, s) y = MatMul(a, u) z = Sigmoid(a)
        }""",
        {"s": normal(4), "u": normal(4, 5)},
    )
    untouched(model, PASS, "Sigmoid reads the value")


def test_scale_that_is_an_output_stays() -> None:
    model = parse(
        """g (float[2, 4] x) => (float[2, 5] y, float[2, 4] a) {
            a = Mul(x, s) y = MatMul(a, u)
        }""",
        {"s": normal(4), "u": normal(4, 5)},
    )
    untouched(model, PASS, "is an output")


def test_scale_of_unknown_rank_stays() -> None:
    model = parse(
        """g (float[n, 4] x, int64[k] shape) => (float[n, 5] y) {
            r = Reshape(x, shape) a = Mul(r, s) y = MatMul(a, u)
        }""",
        {"s": normal(4), "u": normal(4, 5)},
    )
    untouched(model, PASS, "not known to fit the shape")


def test_scale_that_widens_its_input_stays() -> None:
    model = parse(
        "g (float[2, 1] x) => (float[2, 5] y) { a = Mul(x, s) y = MatMul(a, u) }",
        {"s": normal(4), "u": normal(4, 5)},
    )
    untouched(model, PASS, "not known to fit the shape")


def test_shift_goes_through_pools_into_a_conv() -> None:
    model = parse(
        """g (float[n, 4, h, v] x) => (float[n, 6, 1, 1] y) {
            a = Mul(x, s) c = Add(a, t)
            p = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]> (c)
            q = MaxPool <kernel_shape = [2, 2], pads = [1, 1, 1, 1]> (p)
            r = GlobalAveragePool(q)
            y = Conv(r, w)
        }""",
        {"w": normal(6, 4, 1, 1), "s": np.abs(normal(4, 1, 1)) + 0.1, "t": normal(4, 1, 1)},
    )
    optimized = optimize(model, PASS, feed(2, 4, 5, 5))
    assert op_types(optimized) == ["AveragePool", "MaxPool", "GlobalAveragePool", "Conv"]


def test_shift_stays_before_an_average_that_counts_padding() -> None:
    model = parse(
        """g (float[1, 4, 4, 4] x) => (float[1, 6, p, q] y) {
            c = Add(x, t)
            p = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1> (c)
            y = Conv(p, w)
        }""",
        {"w": normal(6, 4, 1, 1), "t": normal(1)},
    )
    untouched(model, PASS, "average counts padding")


def test_scale_goes_through_squeeze_and_excitation() -> None:
    model = parse(
        """g (float[n, 4, h, v] x) => (float[n, 6, h, v] y) {
            a = Mul(x, s) f = Add(a, t)
            p = GlobalAveragePool(f) q = Conv(p, u) r = Sigmoid(q)
            e = Mul(f, r)
            y = Conv(e, w)
        }""",
        {"u": normal(4, 4, 1, 1), "w": normal(6, 4, 1, 1), "s": normal(1), "t": normal(1)},
    )
    optimized = optimize(model, PASS, feed(2, 4, 3, 3))
    assert op_types(optimized) == ["Add", "GlobalAveragePool", "Conv", "Sigmoid", "Mul", "Conv"]


def test_scale_does_not_go_through_its_own_square() -> None:
    model = parse(
        """g (float[1, 4, 3, 3] x) => (float[1, 6, 3, 3] y) {
            a = Mul(x, s) b = Mul(a, a) y = Conv(b, w)
        }""",
        {"w": normal(6, 4, 1, 1), "s": normal(1)},
    )
    untouched(model, PASS, "two paths meet")


def test_one_scale_goes_through_what_moves_elements() -> None:
    model = parse(
        """g (float[n, 4, 6] x) => (float[n, 6, 5] y) {
            a = Mul(x, s) b = Transpose <perm = [0, 2, 1]> (a) y = MatMul(b, w)
        }""",
        {"w": normal(4, 5), "s": normal(1)},
    )
    assert op_types(optimize(model, PASS, feed(2, 4, 6))) == ["Transpose", "MatMul"]


def test_scale_by_channel_stays_before_what_moves_elements() -> None:
    model = parse(
        """g (float[2, 4, 4] x) => (float[2, 4, 5] y) {
            a = Mul(x, s) b = Transpose <perm = [0, 2, 1]> (a) y = MatMul(b, w)
        }""",
        {"w": normal(4, 5), "s": normal(4)},
    )
    untouched(model, PASS, "by channel does not pass")


# Idioms that runtimes know


@pytest.mark.parametrize(
    "body",
    [
        "d = Div(h, root) e = Erf(d) f = Add(e, one) g = Mul(h, f) k = Mul(g, half)",
        "d = Div(h, root) e = Erf(d) f = Add(e, one) g = Mul(f, half) k = Mul(h, g)",
        "p = Mul(h, half) d = Div(h, root) e = Erf(d) f = Add(e, one) k = Mul(p, f)",
    ],
)
def test_gelu_stays_whole(body: str) -> None:
    model = parse(
        f"""g (float[2, 4] x) => (float[2, 5] y) {{ h = Sigmoid(x) {body} y = MatMul(k, w) }}""",
        {"w": normal(4, 5), "root": number(2**0.5), "one": number(1)} | {"half": number(0.5)},
    )
    untouched(model, PASS, "GELU")


def test_layer_normalization_stays_whole() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 13]>
        g (float[2, 4] x) => (float[2, 5] y) {
            mean = ReduceMean <axes = [-1]> (x) d = Sub(x, mean) p = Mul(d, d)
            v = ReduceMean <axes = [-1]> (p) e = Add(v, eps) r = Sqrt(e) n = Div(d, r)
            g = Mul(n, s) k = Add(g, t) y = MatMul(k, w)
        }""",
        {"w": normal(4, 5), "s": normal(4), "t": normal(4), "eps": number(1e-5)},
    )
    untouched(model, PASS, "gain or bias of a normalization")


# A tensor added to its own gated self


@pytest.mark.parametrize("product", ["Mul(x, g)", "Mul(g, x)"])
@pytest.mark.parametrize("total", ["Add(x, p)", "Add(p, x)"])
def test_gate_is_factored(product: str, total: str) -> None:
    model = parse(
        f"""g (float[n, 3, h, v] x) => (float[n, 3, h, v] y) {{
            a = GlobalAveragePool(x) g = Sigmoid(a) p = {product} y = {total}
        }}"""
    )
    optimized = optimize(model, PASS, feed(2, 3, 4, 5), feed(1, 3, 1, 1))
    assert op_types(optimized) == ["GlobalAveragePool", "Sigmoid", "Add", "Mul"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("g = Sigmoid(x) p = Mul(x, g) y = Add(x, p)", "not known to be smaller"),
        ("g = ReduceMean(x) p = Mul(x, g) y = Add(x, p) z = Exp(p)", "reads the product"),
        ("p = Mul(x, x) y = Add(x, p)", ""),
        ("g = ReduceMean(x) p = Mul(x, g) y = Sub(x, p)", ""),
        ("g = Sigmoid(u) p = Mul(x, g) y = Add(x, p)", "not known to be smaller"),
    ],
)
def test_other_sums_stay(body: str, reason: str) -> None:
    model = parse(
        f"g (float[2, 3] x, float[k, m] u) => (float[p0, q0] y, float[p1, q1] z) {{ {body} }}"
        if "z =" in body
        else f"g (float[2, 3] x, float[k, m] u) => (float[p0, q0] y) {{ {body} }}"
    )
    untouched(model, PASS, reason)


# All together


def test_learnable_affine_block_keeps_one_step() -> None:
    """Conv, scale, shift, hard swish, scale, shift, padded Conv: one shift is left between."""
    model = parse(
        """g (float[n, 4, h, v] x) => (float[n, 8, h, v] y) {
            a = Conv(x, u) b = Mul(s, a) c = Add(b, t) d = HardSwish(c)
            e = Mul(p, d) f = Add(e, q) y = Conv <pads = [1, 1, 1, 1]> (f, w)
        }""",
        {"u": normal(4, 4, 1, 1), "w": normal(8, 4, 3, 3)}
        | {"s": normal(1), "t": normal(1), "p": normal(1), "q": normal(1)},
    )
    optimized = optimize(model, PASS, feed(2, 4, 5, 5))
    assert op_types(optimized) == ["Conv", "HardSwish", "Add", "Conv"]


def test_nothing_unused_is_left() -> None:
    model = parse(
        """g (float[n, 3, h, v] x) => (float[n, 4, h, v] y) {
            a = Conv(x, w) b = Mul(a, s) c = Add(b, t) y = Relu(c)
        }""",
        conv_weights(4, 3, 1, 1),
    )
    optimized, _ = apply(model, PASS)
    assert len(optimized.graph.initializers) == 2


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["Mul", "Add", "Sub", "Div", "BatchNormalization"]),
        st.sampled_from([(), (1,), (4, 1, 1), (1, 4, 1, 1), (1, 1, 1)]),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@given(_STEPS, _STEPS, st.sampled_from([1, 2, 4]), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_any_steps_around_two_convolutions(
    between: list[tuple[str, tuple[int, ...], bool]],
    before: list[tuple[str, tuple[int, ...], bool]],
    groups: int,
    padded: bool,
    seed: int,
) -> None:
    draw = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}

    def constant(array: np.ndarray) -> str:
        name = f"c{len(weights)}"
        weights[name] = array.astype(np.float32)
        return name

    def spell(steps: list[tuple[str, tuple[int, ...], bool]], value: str) -> tuple[str, str]:
        lines = ""
        for place, (op_type, shape, swap) in enumerate(steps):
            result = f"{value}_{place}"
            if op_type == "BatchNormalization":
                parts = [constant(draw.uniform(0.5, 1.5, 4)) for _ in range(4)]
                lines += f"{result} = BatchNormalization({value}, {', '.join(parts)})\n"
            else:
                operands = [value, constant(draw.uniform(0.5, 1.5, shape))]
                if swap and op_type != "Div":
                    operands.reverse()
                lines += f"{result} = {op_type}({', '.join(operands)})\n"
            value = result
        return lines, value

    first, value = spell(before, "x")
    second, last = spell(between, "a")
    pads = "pads = [1, 1, 1, 1], " if padded else ""
    u, w = constant(draw.standard_normal((4, 4 // groups, 2, 2))), ""
    w = constant(draw.standard_normal((4, 4, 1, 1)))
    model = parse(
        f"""g (float[n, 4, h, v] x) => (float[n, 4, p, q] y) {{
            {first} a = Conv <{pads}group = {groups}> ({value}, {u})
            {second} r = Sigmoid({last}) y = Conv(r, {w})
        }}""",
        weights,
    )
    optimized = optimize(model, PASS, feed(2, 4, 4, 3), rtol=1e-3, atol=1e-4)
    kinds = op_types(optimized)
    assert kinds[-3:] == ["Conv", "Sigmoid", "Conv"]
    assert len(kinds) <= (5 if padded else 3)
