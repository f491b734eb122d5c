"""The changes a rule may make: names, types and what they replace."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.analysis.values import dims
from onnxopt.model import from_proto, prove_shape, to_proto
from onnxopt.rewriting import Context, Refuse, Rewriter, can_replace, is_dead
from tests.differential import parse


def _rewriter(model: ir.Model, name: str) -> tuple[Rewriter, ir.Node]:
    """A rewriter anchored at the node that makes the value of this name."""
    [node] = [node for node in model.graph.all_nodes() if node.outputs[0].name == name]
    return Rewriter(Context(model), node), node


def test_a_new_value_takes_over_name_type_and_shape() -> None:
    proto = parse("g (float[N, 4] x) => (float[N, 4] y) <float[N, 4] a> { a = Abs(x) y = Neg(a) }")
    proto.graph.value_info[0].doc_string = "inner"
    model = from_proto(proto)
    rewriter, node = _rewriter(model, "a")
    old = node.outputs[0]
    new = rewriter.op("Relu", node.inputs)
    rewriter.replace(old, new)
    assert new.name == "a"
    assert old.name != "a"
    assert new.dtype == ir.DataType.FLOAT
    assert new.shape == ir.Shape(["N", 4])
    assert new.doc_string == "inner"
    assert model.graph[-1].inputs[0] is new


def test_a_graph_output_keeps_its_name() -> None:
    model = from_proto(parse("g (float[2] x) => (float[2] y) { a = Abs(x) y = Identity(a) }"))
    rewriter, node = _rewriter(model, "y")
    assert node.inputs[0] is not None
    rewriter.replace(node.outputs[0], node.inputs[0])
    model.graph.remove(node)
    proto = to_proto(model)
    assert [value.name for value in proto.graph.output] == ["y"]
    assert proto.graph.node[0].output[0] == "y"
    onnx.checker.check_model(proto)


@pytest.mark.parametrize(
    ("text", "old", "new", "allowed"),
    [
        ("(float[2] x) => (float[2] y) { a = Abs(x) b = Abs(a) y = Neg(b) }", "b", "x", True),
        ("(float[2] x) => (float[2] y) { a = Abs(x) y = Identity(a) }", "y", "a", True),
        ("(float[2] x) => (float[2] y) { y = Identity(x) }", "y", "x", False),
        (
            "(float[2] x) => (float[2] y, float[2] a) { a = Abs(x) y = Identity(a) }",
            "y",
            "a",
            False,
        ),
        ("() => (float[1] y) <float[1] w = {1}> { y = Identity(w) }", "y", "w", False),
    ],
)
def test_can_replace(text: str, old: str, new: str, allowed: bool) -> None:
    model = from_proto(parse("g " + text))
    values = dict(model.graph.initializers)
    values |= {value.name or "": value for value in model.graph.inputs}
    values |= {value.name or "": value for node in model.graph for value in node.outputs}
    assert can_replace(values[old], values[new]) is allowed
    if not allowed:
        producer = values[old].producer()
        assert producer is not None
        with pytest.raises(Refuse):
            Rewriter(Context(model), producer).replace(values[old], values[new])


def test_an_outer_value_cannot_be_a_bodys_output() -> None:
    model = from_proto(
        parse(
            """
            g (bool c, float[2] x) => (float[2] y) {
                outer = Abs(x)
                y = If (c) <
                    then_branch = a () => (float[2] t) { t = Identity(outer) },
                    else_branch = b () => (float[2] e) { e = Neg(x) }
                >
            }
            """
        )
    )
    body = model.graph[1].attributes["then_branch"].as_graph()
    assert not can_replace(body.outputs[0], model.graph[0].outputs[0])


def test_names_are_unique_everywhere() -> None:
    model = from_proto(
        parse(
            """
            <ir_version: 10, opset_import: ["" : 18, "local" : 1]>
            g (bool c, float[2] x) => (float[2] y) <float[2] taken_1 = {1, 2}> {
                taken = Abs(x)
                z = If (c) <
                    then_branch = a () => (float[2] taken_2) { taken_2 = Neg(x) },
                    else_branch = b () => (float[2] e) { e = Neg(taken_1) }
                >
                w = Add(z, taken)
                y = local.f(w)
            }
            <domain: "local", opset_import: ["" : 18]>
            f (v) => (taken_3) { taken_3 = Abs(v) }
            """
        )
    )
    context = Context(model)
    assert context.unique_name("free") == "free"
    names = [context.unique_name("taken") for _ in range(3)]
    assert names == ["taken_4", "taken_5", "taken_6"]
    assert context.unique_name("free") == "free_1"


def test_new_nodes_have_names_of_their_own() -> None:
    model = from_proto(parse("g (float[2] x) => (float[2] y) { [n] y = Abs(x) }"))
    rewriter, node = _rewriter(model, "y")
    first = rewriter.op("Relu", node.inputs)
    second = rewriter.op("Relu", [first])
    rewriter.replace(node.outputs[0], second)
    names = [each.name for each in model.graph]
    assert len(set(names)) == len(names) == 3
    assert all(names)
    assert [each.op_type for each in model.graph] == ["Relu", "Relu", "Abs"]


def test_several_outputs_and_an_insertion_point() -> None:
    model = from_proto(parse("g (float[4] x) => (float[4] y) { a = Abs(x) y = Neg(a) }"))
    rewriter, node = _rewriter(model, "y")
    rewriter.insert_before(model.graph[0])
    left, right = rewriter.ops("Split", [model.graph.inputs[0]], {"num_outputs": 2}, 2)
    joined = rewriter.op("Concat", [left, right], {"axis": 0}, like=model.graph.inputs[0])
    assert model.graph[2].op_type == "Abs"
    assert left.name != right.name
    assert joined.shape == ir.Shape([4])
    rewriter.set_inputs(node, [joined])
    onnx.checker.check_model(to_proto(model))


def test_attributes_and_inputs() -> None:
    model = from_proto(parse("g (float[2] x, float[1] b) => (float[2] y) { y = Clip(x, b) }"))
    rewriter, node = _rewriter(model, "y")
    rewriter.set_inputs(node, [node.inputs[0], None, node.inputs[1]])
    assert [value and value.name for value in node.inputs] == ["x", None, "b"]
    rewriter.set_attribute(node, "note", 3)
    assert node.attributes["note"].as_int() == 3
    rewriter.set_attribute(node, "note", None)
    assert "note" not in node.attributes
    rewriter.replace_input(node, 2, None)
    assert node.inputs[2] is None
    assert not model.graph.inputs[1].uses()


@pytest.mark.parametrize("dtype", [ir.DataType.INT4, ir.DataType.BFLOAT16, ir.DataType.FLOAT])
def test_constants_in_the_graph(dtype: ir.DataType) -> None:
    model = from_proto(parse("g (float[2] x) => (float[2] y) <float[1] w = {1}> { y = Abs(x) }"))
    rewriter, _ = _rewriter(model, "y")
    like = ir.Value(name="like", type=ir.TensorType(dtype))
    value = rewriter.initializer(np.array([1, 2]).astype(dtype.numpy()), "w", like)
    assert value.name == "w_1"
    assert model.graph.initializers["w_1"] is value
    assert value.dtype == dtype
    assert value.shape == ir.Shape([2])


def test_constants_in_functions_are_nodes() -> None:
    model = from_proto(
        parse(
            """
            <ir_version: 10, opset_import: ["" : 18, "local" : 1]>
            g (float[2] x) => (float[2] y) { y = local.f(x) }
            <domain: "local", opset_import: ["" : 18]>
            f (v) => (w) { w = Abs(v) }
            """
        )
    )
    [function] = model.functions.values()
    rewriter = Rewriter(Context(model), function[0])
    value = rewriter.initializer(np.ones(2, np.float32), "ones")
    producer = value.producer()
    assert producer is not None
    assert producer.op_type == "Constant"
    assert producer.graph is function.graph
    rewriter.set_inputs(function[1], [value])
    onnx.checker.check_model(to_proto(model))


@pytest.mark.parametrize(
    ("text", "dead"),
    [
        ("{ a = Abs(x) y = Neg(x) }", True),
        ("{ a = Abs(x) y = Neg(a) }", False),
        ("{ a = corp.Abs(x) y = Neg(x) }", False),
        ("{ y = Abs(x) }", False),
    ],
)
def test_is_dead(text: str, dead: bool) -> None:
    header = '<ir_version: 8, opset_import: ["" : 18, "corp" : 1]>'
    model = from_proto(parse(header + "g (float[2] x) => (float[2] y) " + text))
    assert is_dead(model.graph[0]) is dead


def test_what_is_stated_of_an_output_is_not_said_of_a_step_towards_it() -> None:
    """The batch was made dynamic after the model was finished, in the input alone."""
    model = from_proto(parse("g (float[N, 4] x) => (float[1, 4] y) { y = Abs(x) }"))
    rewriter, node = _rewriter(model, "y")
    old = node.outputs[0]
    step = rewriter.op("Neg", node.inputs, like=old)
    new = rewriter.op("Relu", [step], like=old)
    rewriter.replace(old, new)
    assert dims(step) is None
    assert dims(new) is None
    assert new.shape == [1, 4]
    prove_shape(new, ir.Shape(["N", 4]))
    last = Rewriter(Context(model), new.producer())  # type: ignore[arg-type]  # it has one
    after = last.op("Abs", [new], like=new)
    assert dims(after) == ("N", 4)
    last.replace(new, step)
    assert dims(step) == ("N", 4)


def test_the_shape_of_a_scalar_is_handed_over_too() -> None:
    model = from_proto(parse("g (float[N] x) => (float y) { y = ReduceSum<keepdims = 0>(x) }"))
    rewriter, node = _rewriter(model, "y")
    prove_shape(node.outputs[0], ir.Shape([]))
    new = rewriter.op("Abs", [node.outputs[0]], like=node.outputs[0])
    rewriter.replace(node.outputs[0], new)
    assert dims(new) == ()
