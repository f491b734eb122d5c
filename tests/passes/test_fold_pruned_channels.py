"""fold-pruned-channels: how constant channels come through each operator, and what they add."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.differential import optimize, parse, run, untouched
from tests.passes.pruning import PASS, between, folded, normal, pruned, refused, removed

FEEDS = ({"x": normal(2, 3, 9, 11)}, {"x": normal(1, 3, 12, 8)})
DEAD = 3


def vector(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


# What keeps a channel constant


@pytest.mark.parametrize(
    "operator",
    """Relu LeakyRelu HardSwish Sigmoid HardSigmoid Tanh Softplus Elu Selu Exp Erf Softsign Mish
    Neg Abs Identity ThresholdedRelu Celu""".split(),  # noqa: SIM905 - easier to read
)
def test_activation(operator: str) -> None:
    folded(between(f"s = {operator}(r)"), DEAD, *FEEDS)


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        ("s = Clip(r, low, high)", {"low": np.float32(0.5), "high": np.float32(0.75)}),
        ("s = Clip(r, low)", {"low": np.float32(2)}),
        ("s = PRelu(r, slope)", {"slope": normal(8, 1, 1)}),
        ("s = PRelu(r, slope)", {"slope": normal(1)}),
        ("s = Add(r, c)", {"c": normal(8, 1, 1)}),
        ("s = Sub(c, r)", {"c": normal(1, 8, 1, 1)}),
        ("s = Div(r, c)", {"c": vector(3)}),
        ("s = Pow(r, c)", {"c": np.float32(2)}),
        ("t = Sigmoid(r)\ns = Mul(r, t)", {}),
        ("t = Relu(r)\ns = Add(r, t)", {}),
        ("s = Max(r, c)", {"c": normal(8, 1, 1)}),
        ("s = Dropout(r)", {}),
        ("t = Cast <to = 11> (r)\ns = Cast <to = 1> (t)", {}),
        ("s = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r)", {}),
        ("s = AveragePool <kernel_shape = [2, 3]> (r)", {}),
        ("s = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r)", {}),
        ("s = GlobalAveragePool(r)", {}),
        ("s = GlobalMaxPool(r)", {}),
        ("s = ReduceMean(r, a)", {"a": ints(2, 3)}),
        ("s = ReduceMax(r, a)", {"a": ints(-1)}),
        ('s = Pad <mode = "reflect"> (r, p)', {"p": ints(0, 0, 1, 1, 0, 0, 2, 1)}),
        ('s = Pad <mode = "edge"> (r, p, , a)', {"p": ints(1, 2), "a": ints(2)}),
        ("s = Resize(r, , f)", {"f": vector(1, 1, 2, 3)}),
        ('s = Resize <mode = "linear"> (r, , f)', {"f": vector(1, 1, 2, 1.5)}),
        ("s = Resize(r, , , z)", {"z": ints(1, 8, 7, 5)}),
        ("s = Resize <axes = [2, 3]> (r, , , z)", {"z": ints(7, 5)}),
        ("s = InstanceNormalization(r, g, c)", {"g": normal(8), "c": normal(8)}),
        (
            "s = BatchNormalization(r, g, c, m, v)",
            {"g": normal(8), "c": normal(8), "m": normal(8), "v": normal(8) ** 2 + 0.1},
        ),
        ("s = Conv <group = 8> (r, d, c)", {"d": normal(8, 1, 3, 3), "c": normal(8)}),
        ("s = Conv <group = 8> (r, d)", {"d": normal(8, 1, 3, 3)}),
        ("t = Transpose <perm = [2, 1, 0, 3]> (r)\ns = Transpose <perm = [2, 1, 0, 3]> (t)", {}),
        ("s = Tile(r, t)", {"t": ints(1, 1, 2, 1)}),
    ],
)
def test_operator(text: str, constants: dict[str, np.ndarray]) -> None:
    sizes = ({"x": normal(1, 3, 9, 11)},) if "Resize(r, , , z)" in text else FEEDS
    folded(between(text, constants), DEAD, *sizes)


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        # The border differs from the inside.
        (
            "s = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], "
            "count_include_pad = 1> (r)",
            {},
        ),
        ("s = Pad(r, p)", {"p": ints(0, 0, 1, 1, 0, 0, 2, 1)}),
        (
            "s = Conv <group = 8, pads = [1, 1, 1, 1]> (r, d, c)",
            {"d": normal(8, 1, 3, 3), "c": normal(8)},
        ),
        # Others than a mean.
        ("s = ReduceSum(r, a)", {"a": ints(2, 3)}),
        ('s = Resize <mode = "cubic"> (r, , f)', {"f": vector(1, 1, 2, 2)}),
        # Another number at each place.
        ("s = Add(r, c)", {"c": normal(8, 1, 11)}),
    ],
)
def test_no_longer_constant(text: str, constants: dict[str, np.ndarray]) -> None:
    assert removed(between(text, constants)) == 0
    optimize(between(text, constants), PASS, FEEDS[0])


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        (
            "s = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], "
            "count_include_pad = 1> (r)",
            {},
        ),
        ("s = Pad(r, p)", {"p": ints(0, 0, 1, 1, 0, 0, 2, 1)}),
        (
            "s = Conv <group = 8, pads = [1, 1, 1, 1]> (r, d, c)",
            {"d": normal(8, 1, 3, 3), "c": normal(8)},
        ),
        ("s = Conv <group = 8, pads = [1, 1, 1, 1]> (r, d)", {"d": normal(8, 1, 3, 3)}),
        ("s = ReduceSum(r, a)", {"a": ints(2, 3)}),
    ],
)
def test_zero_stays_zero(text: str, constants: dict[str, np.ndarray]) -> None:
    folded(between(text, constants, bias=np.nan), DEAD, *FEEDS)


def test_constant_padding_with_the_constant_itself() -> None:
    text = "t = Clip(r, one, two)  s = Pad(t, p, two)"
    constants = {
        "one": np.array(1, np.float32),
        "two": np.array(2, np.float32),
        "p": ints(0, 0, 1, 1, 0, 0, 2, 1),
    }
    folded(between(text, constants, bias=9.0), DEAD, *FEEDS)


@pytest.mark.parametrize(
    ("text", "constants", "reason"),
    [
        ("s = Softmax <axis = 1> (r)", {}, "normalized over the channels"),
        ("s = LRN <size = 3> (r)", {}, "read by LRN"),
        ("s = LayerNormalization <axis = 1> (r, g)", {"g": normal(1)}, "LayerNormalization"),
        ("t = ReduceMean(r, a)\ns = Sub(r, t)", {"a": ints(1)}, "reduced over the channels"),
        ("s = DepthToSpace <blocksize = 1> (r)", {}, "read by DepthToSpace"),
        ("s = CumSum(r, a)", {"a": np.array(1, np.int64)}, "read by CumSum"),
        ("s = Pad(r, p)", {"p": ints(0, 1, 0, 0, 0, -1, 0, 0)}, "channels are padded"),
    ],
)
def test_not_followed(text: str, constants: dict[str, np.ndarray], reason: str) -> None:
    untouched(between(text, constants), PASS, reason)


# What makes a channel constant


def test_sums_that_are_zero_prove_nothing() -> None:
    sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)
    weights = np.broadcast_to(sobel, (8, 4, 3, 3)).copy()
    model = parse(
        "g (float[n, 4, h, v] x) => (float[n, 5, p, q] y) { s = Conv(x, w1)  y = Conv(s, w2) }",
        {"w1": weights, "w2": normal(5, 8, 1, 1)},
    )
    untouched(model, PASS)


def test_scale_of_zero() -> None:
    scale = normal(8)
    scale[[0, 2, 7]] = 0
    model = parse(
        """g (float[n, 4, h, v] x) => (float[n, 5, p, q] y) {
            r = Conv(x, w1)  b = BatchNormalization(r, g, c, m, v0)
            s = Relu(b)  y = Conv(s, w2)
        }""",
        {
            "w1": normal(8, 4, 3, 3),
            "g": scale,
            "c": normal(8),
            "m": normal(8),
            "v0": normal(8) ** 2,
            "w2": normal(5, 8, 3, 3),
        },
    )
    folded(model, 3, {"x": normal(2, 4, 9, 9)})


def test_channels_that_nothing_reads() -> None:
    second = normal(5, 8, 3, 3)
    second[:, [0, 6]] = 0
    model = parse(
        """g (float[n, 4, h, v] x) => (float[n, 5, p, q] y) {
            r = Conv(x, w1)  s = Tanh(r)  y = Conv <pads = [1, 1, 1, 1]> (s, w2)
        }""",
        {"w1": normal(8, 4, 3, 3), "w2": second},
    )
    folded(model, 2, {"x": normal(2, 4, 9, 9)})


def test_what_follows_from_a_removal() -> None:
    # The only readers of two channels of the first layer are rows of the second that nobody reads.
    second, third = normal(8, 8, 3, 3), normal(5, 8, 3, 3)
    second[:3] = second[:3] * 0 + 1
    second[3:, [1, 2]] = 0
    third[:, :3] = 0
    model = parse(
        """g (float[n, 4, h, v] x) => (float[n, 5, p, q] y) {
            r = Conv(x, w1)  s = Tanh(r)  t = Conv <pads = [1, 1, 1, 1]> (s, w2)
            u = Relu(t)  y = Conv <pads = [1, 1, 1, 1]> (u, w3)
        }""",
        {"w1": normal(8, 4, 3, 3), "w2": second, "w3": third},
    )
    folded(model, 5, {"x": normal(2, 4, 9, 9)})


def test_constants_through_two_layers() -> None:
    # The second layer reads constants only, in some rows.
    second = normal(8, 8, 1, 1)
    second[:4, [0, 2, 3, 6, 7]] = 0
    model = parse(
        """g (float[n, 3, h, v] x) => (float[n, 5, p, q] y) {
            r = Conv(x, w1, b1)  s = Sigmoid(r)  t = Conv(s, w2, b2)
            u = Sigmoid(t)  y = Conv(u, w3)
        }""",
        {
            "w1": pruned(8, 3, 3, 3),
            "b1": normal(8),
            "w2": second,
            "b2": normal(8),
            "w3": normal(5, 8, 1, 1),
        },
    )
    folded(model, 3 + 4, {"x": normal(2, 3, 9, 9)})


def test_of_a_tensor_of_constants_one_is_left() -> None:
    model = parse(
        """g (float[n, 3, h, v] x) => (float[n, 5, p, q] y) {
            r = Conv(x, w1, b1)  s = Relu(r)  y = Conv(s, w2)
        }""",
        {"w1": normal(8, 3, 1, 1) * 0, "b1": normal(8), "w2": normal(5, 8, 1, 1)},
    )
    folded(model, 7, {"x": normal(2, 3, 4, 4)})


# What reads them


@pytest.mark.parametrize("strides", [1, 2])
def test_padding_leaves_a_carrier(strides: int) -> None:
    consumer = f"y = Conv <pads = [1, 1, 1, 1], strides = [{strides}, {strides}]> (s, w3)"
    model = between("s = HardSwish(r)", {"w3": normal(5, 8, 3, 3)}, consumer=consumer)
    optimized = folded(model, DEAD - 1, *FEEDS)
    assert optimized.graph.initializers["w3"].shape == (5, 6, 3, 3)
    assert any("carries" in reason for reason in refused(model))
    # Dropping what the constants add, or adding it everywhere, is far off.
    expected, dropped = _without(model)
    assert np.abs(expected - dropped).max() > 0.1


def _without(model: onnx.ModelProto) -> tuple[np.ndarray, np.ndarray]:
    """The output, and what it is when the constants are dropped."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        if tensor.name == "w3":
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[:, [1, 4, 5]] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, "w3"))
    return run(model, FEEDS[0])[0], run(other, FEEDS[0])[0]


