"""What does not change in a Loop, and what nobody reads of it."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.traversal import all_nodes
from tests.differential import op_types, optimize, parse, untouched

PASS = "simplify-loops"
W = np.random.default_rng(1).standard_normal((3, 3)).astype(np.float32)


def loop(
    hands_on: str = "wo = Identity(wi)",
    *,
    opset: int = 18,
    outputs: str = "float[a, 3] y",
    scan: str = "so = Neg(v)",
    weights: str = "w",
    after: str = "",
) -> onnx.ModelProto:
    """x times w, n times over; w is carried along."""
    return parse(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[a, 3] x, int64 n) => ({outputs}) {{
            e = Exp(x)
            y, last, s = Loop (n, , e, w) <body = b
                (int64 i, bool ci, float[a, 3] v, float[3, 3] wi)
                => (bool co, float[a, 3] vo, float[3, 3] wo, float[a, 3] so) {{
                    co = Identity(ci)
                    {hands_on}
                    m = MatMul(v, {weights})
                    vo = Tanh(m)
                    {scan}
                }}
            >
            {after}
        }}""",
        {"w": W},
    )


def feeds(*counts: int, rows: int = 2) -> list[dict[str, np.ndarray]]:
    x = np.random.default_rng(0).standard_normal((rows, 3)).astype(np.float32)
    return [{"x": x, "n": np.array(count)} for count in counts]


def loops(model: ir.Model) -> list[ir.Node]:
    return [node for node in all_nodes(model.graph) if node.op_type == "Loop"]


@pytest.mark.parametrize("opset", [11, 13, 16, 19, 21])
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_a_value_that_is_handed_on_is_read_from_outside(opset: int, rows: int) -> None:
    model = loop(opset=opset, weights="wi")
    optimized = optimize(model, PASS, *feeds(0, 1, 3, rows=rows))
    (node,) = loops(optimized)
    assert len(node.inputs) == 3
    assert len(node.outputs) == 1  # the scan output goes too: nobody reads it
    (product,) = [each for each in all_nodes(optimized.graph) if each.op_type == "MatMul"]
    assert product.inputs[1] is optimized.graph.initializers["w"]


def test_what_is_read_behind_the_loop_is_the_initial_value() -> None:
    model = loop(weights="wi", outputs="float[3, 3] z, float[a, 3] y", after="z = Neg(last)")
    optimized = optimize(model, PASS, *feeds(0, 2))
    (negation,) = [node for node in optimized.graph if node.op_type == "Neg"]
    assert negation.inputs[0] is optimized.graph.initializers["w"]


def test_scan_outputs_that_are_read_stay() -> None:
    outputs = "float[a, 3] y, float[n2, a, 3] s"
    optimized = optimize(loop(outputs=outputs, weights="wi"), PASS, *feeds(1, 3))
    (node,) = loops(optimized)
    assert (len(node.inputs), len(node.outputs)) == (3, 2)


def test_a_loop_of_which_only_unchanged_values_are_read_goes() -> None:
    model = loop(outputs="float[3, 3] z", after="z = Neg(last)")
    assert op_types(optimize(model, f"{PASS},eliminate-dead-code", *feeds(0, 2))) == ["Neg"]


def test_a_value_that_changes_stays() -> None:
    model = loop("wo = Neg(wi)", outputs="float[a, 3] y, float[n2, a, 3] s", weights="wi")
    untouched(model, PASS)
    optimize(model, PASS, *feeds(1, 2, 3))


def test_values_that_change_places_stay() -> None:
    model = parse(
        """g (float[a] x, float[a] z, int64 n) => (float[a] y, float[a] u) {
            e = Exp(x)
            f = Exp(z)
            y, u = Loop (n, , e, f) <body = b
                (int64 i, bool ci, float[a] p, float[a] q)
                => (bool co, float[a] po, float[a] qo) {
                    co = Identity(ci) po = Identity(q) qo = Identity(p)
                }
            >
        }"""
    )
    untouched(model, PASS)


def test_an_output_of_the_graph_that_is_an_initial_value_becomes_a_copy() -> None:
    model = loop(weights="wi", outputs="float[3, 3] last, float[a, 3] y, float[n2, a, 3] s")
    optimized = optimize(model, PASS, *feeds(0, 2))
    assert sorted(node.op_type for node in optimized.graph) == ["Exp", "Identity", "Loop"]


def test_a_sequence_that_is_an_output_of_the_graph_stays() -> None:
    model = parse(
        """g (float[a] x, int64 n) => (seq(float[a]) y) {
            e = SequenceConstruct(x)
            y = Loop (n, , e) <body = b
                (int64 i, bool ci, seq(float[a]) v) => (bool co, seq(float[a]) v) {
                    co = Identity(ci)
                }
            >
        }"""
    )
    untouched(model, PASS, "not known to be a tensor")


def test_a_carried_value_that_is_another_output_of_the_body_stays() -> None:
    model = loop(scan="so = Neg(v)", weights="wi", outputs="float[a, 3] y, float[n2, a, 3] s")
    body = model.graph.node[1].attribute[0].g
    body.output[2].name = "wi"  # handed on without an Identity: the same place, which is fine
    optimize(model, PASS, *feeds(0, 2))
    body.output[3].CopyFrom(onnx.helper.make_tensor_value_info("wi", 1, (3, 3)))
    model.graph.output[1].CopyFrom(onnx.helper.make_tensor_value_info("s", 1, ("n2", 3, 3)))
    untouched(model, PASS, "another output of the body")


def test_a_loop_in_a_loop_reads_from_the_outermost_graph() -> None:
    model = parse(
        """g (float[a, 3] x, int64 n) => (float[a, 3] y) {
            e = Exp(x)
            y, last = Loop (n, , e, w) <body = b
                (int64 i, bool ci, float[a, 3] v, float[3, 3] wi)
                => (bool co, float[a, 3] vo, float[3, 3] wo) {
                    co = Identity(ci)
                    vo, wo = Loop (n, , v, wi) <body = c
                        (int64 j, bool cj, float[a, 3] t, float[3, 3] wj)
                        => (bool cp, float[a, 3] to, float[3, 3] wp) {
                            cp = Identity(cj)
                            m = MatMul(t, wj)
                            to = Tanh(m)
                            wp = Identity(wj)
                        }
                    >
                }
            >
        }""",
        {"w": W},
    )
    pipeline = f"{PASS},eliminate-identities,{PASS},{PASS}"
    optimized = optimize(model, pipeline, *feeds(0, 1, 2))
    assert [len(node.inputs) for node in loops(optimized)] == [3, 3]


def test_a_name_that_the_body_uses_for_something_else_hides_the_initial_value() -> None:
    model = loop(weights="wi", outputs="float[a, 3] y, float[n2, a, 3] s")
    body = model.graph.node[1].attribute[0].g
    for node in body.node:  # m becomes w, which the outer graph has too
        for names in (node.input, node.output):
            names[:] = ["w" if name == "m" else name for name in names]
    untouched(model, PASS, "uses the name")


def test_a_loop_that_nobody_reads_is_left_to_other_passes() -> None:
    model = loop(weights="wi", outputs="float[a, 3] z", after="z = Neg(e)")
    untouched(model, PASS)
    assert op_types(optimize(model, f"{PASS},eliminate-dead-code", *feeds(1))) == ["Exp", "Neg"]
