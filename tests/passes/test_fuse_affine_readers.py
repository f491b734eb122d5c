"""fuse-affine: steps before linear operators, and what lies between."""

from __future__ import annotations

import numpy as np
import pytest

from tests.differential import op_types, optimize, parse, untouched

PASS = "infer-shapes,fuse-affine"

rng = np.random.default_rng(9)


def feed(*shape: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(dtype)}


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def _statistics(size: int) -> dict[str, np.ndarray]:
    return {"g": normal(size), "b": normal(size), "m": normal(size), "v": normal(size) ** 2 + 0.1}


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


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = Add(x, s) b = Relu(a) y = MatMul(b, w)", "shift does not pass a rectifier"),
        ("a = Mul(x, s) b = PRelu(z, a) y = MatMul(b, w)", "read as a slope"),
        ("a = Mul(x, s) b = Div(z, a) y = MatMul(b, w)", "a divisor"),
        ("a = Add(x, s) b = Mul(a, z) y = MatMul(b, w)", "shift does not pass a product"),
        ("a = Mul(x, u) b = Add(a, v) y = MatMul(b, w)", "would be larger"),
    ],
)
def test_paths_that_are_closed(body: str, reason: str) -> None:
    model = parse(
        f"g (float[2, 64, 64] x, float[2, 64, 64] z) => (float[2, 64, 5] y) {{ {body} }}",
        {"w": normal(64, 5), "s": np.abs(normal(1)), "u": normal(64), "v": normal(64, 1)},
    )
    untouched(model, PASS, reason)


@pytest.mark.parametrize(
    ("attributes", "roi", "reason"),
    [
        ('mode = "linear"', "", None),
        ('mode = "linear", antialias = 1', "", "sum to one"),
        ('mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize"', "r", "extrap"),
    ],
)
def test_steps_before_resize(attributes: str, roi: str, reason: str | None) -> None:
    model = parse(
        f"""g (float[1, 2, 6, 6] x) => (float[1, 3, 3, 3] y) {{
            a = Add(x, t) b = Resize <{attributes}> (a, {roi}, k) y = Conv(b, w)
        }}""",
        {"w": normal(3, 2, 1, 1), "t": normal(1), "k": np.array([1, 1, 0.5, 0.5], np.float32)}
        | ({"r": np.array([0, 0, 0, 0, 1, 1, 2, 2], np.float32)} if roi else {}),
    )
    if reason is not None:
        untouched(model, PASS, reason)
    else:
        assert op_types(optimize(model, PASS, feed(1, 2, 6, 6))) == ["Resize", "Conv"]


def test_scale_passes_products_however_they_broadcast() -> None:
    model = parse(
        """g (float[4] x, float[n, 3, 4] z) => (float[n, 3, 5] y) {
            a = Mul(x, s) b = Mul(z, a) c = Mul(b, t) d = Add(c, r) y = MatMul(d, w)
        }""",
        {"w": normal(4, 5), "s": normal(4), "t": normal(1, 4), "r": normal(3, 1)},
    )
    optimized = optimize(model, PASS, feed(4) | {"z": normal(2, 3, 4)})
    assert op_types(optimized) == ["Mul", "Add", "MatMul"]


def test_scale_read_in_a_branch_stays() -> None:
    model = parse(
        """g (bool c, float[2, 4] x) => (float[2, 5] y) {
            a = Mul(x, s)
            y = If (c) <
                then_branch = t () => (float[2, 5] t1) { t1 = MatMul(a, w) },
                else_branch = e () => (float[2, 5] e1) { e1 = MatMul(a, v) }
            >
        }""",
        {"w": normal(4, 5), "v": normal(4, 5), "s": normal(1)},
    )
    untouched(model, PASS, "body of control flow")


def test_scale_read_by_another_domain_stays() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "custom" : 1]>
        g (float[2, 4] x) => (float[2, 5] y, float[2, 4] z) {
            a = Mul(x, s) y = MatMul(a, w) z = custom.MatMul(a, w)
        }""",
        {"w": normal(4, 5), "s": normal(1)},
    )
    untouched(model, PASS, "another domain")


def test_scale_with_very_many_readers_stays() -> None:
    reads = " ".join(f"b{i} = MatMul(a, w)" for i in range(65))
    total = ", ".join(f"b{i}" for i in range(65))
    model = parse(
        f"g (float[2, 4] x) => (float[2, 5] y) {{ a = Mul(x, s) {reads} y = Sum({total}) }}",
        {"w": normal(4, 5), "s": normal(1)},
    )
    untouched(model, PASS, "too many readers")
