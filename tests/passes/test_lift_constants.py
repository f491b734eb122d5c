import pathlib

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.model import from_proto, save, to_proto
from onnxopt.pass_manager import PassManager, parse_pipeline
from tests.differential import apply, op_types, optimize, parse, untouched

PASS = "lift-constants"


def lifted(model: onnx.ModelProto) -> ir.Model:
    return apply(model, PASS)[0]


def not_larger(model: onnx.ModelProto) -> None:
    """Assert that the file does not grow, against the model as it is written without any pass."""
    before = to_proto(from_proto(model)).ByteSize()
    assert to_proto(lifted(model)).ByteSize() < before


@pytest.mark.parametrize(
    ("constant", "expected"),
    [
        ("Constant<value = float[2] {1.5, -2}>()", np.array([1.5, -2], np.float32)),
        ("Constant<value_float = 2.5>()", np.array(2.5, np.float32)),
        ("Constant<value_floats = [2.5, 3.0]>()", np.array([2.5, 3], np.float32)),
        ("Constant<value_int = -7>()", np.array(-7, np.int64)),
        ("Constant<value_ints = [1, -2, 300]>()", np.array([1, -2, 300], np.int64)),
    ],
)
def test_every_numeric_form_is_lifted(constant: str, expected: np.ndarray) -> None:
    model = parse(
        f"g (float[n] x) => (float[n] y) {{ c = {constant} d = Cast<to = 1>(c) s = ReduceSum(d) "
        "t = Squeeze(s) y = Add(x, t) }"
    )
    optimized = optimize(model, PASS, {"x": np.ones(3, np.float32)})
    assert "Constant" not in op_types(optimized)
    tensor = optimized.graph.initializers["c"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), expected)
    assert tensor.numpy().dtype == expected.dtype
    not_larger(model)


@pytest.mark.parametrize(
    "attribute", [{"value_string": "é\0ß"}, {"value_strings": ["a", "", "日本"]}]
)
def test_strings_are_lifted_as_they_are(attribute: dict[str, object]) -> None:
    node = onnx.helper.make_node("Constant", [], ["c"], **attribute)
    equal = onnx.helper.make_node("Equal", ["x", "c"], ["y"])
    (value,) = attribute.values()
    shape = [len(value)] if isinstance(value, list) else []
    graph = onnx.helper.make_graph(
        [node, equal],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.STRING, shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.BOOL, shape)],
    )
    opset = [onnx.helper.make_opsetid("", 19)]
    optimized = lifted(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9))
    assert op_types(optimized) == ["Equal"]
    proto = to_proto(optimized)
    onnx.checker.check_model(proto)
    texts = value if isinstance(value, list) else [value]
    assert [text.decode() for text in proto.graph.initializer[0].string_data] == texts
    assert list(proto.graph.initializer[0].dims) == shape


def test_many_lifted_strings_can_be_saved_beside_external_data(tmp_path: pathlib.Path) -> None:
    words = [f"word {index}" for index in range(300)]
    nodes = [
        onnx.helper.make_node("Constant", [], ["c"], value_strings=words),
        onnx.helper.make_node("Gather", ["c", "x"], ["y"]),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "g", [info("x", 7, [2])], [info("y", 8, [2])])
    opset = [onnx.helper.make_opsetid("", 18)]
    optimized = lifted(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8))
    save(optimized, tmp_path / "model.onnx", "always")
    (tensor,) = onnx.load(tmp_path / "model.onnx").graph.initializer
    assert [text.decode() for text in tensor.string_data] == words


def test_many_small_integers_stay_small() -> None:
    node = onnx.helper.make_node("Constant", [], ["c"], value_ints=[1] * 500)
    add = onnx.helper.make_node("Add", ["x", "c"], ["y"])
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node, add], "g", [info("x", 7, [500])], [info("y", 7, [500])])
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    optimize(model, PASS, {"x": np.arange(500)})
    not_larger(model)


def test_low_precision_tensors_are_lifted() -> None:
    for data_type in (onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT8E4M3FN):
        tensor = onnx.helper.make_tensor("t", data_type, [3], [1.0, 2.0, -0.5])
        nodes = [
            onnx.helper.make_node("Constant", [], ["c"], value=tensor),
            onnx.helper.make_node("Cast", ["c"], ["f"], to=1),
            onnx.helper.make_node("Add", ["x", "f"], ["y"]),
        ]
        info = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(nodes, "g", [info("x", 1, [3])], [info("y", 1, [3])])
        opset = [onnx.helper.make_opsetid("", 19)]
        model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
        optimized = optimize(model, PASS, {"x": np.ones(3, np.float32)})
        assert op_types(optimized) == ["Cast", "Add"]


