import onnx_ir as ir

from onnxopt.analysis.values import dims
from onnxopt.model import to_proto
from tests.differential import apply, parse


def named(model: ir.Model) -> dict[str, ir.Value]:
    return {value.name or "": value for node in model.graph.all_nodes() for value in node.outputs}


def test_symbols_and_numbers_are_found_and_not_written() -> None:
    model = parse(
        """g (float[n, 4] x) => (float[n, 2] y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> {
            a = MatMul(x, w) s = Shape(a) b = Reshape(a, s) y = Relu(b)
        }"""
    )
    optimized, _ = apply(model, "infer-shapes")
    values = named(optimized)
    assert dims(values["a"]) == ("n", 2)
    assert dims(values["s"]) == (2,)
    assert values["s"].dtype == ir.DataType.INT64
    assert len(to_proto(optimized).graph.value_info) == 0


def test_stated_numbers_are_kept() -> None:
    model = parse("g (float[n] x) => (float[7] y) { y = Relu(x) }")
    optimized, _ = apply(model, "infer-shapes")
    assert dims(optimized.graph.outputs[0]) == (7,)


def test_values_in_branches_are_found() -> None:
    model = parse(
        """g (bool c, float[2, 3] x) => (float[2, 3] y) {
            y = If (c) <
                then_branch = t () => (float[2, 3] t1) { a = Relu(x) t1 = Neg(a) },
                else_branch = e () => (float[2, 3] e1) { e1 = Neg(x) }
            >
        }"""
    )
    optimized, _ = apply(model, "infer-shapes")
    assert dims(named(optimized)["a"]) == (2, 3)


def test_unknown_operators_are_no_obstacle() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "other" : 1]>
        g (float[2] x) => (float[2] y) { a = other.Thing(x) b = Relu(x) y = Add(a, b) }"""
    )
    optimized, _ = apply(model, "infer-shapes")
    assert dims(named(optimized)["b"]) == (2,)
    assert dims(named(optimized)["a"]) is None


def test_a_name_of_two_branches_is_not_mixed_up() -> None:
    model = parse(
        """g (bool c, float[2, 3] x) => (float[m, k] y) {
            y = If (c) <
                then_branch = t () => (float[m, k] t1) { a = Transpose(x) t1 = Neg(a) },
                else_branch = e () => (float[i, j] e1) { a = Relu(x) e1 = Neg(a) }
            >
        }"""
    )
    optimized, _ = apply(model, "infer-shapes")
    found = [
        dims(value)
        for node in optimized.graph.all_nodes()
        for value in node.outputs
        if value.name == "a"
    ]
    assert found == [None, None]


def test_a_name_of_a_function_is_not_mixed_up() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        g (float[2, 3] x) => (float[2, 3] y) { a = local.f(x) y = Neg(a) }
        <opset_import: ["" : 18], domain: "local">
        f (x) => (y) { a = Flatten<axis = 0>(x) s = Shape(x) y = Reshape(a, s) }"""
    )
    optimized, _ = apply(model, "infer-shapes")
    (function,) = optimized.functions.values()
    assert all(dims(value) is None for node in function for value in node.outputs)
