import numpy as np
import onnx_ir as ir
import pytest

from onnxopt.analysis.values import dims
from onnxopt.model import to_proto
from tests.differential import apply, op_types, optimize, parse, run


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


def test_stated_numbers_are_kept_where_the_operators_tell_nothing() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "other" : 1]>
        g (float[n] x) => (float[m] y) <float[7] a> { a = other.Thing(x) y = Relu(a) }"""
    )
    optimized, _ = apply(model, "infer-shapes")
    assert dims(optimized.graph.outputs[0]) == (7,)


def test_what_is_stated_for_outputs_proves_nothing_and_stays() -> None:
    """Here somebody made the batch dynamic in the inputs alone."""
    model = parse("g (float[n, 4] x) => (float[1, 4] y) { a = Abs(x) y = Relu(a) }")
    optimized, _ = apply(model, "infer-shapes")
    (output,) = optimized.graph.outputs
    assert dims(output) == ("n", 4)
    assert output.shape == [1, 4]
    assert to_proto(optimized).graph.output == model.graph.output


def test_an_output_of_unknown_shape_stays_unknown() -> None:
    model = parse(
        "g (float[n, m] x, int64[2] s) => (float[n, m] y) { a = Abs(x) y = Reshape(a, s) }"
    )
    optimized, _ = apply(model, "infer-shapes")
    assert dims(optimized.graph.outputs[0]) in (None, (None, None))


def test_numbers_of_inner_values_that_the_operators_contradict_are_mended() -> None:
    model = parse(
        """g (float[n, 4] x) => (float[m, k] y) <float[1, 4] a, float[1, 2, 2] b, float[1] c> {
            a = Abs(x) s = Constant<value_ints = [0, 2, 2]>() b = Reshape(a, s)
            i = Constant<value_ints = [1, 2]>() c = ReduceSum<keepdims = 0>(b, i) y = Exp(b)
        }"""
    )
    optimized, _ = apply(model, "infer-shapes")
    values = named(optimized)
    assert dims(values["a"]) == ("n", 4)
    assert dims(values["b"]) == ("n", 2, 2)
    assert dims(values["c"]) == ("n",)


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


@pytest.mark.parametrize("end", [2**31 - 1, 2**63 - 1])
def test_nothing_is_inferred_past_a_slice_that_goes_backwards_to_an_open_end(end: int) -> None:
    """ONNX's inference says that it is empty; ONNX Runtime turns the whole axis round."""
    model = parse(
        f"""g (float[7] x) => (float[m] y)
        <int64[1] s = {{-1}}, int64[1] e = {{{end}}}, int64[1] a = {{0}}, int64[1] b = {{-1}},
         int64[1] z = {{0}}, int64[1] t = {{3}}> {{
            u = Slice(x, s, e, a, b) v = Slice(u, z, t, a) y = Neg(v)
        }}"""
    )
    feed = {"x": np.arange(7, dtype=np.float32)}
    assert run(model, feed)[0].tolist() == [-6, -5, -4]
    optimized = optimize(model, "infer-shapes,eliminate-no-ops,fold-shapes,merge-slices", feed)
    assert op_types(optimized) == ["Slice", "Slice", "Neg"]
