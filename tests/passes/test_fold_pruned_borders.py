"""fold-pruned-channels behind padded depthwise convolutions: constants but for the border."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxopt.channels.borders import windows
from tests.differential import optimize, parse
from tests.passes.pruning import PASS, folded, normal, pruned, refused, removed

#: Heights and widths with all kinds of places: ends that meet, one element, none inside.
FEEDS = tuple(
    {"x": normal(2, 3, height, width)}
    for height, width in ((9, 11), (8, 6), (1, 7), (2, 1), (1, 1), (3, 2))
)
WIDTH, DEAD = 64, tuple(range(4, 60))


def block(
    *,
    activation: str = "a = Relu(d)",
    attributes: str = "pads = [1, 1, 1, 1]",
    window: tuple[int, int] = (3, 3),
    sizes: str = "h, v",
    read: str = "y = Conv(a, w2, b2)",
    kernel: int = 1,
    arrays: dict[str, np.ndarray] | None = None,
    opset: int = 18,
) -> onnx.ModelProto:
    """An expansion of which most filters are zero, a depthwise convolution, a projection."""
    constants = {
        "w1": pruned(WIDTH, 3, 1, 1, dead=DEAD),
        "b1": normal(WIDTH) + np.float32(0.5),
        "wd": normal(WIDTH, 1, *window),
        "bd": normal(WIDTH),
        "w2": normal(5, WIDTH, kernel, kernel),
        "b2": normal(5),
        **(arrays or {}),
    }
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
    g (float[n, 3, {sizes}] x) => (float[n, 5, p, q] y) {{
        r = Conv(x, w1, b1)  e = LeakyRelu(r)
        d = Conv <group = {WIDTH}, {attributes}> (e, wd, bd)
        {activation}
        {read}
    }}"""
    return parse(text, {name: each for name, each in constants.items() if name in text})


@pytest.mark.parametrize(
    ("activation", "most"),
    # A bias takes what is the same everywhere. Sums of taps have 9 dimensions, and Relu makes 16.
    [("a = Identity(d)", 8), ("a = Relu(d)", 15), ("a = HardSwish(d)", 15)],
)
def test_a_few_carry_the_others(activation: str, most: int) -> None:
    optimized = folded(block(activation=activation), len(DEAD) - most, *FEEDS)
    shapes = {name: each.shape for name, each in optimized.graph.initializers.items()}
    left = WIDTH - len(DEAD) + most
    assert shapes["wd"] == (left, 1, 3, 3)
    assert shapes["w1"] == (left, 3, 1, 1)
    assert shapes["w2"] == (5, left, 1, 1)


def test_sizes_that_are_known_have_fewer_kinds_of_places() -> None:
    model = block(sizes="9, 11")
    folded(model, len(DEAD) - 8, FEEDS[0])
    assert "they carry what others add at the border of a depthwise convolution" in refused(model)


@pytest.mark.parametrize(
    "attributes",
    [
        "pads = [1, 1, 1, 1], strides = [2, 2]",
        "pads = [0, 1, 1, 0]",
        "pads = [2, 2, 2, 2], dilations = [2, 2]",
        "pads = [2, 0, 1, 2]",
        'auto_pad = "SAME_UPPER", strides = [2, 1]',
        'auto_pad = "SAME_LOWER"',
    ],
)
@pytest.mark.parametrize("opset", [9, 22])
def test_any_padding(attributes: str, opset: int) -> None:
    model = block(attributes=attributes, opset=opset)
    feeds = [each for each in FEEDS if min(each["x"].shape[2:]) > 2 or "SAME" in attributes]
    optimize(model, PASS, *feeds)
    assert removed(model) > 20


@pytest.mark.parametrize(
    "read",
    [
        "y = Conv <pads = [1, 1, 1, 1]> (a, w2, b2)",
        "y = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (a, w2)",
        "y = ConvTranspose <strides = [2, 2]> (a, w2, b2)",
    ],
)
def test_any_layer_that_reads(read: str) -> None:
    # Under padding no bias takes anything: one more has to stay.
    turned = {"w2": normal(WIDTH, 5, 3, 3)} if "Transpose" in read else {}
    folded(block(read=read, kernel=3, arrays=turned), len(DEAD) - 16, *FEEDS)


