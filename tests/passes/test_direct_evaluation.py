"""What numpy computes for `fold-constants` must be what ONNX Runtime computes."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnxopt.passes.fold_constants.direct_evaluation import _FUNCTIONS, evaluate_directly
from onnxopt.passes.fold_constants.region_proto import region_proto

from onnxopt.errors import RuntimeRefusalError
from onnxopt.runtime.worker import shared_worker

Array = np.ndarray[Any, Any]
LIMIT = 1 << 20
UNEVEN = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def directly(
    op_type: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    opset: int = 18,
    outputs: int = 1,
    limit: int = LIMIT,
) -> list[Array] | None:
    node = make_node(op_type, inputs, attributes, outputs)
    tensors = [None if array is None else ir.Tensor(array) for array in inputs]
    results: list[Array] | None = evaluate_directly(node, opset, tensors, limit)
    return results


def make_node(
    op_type: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any] | None,
    outputs: int = 1,
) -> ir.Node:
    values = [
        None if array is None else ir.Value(name=f"i{index}") for index, array in enumerate(inputs)
    ]
    node = ir.node(op_type, values, dict(attributes or {}), num_outputs=outputs)
    for index, output in enumerate(node.outputs):
        output.name = f"o{index}"
    return node


def in_runtime(
    op_type: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    opset: int = 18,
    outputs: int = 1,
) -> list[Array]:
    node = make_node(op_type, inputs, attributes, outputs)
    known = {
        value: ir.tensor(array)
        for value, array in zip(node.inputs, inputs, strict=True)
        if value is not None and array is not None
    }
    region = region_proto([node], known, opset, 8, LIMIT, node.outputs)
    return shared_worker().evaluate(region.proto.SerializeToString(), {})


def assert_agrees(
    op_type: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    opset: int = 18,
    outputs: int = 1,
) -> None:
    """Assert that the node is evaluated here, bit for bit as in the runtime."""
    found = directly(op_type, inputs, attributes, opset=opset, outputs=outputs)
    assert found is not None
    expected = in_runtime(op_type, inputs, attributes, opset=opset, outputs=outputs)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def test_open_ends_of_slices_that_go_backwards_are_the_runtimes_business() -> None:
    for end in (2**31 - 1, 2**63 - 1):
        bounds = [np.array([number], np.int64) for number in (-1, end, 2, -1)]
        assert directly("Slice", [UNEVEN, *bounds]) is None


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("Identity", [UNEVEN], {}),
        ("Reshape", [UNEVEN, ints(0, -1)], {}),
        ("Reshape", [UNEVEN, ints(4, 6)], {}),
        ("Reshape", [UNEVEN[:0], ints(0, 5)], {"allowzero": 1}),
        ("Reshape", [np.float32(3).reshape(1), ints()], {}),
        ("Flatten", [UNEVEN], {"axis": 0}),
        ("Flatten", [UNEVEN], {"axis": 2}),
        ("Flatten", [UNEVEN], {"axis": -1}),
        ("Flatten", [UNEVEN], {"axis": 3}),
        ("Squeeze", [UNEVEN[:, :1, :1]], {}),
        ("Squeeze", [UNEVEN[:, :1, :1], ints(-1)], {}),
        ("Unsqueeze", [UNEVEN, ints(0, -1)], {}),
        ("Unsqueeze", [UNEVEN, ints(4, 1)], {}),
        ("Transpose", [UNEVEN], {}),
        ("Transpose", [UNEVEN], {"perm": [1, 2, 0]}),
        ("Shape", [UNEVEN], {"start": 1}),
        ("Shape", [UNEVEN], {"start": -2, "end": -1}),
        ("Shape", [UNEVEN], {"start": -9, "end": 9}),
        ("Size", [UNEVEN], {}),
        ("Slice", [UNEVEN, ints(-1), ints(-(2**63)), ints(2), ints(-2)], {}),
        ("Slice", [UNEVEN, ints(1, 9), ints(2**63 - 1, 0), ints(1, 0)], {}),
        ("Slice", [UNEVEN, ints(0, -1), ints(-9, 9)], {}),
        ("Slice", [UNEVEN, ints(5), ints(-9), None, ints(-1)], {}),
        ("Gather", [UNEVEN, ints(-1, 0)], {"axis": 1}),
        ("Gather", [UNEVEN, np.array(2, np.int32)], {"axis": -1}),
        ("Gather", [UNEVEN, np.zeros((2, 0), np.int64)], {"axis": 0}),
        ("Concat", [UNEVEN, UNEVEN[:, :1], UNEVEN[:, :0]], {"axis": -2}),
        ("Expand", [UNEVEN[:, :1], ints(3, 1)], {}),
        ("Expand", [UNEVEN, ints(2, 1, 1, 4)], {}),
        ("Expand", [UNEVEN[:, :1], ints(0, 4)], {}),
        ("ConstantOfShape", [ints(2, 3)], {}),
        ("ConstantOfShape", [ints()], {"value": ir.tensor(np.array([7], np.int32))}),
        ("ConstantOfShape", [ints(0, 2)], {"value": ir.tensor(np.array([True]))}),
        ("Range", [np.int64(3), np.int64(11), np.int64(3)], {}),
        ("Range", [np.int32(5), np.int32(-4), np.int32(-2)], {}),
        ("Range", [np.int64(3), np.int64(3), np.int64(1)], {}),
        ("Where", [UNEVEN > 3, UNEVEN, UNEVEN[:1, :1] * np.float32(-1)], {}),
        ("Not", [UNEVEN > 3], {}),
        ("And", [UNEVEN > 3, UNEVEN[:1] < 9], {}),
        ("Or", [UNEVEN > 3, UNEVEN[:1] < 9], {}),
        ("Equal", [UNEVEN > 3, UNEVEN > 9], {}),
    ],
)
def test_numbers_are_the_runtimes(
    op_type: str, inputs: list[Array | None], attributes: dict[str, Any]
) -> None:
    arrays = [None if each is None else np.asarray(each) for each in inputs]
    assert_agrees(op_type, arrays, attributes)


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Min", "Max"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32])
@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_integers_agree(op_type: str, dtype: type[Any], data: st.DataObject) -> None:
    info = np.iinfo(dtype)
    numbers = st.integers(max(info.min, -(2**62)), min(info.max, 2**62))
    first = np.array(data.draw(st.lists(numbers, min_size=3, max_size=3)), dtype)
    second = np.array(data.draw(st.lists(numbers, min_size=3, max_size=3)), dtype)
    if op_type == "Div":
        first, second = np.abs(first), np.maximum(np.abs(second), 1)
        assume((first >= 0).all())
    if directly(op_type, [first, second]) is not None:
        assert_agrees(op_type, [first, second])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shapes", [((257,), (257,)), ((3, 257), ()), ((1,), (3, 257))])
@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
def test_correctly_rounded_arithmetic_agrees(
    op_type: str, shapes: tuple[tuple[int, ...], ...], dtype: type[Any]
) -> None:
    first, second = (_wide_floats(shape, dtype, seed) for seed, shape in enumerate(shapes))
    assert_agrees(op_type, [first, second])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("op_type", ["Neg", "Abs", "Sqrt"])
def test_correctly_rounded_functions_agree(op_type: str, dtype: type[Any]) -> None:
    array = _wide_floats((1031,), dtype, 0)
    assert_agrees(op_type, [np.abs(array) if op_type == "Sqrt" else array])


def _wide_floats(shape: tuple[int, ...], dtype: type[Any], seed: int) -> Array:
    """Numbers of all magnitudes that are finite and not zero, subnormal ones among them."""
    generator = np.random.default_rng(seed)
    limits = np.finfo(dtype)
    exponents = generator.uniform(
        np.log2(float(limits.smallest_subnormal)) + 1, np.log2(float(limits.max)) - 1, shape
    )
    numbers = np.exp2(exponents) * generator.choice([-1.0, 1.0], shape)
    return np.asarray(numbers, dtype)


@pytest.mark.parametrize("op_type", ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"])
def test_comparisons_agree(op_type: str) -> None:
    assert_agrees(op_type, [ints(1, 2, 3), ints(2)])


@pytest.mark.parametrize("target", [np.float16, np.float32, np.float64, np.int32, np.int8, bool])
@pytest.mark.parametrize(
    "array",
    [
        np.array([0, 1, -1, 65519, 65520, 2**24 + 1, 2**53 + 1, -(2**40) - 3], np.int64),
        np.array([0, 1, 127, 128, 255], np.uint8),
        np.array([True, False]),
        np.array([0, -0.0, 1.0009765, 65519.9, 65520, 1e-8, np.inf, np.nan], np.float32),
        np.array([0, 0.1, 6e-8, 65504, -np.inf, np.nan], np.float16),
        np.array([0, 1 / 3, 1e300, 1e-50, np.inf, np.nan], np.float64),
    ],
)
def test_casts_agree(array: Array, target: type[Any]) -> None:
    attributes = {"to": int(ir.DataType.from_numpy(np.dtype(target)))}
    if directly("Cast", [array], attributes) is not None:
        assert_agrees("Cast", [array], attributes)
    else:
        assert array.dtype.kind == "f"


@pytest.mark.parametrize("other", [np.float16, np.float32])
def test_casts_of_bfloat16_agree(other: type[Any]) -> None:
    array = np.array([0, 1 / 3, -2.7, 1e-3, 3e4], np.float32)
    narrow = array.astype(ml_dtypes.bfloat16)
    assert_agrees("Cast", [array.astype(other)], {"to": int(ir.DataType.BFLOAT16)})
    assert_agrees("Cast", [narrow], {"to": int(ir.DataType.from_numpy(np.dtype(other)))})


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_slices_agree(data: st.DataObject) -> None:
    array = np.arange(data.draw(st.integers(0, 6)) * 3).reshape(-1, 3)
    bound = st.integers(-8, 8)
    starts, ends = data.draw(bound), data.draw(bound)
    step = data.draw(st.sampled_from([-3, -2, -1, 1, 2, 3]))
    assert_agrees("Slice", [array, ints(starts), ints(ends), ints(0), ints(step)])


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes", "opset"),
    [
        ("Squeeze", [UNEVEN[:1]], {"axes": [0]}, 11),
        ("Unsqueeze", [UNEVEN], {"axes": [0, 3]}, 11),
        ("Slice", [UNEVEN], {"starts": [1, 0], "ends": [9, -1], "axes": [1, 2]}, 9),
        ("Slice", [UNEVEN], {"starts": [1], "ends": [2]}, 7),
        ("Reshape", [UNEVEN, ints(6, 4)], {}, 7),
        ("Concat", [UNEVEN, UNEVEN], {"axis": 1}, 7),
        ("Shape", [UNEVEN], {}, 12),
    ],
)
def test_old_revisions_agree(
    op_type: str, inputs: list[Array], attributes: dict[str, Any], opset: int
) -> None:
    assert_agrees(op_type, inputs, attributes, opset=opset)


@pytest.mark.parametrize(("opset", "attributes"), [(11, {"split": [1, 3]}), (13, {})])
def test_splits_agree(opset: int, attributes: dict[str, Any]) -> None:
    inputs: list[Array | None] = [UNEVEN] if opset < 13 else [UNEVEN, ints(1, 3)]
    assert_agrees("Split", inputs, {"axis": -1, **attributes}, opset=opset, outputs=2)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("Gather", [UNEVEN, ints(2)], {"axis": 0}),
        ("Reshape", [UNEVEN, ints(5, 5)], {}),
        ("Reshape", [UNEVEN, ints(-1, -1)], {}),
        ("Reshape", [UNEVEN, ints(-2, 12)], {}),
        ("Reshape", [UNEVEN, ints(1, 1, 1, 0)], {}),
        ("Squeeze", [UNEVEN, ints(0)], {}),
        ("Transpose", [UNEVEN], {"perm": [0, 0, 1]}),
        ("Slice", [UNEVEN, ints(0), ints(1), ints(0), ints(0)], {}),
        ("Slice", [UNEVEN, ints(0), ints(1), ints(7)], {}),
        ("Concat", [UNEVEN, UNEVEN[0]], {"axis": 0}),
        ("Expand", [UNEVEN, ints(5)], {}),
        ("ConstantOfShape", [ints(-1)], {}),
        ("Div", [ints(1), ints(0)], {}),
        ("Split", [UNEVEN, ints(-1, 5)], {"axis": 2}),
    ],
)
def test_what_the_runtime_refuses_is_not_computed(
    op_type: str, inputs: list[Array], attributes: dict[str, Any]
) -> None:
    assert directly(op_type, inputs, attributes) is None
    with pytest.raises(RuntimeRefusalError):
        in_runtime(op_type, inputs, attributes, outputs=2 if op_type == "Split" else 1)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("Pow", [UNEVEN, UNEVEN], {}),
        ("Reciprocal", [UNEVEN], {}),
        ("Add", [np.ones(3, ml_dtypes.bfloat16), np.ones(3, ml_dtypes.bfloat16)], {}),
        ("Mul", [np.ones(3, ml_dtypes.float8_e5m2), np.ones(3, ml_dtypes.float8_e5m2)], {}),
        ("Div", [ints(-3), ints(2)], {}),
        ("Range", [np.float32(0), np.float32(1), np.float32(0.1)], {}),
        ("Cast", [UNEVEN], {"to": int(ir.DataType.INT32)}),
        ("Cast", [UNEVEN.astype(np.float64)], {"to": int(ir.DataType.FLOAT16)}),
        ("Cast", [UNEVEN], {"to": int(ir.DataType.FLOAT8E4M3FN)}),
        ("Cast", [UNEVEN], {"to": int(ir.DataType.STRING)}),
        ("Exp", [UNEVEN], {}),
    ],
)
def test_what_the_runtime_rounds_is_left_to_it(
    op_type: str, inputs: list[Array], attributes: dict[str, Any]
) -> None:
    assert directly(op_type, [np.asarray(each) for each in inputs], attributes) is None


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("Gather", [UNEVEN, ints(*[0] * 100)], {}),
        ("Concat", [UNEVEN] * 9, {"axis": 0}),
        ("Cast", [UNEVEN], {"to": int(ir.DataType.DOUBLE)}),
        ("Add", [np.zeros((100, 1), np.int64), np.zeros((1, 100), np.int64)], {}),
        ("Range", [np.int64(0), np.int64(10**15), np.int64(1)], {}),
        ("Where", [np.ones((100, 1), bool), UNEVEN[0, 0, :1], UNEVEN[0, 0, :1]], {}),
    ],
)
def test_what_needs_too_much_memory_is_not_computed(
    op_type: str, inputs: list[Array], attributes: dict[str, Any]
) -> None:
    arrays = [np.asarray(each) for each in inputs]
    assert directly(op_type, arrays, attributes, limit=100) is None


def test_views_take_no_memory() -> None:
    for op_type, inputs in (
        ("Transpose", [UNEVEN]),
        ("Expand", [UNEVEN, ints(1000000, 2, 3, 4)]),
        ("Slice", [UNEVEN, ints(0), ints(1)]),
        ("Reshape", [UNEVEN, ints(24)]),
    ):
        found = directly(op_type, inputs, limit=0)
        assert found is not None
        assert np.shares_memory(found[0], UNEVEN)


def test_parameters_of_functions_are_not_guessed() -> None:
    node = make_node("Transpose", [UNEVEN], {})
    node.attributes["perm"] = ir.RefAttr("perm", "order", ir.AttributeType.INTS)
    assert evaluate_directly(node, 18, [ir.Tensor(UNEVEN)], LIMIT) is None


def test_other_domains_and_ancient_opsets_are_not_known() -> None:
    node = ir.node("Transpose", [ir.Value(name="x")], domain="other")
    assert evaluate_directly(node, 18, [ir.Tensor(UNEVEN)], LIMIT) is None
    assert directly("Transpose", [UNEVEN], opset=6) is None


def test_the_table_names_operators_that_exist() -> None:
    assert all(onnx.defs.has(op_type) for op_type in _FUNCTIONS)