@pytest.mark.parametrize(
    ("attributes", "count"),
    [
        ("", 3),
        ('auto_pad = "VALID"', 3),
        ('auto_pad = "SAME_UPPER"', 2),
        ("dilations = [2, 2], pads = [0, 1, 0, 0]", 2),
    ],
)
def test_pads_of_the_reader(attributes: str, count: int) -> None:
    consumer = f"y = Conv <{attributes}> (s, w3, b2)" if attributes else "y = Conv (s, w3, b2)"
    folded(between("s = Sigmoid(r)", {"w3": normal(5, 8, 3, 3)}, consumer=consumer), count, *FEEDS)


def test_two_readers_share_a_carrier() -> None:
    consumer = """t = Conv <pads = [1, 1, 1, 1]> (s, w3)
        u = Conv <pads = [1, 1, 1, 1]> (s, w4)  z = Conv(s, w2)
        o = Add(t, u)  y = Add(o, z)"""
    constants = {"w3": normal(5, 8, 3, 3), "w4": normal(5, 8, 3, 3, seed=1)}
    folded(between("s = Sigmoid(r)", constants, consumer=consumer), DEAD - 1, *FEEDS)


@pytest.mark.parametrize("attributes", ["", "<pads = [1, 1, 1, 1], strides = [2, 2]>"])
def test_transposed_convolution(attributes: str) -> None:
    consumer = f"y = ConvTranspose {attributes} (s, w3, b2)"
    model = between("s = Sigmoid(r)", {"w3": normal(8, 5, 3, 3)}, consumer=consumer)
    folded(model, DEAD - 1, *FEEDS)
    plain = between(
        "s = Sigmoid(r)", {"w3": normal(8, 5, 1, 1)}, consumer="y = ConvTranspose(s, w3)"
    )
    folded(plain, DEAD, *FEEDS)


