"""Narrow weights: right in the runtime, fused where they should be, and left alone where not."""

import pathlib
from collections import Counter
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnxopt.passes.infer_shapes import InferShapes
from onnxopt.passes.quantize.opset import raise_opset
from onnxopt.passes.quantize_weights.lowering import least_opset, lower_weights
from onnxopt.passes.quantize_weights.narrowing import Form, compensated, dequantized, narrow
from onnxopt.passes.quantize_weights.quantize_weights import _matrix
from onnxopt.passes.quantize_weights.stores import Left, Store, stores
from onnxruntime.quantization import quantize_dynamic

import onnxopt
from onnxopt.accuracy import Budget
from onnxopt.model import from_proto, to_proto
from onnxopt.report.run import RunReport
from tests.differential import parse, run
from tests.passes.quantize.lowered import decibels, kernels

RNG = np.random.default_rng(0)
BLOCK = 16
#: What weights of a normal distribution are true to, at least.
TRUE_DB = {Form.INT8: 35.0, Form.INT4: 15.0, Form.UINT4: 15.0, Form.UINT8: 40.0}


def _array(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.3).astype(np.float32)


def _narrowed(model: onnx.ModelProto, form: Form) -> tuple[onnx.ModelProto, Counter[str]]:
    """The model with all weights that take it in a form, and how many did."""
    converted = from_proto(model)
    raise_opset(converted, least_opset(form, "qdq"))
    InferShapes()(converted)
    found = [
        each
        for each in stores(converted, 0, frozenset())
        if isinstance(each, Store) and each.takes(form, "qdq")
    ]
    weights = {(each.key, form): narrow(_matrix(each), form, BLOCK) for each in found}
    done = lower_weights(converted, found, {each.key: form for each in found}, weights)
    result = to_proto(converted)
    onnx.checker.check_model(result, full_check=True)
    return result, done


def _left(model: onnx.ModelProto, least: int = 0, kept: frozenset[str] = frozenset()) -> list[str]:
    converted = from_proto(model)
    InferShapes()(converted)
    found = list(stores(converted, least, kept))
    assert all(isinstance(each, Left) for each in found)
    return [each.reason for each in found if isinstance(each, Left)]


PRODUCTS: dict[str, tuple[str, str, dict[str, tuple[int, ...]]]] = {
    "matmul": ("float[B, T, 48] x", "y = MatMul(x, w)", {"w": (48, 12)}),
    "odd inputs": ("float[B, 37] x", "y = MatMul(x, w)", {"w": (37, 12)}),
    "gemm": ("float[B, 48] x", "y = Gemm<alpha=0.5, beta=2.0>(x, w, b)", {"w": (48, 9), "b": (9,)}),
    "gemm turned": (
        "float[B, 48] x",
        "y = Gemm<transB=1, alpha=0.5>(x, w, b)",
        {"w": (9, 48), "b": (9,)},
    ),
    "behind a transpose": (
        "float[B, 48] x",
        "t = Transpose<perm=[1, 0]>(w) y = MatMul(x, t)",
        {"w": (9, 48)},
    ),
    "behind a reshape": (
        "float[B, 48] x",
        "s = Constant<value = int64[2] {48, 9}>() t = Reshape(w, s) y = MatMul(x, t)",
        {"w": (9, 48)},
    ),
    "shared": (
        "float[B, 32] x",
        "a = MatMul(x, w) r = Relu(a) y = MatMul(r, w)",
        {"w": (32, 32)},
    ),
}


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("case", PRODUCTS)
def test_products_stay_true(case: str, form: Form) -> None:
    declared, body, shapes = PRODUCTS[case]
    rank = declared.count(",")
    output = "float[B, T, N] y" if rank == 2 else "float[B, N] y"
    model = parse(
        f"g ({declared}) => ({output}) {{ {body} }}",
        {name: _array(*shape) for name, shape in shapes.items()},
    )
    result, done = _narrowed(model, form)
    assert done == {form.value: 1}
    inputs = int(declared.split("]")[0].split(",")[-1])
    for batch in (1, 5):
        shape = (batch, 3, inputs) if rank == 2 else (batch, inputs)
        feed = {"x": _array(*shape)}
        (expected,), (actual,) = run(model, feed), run(result, feed)
        assert decibels(expected, actual) > TRUE_DB[form] - 4
    stored = [
        tensor
        for tensor in result.graph.initializer
        if tensor.data_type
        in (
            onnx.TensorProto.INT8,
            onnx.TensorProto.INT4,
            onnx.TensorProto.UINT4,
            onnx.TensorProto.UINT8,
        )
        and len(tensor.dims) == 2
    ]
    assert max(int(np.prod(tensor.dims)) for tensor in stored) == np.prod(shapes["w"])
    assert sum(np.prod(tensor.dims) == np.prod(shapes["w"]) for tensor in stored) == 1


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("case", ["matmul", "gemm turned", "behind a transpose"])
def test_the_runtime_fuses_products(case: str, form: Form, tmp_path: pathlib.Path) -> None:
    declared, body, shapes = PRODUCTS[case]
    body = body.replace("alpha=0.5", "alpha=1.0")
    output = "float[B, T, N] y" if declared.count(",") == 2 else "float[B, N] y"
    model = parse(
        f"g ({declared}) => ({output}) {{ {body} }}",
        {name: _array(*shape) for name, shape in shapes.items()},
    )
    found = kernels(_narrowed(model, form)[0], tmp_path)
    assert found["MatMulNBits"] == body.count("MatMul") + body.count("Gemm")
    assert not found["DequantizeLinear"]