def test_groups_carry_their_own() -> None:
    read = "y = Conv <group = 2, pads = [0, 0, 0, 0]> (a, w2, b2)"
    arrays = {"w2": normal(6, WIDTH // 2, 1, 1), "b2": normal(6)}
    model = block(read=read, arrays=arrays)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 6
    folded(model, len(DEAD) - 30, *FEEDS)


def test_two_outputs_a_channel_of_which_some_are_not_read() -> None:
    first, taps = pruned(16, 3, 1, 1, dead=tuple(range(2, 16))), normal(32, 1, 3, 3)
    last = normal(5, 32, 1, 1)
    last[:, np.arange(32) % 3 == 0] = 0
    text = """g (float[n, 3, h, v] x) => (float[n, 5, p, q] y) {
        r = Conv(x, w1, b1)  d = Conv <group = 16, pads = [1, 1, 1, 1]> (r, wd, bd)
        a = Identity(d)  y = Conv(a, w2)
    }"""
    arrays = {"w1": first, "b1": normal(16), "wd": taps, "bd": normal(32), "w2": last}
    optimize(parse(text, arrays), PASS, *FEEDS)
    assert 0 < removed(parse(text, arrays)) < 14


def test_what_comes_between() -> None:
    arrays = {
        "s": normal(WIDTH),
        "m": normal(WIDTH),
        "v": np.abs(normal(WIDTH)) + 1,
        "t": np.array([40, 24], np.int64),
        "slope": normal(WIDTH, 1, 1),
    }
    between = """f = BatchNormalization(d, s, m, m, v)  g0 = Sigmoid(f)  g1 = Mul(f, g0)
        g2 = PRelu(g1, slope)  l, k = Split <axis = 1> (g2, t)  k2 = Tanh(k)
        a = Concat <axis = 1> (k2, l)"""
    optimized = optimize(block(activation=between, arrays=arrays), PASS, *FEEDS)
    assert optimized.graph.initializers["wd"].shape == (WIDTH - len(DEAD) + 15, 1, 3, 3)


def test_two_windows_side_by_side() -> None:
    # Channels behind different windows have no kinds of places in common.
    between = """o = Conv <group = 64, pads = [0, 0, 2, 2]> (e, w5, bd)
        c = Concat <axis = 1> (d, o)  a = Relu(c)"""
    arrays = {"w5": normal(WIDTH, 1, 3, 3, seed=5), "w2": normal(5, 2 * WIDTH, 1, 1)}
    optimized = optimize(block(activation=between, arrays=arrays), PASS, *FEEDS)
    left = optimized.graph.initializers["wd"].const_value
    assert left is not None
    # Each has carriers of its own, some in common.
    assert WIDTH - len(DEAD) + 15 <= len(left.numpy()) <= 40


@pytest.mark.parametrize(
    "between",
    [
        # Where windows meet there is no one kind of place.
        "o = Conv <group = 64, pads = [0, 0, 2, 2]> (e, w5, bd)  a = Add(d, o)",
        # Places move, or are read together.
        "t = Transpose <perm = [0, 1, 3, 2]> (d)  a = Relu(t)",
        "a = AveragePool <kernel_shape = [2, 2]> (d)",
        # What is behind one border is not constant in front of the next.
        "d2 = Relu(d)  a = Conv <group = 64, pads = [1, 1, 1, 1]> (d2, w5, bd)",
        # What differs by sample.
        "g0 = GlobalAveragePool(x)  g1 = Conv(g0, w1, b3)  a = Mul(d, g1)",
        "i = Identity(d)  a = Relu(i)  z = Identity(d)",
    ],
)
def test_what_is_no_function_of_one_kind_of_place(between: str) -> None:
    arrays = {"w5": normal(WIDTH, 1, 3, 3, seed=5), "b3": normal(WIDTH)}
    if "g1" in between:
        arrays["w1"] = normal(WIDTH, 3, 1, 1)
        between = between.replace("w1, b3", "w3, b3")
        arrays = {**arrays, "w3": normal(WIDTH, 3, 1, 1, seed=3)}
        del arrays["w1"]
    model = block(activation=between, arrays=arrays)
    if "z =" in between:
        model.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, [None] * 4))
    optimize(model, PASS, *FEEDS[:2])
    assert removed(model) == 0


def test_values_that_are_out_of_range_stay() -> None:
    model = block(arrays={"bd": np.full(WIDTH, np.inf, np.float32)})
    assert removed(model) == 0


def test_kinds_of_places() -> None:
    assert windows(None, 3, (1, 1), 1, 1) == ((0, 2), (0, 3), (1, 2), (1, 3))
    assert windows(8, 3, (1, 1), 1, 1) == ((0, 2), (0, 3), (1, 3))
    assert windows(1, 3, (1, 1), 1, 1) == ((1, 2),)
    assert windows(8, 3, (1, 1), 2, 1) == ((0, 3), (1, 3))
    assert windows(1, 2, (1, 1), 1, 2) == ((0, 0),)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(0, 5),
    st.integers(0, 5),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_sizes_that_are_not_known_have_all_kinds(
    taps: int, before: int, after: int, stride: int, dilation: int
) -> None:
    known: set[tuple[int, int]] = set()
    for size in range(1, 12):
        known.update(windows(size, taps, (before, after), stride, dilation))
    assert known <= set(windows(None, taps, (before, after), stride, dilation))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["Relu", "Sigmoid", "Elu", "HardSigmoid", "Identity"]),
    st.sampled_from([(3, 3), (3, 1), (2, 4)]),
    st.integers(1, 2),
)
def test_random_blocks(seed: int, activation: str, window: tuple[int, int], stride: int) -> None:
    rng = np.random.default_rng(seed)
    first = normal(WIDTH, 3, 1, 1, seed=seed)
    first[rng.random(WIDTH) < 0.7] = 0
    taps = normal(WIDTH, 1, *window, seed=seed) * np.float32(rng.choice([0.1, 1, 10]))
    taps[rng.random(WIDTH) < 0.2] = 0
    pads = [int(rng.integers(0, size)) for size in (*window, *window)]
    attributes = f"pads = {pads}, strides = [{stride}, {stride}]"
    arrays = {"w1": first, "wd": taps, "bd": normal(WIDTH, seed=seed)}
    model = block(
        activation=f"a = {activation}(d)", attributes=attributes, window=window, arrays=arrays
    )
    optimize(model, PASS, *FEEDS[:2])