def test_transposed_convolution_makes_constants() -> None:
    weights = normal(3, 8, 2, 2)
    weights[:, [0, 3]] = 0
    model = parse(
        """g (float[n, 3, h, v] x) => (float[n, 5, p, q] y) {
            r = ConvTranspose <strides = [2, 2]> (x, w1, b1)  s = Relu(r)  y = Conv(s, w2)
        }""",
        {"w1": weights, "b1": normal(8) + 1, "w2": normal(5, 8, 3, 3)},
    )
    folded(model, 2, {"x": normal(2, 3, 4, 4)})


HEADS = [
    ("y = Gemm(f, k, c)", (8, 6)),
    ("y = Gemm(f, k)", (8, 6)),
    ("y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (f, k, c)", (6, 8)),
    ("m = MatMul(f, k)  y = Add(m, c)", (8, 6)),
]


@pytest.mark.parametrize(("head", "shape"), HEADS)
@pytest.mark.parametrize("flat", ["Flatten(s)", "Reshape(s, z)", "Squeeze(s, a)"])
def test_head_after_pooling(head: str, shape: tuple[int, int], flat: str) -> None:
    constants = {"k": normal(*shape), "c": normal(6), "z": ints(-1, 8), "a": ints(2, 3)}
    text = f"t = Sigmoid(r)  s = GlobalAveragePool(t)  f = {flat}"
    model = between(text, constants, consumer=head, rank=2)
    folded(model, DEAD, *FEEDS)