def test_convolutions_have_a_scale_for_each_output() -> None:
    model = parse(
        """g (float[N, 8, H, W] x) => (float[N, 6, H, W] y) {
            a = Conv<pads=[1, 1, 1, 1], group=2>(x, w1, b1) y = Conv(a, w2)
        }""",
        {"w1": _array(8, 4, 3, 3), "b1": _array(8), "w2": _array(6, 8, 1, 1)},
    )
    result, done = _narrowed(model, Form.INT8)
    assert done == {"int8": 2}
    assert _narrowed(model, Form.INT4)[1] == {}  # no blocks there
    feed = {"x": _array(2, 8, 7, 5)}
    (expected,), (actual,) = run(model, feed), run(result, feed)
    assert decibels(expected, actual) > 35


def test_weights_in_constant_nodes_are_stored_narrow() -> None:
    model = parse("g (float[N, 16] x) => (float[N, 8] y) { y = MatMul(x, w) }")
    constant = onnx.helper.make_node(
        "Constant", [], ["w"], value=onnx.numpy_helper.from_array(_array(16, 8), "w")
    )
    model.graph.node.insert(0, constant)
    result, done = _narrowed(model, Form.INT8)
    assert done == {"int8": 1}
    assert "Constant" not in [node.op_type for node in result.graph.node]
    feed = {"x": _array(3, 16)}
    assert decibels(run(model, feed)[0], run(result, feed)[0]) > 35


TIED = """
    g (int64[B, T] ids) => (float[B, T, V] y, float[B, T, 32] e) {
        e = Gather(table, ids) r = Tanh(e) t = Transpose<perm=[1, 0]>(table) y = MatMul(r, t)
    }
"""


def test_a_table_that_is_also_the_last_product_is_stored_once(tmp_path: pathlib.Path) -> None:
    model = parse(TIED, {"table": _array(100, 32)})
    result, done = _narrowed(model, Form.INT8)
    assert done == {"int8": 1}
    large = [t for t in result.graph.initializer if np.prod(t.dims) == 3200]
    assert [t.data_type for t in large] == [onnx.TensorProto.INT8]
    for shape in ((1, 4), (3, 1)):
        feed = {"ids": RNG.integers(-100, 100, shape)}
        for expected, actual in zip(run(model, feed), run(result, feed), strict=True):
            assert expected.shape == actual.shape
            assert decibels(expected, actual) > 35
    assert kernels(result, tmp_path)["MatMulNBits"] == 1


