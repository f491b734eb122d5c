import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnxopt.passes.simplify_casts import _FLOATS, _INTEGERS, _holds, _why_not_direct

from tests.differential import apply, op_types, optimize, parse, untouched

NAME = "simplify-casts"
PASS = f"infer-shapes,{NAME}"

#: Element types by their name in the text format.
TYPES: dict[str, Any] = {
    "bool": np.bool_,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "float16": np.float16,
    "float": np.float32,
    "double": np.float64,
}


def code(name: str) -> int:
    return int(ir.DataType.from_numpy(np.dtype(TYPES[name])))


def chain(first: str, middle: str, last: str, opset: int = 18) -> str:
    return f"""<ir_version: 8, opset_import: ["" : {opset}]>
    g ({first}[n] x) => ({last}[n] y) {{
        x1 = Identity(x) a = Cast<to = {code(middle)}>(x1) y = Cast<to = {code(last)}>(a)
    }}"""


def numbers(name: str) -> dict[str, np.ndarray]:
    """Numbers of a type: an integer's edges; floats that every integer type can take."""
    dtype = np.dtype(TYPES[name])
    if dtype == np.bool_:
        return {"x": np.array([True, False])}
    if dtype.kind == "f":
        return {"x": np.linspace(0, 100, 23).astype(dtype)}
    least, most = int(np.iinfo(TYPES[name]).min), int(np.iinfo(TYPES[name]).max)
    edges = [least, most, most // 2 + 1, most // 3, 0, 1, 2, 255 & most]
    return {"x": np.array(edges, dtype=dtype)}


@pytest.mark.parametrize("first", sorted(TYPES))
def test_every_merge_gives_the_same_numbers(first: str) -> None:
    """All middle and last types that merge at once: each output is one chain."""
    outputs, body = [], []
    for number, (middle, last) in enumerate(itertools.product(TYPES, repeat=2)):
        if _why_not_direct(*(ir.DataType(code(name)) for name in (first, middle, last))) is None:
            outputs.append(f"{last}[n] y{number}")
            body.append(
                f"a{number} = Cast<to = {code(middle)}>(x1)"
                f" b{number} = Cast<to = {code(last)}>(a{number}) y{number} = Identity(b{number})"
            )
    text = f"g ({first}[n] x) => ({', '.join(outputs)}) {{ x1 = Identity(x) {' '.join(body)} }}"
    model = optimize(parse(text), PASS, numbers(first))
    assert op_types(model).count("Cast") <= len(outputs)


@pytest.mark.parametrize(
    "types",
    [
        ("int32", "int64", "float"),
        ("int32", "double", "float"),
        ("float16", "float", "double"),
        ("bool", "int64", "float"),
        ("bool", "float", "uint8"),
        ("uint8", "float", "int32"),
        ("int64", "int32", "int8"),
        ("int64", "int32", "uint32"),
    ],
)
def test_one_cast_is_left(types: tuple[str, str, str]) -> None:
    model = optimize(parse(chain(*types)), PASS, numbers(types[0]))
    assert op_types(model) == ["Identity", "Cast"]


@pytest.mark.parametrize(
    "types",
    [
        ("float16", "float", "float16"),
        ("float", "double", "float"),
        ("int32", "int64", "int32"),
        ("int32", "double", "int32"),
        ("int8", "float16", "int8"),
        ("bool", "int8", "bool"),
    ],
)
def test_round_trip_goes(types: tuple[str, str, str]) -> None:
    model = optimize(parse(chain(*types)), PASS, numbers(types[0]))
    assert op_types(model) == ["Identity"]


@pytest.mark.parametrize(
    "types",
    [
        ("float", "float16", "float"),
        ("int64", "int32", "int64"),
        ("int32", "float", "int32"),
        ("double", "float", "float16"),
        ("float", "bool", "float"),
        ("int32", "int8", "int16"),
        ("float", "int32", "bool"),
        ("int64", "int32", "bool"),
        ("uint8", "int8", "int16"),
        ("int16", "float16", "int16"),
    ],
)
def test_types_that_lose_numbers_stay(types: tuple[str, str, str]) -> None:
    untouched(parse(chain(*types)), PASS, "loses numbers")


def test_negative_numbers_through_a_float_stay() -> None:
    untouched(parse(chain("int8", "float", "uint8")), PASS, "out of range")


def test_strings_stay() -> None:
    text = chain("float16", "float", "float").replace("float[n] y", "string[n] y")
    text = text.replace("y = Cast<to = 1>", "y = Cast<to = 8>")
    untouched(parse(text), PASS, "not a plain number")


def test_value_between_that_is_read_elsewhere_stays() -> None:
    model = parse(
        "g (int32[n] x) => (float[n] y, int64[n] z) { a = Cast<to = 7>(x) y = Cast<to = 1>(a)"
        " z = Neg(a) }"
    )
    untouched(model, PASS, "read elsewhere")


def test_round_trip_goes_though_the_value_between_is_read_elsewhere() -> None:
    model = parse(
        """g (float16[n] x) => (float16[n] y, float[n] z) {
            a = Cast<to = 1>(x) b = Cast<to = 10>(a) y = Neg(b) z = Exp(a)
        }"""
    )
    feed = {"x": np.array([1, -2.5, 0.1], np.float16)}
    assert op_types(optimize(model, PASS, feed)) == ["Cast", "Neg", "Exp"]


def test_round_trip_from_input_to_output_stays() -> None:
    model = parse("g (int32[n] x) => (int32[n] y) { a = Cast<to = 7>(x) y = Cast<to = 6>(a) }")
    untouched(model, PASS, "made elsewhere")


@pytest.mark.parametrize("opset", [9, 13, 19, 25])
def test_opsets(opset: int) -> None:
    text = chain("float16", "float", "float16", opset)
    assert op_types(optimize(parse(text), PASS, numbers("float16"))) == ["Identity"]


def test_saturation_of_the_last_cast_is_kept() -> None:
    text = """<ir_version: 9, opset_import: ["" : 21]>
    g (float16[n] x) => (double[n] y) { a = Cast<to = 1>(x) y = Cast<to = 11, saturate = 0>(a) }"""
    optimized, _ = apply(parse(text), PASS)
    (node,) = list(optimized.graph)
    assert node.attributes["saturate"].value == 0


# Through operators that compute nothing


def image() -> dict[str, np.ndarray]:
    return {"x": np.arange(24).reshape(2, 3, 4).astype(np.float16)}


def test_casts_meet_over_a_transpose_and_a_reshape() -> None:
    model = parse(
        """g (float16[n, 3, 4] x) => (float16[m, 3] y) <int64[2] s = {-1, 3}> {
            a = Cast<to = 1>(x) t = Transpose<perm = [0, 2, 1]>(a) r = Reshape(t, s)
            y = Cast<to = 10>(r)
        }"""
    )
    optimized = optimize(model, PASS, image())
    assert op_types(optimized) == ["Transpose", "Reshape"]
    assert {value.dtype for node in optimized.graph for value in node.outputs} == {
        ir.DataType.FLOAT16
    }


def test_one_cast_is_left_before_the_transpose() -> None:
    model = parse(
        """g (int32[n, 3, 4] x) => (float[n, 4, 3] y) {
            a = Cast<to = 7>(x) t = Transpose<perm = [0, 2, 1]>(a) y = Cast<to = 1>(t)
        }"""
    )
    feed = {"x": np.arange(24).reshape(2, 3, 4).astype(np.int32)}
    assert op_types(optimize(model, PASS, feed)) == ["Cast", "Transpose"]


def test_transposed_value_that_is_read_elsewhere_stays() -> None:
    model = parse(
        """g (float16[n, 3, 4] x) => (float16[n, 4, 3] y, float[n, 4, 3] z) {
            a = Cast<to = 1>(x) t = Transpose<perm = [0, 2, 1]>(a) y = Cast<to = 10>(t) z = Neg(t)
        }"""
    )
    untouched(model, PASS, "read elsewhere")


def test_casts_do_not_meet_over_an_operator_that_computes() -> None:
    model = parse(
        "g (float16[n] x) => (float16[n] y) { a = Cast<to = 1>(x) b = Exp(a) y = Cast<to = 10>(b) }"
    )
    untouched(model, PASS)


# CastLike, branches, functions


def test_cast_like_is_cast() -> None:
    model = parse("g (int32[n] x, float[m] z) => (float[n] y) { y = CastLike(x, z) }")
    feed = {"x": np.array([1, 2], np.int32), "z": np.zeros(1, np.float32)}
    assert op_types(optimize(model, PASS, feed)) == ["Cast"]


def test_cast_like_in_a_function_stays() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        g (int32[n] x, float[m] z) => (float[n] y) { y = local.f(x, z) }
        <opset_import: ["" : 18], domain: "local">
        f (x, z) => (y) { y = CastLike(x, z) }"""
    )
    untouched(model, PASS, "who calls")


def test_in_a_branch() -> None:
    model = parse(
        """g (bool c, float16[n] x) => (float16[n] y) {
            y = If (c) <
                then_branch = t () => (float16[n] t1) {
                    a = Neg(x) b = Cast<to = 1>(a) d = Cast<to = 10>(b) t1 = Abs(d)
                },
                else_branch = e () => (float16[n] e1) { e1 = Neg(x) }
            >
        }"""
    )
    feeds = [{"x": np.array([1, -2], np.float16), "c": np.array(flag)} for flag in (True, False)]
    assert "Cast" not in op_types(optimize(model, PASS, *feeds))


# The table


def test_a_type_that_holds_another_gives_its_numbers_back() -> None:
    """The table against the types themselves, at the edges of their ranges."""
    for narrow, wide in itertools.product([*_INTEGERS, *_FLOATS], repeat=2):
        if narrow == wide or not _holds(wide, narrow):
            continue
        kind = narrow.numpy()
        if narrow in _INTEGERS:
            info = np.iinfo(kind)
            edges = np.array([info.min, info.max, info.max - 1, info.max // 2 + 1], dtype=kind)
        else:
            one = np.array(1, dtype=kind)
            edges = np.array([one, np.nextafter(one, one * 2), np.nextafter(0 * one, one)], kind)
            edges = np.concatenate([edges, (one / 3).reshape(1)])
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(edges.astype(wide.numpy()).astype(kind), edges)


def test_a_type_that_does_not_hold_another_loses_a_number() -> None:
    for narrow, wide in itertools.product(_INTEGERS, [*_INTEGERS, *_FLOATS]):
        if _holds(wide, narrow):
            continue
        info = np.iinfo(narrow.numpy())
        with np.errstate(all="ignore"):
            lost = any(
                int(np.array(edge, narrow.numpy()).astype(wide.numpy()).astype(object)) != edge
                for edge in (info.min, info.max)
                if np.isfinite(np.float64(np.array(edge, narrow.numpy()).astype(wide.numpy())))
            )
            overflows = not all(
                np.isfinite(np.float64(np.array(edge, narrow.numpy()).astype(wide.numpy())))
                for edge in (info.min, info.max)
            )
        assert lost or overflows, (narrow, wide)
