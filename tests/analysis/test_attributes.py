"""Attributes, and inputs that used to be attributes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.analysis import attributes
from onnxopt.model import from_proto
from onnxopt.rewriting import Refuse
from tests.differential import parse


def _node(text: str, opset: int = 18, **weights: np.ndarray) -> ir.Node:
    """The last node of a graph over ``x``."""
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    model = from_proto(parse(header + f"g (float[2, 1, 3] x, i) => (y) {{ {text} }}", weights))
    return model.graph[-1]


def test_attributes_and_their_defaults() -> None:
    node = _node('y = Op<a = 3, b = 1.5, c = "text", d = [1, 2]>(x)')
    assert attributes.int_attribute(node, "a", 0) == 3
    assert attributes.float_attribute(node, "b", 0.0) == 1.5
    assert attributes.string_attribute(node, "c", "") == "text"
    assert attributes.ints_attribute(node, "d") == (1, 2)
    assert attributes.int_attribute(node, "z", 7) == 7
    assert attributes.float_attribute(node, "z", 0.5) == 0.5
    assert attributes.string_attribute(node, "z", "none") == "none"
    assert attributes.ints_attribute(node, "z") is None


@pytest.mark.parametrize(
    "read",
    [
        lambda node: attributes.int_attribute(node, "axis", 0),
        lambda node: attributes.float_attribute(node, "axis", 0.0),
        lambda node: attributes.string_attribute(node, "axis", ""),
        lambda node: attributes.ints_attribute(node, "axis"),
    ],
)
def test_parameters_of_a_function_are_refused(read: Callable[[ir.Node], object]) -> None:
    model = from_proto(
        parse(
            """
            <ir_version: 10, opset_import: ["" : 18, "local" : 1]>
            g (float[2] x) => (float[2] y) { y = local.f<axis = 0>(x) }
            <domain: "local", opset_import: ["" : 18]>
            f <axis> (v) => (w) { w = Softmax<axis: int = @axis>(v) }
            """
        )
    )
    [function] = model.functions.values()
    with pytest.raises(Refuse, match="attribute axis is a parameter of the function"):
        read(function[0])


class TestAxes:
    @pytest.mark.parametrize("opset", [11, 18])
    def test_attribute_or_input(self, opset: int) -> None:
        if opset == 11:
            node = _node("y = Squeeze<axes = [1]>(x)", 11)
        else:
            node = _node("y = Squeeze(x, w)", w=np.array([1]))
        assert attributes.axes(node) == (1,)

    def test_not_given(self) -> None:
        assert attributes.axes(_node("y = Squeeze(x)")) is None
        assert attributes.axes(_node("y = Op(x, )")) is None

    def test_constant_nodes(self) -> None:
        node = _node("w = Constant<value_ints = [0, -1]>() y = Unsqueeze(x, w)")
        assert attributes.axes(node) == (0, -1)

    def test_only_known_when_the_model_runs(self) -> None:
        with pytest.raises(Refuse, match="axes is not constant"):
            attributes.axes(_node("y = Squeeze(x, i)"))


class TestConstantInput:
    def test_numbers(self) -> None:
        node = _node("y = Pad(x, p)", p=np.array([[0, 1], [2, 3]]))
        assert attributes.constant_input(node, 1, "pads") == (0, 1, 2, 3)
        assert attributes.constant_input(node, 2, "value") is None

    def test_refusal_names_what(self) -> None:
        with pytest.raises(Refuse, match="pads is not constant"):
            attributes.constant_input(_node("y = Pad(x, i)"), 1, "pads")


class TestClipBounds:
    @pytest.mark.parametrize(
        ("text", "opset", "bounds"),
        [
            ("y = Clip<min = 0.0, max = 6.0>(x)", 6, (0.0, 6.0)),
            ("y = Clip<max = 6.0>(x)", 6, (None, 6.0)),
            ("y = Clip(x)", 13, (None, None)),
            ("y = Clip(x, low)", 13, (0.5, None)),
            ("y = Clip(x, , high)", 13, (None, 2.0)),
            ("y = Clip(x, low, high)", 13, (0.5, 2.0)),
        ],
    )
    def test_opsets(self, text: str, opset: int, bounds: tuple[float | None, float | None]) -> None:
        node = _node(text, opset, low=np.array(0.5, np.float32), high=np.array(2, np.float32))
        assert attributes.clip_bounds(node) == bounds

    @pytest.mark.parametrize("weights", [{}, {"i": np.array([1, 2], np.float32)}])
    def test_refusals(self, weights: dict[str, np.ndarray]) -> None:
        text = "y = Clip(x, w)" if weights else "y = Clip(x, i)"
        with pytest.raises(Refuse, match="bound of Clip is not constant"):
            attributes.clip_bounds(_node(text, w=weights.get("i", np.zeros(1, np.float32))))