def test_product_without_a_bias() -> None:
    text = "t = Sigmoid(r)  s = GlobalAveragePool(t)  f = Flatten(s)"
    folded(
        between(text, {"k": normal(8, 6)}, consumer="y = MatMul(f, k)", rank=2), DEAD - 1, *FEEDS
    )


@pytest.mark.parametrize("order", ["Flatten(s)", "Reshape(s, z)"])
def test_flatten_with_height_and_width(order: str) -> None:
    model = parse(
        f"""g (float[n, 3, 6, 5] x) => (float[n, 6] y) {{
            r = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  s = HardSwish(r)
            f = {order}  y = Gemm(f, k, c)
        }}""",
        {
            "w1": pruned(8, 3, 3, 3),
            "b1": normal(8) + 1,
            "z": ints(-1, 240),
            "k": normal(240, 6),
            "c": normal(6),
        },
    )
    optimized = folded(model, DEAD, {"x": normal(4, 3, 6, 5)})
    assert optimized.graph.initializers["k"].shape == (150, 6)


def test_channels_last_before_the_head() -> None:
    model = parse(
        """g (float[n, 3, 6, 5] x) => (float[n, 6] y) {
            r = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  s = HardSwish(r)
            t = Transpose <perm = [0, 2, 3, 1]> (s)  f = Flatten(t)  y = Gemm(f, k, c)
        }""",
        {"w1": pruned(8, 3, 3, 3), "b1": normal(8) + 1, "k": normal(240, 6), "c": normal(6)},
    )
    folded(model, DEAD, {"x": normal(4, 3, 6, 5)})


