"""Narrow weights written as operators of ONNX Runtime, and what is told of narrow weights."""

import pathlib
from collections import Counter

import numpy as np
import onnx
import pytest
from onnxopt.passes.infer_shapes import InferShapes
from onnxopt.passes.quantize_weights.lowering import least_opset, lower_weights
from onnxopt.passes.quantize_weights.narrowing import Form, dequantized, narrow
from onnxopt.passes.quantize_weights.quantize_weights import _matrix
from onnxopt.passes.quantize_weights.stores import Store, stores

import onnxopt
from onnxopt.accuracy import Budget
from onnxopt.model import from_proto, to_proto
from tests.differential import parse
from tests.passes.quantize.lowered import decibels, kernels, run_at

RNG = np.random.default_rng(0)
TRUE_DB = {Form.INT8: 35.0, Form.INT4: 13.0, Form.UINT4: 13.0, Form.UINT8: 38.0}


def _array(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.3).astype(np.float32)


def _found(model: onnx.ModelProto, form: Form) -> list[Store]:
    converted = from_proto(model)
    InferShapes()(converted)
    return [
        each
        for each in stores(converted, 0, frozenset())
        if isinstance(each, Store) and each.takes(form, "nbits")
    ]


def _narrowed(
    model: onnx.ModelProto, form: Form, block: int = 16
) -> tuple[onnx.ModelProto, Counter[str]]:
    converted = from_proto(model)
    InferShapes()(converted)
    found = [
        each
        for each in stores(converted, 0, frozenset())
        if isinstance(each, Store) and each.takes(form, "nbits")
    ]
    weights = {(each.key, form): narrow(_matrix(each), form, block) for each in found}
    done = lower_weights(converted, found, {each.key: form for each in found}, weights, "nbits")
    result = to_proto(converted)
    onnx.checker.check_model(result)
    return result, done


PRODUCTS: dict[str, tuple[str, str, dict[str, tuple[int, ...]]]] = {
    "matmul": ("float[B, T, 48] x", "y = MatMul(x, w)", {"w": (48, 12)}),
    "odd inputs": ("float[B, 37] x", "y = MatMul(x, w)", {"w": (37, 12)}),
    "bias": ("float[B, T, 48] x", "m = MatMul(x, w) y = Add(m, b)", {"w": (48, 9), "b": (9,)}),
    "bias and relu": (
        "float[B, T, 48] x",
        "m = MatMul(x, w) a = Add(b, m) y = Relu(a)",
        {"w": (48, 9), "b": (9,)},
    ),
    "gemm turned": (
        "float[B, 48] x",
        "y = Gemm<transB=1, alpha=0.5, beta=2.0>(x, w, b)",
        {"w": (9, 48), "b": (9,)},
    ),
    "behind a transpose": (
        "float[B, 48] x",
        "t = Transpose<perm=[1, 0]>(w) y = MatMul(x, t)",
        {"w": (9, 48)},
    ),
    "shared": (
        "float[B, 32] x",
        "a = MatMul(x, w) r = Relu(a) y = MatMul(r, w)",
        {"w": (32, 32)},
    ),
}


#: Numbers in a row, and the type of indices.
_TABLES = [(48, "int64"), (38, "int32"), (16, "int64")]


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("case", PRODUCTS)
def test_products_are_one_kernel_each(case: str, form: Form, tmp_path: pathlib.Path) -> None:
    declared, body, shapes = PRODUCTS[case]
    rank = declared.count(",")
    output = "float[B, T, N] y" if rank == 2 else "float[B, N] y"
    model = parse(
        f'<ir_version: 7, opset_import: ["" : 13]> g ({declared}) => ({output}) {{ {body} }}',
        {name: _array(*shape) for name, shape in shapes.items()},
    )
    result, done = _narrowed(model, form)
    assert done == {form.value: 1}
    assert {each.domain: each.version for each in result.opset_import} == {
        "": 13,
        "com.microsoft": 1,
    }
    ran = kernels(result, tmp_path)
    relu = {"Relu": 1} if "Relu" in body else {}
    assert ran == {"MatMulNBits": body.count("MatMul(") + body.count("Gemm<"), **relu}
    inputs = int(declared.split("]")[0].split(",")[-1])
    for batch in (1, 5):
        feed = {"x": _array(*((batch, 3, inputs) if rank == 2 else (batch, inputs)))}
        (expected,), (actual,) = run_at(model, feed), run_at(result, feed)
        assert expected.shape == actual.shape
        assert decibels(expected, actual) > TRUE_DB[form] - (6 if case == "shared" else 0)
    stored = [each for each in result.graph.initializer if np.prod(each.dims) >= 100]
    assert len(stored) == 1  # once, whoever reads it


