"""What is known of values before the model runs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.analysis import values
from onnxopt.model import from_proto
from tests.differential import parse


def _value(text: str, name: str = "v", **weights: np.ndarray) -> ir.Value:
    """The value of this name in a model of this text."""
    header = '<ir_version: 10, opset_import: ["" : 21, "corp" : 1]>'
    model = from_proto(parse(header + text, weights))
    found = {value.name: value for node in model.graph for value in node.outputs}
    found |= {value.name: value for value in model.graph.inputs}
    found |= {value.name: value for value in model.graph.initializers.values()}
    return found[name]


class TestConstants:
    @pytest.mark.parametrize(
        ("attribute", "expected"),
        [
            ("value = float[2] {1, 2}", np.array([1, 2], np.float32)),
            ("value_float = 1.5", np.array(1.5, np.float32)),
            ("value_floats = [1.0, 2.0]", np.array([1, 2], np.float32)),
            ("value_int = 3", np.array(3)),
            ("value_ints = [3, 4]", np.array([3, 4])),
        ],
    )
    def test_nodes(self, attribute: str, expected: np.ndarray) -> None:
        value = _value(f"g () => (y) {{ v = Constant<{attribute}>() y = Identity(v) }}")
        array = values.constant_array(value)
        assert array is not None
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(array, expected)
        assert values.is_constant(value)

    def test_initializers(self) -> None:
        value = _value("g () => (y) { y = Identity(v) }", v=np.arange(3))
        np.testing.assert_array_equal(values.constant_array(value), [0, 1, 2])

    def test_overridable_initializers_are_not(self) -> None:
        text = "g (float[1] v) => (y) { y = Identity(v) }"
        assert not values.is_constant(_value(text, v=np.zeros(1, np.float32)))

    @pytest.mark.parametrize(
        "text",
        [
            "g (float[2] v) => (y) { y = Identity(v) }",
            "g (float[2] x) => (y) { v = Identity(x) y = Abs(v) }",
            "g () => (y) { v = corp.Constant<value_int = 3>() y = Identity(v) }",
        ],
    )
    def test_others_are_not(self, text: str) -> None:
        assert values.constant(_value(text)) is None
        assert values.constant(None) is None

    def test_strings_have_no_numbers(self) -> None:
        for text in ('value_string = "a"', 'value = string[1] {"a"}'):
            value = _value(f"g () => (y) {{ v = Constant<{text}>() y = Identity(v) }}")
            assert values.constant_array(value) is None

    def test_the_limit_is_kept_without_reading(self) -> None:
        value = _value("g () => (y) { y = Identity(v) }", v=np.arange(3))
        assert values.constant_array(value, limit=2) is None
        assert values.constant_array(value, limit=3) is not None

    @pytest.mark.parametrize(
        ("array", "expected"),
        [
            (np.array(2.5, np.float32), 2.5),
            (np.array([[7]]), 7),
            (np.array([True]), True),
            (np.array(1.5, ml_dtypes.bfloat16), 1.5),
            (np.array([1, 2]), None),
            (np.array([]), None),
        ],
    )
    def test_scalars(self, array: np.ndarray, expected: float | None) -> None:
        value = ir.Value(name="v", const_value=ir.tensor(array))
        ir.Graph([], [], nodes=[], initializers=[value])
        found = values.constant_scalar(value)
        assert found == expected
        assert type(found) is type(expected)


class TestShapes:
    @pytest.mark.parametrize(
        ("kind", "dims"),
        [
            ("float[2, N, ?]", (2, "N", None)),
            ("float", ()),
            ("float[]", None),
            ("seq(float[2, 3])", None),
            ("optional(float[2])", None),
        ],
    )
    def test_dims(self, kind: str, dims: tuple[values.Dim, ...] | None) -> None:
        value = _value(f"g ({kind} v) => (y) {{ y = Identity(v) }}")
        assert values.dims(value) == dims
        assert values.rank(value) == (None if dims is None else len(dims))

    def test_unknown_rank(self) -> None:
        value = ir.Value(name="v", type=ir.TensorType(ir.DataType.FLOAT))
        assert values.dims(value) is None
        assert values.rank(value) is None
        assert values.static_shape(value) is None
        assert values.rank(None) is None
        assert values.dims(None) is None

    @pytest.mark.parametrize("dim", [-1, "?", "-1", "", None])
    def test_dims_that_mean_nothing(self, dim: int | str | None) -> None:
        value = ir.Value(name="v", shape=ir.Shape([dim, 2]))
        assert values.dims(value) == (None, 2)
        assert not values.same_shape(value, value)

    def test_constants_have_the_shape_of_their_tensor(self) -> None:
        value = _value("g () => (y) { y = Identity(v) }", v=np.zeros((2, 0, 3)))
        assert values.static_shape(value) == (2, 0, 3)
        assert values.size(value) == 0

    def test_static_shape_and_size(self) -> None:
        assert values.static_shape(ir.Value(name="v", shape=ir.Shape([2, 3]))) == (2, 3)
        assert values.size(ir.Value(name="v", shape=ir.Shape([2, 3]))) == 6
        assert values.static_shape(ir.Value(name="v", shape=ir.Shape(["N", 3]))) is None
        assert values.size(ir.Value(name="v", shape=ir.Shape(["N", 0]))) is None

    @pytest.mark.parametrize(
        ("first", "second", "same"),
        [
            ([2, "N"], [2, "N"], True),
            ([2, "N"], [2, "M"], False),
            ([2, None], [2, None], False),
            ([2], [2, 1], False),
            ([], [], True),
        ],
    )
    def test_same_shape(
        self, first: list[int | str | None], second: list[int | str | None], same: bool
    ) -> None:
        left, right = (ir.Value(name="v", shape=ir.Shape(dims)) for dims in (first, second))
        assert values.same_shape(left, right) is same


class TestReaders:
    def test_one_use(self) -> None:
        text = "g (float[2] x) => (float[2] y, float[2] z) {{ v = Abs(x) {} }}"
        assert values.has_one_use(_value(text.format("y = Neg(v) z = Neg(x)")))
        assert not values.has_one_use(_value(text.format("y = Neg(v) z = Neg(v)")))
        assert not values.has_one_use(_value(text.format("y = Add(v, v) z = Neg(x)")))
        output = "g (float[2] x) => (float[2] y, float[2] v) { v = Abs(x) y = Neg(v) }"
        assert not values.has_one_use(_value(output))

    def test_readers_in_bodies_count(self) -> None:
        text = """
            g (bool c, float[2] x) => (float[2] y, float[2] z) {
                v = Abs(x)
                z = Neg(v)
                y = If (c) <
                    then_branch = a () => (float[2] t) { t = Neg(v) },
                    else_branch = b () => (float[2] e) { e = Neg(x) }
                >
            }
        """
        assert not values.has_one_use(_value(text))


@pytest.mark.parametrize(
    ("kind", "floats"), [("float", True), ("bfloat16", True), ("float16", True), ("int64", False)]
)
def test_is_float(kind: str, floats: bool) -> None:
    assert values.is_float(_value(f"g ({kind}[2] v) => (y) {{ y = Identity(v) }}")) is floats
    assert not values.is_float(None)
    assert not values.is_float(ir.Value(name="v"))