def test_feed_forward_of_a_transformer() -> None:
    first, bias = normal(6, 16), normal(16)
    first[:, [0, 3, 9]] = 0
    model = parse(
        """g (float[n, l, 6] x) => (float[n, l, 6] y) {
            a = MatMul(x, w1)  b = Add(a, b1)  d = Div(b, root)  e = Erf(d)  f = Add(e, one)
            g0 = Mul(b, f)  h = Mul(g0, half)  i = MatMul(h, w2)  j = Add(i, b2)  y = Add(j, x)
        }""",
        {
            "w1": first,
            "b1": bias,
            "root": np.array(1.41421356, np.float32),
            "one": np.array(1, np.float32),
            "half": np.array(0.5, np.float32),
            "w2": normal(16, 6),
            "b2": normal(6),
        },
    )
    folded(model, 3, {"x": normal(2, 7, 6)}, {"x": normal(1, 3, 6)})


# Element types, opsets, places


def test_half_precision() -> None:
    model = parse(
        """g (float16[n, 3, h, v] x) => (float16[n, 5, p, q] y) {
            r = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  s = Sigmoid(r)
            y = Conv <pads = [1, 1, 1, 1]> (s, w2)
        }""",
        {
            "w1": pruned(8, 3, 3, 3).astype(np.float16),
            "b1": normal(8).astype(np.float16),
            "w2": normal(5, 8, 3, 3).astype(np.float16),
        },
    )
    feed = {"x": normal(2, 3, 8, 8).astype(np.float16)}
    folded(model, DEAD - 1, feed, rtol=2e-2, atol=2e-2)


def test_double_precision() -> None:
    first = normal(6, 8).astype(np.float64)
    first[:, [1, 2]] = 0
    model = parse(
        "g (double[n, 6] x) => (double[n, 5] y) "
        "{ r = Gemm(x, w1, b1)  s = Sigmoid(r)  y = Gemm(s, w2) }",
        {"w1": first, "b1": normal(8).astype(np.float64), "w2": normal(8, 5).astype(np.float64)},
    )
    feed = {"x": normal(3, 6).astype(np.float64)}
    folded(model, 2, feed, rtol=1e-12, atol=1e-12)


def test_half_precision_that_would_overflow() -> None:
    model = parse(
        """g (float16[n, 3, h, v] x) => (float16[n, 5, p, q] y) {
            r = Conv(x, w1, b1)  s = Relu(r)  y = Conv(s, w2)
        }""",
        {
            "w1": pruned(8, 3, 1, 1).astype(np.float16),
            "b1": np.full(8, 300, np.float16),
            "w2": np.full((5, 8, 1, 1), 100, np.float16),
        },
    )
    untouched(model, PASS, "out of range")


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 17, 20, 22])
def test_opsets(opset: int) -> None:
    text = """n0 = BatchNormalization(r, g, c, m, v0)
        p0 = Relu(n0)  q0 = MaxPool <kernel_shape = [2, 2]> (p0)  s = GlobalAveragePool(q0)"""
    constants = {"g": normal(8), "c": normal(8), "m": normal(8), "v0": normal(8) ** 2 + 0.1}
    folded(between(text, constants, opset=opset), DEAD, *FEEDS)


@pytest.mark.parametrize(
    ("opset", "text"),
    [
        (10, "s = ReduceMean <axes = [2]> (r)"),
        (10, 's = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1], mode = "edge"> (r)'),
        (9, "s = Upsample(r, f)"),
        (10, "s = Resize(r, f)"),
        (10, "s = Clip <min = 0.25> (r)"),
        (11, "t = Unsqueeze <axes = [0]> (r)\ns = Squeeze <axes = [0]> (t)"),
    ],
)
def test_attributes_of_old_opsets(opset: int, text: str) -> None:
    folded(between(text, {"f": vector(1, 1, 2, 2)}, opset=opset), DEAD, *FEEDS)


def test_in_a_body_and_in_a_function() -> None:
    nodes = "r = Conv(x, w1, b1)  s = Sigmoid(r)  z = Conv(s, w2)"
    body = parse(
        f"""g (bool c, float[n, 3, h, v] x) => (float[n, 5, p, q] y) {{
            y = If(c) <then_branch = one () => (float[n, 5, p, q] z) {{ {nodes} }},
                       else_branch = other () => (float[n, 5, p, q] z) {{ z = Conv(x, w3) }}>
        }}""",
        {
            "w1": pruned(8, 3, 1, 1),
            "b1": normal(8),
            "w2": normal(5, 8, 1, 1),
            "w3": normal(5, 3, 1, 1),
        },
    )
    for flag in (True, False):
        folded(body, DEAD, {"c": np.array(flag), "x": normal(2, 3, 4, 4)})


