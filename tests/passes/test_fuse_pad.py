"""fuse-pad: Pad before convolutions and poolings, Pad after Pad."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.differential import op_types, optimize, parse, untouched

PASS = "infer-shapes,fuse-pad"

rng = np.random.default_rng(3)


def feed(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


# Conv


@pytest.mark.parametrize("own", ["", "<pads = [1, 0, 2, 1]>", '<auto_pad = "VALID">'])
@pytest.mark.parametrize("value", ["", ", zero", ", , axes"])
def test_zeros_before_conv(own: str, value: str) -> None:
    model = parse(
        f"""g (float[n, 3, h, v] x) => (float[n, 4, p, q] y) {{
            a = Pad(x, pads{value}) y = Conv {own} (a, w)
        }}""",
        {"w": normal(4, 3, 3, 3), "zero": number(0), "axes": ints(-1, -2)}
        | {"pads": ints(1, 2, 3, 0) if "axes" in value else ints(0, 0, 1, 2, 0, 0, 3, 0)},
    )
    assert op_types(optimize(model, PASS, feed(2, 3, 5, 4))) == ["Conv"]


def test_pad_with_attributes_before_opset_11() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 10]>
        g (float[n, 3, h] x) => (float[n, 4, p] y) {
            a = Pad <pads = [0, 0, 2, 0, 0, 1]> (x) y = Conv(a, w)
        }""",
        {"w": normal(4, 3, 3)},
    )
    assert op_types(optimize(model, PASS, feed(2, 3, 5))) == ["Conv"]


def test_padded_tensor_read_by_convs_alone() -> None:
    model = parse(
        """g (float[n, 3, h] x) => (float[n, 4, p] y) {
            a = Pad(x, pads) b = Conv(a, w) c = Conv <dilations = [2], pads = [1, 1]> (a, w)
            y = Add(b, c)
        }""",
        {"w": normal(4, 3, 3), "pads": ints(0, 0, 1, 0, 0, 1)},
    )
    assert op_types(optimize(model, PASS, feed(2, 3, 5))) == ["Conv", "Conv", "Add"]


@pytest.mark.parametrize(
    ("pad", "conv", "reason"),
    [
        ("Pad(x, pads, one)", "", "with zeros"),
        ('Pad <mode = "edge"> (x, pads)', "", "with a constant"),
        ('Pad <mode = "reflect"> (x, pads)', "", "with a constant"),
        ("Pad(x, cropping)", "", "crops"),
        ("Pad(x, channels)", "", "batch or channels"),
        ("Pad(x, pads)", '<auto_pad = "SAME_UPPER">', "depends on the size"),
    ],
)
def test_other_padding_stays_before_conv(pad: str, conv: str, reason: str) -> None:
    model = parse(
        f"g (float[1, 3, 5] x) => (float[1, 4, p] y) {{ a = {pad} y = Conv {conv} (a, w) }}",
        {"w": normal(4, 3 + ("channels" in pad), 3), "one": number(1)}
        | {"pads": ints(0, 0, 1, 0, 0, 1), "cropping": ints(0, 0, -1, 0, 0, 1)}
        | {"channels": ints(0, 1, 0, 0, 0, 0)},
    )
    untouched(model, PASS, reason)


@pytest.mark.parametrize("given", ["int64[6] pads", "float v"])
def test_padding_known_at_run_time_stays(given: str) -> None:
    model = parse(
        f"""g (float[1, 3, 5] x, {given}) => (float[1, 4, p] y) {{
            a = Pad(x, pads, v) y = Conv(a, w)
        }}""",
        {"w": normal(4, 3, 3)}
        | ({"v": number(0)} if "pads" in given else {"pads": ints(0, 0, 1, 0, 0, 1)}),
    )
    untouched(model, PASS, "constant")


