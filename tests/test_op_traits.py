"""The table of operators, held against ONNX's own schemas and ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.defs
import onnx_ir as ir
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NotSupported

from onnxopt import op_traits
from onnxopt.model import from_proto
from onnxopt.op_traits import Trait, has_trait, is_deterministic, is_standard, traits_of
from tests.conformance.cases import node_cases
from tests.differential import parse, run

_SCHEMAS = {schema.name: schema for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
_TABLE = op_traits._TRAITS


#: What the table says nothing of, so that passes leave it alone.
_UNKNOWN = {"LinearAttention", "CausalConvWithState", "SwiGLU"}


def _node(text: str, opset: int = 18) -> ir.Node:
    header = f'<ir_version: 8, opset_import: ["" : {opset}, "corp" : 1]>'
    model = from_proto(parse(header + f"g (float[2] x, bool c) => (float[2] y) {{ {text} }}"))
    return model.graph[-1]


def test_every_operator_of_the_table_exists() -> None:
    assert set(_TABLE) - set(_SCHEMAS) == set()


def test_operators_that_are_not_in_the_table_are_known_by_name() -> None:
    """Whoever updates onnx sees which operators the table should learn."""
    assert set(_SCHEMAS) - set(_TABLE) <= _UNKNOWN


@pytest.mark.parametrize("op", sorted(op for op, traits in _TABLE.items() if Trait.UNARY in traits))
def test_unary_operators_keep_the_shape(op: str) -> None:
    """In each of ONNX's cases of the operator the output has the shape of the first input."""
    found = 0
    for case in node_cases():
        nodes = case.model.graph.node
        if len(nodes) == 1 and nodes[0].op_type == op and nodes[0].domain == "":
            data, result = next(iter(case.feeds[0].values())), case.expected[0][0]
            if isinstance(data, np.ndarray):
                assert data.shape == result.shape, case.name
                found += 1
    assert found


_FLOAT_ZERO_PRESERVING = sorted(
    op for op, traits in _TABLE.items() if Trait.UNARY in traits and Trait.ZERO_PRESERVING in traits
)


@pytest.mark.parametrize("op", _FLOAT_ZERO_PRESERVING)
def test_zero_stays_zero(op: str) -> None:
    opset = max(22, _SCHEMAS[op].since_version)
    header = f'<ir_version: 10, opset_import: ["" : {opset}]>'
    model = parse(header + f"g (float[3] x) => (float[3] y) {{ y = {op}(x) }}")
    try:
        [y] = run(model, {"x": np.zeros(3, np.float32)})
    except NotSupported:
        pytest.skip(f"the runtime has no {op}")
    np.testing.assert_array_equal(y, 0)


@pytest.mark.parametrize(
    "op", ["Relu", "Abs", "Sign", "Floor", "Ceil", "Round", "Clip", "Identity"]
)
def test_idempotent(op: str) -> None:
    model = parse(f"g (float[6] x) => (float[6] a, float[6] b) {{ a = {op}(x) b = {op}(a) }}")
    once, twice = run(model, {"x": np.array([-2.5, -1, -0.0, 0.5, 1.5, 3], np.float32)})
    np.testing.assert_array_equal(once, twice)
    assert has_trait(_node(f"y = {op}(x)"), Trait.IDEMPOTENT)


class TestDeterminism:
    @pytest.mark.parametrize(
        ("text", "deterministic"),
        [
            ("y = Relu(x)", True),
            ("y = RandomNormalLike(x)", False),
            ("y = Bernoulli(x)", False),
            ("y = RandomUniform<shape = [2]>()", False),
            ("y = corp.Relu(x)", False),
            ("y = Unheard(x)", False),
            ("y = Dropout(x)", True),
            ("y = Dropout(x, , c)", False),
            ("t = Constant<value = bool {0}>() y = Dropout(x, , t)", False),
            ("y = QuantizeLinear(x, x)", True),
        ],
    )
    def test_nodes(self, text: str, deterministic: bool) -> None:
        assert is_deterministic(_node(text)) is deterministic

    @pytest.mark.parametrize(("value", "deterministic"), [(False, True), (True, False)])
    @pytest.mark.parametrize("overridable", [False, True])
    def test_dropout_with_a_constant_mode(
        self, value: bool, deterministic: bool, overridable: bool
    ) -> None:
        inputs = ", bool t" if overridable else ""
        model = parse(
            f"g (float[2] x{inputs}) => (float[2] y) {{ y = Dropout(x, , t) }}",
            {"t": np.array(value)},
        )
        node = from_proto(model).graph[0]
        assert is_deterministic(node) is (deterministic and not overridable)

    @pytest.mark.parametrize(
        ("opset", "attribute", "deterministic"),
        [(6, "", False), (6, "<is_test = 0>", False), (6, "<is_test = 1>", True), (7, "", True)],
    )
    def test_dropout_of_old_opsets(self, opset: int, attribute: str, deterministic: bool) -> None:
        assert is_deterministic(_node(f"y = Dropout{attribute}(x)", opset)) is deterministic

    @pytest.mark.parametrize(
        ("inner", "deterministic"),
        [("t = Relu(x)", True), ("t = RandomNormalLike(x)", False), ("t = corp.Op(x)", False)],
    )
    def test_control_flow_is_what_it_holds(self, inner: str, deterministic: bool) -> None:
        node = _node(
            f"""
            y = If (c) <
                then_branch = a () => (float[2] e) {{ e = Neg(x) }},
                else_branch = b () => (float[2] o) {{
                    o = If (c) <
                        then_branch = d () => (float[2] t) {{ {inner} }},
                        else_branch = f () => (float[2] n) {{ n = Neg(x) }}
                    >
                }}
            >
            """
        )
        assert is_deterministic(node) is deterministic

    def test_batch_normalization_that_trains_only_depends_on_its_inputs(self) -> None:
        node = _node("y = BatchNormalization<training_mode = 1>(x, x, x, x, x)")
        assert is_deterministic(node)


def test_other_domains_have_no_traits() -> None:
    node = _node("y = corp.Relu(x)")
    assert not is_standard(node)
    assert traits_of(node) is Trait.NONE
    assert not has_trait(node, Trait.UNARY)


def test_unknown_operators_have_no_traits() -> None:
    assert traits_of(_node("y = Unheard(x)")) is Trait.NONE


def test_quantization_is_marked() -> None:
    ops = {op for op, traits in _TABLE.items() if Trait.QUANTIZATION in traits}
    assert ops == {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


def test_operators_with_randomness_in_onnx_are_marked() -> None:
    seeded = {
        name
        for name, schema in _SCHEMAS.items()
        if "seed" in schema.attributes and name != "Dropout"
    }
    assert seeded == {op for op, traits in _TABLE.items() if Trait.RANDOM in traits}