def test_shared_constants_are_not_changed() -> None:
    # Two layers share one bias; another reads it as well.
    model = parse(
        """g (float[n, 3, h, v] x) => (float[n, 5, p, q] y, float[8] z) {
            r = Conv(x, w1, b1)  s = Sigmoid(r)  t = Conv(s, w2, b1)  u = Sigmoid(t)
            y = Conv(u, w3)  z = Neg(b1)
        }""",
        {
            "w1": pruned(8, 3, 1, 1),
            "b1": normal(8),
            "w2": pruned(8, 8, 1, 1, dead=(2,)),
            "w3": normal(5, 8, 1, 1),
        },
    )
    folded(model, DEAD + 1, {"x": normal(2, 3, 4, 4)})


# What stays


def test_weights_that_two_layers_share() -> None:
    model = parse(
        """g (float[n, 8, h, v] x) => (float[n, 5, p, q] y) {
            r = Conv(x, w1, b1)  s = Relu(r)  t = Conv(s, w1, b1)  u = Relu(t)  y = Conv(u, w2)
        }""",
        {"w1": pruned(8, 8, 1, 1), "b1": normal(8), "w2": normal(5, 8, 1, 1)},
    )
    untouched(model, PASS)


def test_output_of_the_graph() -> None:
    model = parse(
        """g (float[n, 3, h, v] x) => (float[n, 8, p, q] s, float[n, 5, p, q] y) {
            r = Conv(x, w1, b1)  s = Relu(r)  y = Conv(s, w2)
        }""",
        {"w1": pruned(8, 3, 1, 1), "b1": normal(8), "w2": normal(5, 8, 1, 1)},
    )
    untouched(model, PASS, "part of an output of the graph")


def test_reader_of_another_domain() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
        g (float[n, 3, h, v] x) => (float[n, 5, p, q] y) {
            r = Conv(x, w1, b1)  s = com.microsoft.FastGelu(r)  y = Conv(s, w2)
        }""",
        {"w1": pruned(8, 3, 1, 1), "b1": normal(8), "w2": normal(5, 8, 1, 1)},
    )
    untouched(model, PASS, "read by FastGelu")


def test_reader_in_a_body() -> None:
    model = parse(
        """g (bool c, float[n, 3, h, v] x) => (float[n, 5, p, q] y) {
            r = Conv(x, w1, b1)  s = Relu(r)
            y = If(c) <then_branch = one () => (float[n, 5, p, q] z) { z = Conv(s, w2) },
                       else_branch = other () => (float[n, 5, p, q] z) { z = Conv(s, w3) }>
        }""",
        {
            "w1": pruned(8, 3, 1, 1),
            "b1": normal(8),
            "w2": normal(5, 8, 1, 1),
            "w3": normal(5, 8, 1, 1, seed=1),
        },
    )
    untouched(model, PASS, "read in a body of control flow")


def test_overridable_weights() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (float[n, 3, h, v] x, float[8, 3, 1, 1] w1) => (float[n, 5, p, q] y) {
            r = Conv(x, w1, b1)  s = Relu(r)  y = Conv(s, w2)
        }""",
        {"w1": pruned(8, 3, 1, 1), "b1": normal(8), "w2": normal(5, 8, 1, 1)},
    )
    untouched(model, PASS)


def test_size_that_is_read_from_the_shape() -> None:
    text = """z = Shape(r)  i = Gather(z, one)  j = Cast <to = 1> (i)  s = Mul(r, j)"""
    model = between(text, {"one": np.array(1, np.int64)})
    untouched(model, PASS, "read from the shape")


# Widths


def test_widths_are_rounded_up() -> None:
    pipeline = "infer-shapes,fold-pruned-channels"
    model = parse(
        """g (float[n, 3, h, v] x) => (float[n, 5, p, q] y) {
            r = Conv(x, w1, b1)  s = Relu(r)  y = Conv(s, w2)
        }""",
        {
            "w1": pruned(16, 3, 3, 3, dead=(0, 1, 4, 5, 9)),
            "b1": normal(16),
            "w2": normal(5, 16, 3, 3),
        },
    )
    optimized = folded(model, 4, {"x": normal(1, 3, 8, 8)}, pipeline=pipeline)
    assert optimized.graph.initializers["w1"].shape == (12, 3, 3, 3)
    assert any("odd number" in reason for reason in refused(model, pipeline))
