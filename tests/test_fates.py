"""Nodes of the original are found again by what they give, or by name, or are gone."""

from onnxopt.fates import births, fates
from onnxopt.findings import Treatment
from onnxopt.model import from_proto
from tests.differential import parse


def test_nodes_are_found_by_outputs_then_by_names() -> None:
    model = from_proto(
        parse("g (float[4] x) => (float[4] y) { [one] a = Relu(x) [two] b = Exp(a) y = Neg(b) }")
    )
    told = [
        Treatment("other name", "Relu", "int8", "because", ("a",)),
        Treatment("two", "Exp", "float", "for want of a kernel", ("renamed",)),
    ]
    found = fates(births(model), told)
    assert [(each.node, each.precision) for each in found] == [
        ("one", "int8"),
        ("two", "float"),
        ("y", ""),
    ]
    assert "computed no more" in found[2].reason


def test_an_equal_name_of_another_operator_is_another_node() -> None:
    model = from_proto(parse("g (float[4] x) => (float[4] y) { [one] y = Relu(x) }"))
    (found,) = fates(births(model), [Treatment("one", "Clip", "int8", "because", ("z",))])
    assert found.precision == ""


def test_without_a_word_from_a_pass_nothing_is_told() -> None:
    model = from_proto(parse("g (float[4] x) => (float[4] y) { y = Relu(x) }"))
    assert fates(births(model), []) == []