@pytest.mark.parametrize("reader", ["Relu(a)", "MaxPool <kernel_shape = [3]> (a)"])
def test_padded_tensor_with_another_reader_stays(reader: str) -> None:
    model = parse(
        f"""g (float[1, 3, 5] x) => (float[1, 4, p] y, float[1, 3, q] z) {{
            a = Pad(x, pads) y = Conv(a, w) z = {reader}
        }}""",
        {"w": normal(4, 3, 3), "pads": ints(0, 0, 1, 0, 0, 1)},
    )
    untouched(model, PASS, "something else reads")


def test_padded_tensor_that_is_an_output_stays() -> None:
    model = parse(
        """g (float[1, 3, 5] x) => (float[1, 4, p] y, float[1, 3, 7] a) {
            a = Pad(x, pads) y = Conv(a, w)
        }""",
        {"w": normal(4, 3, 3), "pads": ints(0, 0, 1, 0, 0, 1)},
    )
    untouched(model, PASS, "something else reads")


def test_padded_weights_stay() -> None:
    model = parse(
        """g (float[1, 3, 5] x, float[4, 3, 2] w) => (float[1, 4, p] y) {
            a = Pad(w, pads) y = Conv(x, a)
        }""",
        {"pads": ints(0, 0, 0, 0, 0, 1)},
    )
    untouched(model, PASS)


# Poolings


@pytest.mark.parametrize(
    "own", ["", ", count_include_pad = 1", ", count_include_pad = 1, pads = [1, 1, 0, 1]"]
)
@pytest.mark.parametrize("opset", [7, 10, 11, 19])
def test_zeros_before_average_pool(own: str, opset: int) -> None:
    pad = "Pad <pads = [0, 0, 1, 0, 0, 0, 1, 1]> (x)" if opset < 11 else "Pad(x, pads)"
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[n, 3, h, v] x) => (float[n, 3, p, q] y) {{
            a = {pad} y = AveragePool <kernel_shape = [3, 3], strides = [2, 1]{own}> (a)
        }}""",
        {} if opset < 11 else {"pads": ints(0, 0, 1, 0, 0, 0, 1, 1)},
    )
    assert op_types(optimize(model, PASS, feed(2, 3, 6, 5))) == ["AveragePool"]


@pytest.mark.parametrize(
    ("value", "own", "reason"),
    [
        ("", ", pads = [1, 1, 1, 1]", "does not count its own"),
        (", one", "", "with zeros"),
        ("", ", ceil_mode = 1", "last window"),
        ("", ", dilations = [2, 2]", "dilated"),
        ("", ", count_include_pad = 1, pads = [2, 0, 0, 0]", "as large as the window"),
    ],
)
def test_average_pool_that_means_something_else_stays(value: str, own: str, reason: str) -> None:
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : 19]>
        g (float[1, 3, 6, 6] x) => (float[1, 3, p, q] y) {{
            a = Pad(x, pads{value}) y = AveragePool <kernel_shape = [3, 3]{own}> (a)
        }}""",
        {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1), "one": number(1)},
    )
    untouched(model, PASS, reason)


@pytest.mark.parametrize("value", [-np.inf, np.finfo(np.float32).min])
def test_minus_infinity_before_max_pool(value: float) -> None:
    model = parse(
        """g (float[n, 3, h, v] x) => (float[n, 3, p, q] y) {
            a = Pad(x, pads, v0)
            y = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 0, 0, 1]> (a)
        }""",
        {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1), "v0": number(value)},
    )
    assert op_types(optimize(model, PASS, feed(2, 3, 6, 5))) == ["MaxPool"]


@pytest.mark.parametrize("source", ["Relu(x)", "Sigmoid(x)", "Clip(x, zero, six)"])
def test_zeros_around_what_is_never_negative(source: str) -> None:
    model = parse(
        f"""g (float[n, 3, h, v] x) => (float[n, 3, p, q] y) {{
            r = {source} a = Pad(r, pads) y = MaxPool <kernel_shape = [3, 3]> (a)
        }}""",
        {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1), "zero": number(0), "six": number(6)},
    )
    assert op_types(optimize(model, PASS, feed(2, 3, 6, 5)))[-1] == "MaxPool"
    assert "Pad" not in op_types(optimize(model, PASS, feed(2, 3, 6, 5)))


