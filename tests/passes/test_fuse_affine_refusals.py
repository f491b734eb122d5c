"""fuse-affine: steps after a linear operator that must stay."""

from __future__ import annotations

import numpy as np
import pytest

from tests.differential import op_types, optimize, parse, untouched

PASS = "infer-shapes,fuse-affine"

rng = np.random.default_rng(8)


def feed(*shape: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(dtype)}


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def conv_weights(*shape: int) -> dict[str, np.ndarray]:
    return {"w": normal(*shape), "s": normal(shape[0], 1, 1), "t": normal(shape[0], 1, 1)}


def _statistics(size: int) -> dict[str, np.ndarray]:
    return {"g": normal(size), "b": normal(size), "m": normal(size), "v": normal(size) ** 2 + 0.1}


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