@pytest.mark.parametrize(
    ("text", "weights", "reason"),
    [
        ("y = Gather<axis=1>(w, x)", {"w": (32, 8)}, "what is gathered are no rows of a matrix"),
        ("y = Gather(w, x)", {"w": (32, 8, 2)}, "what is gathered are no rows of a matrix"),
        (
            "a = Gather(w, x) b = ReduceSum(w) y = Add(a, b)",
            {"w": (32, 8)},
            "its weights are read in other ways too",
        ),
        (
            "a = Gather(w, x) y = MatMul(a, w)",
            {"w": (8, 8)},
            "its weights are read in two layouts",
        ),
    ],
)
def test_tables_that_are_read_otherwise_are_left_alone(
    text: str, weights: dict[str, tuple[int, ...]], reason: str
) -> None:
    model = parse(
        f"g (int64[N] x) => (float y) {{ {text} }}",
        {name: _array(*shape) for name, shape in weights.items()},
    )
    assert set(_left(model)) == {reason}


def test_other_weights_that_are_left_alone() -> None:
    text = "g (float[N, 16] x) => (float[N, 8] y) { [one] y = MatMul(x, w) }"
    model = parse(text, {"w": _array(16, 8)})
    assert _left(model, least=1000) == ["its weights are few"]
    assert _left(model, kept=frozenset(["one"])) == ["it is to keep its weights"]
    half = parse(text.replace("float[", "float16["), {"w": _array(16, 8).astype(np.float16)})
    assert "float16" in _left(half)[0]
    body = parse(
        """g (float[N, 16] x, bool c) => (float[N, 8] y) {
            a = MatMul(x, w)
            y = If(c)<
                then_branch = t () => (float[N, 8] t1) { m = MatMul(x, w) t1 = Abs(m) },
                else_branch = e () => (float[N, 8] e1) { e1 = Neg(a) }
            >
        }""",
        {"w": _array(16, 8)},
    )
    assert _left(body)[0] in (
        "a body of control flow reads its weights too",
        "its weights are read in other ways too",
    )


def test_outliers_are_clipped_where_that_has_less_error() -> None:
    matrix = _array(64, 4)
    found = narrow(matrix, Form.INT4, 32)
    plain = np.abs(matrix.reshape(2, 32, 4)).max(axis=1) / 7
    assert (found.scales <= plain * 1.0001).all()
    assert (found.scales < plain * 0.99).any()
    rounded = np.clip(np.rint(matrix.reshape(2, 32, 4) / plain[:, None]), -7, 7) * plain[:, None]
    before = np.square(rounded.reshape(64, 4) - matrix).sum()
    assert np.square(dequantized(found) - matrix).sum() < before