@pytest.mark.parametrize(
    "source", ["Identity(x)", "Tanh(x)", "Clip(x, low, six)", "Clip(x, six, low)", "Clip(x)"]
)
def test_zeros_before_max_pool_stay(source: str) -> None:
    model = parse(
        f"""g (float[1, 3, 6, 6] x) => (float[1, 3, p, q] y) {{
            r = {source} a = Pad(r, pads) y = MaxPool <kernel_shape = [3, 3]> (a)
        }}""",
        {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1), "low": number(-1), "six": number(6)},
    )
    untouched(model, PASS, "may be larger than what it pads")


def test_positive_padding_around_what_is_never_negative_stays() -> None:
    model = parse(
        """g (float[1, 3, 6, 6] x) => (float[1, 3, p, q] y) {
            r = Relu(x) a = Pad(r, pads, one) y = MaxPool <kernel_shape = [3, 3]> (a)
        }""",
        {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1), "one": number(1)},
    )
    untouched(model, PASS, "may be larger than what it pads")


def test_positions_of_the_maxima_keep_the_padding() -> None:
    model = parse(
        """g (float[1, 3, 6, 6] x) => (float[1, 3, p, q] y, int64[1, 3, p, q] i) {
            a = Pad(x, pads, low) y, i = MaxPool <kernel_shape = [3, 3]> (a)
        }""",
        {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1), "low": number(-np.inf)},
    )
    untouched(model, PASS, "positions of the maxima")


def test_integers_before_max_pool_stay() -> None:
    model = parse(
        """g (uint8[1, 3, 6, 6] x) => (uint8[1, 3, p, q] y) {
            a = Pad(x, pads) y = MaxPool <kernel_shape = [3, 3]> (a)
        }""",
        {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1)},
    )
    untouched(model, PASS, "element type")


def test_conv_of_unknown_rank_stays() -> None:
    model = parse(
        """g (float x, float w) => (float y) { a = Pad(x, pads) y = Conv(a, w) }""",
        {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1)},
    )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    untouched(model, PASS, "rank is unknown")


# Pad after Pad


def test_axes_of_unknown_rank_do_not_merge() -> None:
    model = parse(
        """g (float x) => (float y) { a = Pad(x, pads, , axes) y = Pad(a, pads, , axes) }""",
        {"pads": ints(1, 1), "axes": ints(-1)},
    )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    untouched(model, PASS, "rank is unknown")


@pytest.mark.parametrize("second", ["Pad(a, q, one)", "Pad(a, r, one, axes)"])
def test_pads_with_one_constant_merge(second: str) -> None:
    model = parse(
        f"g (float[n, m] x) => (float[p, q0] y) {{ a = Pad(x, p0, one) y = {second} }}",
        {"p0": ints(1, 0, 0, 2), "q": ints(0, 1, 3, 0), "r": ints(1, 2), "axes": ints(-1)}
        | {"one": number(1)},
    )
    assert op_types(optimize(model, PASS, feed(2, 3), feed(0, 3))) == ["Pad"]


