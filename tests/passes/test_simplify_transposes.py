"""simplify-transposes: a Transpose between two views."""

from __future__ import annotations

import numpy as np
import pytest

from tests.differential import op_types, optimize, parse, untouched

PASS = "infer-shapes,simplify-transposes"


def feed(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_keys_as_the_exporter_turns_them() -> None:
    model = parse(
        """g (float[n, 4, l, 8] x) => (float[n, 4, 8, l] y) {
            s = Shape(x) l = Slice(s, two, three) n = Slice(s, zero, one)
            t1 = Concat <axis = 0> (free, l, eight) a = Reshape(x, t1)
            b = Transpose <perm = [0, 2, 1]> (a)
            t2 = Concat <axis = 0> (n, four, eight, l) c = Reshape(b, t2) y = Exp(c)
        }""",
        {
            **{name: ints(value) for name, value in zip(("zero", "one"), (0, 1), strict=True)},
            **{name: ints(value) for name, value in zip(("two", "three"), (2, 3), strict=True)},
            "free": ints(-1),
            "eight": ints(8),
            "four": ints(4),
        },
    )
    optimized = optimize(model, f"{PASS},eliminate-dead-code", feed(2, 4, 5, 8), feed(0, 4, 1, 8))
    assert op_types(optimized) == ["Transpose", "Exp"]


def test_several_axes_behind_the_merged_ones() -> None:
    model = parse(
        """g (float[2, 3, 4, 5, 6] x) => (float[2, 3, 6, 4, 5] y) {
            a = Reshape(x, t1) b = Transpose <perm = [0, 3, 1, 2]> (a) y = Reshape(b, t2)
        }""",
        {"t1": ints(6, 4, 5, 6), "t2": ints(2, 3, 6, 4, 5)},
    )
    assert op_types(optimize(model, PASS, feed(2, 3, 4, 5, 6))) == ["Transpose"]


@pytest.mark.parametrize(
    ("first", "perm", "last"),
    [
        ((6, 4, 4), (0, 2, 1), (3, 2, 4, 4)),  # the leading axes come back otherwise
        ((6, 4, 4), (1, 0, 2), (2, 3, 4, 4)),  # they are moved
        ((6, 16, 1), (0, 2, 1), (2, 3, 4, 4)),  # the view does more than merge
        ((6, 4, 4), (0, 2, 1), (2, 3, 16, 1)),
    ],
)
def test_other_shapes(first: tuple[int, ...], perm: tuple[int, ...], last: tuple[int, ...]) -> None:
    sizes = ", ".join(map(str, last))
    model = parse(
        f"""g (float[2, 3, 4, 4] x) => (float[{sizes}] y) {{
            a = Reshape(x, t1) b = Transpose <perm = {list(perm)}> (a) y = Reshape(b, t2)
        }}""",
        {"t1": ints(*first), "t2": ints(*last)},
    )
    untouched(model, PASS)
    optimize(model, PASS, feed(2, 3, 4, 4))


def test_value_that_is_read_elsewhere() -> None:
    model = parse(
        """g (float[2, 3, 4, 5] x) => (float[2, 3, 5, 4] y, float[6, 5, 4] z) {
            a = Reshape(x, t1) b = Transpose <perm = [0, 2, 1]> (a) y = Reshape(b, t2) z = Exp(b)
        }""",
        {"t1": ints(6, 4, 5), "t2": ints(2, 3, 5, 4)},
    )
    untouched(model, PASS, "read elsewhere")