def test_unsigned_blocks_have_zero_points() -> None:
    matrix = np.abs(_array(64, 4)) + 0.5
    signed, unsigned = (narrow(matrix, form, 32) for form in (Form.INT4, Form.UINT4))
    assert unsigned.numbers.dtype == ml_dtypes.uint4
    shifted = narrow(_array(64, 4) + 0.2, Form.UINT4, 32)
    assert shifted.zeros.astype(int).any()
    errors = [np.square(dequantized(each) - matrix).sum() for each in (signed, unsigned)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("form", [Form.INT8, Form.INT4])
def test_second_order_rounding_keeps_outputs_nearer(form: Form) -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((512, 6)) @ rng.standard_normal((6, 40))
    rows += 0.05 * rng.standard_normal(rows.shape)
    matrix = rng.standard_normal((40, 10)).astype(np.float32)
    plain = narrow(matrix, form, BLOCK)
    better = compensated(plain, matrix, rows.T @ rows / len(rows), len(rows))
    errors = [np.square(rows @ (dequantized(each) - matrix)).sum() for each in (plain, better)]
    assert errors[1] < 0.7 * errors[0]
    assert better.numbers.dtype == plain.numbers.dtype


@pytest.mark.parametrize("factor", [1, 8, 32])
def test_few_rows_do_not_lead_astray(factor: int) -> None:
    rng = np.random.default_rng(4)
    rows, others = rng.standard_normal((12 * factor, 64)), rng.standard_normal((512, 64))
    matrix = rng.standard_normal((64, 10)).astype(np.float32)
    plain = narrow(matrix, Form.INT4, BLOCK)
    better = compensated(plain, matrix, rows.T @ rows / len(rows), len(rows))
    errors = [np.square(others @ (dequantized(each) - matrix)).sum() for each in (plain, better)]
    assert errors[1] < 1.1 * errors[0]


def _optimize(source: pathlib.Path, target: pathlib.Path, **settings: Any) -> RunReport:
    chosen: dict[str, Any] = {
        "passes": "quantize-weights",
        "goal": "size",
        "seconds": 0.05,
        "data": source.with_name("data.npz"),
    }
    return onnxopt.optimize(source, target, **{**chosen, **settings})


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "net.onnx"
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (int64[B, T] ids) => (float[B, T, 100] y) {
            [look] e = Gather(table, ids) [one] a = MatMul(e, w1) r = Relu(a)
            [two] b = MatMul(r, w2) c = Tanh(b)
            [last] y = MatMul(c, w3)
        }
    """
    weights = {"table": (100, 64), "w1": (64, 128), "w2": (128, 64), "w3": (64, 100)}
    onnx.save(parse(text, {name: _array(*shape) for name, shape in weights.items()}), path)
    np.savez(tmp_path / "data.npz", ids=RNG.integers(0, 100, (24, 8)))
    return path


def test_a_net_becomes_smaller_within_the_budget(source: pathlib.Path) -> None:
    target = source.with_name("out.onnx")
    report = _optimize(source, target)
    assert report.undone == []
    assert report.fidelity is not None
    assert report.fidelity.sqnr_db >= 20
    assert report.after.bytes < report.before.bytes / 3
    layers = {each["name"]: each for each in report.to_dict()["layers"]}
    assert {"look", "one", "two", "last"} <= set(layers)
    assert all("weights" in layers[name]["precision"] for name in ("look", "one", "two", "last"))
    again = _optimize(target, source.with_name("again.onnx"))
    assert not again.changed
    assert target.read_bytes() == source.with_name("again.onnx").read_bytes()


def test_a_tight_budget_takes_8_bits_and_a_tighter_one_none(source: pathlib.Path) -> None:
    target = source.with_name("out.onnx")
    report = _optimize(source, target, budget=Budget(min_sqnr=33.0))
    assert report.fidelity is not None
    assert report.fidelity.sqnr_db >= 33
    types = {tensor.data_type for tensor in onnx.load(target).graph.initializer}
    assert onnx.TensorProto.INT8 in types
    nothing = _optimize(source, target, budget=Budget(min_sqnr=150.0))
    assert not nothing.changed
    assert source.read_bytes() == target.read_bytes()


def test_4_bits_raise_the_opset_and_8_do_not(source: pathlib.Path) -> None:
    target = source.with_name("out.onnx")
    _optimize(source, target, passes="quantize-weights{form=int8}")
    assert onnx.load(target).opset_import[0].version == 17
    _optimize(source, target, passes="quantize-weights{form=int4}", budget=Budget(min_sqnr=8.0))
    narrowed = onnx.load(target)
    assert narrowed.opset_import[0].version >= 21
    assert narrowed.ir_version >= 10


def test_it_goes_with_compact_weights(source: pathlib.Path) -> None:
    target, smaller = source.with_name("out.onnx"), source.with_name("smaller.onnx")
    _optimize(source, target)
    report = _optimize(source, smaller, passes="quantize-weights,compact-weights")
    assert report.undone == []
    assert smaller.stat().st_size <= target.stat().st_size


def test_without_samples_weights_are_rounded_to_nearest(source: pathlib.Path) -> None:
    report = _optimize(source, source.with_name("out.onnx"), data=None)
    assert report.undone == []
    assert report.after.bytes < report.before.bytes / 3


def test_quantized_models_are_left_as_they_are(source: pathlib.Path) -> None:
    quantized, target = source.with_name("quantized.onnx"), source.with_name("out.onnx")
    quantize_dynamic(source, quantized)
    report = _optimize(quantized, target)
    assert not report.changed
    reasons = [each.reason for one in report.passes for each in one.outcome.refusals]
    assert reasons == ["the model is quantized already"]
    assert quantized.read_bytes() == target.read_bytes()


def test_a_block_is_a_power_of_two() -> None:
    with pytest.raises(onnxopt.errors.OptionError, match="power of two"):
        onnxopt.pass_manager.parse_pipeline("quantize-weights{block=24}")