def test_pads_merge_before_opset_11() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 9]>
        g (float[n, m] x) => (float[p, q] y) {
            a = Pad <pads = [1, 0, 0, 2], value = 3.0> (x)
            y = Pad <pads = [0, 1, 1, 0], value = 3.0> (a)
        }"""
    )
    assert op_types(optimize(model, PASS, feed(2, 3))) == ["Pad"]


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ("Pad(a, q)", "other values"),
        ("Pad(a, crop, one)", "crops"),
        ('Pad <mode = "edge"> (a, q)', "with a constant"),
    ],
)
def test_other_pads_stay_apart(second: str, reason: str) -> None:
    model = parse(
        f"g (float[2, 3] x) => (float[p, q0] y) {{ a = Pad(x, p0, one) y = {second} }}",
        {"p0": ints(1, 0, 0, 2), "q": ints(0, 1, 3, 0), "crop": ints(-1, 0, 0, 0)}
        | {"one": number(1)},
    )
    untouched(model, PASS, reason)


def test_pad_with_another_reader_does_not_merge() -> None:
    model = parse(
        """g (float[2, 3] x) => (float[p, q0] y, float[3, 5] z) {
            a = Pad(x, p0) y = Pad(a, p0) z = Relu(a)
        }""",
        {"p0": ints(1, 0, 0, 2)},
    )
    untouched(model, PASS, "something else reads")


def test_inside_a_branch() -> None:
    model = parse(
        """g (bool c, float[1, 3, 5] x) => (float[1, 4, 5] y) {
            y = If (c) <
                then_branch = t () => (float[1, 4, 5] t1) { a = Pad(x, pads) t1 = Conv(a, w) },
                else_branch = e () => (float[1, 4, 5] e1) { e1 = Conv <pads = [1, 1]> (x, w) }
            >
        }""",
        {"w": normal(4, 3, 3), "pads": ints(0, 0, 1, 0, 0, 1)},
    )
    optimized = optimize(model, PASS, feed(1, 3, 5) | {"c": np.array(True)})
    assert op_types(optimized) == ["If", "Conv", "Conv"]


def test_inside_a_function() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "f" : 1]>
        g (float[1, 2, 3] x, float[2, 2, 3] w) => (float[1, 2, 3] y) { y = f.padded(x, w) }
        <domain: "f", opset_import: ["" : 18]>
        padded (x, w) => (y) {
            pads = Constant <value_ints = [0, 0, 1, 0, 0, 1]> ()
            a = Pad(x, pads)
            y = Conv <kernel_shape = [3], pads = [0, 0]> (a, w)
        }"""
    )
    optimized = optimize(model, PASS, feed(1, 2, 3) | {"w": normal(2, 2, 3)})
    (function,) = optimized.functions.values()
    assert [node.op_type for node in function.all_nodes()] == ["Conv"]


_AMOUNTS = st.tuples(*[st.integers(0, 2)] * 4)


@given(st.sampled_from(["Conv", "AveragePool", "MaxPool"]), _AMOUNTS, _AMOUNTS, st.integers(1, 2))
@settings(max_examples=30, deadline=None)
def test_any_amounts(
    op_type: str, pads: tuple[int, ...], own: tuple[int, ...], stride: int
) -> None:
    assume(any(pads))
    begin_h, begin_w, end_h, end_w = pads
    attributes = f"kernel_shape = [3, 3], pads = {list(own)}, strides = [{stride}, {stride}]"
    if op_type == "AveragePool":
        attributes += ", count_include_pad = 1"
    weights = ", w" if op_type == "Conv" else ""
    model = parse(
        f"""g (float[n, 3, h, v] x) => (float[n, 3, p, q] y) {{
            a = Pad(x, pads, low) y = {op_type} <{attributes}> (a{weights})
        }}""",
        {"pads": ints(0, 0, begin_h, begin_w, 0, 0, end_h, end_w)}
        | {"low": number(-np.inf if op_type == "MaxPool" else 0)}
        | ({"w": normal(3, 3, 3, 3)} if weights else {}),
    )
    fits = op_type == "Conv" or all(a + b < 3 for a, b in zip(pads, own, strict=True))
    runnable = op_type == "Conv" or max(own) < 3
    assume(runnable)
    kinds = op_types(optimize(model, PASS, feed(1, 3, 5, 6)))
    assert kinds == ([op_type] if fits else ["Pad", op_type])
