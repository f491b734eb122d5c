"""fuse-affine: chains of steps, gates, idioms that stay whole, and all rules together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.differential import apply, op_types, optimize, parse, untouched

PASS = "infer-shapes,fuse-affine"

rng = np.random.default_rng(10)


def feed(*shape: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(dtype)}


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def conv_weights(*shape: int) -> dict[str, np.ndarray]:
    return {"w": normal(*shape), "s": normal(shape[0], 1, 1), "t": normal(shape[0], 1, 1)}


def _statistics(size: int) -> dict[str, np.ndarray]:
    return {"g": normal(size), "b": normal(size), "m": normal(size), "v": normal(size) ** 2 + 0.1}


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


# Idioms that runtimes know


@pytest.mark.parametrize(
    "body",
    [
        "d = Div(h, root) e = Erf(d) f = Add(e, one) g = Mul(h, f) k = Mul(g, half)",
        "d = Div(h, root) e = Erf(d) f = Add(e, one) g = Mul(f, half) k = Mul(h, g)",
        "p = Mul(h, half) d = Div(h, root) e = Erf(d) f = Add(e, one) k = Mul(p, f)",
        """c = Pow(h, three) m = Mul(c, half) s = Add(h, m) d = Mul(s, root) e = Tanh(d)
            f = Add(e, one) g = Mul(h, f) k = Mul(g, half)""",
    ],
)
def test_gelu_stays_whole(body: str) -> None:
    model = parse(
        f"""g (float[2, 4] x) => (float[2, 5] y) {{ h = Sigmoid(x) {body} y = MatMul(k, w) }}""",
        {"w": normal(4, 5), "root": number(2**0.5), "one": number(1)}
        | {"half": number(0.5), "three": number(3)},
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
        ("g = ReduceMean <keepdims = 0> (x) p = Mul(x, g) y = Add(x, p)", "to be smaller"),
    ],
)
def test_other_sums_stay(body: str, reason: str) -> None:
    model = parse(
        f"g (float[2, 3] x, float[k, m] u) => (float[p0, q0] y, float[p1, q1] z) {{ {body} }}"
        if "z =" in body
        else f"g (float[2, 3] x, float[k, m] u) => (float[p0, q0] y) {{ {body} }}"
    )
    untouched(model, PASS, reason)


def test_gate_of_integers_stays() -> None:
    model = parse(
        """g (int64[2, 3] x, int64[2, 1] g) => (int64[2, 3] y) { p = Mul(x, g) y = Add(x, p) }"""
    )
    untouched(model, PASS, "not a float")


def test_gate_outside_a_branch_stays() -> None:
    model = parse(
        """g (bool c, float[2, 3] x, float[2, 1] g) => (float[2, 3] y) {
            p = Mul(x, g)
            y = If (c) <
                then_branch = t () => (float[2, 3] t1) { t1 = Add(x, p) },
                else_branch = e () => (float[2, 3] e1) { e1 = Neg(x) }
            >
        }"""
    )
    untouched(model, PASS, "another graph")


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


@pytest.mark.parametrize(
    "gate",
    [
        "s = Softplus(b) t = Tanh(s) y = Mul(b, t)",  # Mish
        "t = Tanh(b) y = Mul(b, t)",
        "c = Conv(x, w) t = Tanh(c) y = Mul(b, t)",
        "s = Mul(b, half) t = Tanh(s) y = Mul(b, t)",
    ],
)
def test_a_tanh_alone_is_no_gelu(gate: str) -> None:
    text = f"""g (float[n, 4, h, v] x) => (float[n, 4, p, q] y) <float half = {{0.5}}> {{
        a = Conv(x, w) b = BatchNormalization(a, g, c0, m, u) {gate}
    }}"""
    ones = np.ones(4, np.float32)
    weights: dict[str, np.ndarray] = {"w": np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1)}
    weights |= {"g": 2 * ones, "c0": ones / 3, "m": ones / 7, "u": ones / 5}
    model = parse(text, weights)
    optimized = optimize(model, PASS, feed(2, 4, 3, 5), feed(1, 4, 1, 1))
    assert "BatchNormalization" not in op_types(optimized)