def test_empty_tensors_are_lifted() -> None:
    model = parse(
        "g (float[n] x) => (float[n] y) { c = Constant<value = float[0] {}>() "
        "y = Concat<axis = 0>(x, c) }"
    )
    assert op_types(optimize(model, PASS, {"x": np.ones(3, np.float32)})) == ["Concat"]


def test_sparse_constants_are_lifted() -> None:
    values = onnx.helper.make_tensor("", onnx.TensorProto.FLOAT, [2], [3.0, 4.0])
    indices = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [2], [0, 3])
    sparse = onnx.helper.make_sparse_tensor(values, indices, [5])
    nodes = [
        onnx.helper.make_node("Constant", [], ["c"], sparse_value=sparse),
        onnx.helper.make_node("Add", ["x", "c"], ["y"]),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "g", [info("x", 1, [5])], [info("y", 1, [5])])
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    optimized = optimize(model, PASS, {"x": np.ones(5, np.float32)})
    tensor = optimized.graph.initializers["c"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), np.array([3, 0, 0, 4, 0], np.float32))


def test_bodies_get_initializers_of_their_own() -> None:
    model = parse(
        """g (bool c, float[2] x) => (float[2] y) {
            y = If (c) <
                then_branch = t () => (float[2] t1) {
                    k = Constant<value = float[2] {1, 2}>() t1 = Add(x, k) },
                else_branch = e () => (float[2] e1) {
                    k = Constant<value = float[2] {5, 6}>() e1 = Mul(x, k) }
            >
        }"""
    )
    x = np.array([1, 2], np.float32)
    optimized = optimize(model, PASS, {"c": np.array(True), "x": x}, {"c": np.array(False), "x": x})
    assert op_types(optimized) == ["If", "Add", "Mul"]
    assert not optimized.graph.initializers


def test_loop_bodies_are_lifted() -> None:
    model = parse(
        """g (int64 n, float[2] x) => (float[2] y) <bool t = {1}> {
            y = Loop (n, t, x) <body = b (int64 i, bool go, float[2] a) => (bool on, float[2] r) {
                k = Constant<value_float = 1.5>() r = Mul(a, k) on = Identity(go)
            }>
        }"""
    )
    feed = {"n": np.array(3), "x": np.array([1, 2], np.float32)}
    assert op_types(optimize(model, PASS, feed)) == ["Loop", "Mul", "Identity"]


def test_old_opset_is_lifted() -> None:
    model = parse(
        '<ir_version: 8, opset_import: ["" : 7]>\n'
        "g (float[2] x) => (float[2] y) { c = Constant<value = float[2] {1, 2}>() y = Add(x, c) }"
    )
    assert op_types(optimize(model, PASS, {"x": np.ones(2, np.float32)})) == ["Add"]


def test_names_and_metadata_are_kept() -> None:
    model = parse(
        "g (float[2] x) => (float[2] y) { c = Constant<value = float[2] {1, 2}>() y = Add(x, c) }"
    )
    source = from_proto(model)
    source.graph[0].outputs[0].metadata_props["origin"] = "here"
    PassManager(parse_pipeline(PASS)).run(source)
    assert source.graph.initializers["c"].metadata_props == {"origin": "here"}


def test_graph_outputs_stay_nodes() -> None:
    model = parse(
        "g (float[2] x) => (float[2] y, float[2] c) "
        "{ c = Constant<value = float[2] {1, 2}>() y = Add(x, c) }"
    )
    untouched(model, PASS, "graph output")


def test_outputs_of_branches_stay_nodes() -> None:
    model = parse(
        """g (bool c) => (float[2] y) {
            y = If (c) <
                then_branch = t () => (float[2] t1) { t1 = Constant<value = float[2] {1, 2}>() },
                else_branch = e () => (float[2] e1) { e1 = Constant<value = float[2] {3, 4}>() }
            >
        }"""
    )
    untouched(model, PASS, "graph output")


def test_functions_stay_as_they_are() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 18]>
        f (a) => (b) { c = Constant<value_float = 2.0>() b = Mul(a, c) }"""
    )
    optimized, outcomes = apply(model, PASS)
    assert not outcomes[PASS].modified
    (function,) = optimized.functions.values()
    assert [node.op_type for node in function] == ["Constant", "Mul"]


def test_another_domain_is_not_constant() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "other" : 1]>
        g (float[2] x) => (float[2] y) { c = other.Constant<value_float = 2.0>() y = Mul(x, c) }"""
    )
    untouched(model, PASS)


def test_stops_when_told_to() -> None:
    model = parse(
        "g (float x) => (float y) { a = Constant<value_float = 2.0>() "
        "b = Constant<value_float = 3.0>() c = Add(a, b) y = Mul(x, c) }"
    )
    passes = parse_pipeline(PASS)
    passes[0].max_rewrites = 1
    optimized = from_proto(model)
    PassManager(passes, rounds=1).run(optimized)
    assert op_types(optimized) == ["Constant", "Add", "Mul"]
