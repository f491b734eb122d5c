"""affine-to-batch-norm: steps between convolutions, and what must stay."""

from __future__ import annotations

import numpy as np
import pytest

from tests.differential import op_types, optimize, parse, untouched

PASS = "infer-shapes,affine-to-batch-norm"

rng = np.random.default_rng(11)


def feed(*shape: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(dtype)}


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def constants() -> dict[str, np.ndarray]:
    return {"w": normal(4, 4, 1, 1), "k": normal(4, 4, 3, 3), "s": normal(1), "t": normal(4, 1, 1)}


@pytest.mark.parametrize(
    "steps", ["b = Add(a, t)", "b = Sub(s, a)", "c = Mul(t, a) b = Add(c, s)", "b = Div(a, t)"]
)
@pytest.mark.parametrize("opset", [9, 13, 15])
def test_steps_between_convolutions(steps: str, opset: int) -> None:
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[n, 4, h, v] x) => (float[n, 4, h, v] y) {{
            r = Conv(x, w) a = Relu(r) {steps} y = Conv <pads = [1, 1, 1, 1]> (b, k)
        }}""",
        constants(),
    )
    optimized = optimize(model, PASS, feed(2, 4, 5, 6), feed(0, 4, 5, 6))
    assert op_types(optimized) == ["Conv", "Relu", "BatchNormalization", "Conv"]


def test_it_computes_the_same_bits() -> None:
    model = parse(
        """g (float[n, 4, h, v] x) => (float[n, 4, h, v] y) {
            r = Conv(x, w) a = HardSwish(r) b = Add(a, t) y = MaxPool <kernel_shape = [1, 1]> (b)
        }""",
        constants(),
    )
    optimized = optimize(model, PASS, feed(2, 4, 5, 6), rtol=0, atol=0)
    assert "BatchNormalization" in op_types(optimized)


@pytest.mark.parametrize(
    "body",
    [
        "r = Relu(x) b = Add(r, t) y = Conv(b, w)",
        "r = Conv(x, w) b = Add(r, t) y = Relu(b)",
        "r = Conv(x, w) q = Transpose(r) b = Add(q, s) p = Transpose(b) y = Conv(p, w)",
    ],
)
def test_steps_elsewhere_stay(body: str) -> None:
    untouched(
        parse(f"g (float[2, 4, 5, 6] x) => (float[2, 4, 5, 6] y) {{ {body} }}", constants()), PASS
    )


def test_constants_along_the_width_stay() -> None:
    model = parse(
        """g (float[2, 4, 5, 4] x) => (float[2, 4, 5, 4] y) {
            r = Conv(x, w) b = Add(r, u) y = Conv(b, w)
        }""",
        constants() | {"u": normal(4)},
    )
    untouched(model, PASS, "another axis than the channels")


def test_other_ranks_stay() -> None:
    model = parse(
        """g (float[2, 4, 5] x) => (float[2, 4, 5] y) {
            r = Conv(x, z) b = Add(r, s) y = Conv(b, z)
        }""",
        constants() | {"z": normal(4, 4, 1)},
    )
    untouched(model, PASS)


def test_half_precision_stays() -> None:
    model = parse(
        """g (float16[2, 4, 5, 5] x) => (float16[2, 4, 5, 5] y) {
            r = Conv(x, w) b = Add(r, s) y = Conv(b, w)
        }""",
        {name: array.astype(np.float16) for name, array in constants().items()},
    )
    untouched(model, PASS)


def test_unknown_channels_stay() -> None:
    model = parse(
        """g (float[2, 4, 5, 5] x, float[m, 4, 1, 1] u) => (float[2, 4, 5, 5] y) {
            r = Conv(x, u) b = Add(r, s) y = Conv(b, w)
        }""",
        constants(),
    )
    untouched(model, PASS, "number of channels is unknown")


def test_old_opsets_stay() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 8]>
        g (float[2, 4, 5, 5] x) => (float[2, 4, 5, 5] y) {
            r = Conv(x, w) b = Add(r, s) y = Conv(b, w)
        }""",
        constants(),
    )
    untouched(model, PASS, "other attributes")
