"""Pruned channels go, and what they added stays: exactly, padded or not."""

import numpy as np
import onnx_ir as ir
import pytest

from tests.differential import optimize, parse, untouched

PASS = "infer-shapes,fold-pruned-channels"
PRUNED = [1, 4, 5, 9, 13]


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pruned(array: np.ndarray, axis: int = 0) -> np.ndarray:
    array = array.copy()
    np.moveaxis(array, axis, 0)[PRUNED] = 0
    return array


def feeds(*shapes: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
    return [{"x": numbers(index, *shape)} for index, shape in enumerate(shapes)]


def widths(model: ir.Model) -> dict[str, int]:
    """Output channels of each Conv and Gemm, by the name of its output."""
    found = {}
    for node in model.graph:
        if node.op_type in ("Conv", "Gemm"):
            weight = node.inputs[1]
            assert weight is not None
            assert weight.const_value is not None
            axis = 0 if node.op_type == "Conv" else 1
            found[node.outputs[0].name or ""] = weight.const_value.shape.numpy()[axis]
    return found


@pytest.mark.parametrize("pads", ["0, 0, 0, 0", "1, 1, 1, 1"])
@pytest.mark.parametrize("activation", ["Relu", "HardSwish", "Sigmoid"])
def test_constants_go_on_through_an_activation(activation: str, pads: str) -> None:
    model = parse(
        f"""g (float[n, 3, h, w] x) => (float[n, 8, p, q] y) {{
            a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
            b = {activation}(a)
            y = Conv<pads = [{pads}]>(b, w2, b2)
        }}""",
        {
            "w1": pruned(numbers(1, 16, 3, 3, 3)),
            "b1": numbers(2, 16) + 1,
            "w2": numbers(3, 8, 16, 3, 3),
            "b2": numbers(4, 8),
        },
    )
    optimized = optimize(model, PASS, *feeds((1, 3, 8, 9), (2, 3, 12, 7)))
    assert widths(optimized)["a"] <= 12  # eleven that live, and one that carries the constants
    assert widths(optimized)["y"] == 8


def test_residual_members_go_together() -> None:
    model = parse(
        """g (float[n, 3, h, w] x) => (float[n, 8, p, q] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1) b = Relu(a)
            c = Conv<pads = [1, 1, 1, 1]>(b, w2, b2) d = Add(b, c) e = Relu(d)
            y = Conv<pads = [1, 1, 1, 1]>(e, w3)
        }""",
        {
            "w1": pruned(numbers(1, 16, 3, 3, 3)),
            "b1": numbers(2, 16),
            "w2": pruned(numbers(3, 16, 16, 3, 3)),
            "b2": numbers(4, 16),
            "w3": numbers(5, 8, 16, 3, 3),
        },
    )
    found = widths(optimize(model, PASS, *feeds((1, 3, 8, 9), (2, 3, 5, 5))))
    assert found["a"] == found["c"] <= 12


def test_gemm_after_gemm_and_flatten() -> None:
    model = parse(
        """g (float[n, 10] x) => (float[n, 4] y) {
            a = Gemm(x, w1, b1) b = Relu(a) y = Gemm(b, w2, b2)
        }""",
        {
            "w1": pruned(numbers(1, 10, 16), axis=1),
            "b1": numbers(2, 16),
            "w2": numbers(3, 16, 4),
            "b2": numbers(4, 4),
        },
    )
    assert widths(optimize(model, PASS, *feeds((1, 10), (5, 10)))) == {"a": 11, "y": 4}
    model = parse(
        """g (float[n, 3, 8, 8] x) => (float[n, 4] y) {
            a = Conv(x, w1, b1) b = Relu(a)
            c = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(b)
            d = Flatten(c) y = Gemm(d, w2, b2)
        }""",
        {
            "w1": pruned(numbers(1, 16, 3, 3, 3)),
            "b1": numbers(2, 16),
            "w2": numbers(3, 144, 4),
            "b2": numbers(4, 4),
        },
    )
    assert widths(optimize(model, PASS, *feeds((1, 3, 8, 8), (5, 3, 8, 8))))["a"] <= 12


def test_filter_that_only_sums_to_zero_stays() -> None:
    sobel = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], np.float32)
    weight = numbers(1, 16, 3, 3, 3)
    weight[2] = sobel
    model = parse(
        "g (float[n, 3, h, w] x) => (float[n, 8, p, q] y) { a = Conv(x, w1) y = Conv(a, w2) }",
        {"w1": weight, "w2": numbers(2, 8, 16, 3, 3)},
    )
    untouched(model, PASS)


@pytest.mark.parametrize(
    "tail",
    [
        "y = Softmax<axis = 1>(a)",
        "y = InstanceNormalization(a, scale, bias)",
        "y = Identity(a)",
    ],
)
def test_channels_that_something_else_needs_stay(tail: str) -> None:
    model = parse(
        f"""g (float[n, 3, h, w] x) => (float[n, 16, p, q] y)
        {{ a = Conv(x, w1, b1) {tail} }}""",
        {
            "w1": pruned(numbers(1, 16, 3, 3, 3)),
            "b1": numbers(2, 16),
            "scale": numbers(3, 16),
            "bias": numbers(4, 16),
        },
    )
    untouched(model, PASS)
