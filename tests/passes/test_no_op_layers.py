"""eliminate-no-ops: pools, resizing, reductions and Einsum of single elements."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.differential import Feed, op_types, optimize, parse, untouched

PASS = "infer-shapes,eliminate-no-ops"
IMAGE = "float[n, 2, h, w]"


def between(
    line: str, x: str = IMAGE, y: str | None = None, constants: str = "", opset: int = 18
) -> onnx.ModelProto:
    """A model that computes b from a with the given line, between two nodes that stay."""
    return parse(
        f'<ir_version: 8, opset_import: ["" : {opset}]> '
        f"g ({x} x) => ({y or x} y) <{constants}> {{ a = Abs(x) {line} y = Neg(b) }}"
    )


def feed(*shape: int) -> Feed:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def gone(model: onnx.ModelProto, *feeds: Feed) -> None:
    """Assert that nothing is left between the two nodes, and the outputs stay."""
    assert op_types(optimize(model, PASS, *feeds)) == ["Abs", "Neg"]


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "attributes",
    [
        "kernel_shape = [1, 1]",
        "kernel_shape = [1, 1], strides = [1, 1], pads = [0, 0, 0, 0]",
        'kernel_shape = [1, 1], auto_pad = "SAME_UPPER"',
    ],
)
@pytest.mark.parametrize("opset", [7, 12])
def test_pool_of_one(op: str, attributes: str, opset: int) -> None:
    gone(between(f"b = {op}<{attributes}>(a)", opset=opset), feed(1, 2, 3, 4), feed(2, 2, 1, 1))


@pytest.mark.parametrize(
    "attributes",
    [
        "kernel_shape = [1, 2]",
        "kernel_shape = [1, 1], strides = [1, 2]",
        "kernel_shape = [1, 1], pads = [0, 0, 0, 1]",
    ],
)
def test_other_pools_stay(attributes: str) -> None:
    untouched(between(f"b = AveragePool<{attributes}>(a)", y="float[n, 2, k, l]"), PASS)
    untouched(between("b = LpPool<kernel_shape = [1, 1]>(a)"), PASS)


def test_pool_whose_indices_are_read_stays() -> None:
    model = parse(
        """g (float[1, 2, 3, 3] x) => (float[1, 2, 3, 3] y, int64[1, 2, 3, 3] i) {
            a, i = MaxPool<kernel_shape = [1, 1]>(x) y = Neg(a) }"""
    )
    untouched(model, PASS, "indices are read")


def test_pool_whose_indices_nobody_reads_goes() -> None:
    gone(between("b, i = MaxPool<kernel_shape = [1, 1]>(a)"), feed(1, 2, 3, 4))


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pool(op: str) -> None:
    line = f"b = {op}(a)"
    gone(between(line, "float[n, 2, 1, 1]"), feed(3, 2, 1, 1))
    gone(between(line, "float[n, 2, 1]"), feed(3, 2, 1))
    untouched(between(line, "float[n, 2, 1, 2]", "float[n, 2, 1, 1]"), PASS)
    untouched(between(line, y="float[n, 2, 1, 1]"), PASS)
    unknown = parse(
        f"""g (float[n] x, int64[k] t) => (float[l, m] y) {{ a = Reshape(x, t) y = {op}(a) }}"""
    )
    untouched(unknown, PASS, "shape is not known")


SCALES = "float[4] s = {1, 1, 1, 1}"


@pytest.mark.parametrize(
    "attributes",
    [
        f'mode = "{mode}", coordinate_transformation_mode = "{where}"'
        for mode in ("nearest", "linear", "cubic")
        for where in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    ]
    + [
        f'mode = "nearest", nearest_mode = "{how}"'
        for how in ("floor", "ceil", "round_prefer_ceil")
    ]
    + ['mode = "linear", antialias = 1', 'mode = "cubic", antialias = 1, exclude_outside = 1'],
)
def test_resize_by_one(attributes: str) -> None:
    model = between(f"b = Resize<{attributes}>(a, , s)", constants=SCALES)
    gone(model, feed(1, 2, 3, 4), feed(2, 2, 1, 1))


@pytest.mark.parametrize(
    ("line", "opset"),
    [
        ('b = Upsample<mode = "nearest", scales = [1.0, 1.0, 1.0, 1.0]>(a)', 8),
        ('b = Upsample<mode = "linear">(a, s)', 9),
        ('b = Resize<mode = "nearest">(a, s)', 10),
        ("b = Resize(a, none, s)", 11),
        ("b = Resize(a, , s)", 13),
    ],
)
def test_resize_by_one_in_every_opset(line: str, opset: int) -> None:
    constants = f"{SCALES}, float[0] none = {{}}"
    gone(between(line, constants=constants, opset=opset), feed(1, 2, 3, 4))


def test_resize_to_the_same_size() -> None:
    line = "b = Resize(a, , , s)"
    gone(
        between(line, "float[1, 2, 3, 4]", constants="int64[4] s = {1, 2, 3, 4}"), feed(1, 2, 3, 4)
    )
    gone(between("s = Shape(a) b = Resize(a, , , s)"), feed(1, 2, 3, 4))
    untouched(between(line, y="float[1, 2, 3, 4]", constants="int64[4] s = {1, 2, 3, 4}"), PASS)


def test_resize_of_some_axes_to_the_same_size() -> None:
    line, constants = "b = Resize<axes = [2, 3]>(a, , , s)", "int64[2] s = {3, 4}"
    gone(between(line, "float[n, 2, 3, 4]", constants=constants), feed(5, 2, 3, 4))
    untouched(between(line, "float[n, 3, 4, 3]", "float[n, 3, 3, 4]", constants), PASS)


@pytest.mark.parametrize(
    ("line", "constants"),
    [
        ("b = Resize(a, , s)", "float[4] s = {1, 1, 2, 1}"),
        ("b = Resize(a, , s)", "float[4] s = {1, 1, 1.1, 1}"),
    ],
)
def test_resize_that_resizes_stays(line: str, constants: str) -> None:
    untouched(between(line, y="float[n, 2, k, l]", constants=constants), PASS)
    # 4 * 1.1 rounds down to 4: the size stays, the numbers do not
    untouched(between(line, "float[1, 2, 4, 4]", "float[1, 2, k, l]", constants), PASS)


def test_resize_that_crops_or_shifts_stays() -> None:
    crop = 'b = Resize<coordinate_transformation_mode = "tf_crop_and_resize">(a, r, s)'
    constants = f"{SCALES}, float[8] r = {{0, 0, 0, 0, 1, 1, 0.5, 0.5}}"
    untouched(between(crop, constants=constants), PASS, "shifts or crops")
    shift = 'b = Resize<coordinate_transformation_mode = "tf_half_pixel_for_nn">(a, r, s)'
    untouched(between(shift, constants=constants, opset=11), PASS, "shifts or crops")


REDUCTIONS = ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"]


@pytest.mark.parametrize("op", REDUCTIONS)
def test_reduction_over_no_axes(op: str) -> None:
    line = f"b = {op}<noop_with_empty_axes = 1, keepdims = 0>(a"
    gone(between(f"{line})"), feed(1, 2, 3, 4))
    gone(between(f"{line}, none)", constants="int64[0] none = {}"), feed(1, 2, 3, 4))


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize("opset", [11, 18])
def test_reduction_of_axes_of_one(op: str, opset: int) -> None:
    x, constants = "float[n, 1, 1]", "int64[2] axes = {1, -1}"
    by_attribute = opset < (13 if op == "ReduceSum" else 18)
    line = f"b = {op}<axes = [1, -1]>(a)" if by_attribute else f"b = {op}(a, axes)"
    gone(between(line, x, constants=constants, opset=opset), feed(4, 1, 1))
    gone(between(f"b = {op}(a)", "float[1, 1]", opset=opset), feed(1, 1))
    gone(between(f"b = {op}<keepdims = 0>(a)", "float", opset=opset), feed())


@pytest.mark.parametrize(
    ("line", "y"),
    [
        ("b = ReduceSum(a, axes)", "float[1, 1, 1]"),
        ("b = ReduceSum(a)", "float[1, 1, 1]"),
        ("b = ReduceSum<keepdims = 0>(a, last)", "float[n, 2]"),
        ("b = ReduceL1(a, last)", "float[n, 2, 1]"),
        ("b = ReduceSumSquare<noop_with_empty_axes = 1>(a)", "float[n, 2, 1]"),
    ],
)
def test_other_reductions_stay(line: str, y: str) -> None:
    constants = "int64[2] axes = {0, 1}, int64[1] last = {2}"
    untouched(between(line, "float[n, 2, 1]", y, constants), PASS)


def test_reduction_of_a_dimension_that_is_not_known_stays() -> None:
    model = between("b = ReduceSum(a, axes)", "float[n, 2]", "float[1, 2]", "int64[1] axes = {0}")
    untouched(model, PASS, "not known to be one")


def test_reduction_of_axes_that_are_an_input_stays() -> None:
    model = parse("g (float[1] x, int64[k] s) => (float[1] y) { a = Abs(x) y = ReduceSum(a, s) }")
    untouched(model, PASS, "axes is not constant")


def test_einsum_of_one() -> None:
    gone(between('b = Einsum<equation = "nchw -> nchw">(a)'), feed(1, 2, 3, 4))
    gone(between('b = Einsum<equation = "...w->...w">(a)'), feed(1, 2, 3, 4))


@pytest.mark.parametrize(
    ("equation", "x", "y"),
    [("ij->ji", "float[2, 2]", "float[2, 2]"), ("ii->i", "float[2, 2]", "float[2]")],
)
def test_other_einsums_stay(equation: str, x: str, y: str) -> None:
    untouched(between(f'b = Einsum<equation = "{equation}">(a)', x, y), PASS)
    product = 'g (float[2] x, float[2] z) => (float[2] y) { y = Einsum<equation = "i,i->i">(x, z) }'
    untouched(parse(product), PASS)