@pytest.mark.parametrize(
    ("width", "indices", "form"),
    [
        *((width, indices, form) for width, indices in _TABLES for form in Form),
        (37, "int32", Form.INT8),
        (37, "int32", Form.UINT8),
    ],
)
def test_tables_are_gathered_by_one_kernel(
    width: int, indices: str, form: Form, tmp_path: pathlib.Path
) -> None:
    table = _array(50, width)
    model = parse(
        f"g ({indices}[B, T] i) => (float[B, T, D] y) {{ e = Gather(w, i) y = Abs(e) }}",
        {"w": table},
    )
    result, done = _narrowed(model, form)
    assert done == {form.value: 1}
    assert kernels(result, tmp_path) == {"GatherBlockQuantized": 1, "Abs": 1}
    feed = {"i": np.array([[0, 49, 7], [-1, -50, 3]], indices)}
    wanted = np.abs(dequantized(narrow(table.T, form, 16)).T[feed["i"]])
    np.testing.assert_allclose(run_at(result, feed)[0], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", [Form.INT4, Form.UINT4])
def test_rows_of_an_odd_number_are_not_packed(form: Form) -> None:
    model = parse(
        "g (int64[B] i) => (float[B, 37] y) { e = Gather(w, i) y = Abs(e) }", {"w": _array(50, 37)}
    )
    assert _found(model, form) == []


def test_a_table_that_is_multiplied_too_stays_in_standard_operators() -> None:
    model = parse(
        """g (int64[B] i) => (float[B, 50] y) {
            e = Gather(w, i) t = Transpose<perm=[1, 0]>(w) y = MatMul(e, t)
        }""",
        {"w": _array(50, 32)},
    )
    assert _found(model, Form.INT4) == []
    result, _ = _narrowed(model, Form.INT8)
    assert {node.domain for node in result.graph.node} == {""}
    feed = {"i": np.array([0, 4, 49])}
    assert decibels(run_at(model, feed)[0], run_at(result, feed)[0]) > 35


def test_convolutions_stay_in_standard_operators() -> None:
    model = parse(
        "g (float[N, 4, H, W] x) => (float[N, 6, P, Q] y) { y = Conv(x, w) }",
        {"w": _array(6, 4, 3, 3)},
    )
    assert _found(model, Form.UINT4) == []
    result, _ = _narrowed(model, Form.INT8)
    assert [node.op_type for node in result.graph.node] == ["DequantizeLinear", "Conv"]


def test_an_input_that_may_be_a_vector_is_left() -> None:
    text = "g (float[48] x) => (float[N] y) { y = MatMul(x, w) }"
    model = parse(text, {"w": _array(48, 9)})
    assert _found(model, Form.INT4) == []
    result, _ = _narrowed(model, Form.INT8)
    assert [node.op_type for node in result.graph.node] == ["DequantizeLinear", "MatMul"]


def test_blocks_of_dequantize_linear_are_of_a_newer_opset() -> None:
    for form in Form:
        assert least_opset(form, "nbits") == 13
        assert least_opset(form, "qdq") == (13 if form is Form.INT8 else 21)


def _optimized(tmp_path: pathlib.Path, passes: str) -> tuple[onnx.ModelProto, dict[str, str]]:
    model = parse(
        """<ir_version: 7, opset_import: ["" : 12]>
        g (int64[B, T] i) => (float[B, T, 64] y, int64[K] s) {
            [table] e = Gather(w, i)
            [first] a = MatMul(e, v)
            [cut] r = Relu(a)
            [small] y = MatMul(r, u)
            [size] s = Shape(y)
        }""",
        {"w": _array(300, 64), "v": _array(64, 128), "u": _array(128, 64)},
    )
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", i=RNG.integers(0, 300, (12, 1, 9)))
    report = onnxopt.optimize(
        tmp_path / "net.onnx",
        tmp_path / "out.onnx",
        data=tmp_path / "data.npz",
        passes=passes,
        goal="size",
        budget=Budget(min_sqnr=10, min_agreement=None),
        seconds=0.05,
        guard_speed=False,
    )
    assert report.undone == []
    assert report.after.bytes < report.before.bytes / 2
    told = {
        each["node"]: f"{each['precision']}: {each['reason']}"
        for each in report.to_dict()["treatments"]
    }
    return onnx.load(tmp_path / "out.onnx"), told


def test_the_pass_writes_operators_and_tells_of_every_node(tmp_path: pathlib.Path) -> None:
    result, told = _optimized(
        tmp_path, "quantize-weights{form=int4,written=nbits,min-elements=0,keep=small}"
    )
    assert [node.op_type for node in result.graph.node] == [
        "GatherBlockQuantized",
        "MatMulNBits",
        "Relu",
        "MatMul",
        "Shape",
    ]
    four = "int4 weights: stored in 4 bits with a scale for each block, computed in float"
    assert told == {
        "table": four,
        "first": four,
        "cut": "float: reads no stored weights of matrix products, convolutions or tables",
        "small": "float: it is to keep its weights",
        "size": ": computes no floating-point numbers",
    }


def test_what_is_quantized_already_is_told_of(tmp_path: pathlib.Path) -> None:
    _optimized(tmp_path, "quantize-weights{form=int8}")
    again = onnxopt.optimize(
        tmp_path / "out.onnx",
        tmp_path / "again.onnx",
        data=tmp_path / "data.npz",
        passes="quantize-weights",
        goal="size",
        guard_speed=False,
    )
    assert not again.changed
    reasons = {each["reason"] for each in again.to_dict()["treatments"]}
    assert "the model is quantized already" in reasons


def test_quantize_goes_first_with_what_it_told(tmp_path: pathlib.Path) -> None:
    _, told = _optimized(tmp_path, "quantize{float=first},quantize-weights{form=int8}")
    assert told["first"].startswith("int8 weights: stored in 8 bits")
    assert told["table"].startswith("int8 weights")
    assert told["small"].startswith("int8: 8 bits in")
