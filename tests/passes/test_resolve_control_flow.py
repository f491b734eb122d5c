import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.model import from_proto, to_proto
from tests.differential import apply, assert_same, op_types, optimize, parse, run, untouched

PASS = "resolve-control-flow"


def feed(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def value_names(model: ir.Model) -> list[str]:
    return [
        value.name or ""
        for graph in model.graphs()
        for value in [
            *graph.initializers.values(),
            *(output for node in graph for output in node.outputs),
        ]
    ]


# If


def branch(condition: str, header: str = "", then: str = "Neg", otherwise: str = "Relu") -> str:
    return f"""{header} g (float[n, 3] x) => (float[n, 3] y) <bool c = {{{condition}}}> {{
        a = Exp(x)
        b = If (c) <
            then_branch = t () => (float[n, 3] t2) {{ t1 = {then}(a) t2 = Abs(t1) }},
            else_branch = e () => (float[n, 3] e2) {{ e1 = {otherwise}(a) e2 = Abs(e1) }}
        >
        y = Tanh(b)
    }}"""


@pytest.mark.parametrize("opset", [7, 11, 13, 18, 21])
@pytest.mark.parametrize(("condition", "operator"), [("1", "Neg"), ("0", "Relu")])
def test_the_branch_that_runs_takes_the_place(condition: str, operator: str, opset: int) -> None:
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    model = parse(branch(condition, header))
    optimized = optimize(model, PASS, feed(2, 3), feed(0, 3))
    assert op_types(optimized) == ["Exp", operator, "Abs", "Tanh"]
    assert not optimized.graph.initializers


def test_a_condition_in_a_tensor_of_one_element_counts() -> None:
    text = branch("1").replace("bool c", "bool[1] c")
    assert op_types(optimize(parse(text), PASS, feed(2, 3))) == ["Exp", "Neg", "Abs", "Tanh"]


def test_a_condition_made_when_the_model_runs_stays() -> None:
    text = branch("1").replace("(float[n, 3] x)", "(float[n, 3] x, bool c)")
    text = text.replace("<bool c = {1}>", "")
    untouched(parse(text), PASS, "only known when the model runs")


def test_a_condition_that_can_be_overridden_stays() -> None:
    text = branch("1").replace("(float[n, 3] x)", "(float[n, 3] x, bool c)")
    untouched(parse(text), PASS, "only known when the model runs")


def on_size(size: str) -> onnx.ModelProto:
    """Like what an exporter makes of ``x.squeeze(1)``."""
    return parse(
        f"""g (float[n, {size}, 4] x) => (float[n, m] y) <int64[1] one = {{1}}, int64 at = {{1}}> {{
            shape = Shape(x)
            size = Gather(shape, at)
            i = Squeeze(one)
            c = Equal(size, i)
            b = If (c) <
                then_branch = t () => (float[n, m] t1) {{ t1 = ReduceSum<keepdims = 0>(x, one) }},
                else_branch = e () => (float[n, m] e1) {{ e1 = Flatten(x) }}
            >
            y = Neg(b)
        }}"""
    )


@pytest.mark.parametrize(("size", "left"), [(1, ["ReduceSum", "Neg"]), (5, ["Flatten", "Neg"])])
def test_a_condition_on_known_sizes_is_decided(size: int, left: list[str]) -> None:
    model = on_size(str(size))
    assert op_types(optimize(model, PASS, feed(2, size, 4), feed(0, size, 4))) == left


def test_a_condition_on_dynamic_sizes_stays() -> None:
    untouched(on_size("k"), PASS, "only known when the model runs")


def test_outputs_of_the_graph_keep_their_names_whatever_the_branch_hands_out() -> None:
    model = parse(
        """g (float[n] x) => (float[n] y, float[n] z, float[n] v, float[2] w) <bool c = {1}> {
            y, z, v, w = If (c) <
                then_branch = t () => (float[n] p, float[n] p2, float[n] q, float[2] k)
                    <float[2] k = {1, 2}> { p = Neg(x) p2 = Identity(p) q = Exp(p) },
                else_branch = e () => (float[n] a, float[n] b, float[n] d, float[2] k2)
                    <float[2] k2 = {1, 2}> { a = Exp(x) b = Exp(x) d = Exp(x) }
            >
        }"""
    )
    pipeline = f"{PASS},eliminate-identities"
    optimized = optimize(model, pipeline, feed(3), feed(0))
    assert sorted(op_types(optimized)) == ["Exp", "Identity", "Identity", "Neg"]


def test_one_value_handed_out_twice_is_copied() -> None:
    text = """g (float[n] x) => (float[n] y, float[n] z) <bool c = {1}> {
        y, z = If (c) <
            then_branch = t () => (float[n] p, float[n] q) { p = Neg(x) q = Exp(x) },
            else_branch = e () => (float[n] a, float[n] b) { a = Exp(x) b = Exp(x) }
        >
    }"""
    model = parse(text)
    then = model.graph.node[0].attribute[0].g
    del then.output[1]
    then.output.append(then.output[0])
    optimized, _ = apply(model, PASS)
    assert op_types(optimized) == ["Neg", "Identity"]
    (y, z), x = run(to_proto(optimized), feed(3)), feed(3)["x"]
    assert_same([y, z], [-x, -x])


def test_names_used_in_several_bodies_do_not_clash() -> None:
    model = parse(
        """g (float[n] x) => (float[n] y) <bool c = {1}> {
            a = If (c) <
                then_branch = t () => (float[n] r) { k = Constant<value = float {2}>()
                    s = Mul(x, k) r = Neg(s) },
                else_branch = e () => (float[n] r) { r = Exp(x) }
            >
            b = If (c) <
                then_branch = t () => (float[n] r) { k = Constant<value = float {3}>()
                    s = Mul(a, k) r = Neg(s) },
                else_branch = e () => (float[n] r) { s = Exp(x) r = Abs(s) }
            >
            y = Neg(b)
        }"""
    )
    optimized = optimize(model, PASS, feed(4))
    assert op_types(optimized) == ["Constant", "Mul", "Neg"] * 2 + ["Neg"]
    names = value_names(optimized)
    assert len(names) == len(set(names))


def test_initializers_of_the_same_name_do_not_clash() -> None:
    text = """g (float[n] x) => (float[n] y) <bool c = {1}> {
        a = If (c) <
            then_branch = t () => (float[n] r) <float k = {2}> { r = Mul(x, k) },
            else_branch = e () => (float[n] q) { q = Exp(x) }
        >
        y = If (c) <
            then_branch = t () => (float[n] p) <float K = {3}> { p = Add(a, K) },
            else_branch = e () => (float[n] o) { o = Exp(a) }
        >
    }"""
    # The runtime cannot load two initializers of one name, so the numbers come from another model.
    expected = run(parse(text), feed(4))
    optimized, _ = apply(parse(text.replace("K", "k")), PASS)
    assert op_types(optimized) == ["Mul", "Add"]
    assert_same(expected, run(to_proto(optimized), feed(4)))


def test_names_that_are_used_once_are_kept() -> None:
    optimized = optimize(parse(branch("1")), PASS, feed(1, 3))
    assert {"a", "t1", "t2", "y"} <= set(value_names(optimized))


def test_nested_control_flow_is_resolved_from_either_side() -> None:
    model = parse(
        """g (float[n] x, bool d) => (float[n] y) <bool c = {1}, bool no = {0}> {
            a = Exp(x)
            y = If (d) <
                then_branch = t () => (float[n] t2) {
                    b = Abs(a)
                    t2 = If (c) <
                        then_branch = tt () => (float[n] p) { p = Add(a, b) },
                        else_branch = te () => (float[n] q) { q = Identity(b) }
                    >
                },
                else_branch = e () => (float[n] e2) {
                    e2 = If (no) <
                        then_branch = et () => (float[n] r) { r = Relu(a) },
                        else_branch = ee () => (float[n] s) {
                            s = If (c) <
                                then_branch = i () => (float[n] u) { u = Neg(a) },
                                else_branch = j () => (float[n] v) { v = Identity(a) }
                            >
                        }
                    >
                }
            >
        }"""
    )
    yes, no = ({**feed(3), "d": np.array(answer)} for answer in (True, False))
    assert op_types(optimize(model, PASS, yes, no)) == ["Exp", "If", "Abs", "Add", "Neg"]


def test_an_inner_body_goes_on_reading_what_was_moved() -> None:
    model = parse(
        """g (float[n] x, bool d) => (float[n] y) <bool c = {1}> {
            y = If (c) <
                then_branch = t () => (float[n] t2) {
                    b = Exp(x)
                    t2 = If (d) <
                        then_branch = tt () => (float[n] p) { p = Neg(b) },
                        else_branch = te () => (float[n] q) { q = Abs(b) }
                    >
                },
                else_branch = e () => (float[n] e2) { e2 = Relu(x) }
            >
        }"""
    )
    yes, no = ({**feed(3), "d": np.array(answer)} for answer in (True, False))
    assert op_types(optimize(model, PASS, yes, no)) == ["Exp", "If", "Neg", "Abs"]


def test_an_if_in_a_function_is_resolved_and_its_initializers_become_nodes() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "own" : 1]>
        g (float[n] x) => (float[n] y) { y = own.f(x) }
        <domain: "own", opset_import: ["" : 18]>
        f (a) => (b) {
            c = Constant<value = bool {1}>()
            b = If (c) <
                then_branch = t () => (float[n] t1) <float[1] k = {2.0}> { t1 = Mul(a, k) },
                else_branch = e () => (float[n] e1) { e1 = Neg(a) }
            >
        }"""
    )
    optimized = optimize(model, PASS, feed(3))
    function = next(iter(optimized.functions.values()))
    assert [node.op_type for node in function] == ["Constant", "Mul"]
    assert not function.graph.initializers


@pytest.mark.parametrize("out", ["float[n] y", "seq(float[n]) s, float[n] y"])
def test_branches_that_hand_out_sequences(out: str) -> None:
    model = parse(
        f"""g (float[n] x) => ({out}) <bool c = {{1}}, int64 i = {{0}}> {{
            s = If (c) <
                then_branch = t () => (seq(float[n]) p) {{ p = SequenceConstruct(x, x) }},
                else_branch = e () => (seq(float[n]) q) {{ q = SequenceConstruct(x) }}
            >
            y = SequenceAt(s, i)
        }}"""
    )
    assert op_types(optimize(model, PASS, feed(3))) == ["SequenceConstruct", "SequenceAt"]


def test_a_sequence_is_not_copied() -> None:
    model = parse(
        """g (float[n] x) => (seq(float[n]) y) <int64 n = {0}, bool c = {1}> {
            s = SequenceConstruct(x)
            y = Loop (n, c, s) <body = b
                (int64 i, bool ci, seq(float[n]) v) => (bool co, seq(float[n]) vo) {
                    co = Identity(ci) vo = SequenceInsert(v, x)
                }
            >
        }"""
    )
    untouched(model, PASS, "not known to be a tensor")


# Loop


def loop(
    trips: str = "n",
    condition: str = "c",
    end: str = "Identity(ci)",
    constants: str = "",
    *,
    opset: int = 18,
    scan: str = "float[2, 3] so",
    stacked: str = "float[k, 2, 3] s",
    inputs: str = "",
) -> onnx.ModelProto:
    """A Loop with one carried value and one scan output; its body reads an outer value."""
    return parse(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[2, 3] x{inputs}) => (float[2, 3] y, {stacked}) <{constants}> {{
            outer = Exp(x)
            y, s = Loop ({trips}, {condition}, x) <body = b
                (int64 i, bool ci, float[2, 3] v) => (bool co, float[2, 3] vo, {scan}) {{
                    co = {end}
                    f = Cast<to = 1>(i)
                    w = Add(v, outer)
                    vo = Add(w, f)
                    so = Neg(w)
                }}
            >
        }}"""
    )


ONE = "int64 n = {1}, bool c = {1}"


@pytest.mark.parametrize("opset", [8, 11, 12, 13, 18])
def test_one_iteration_is_inlined(opset: int) -> None:
    model = loop(constants=ONE, opset=opset)
    optimized = optimize(model, PASS, feed(2, 3))
    assert op_types(optimized) == ["Exp", "Cast", "Add", "Add", "Neg", "Unsqueeze"]


@pytest.mark.parametrize(
    ("trips", "condition", "end", "constants"),
    [
        ("n", "", "Identity(ci)", "int64 n = {1}"),
        ("n", "", "Not(ci)", "int64 n = {1}"),
        ("n", "c", "Not(ci)", "int64[1] n = {1}, bool c = {1}"),
        ("", "c", "Identity(off)", "bool c = {1}, bool off = {0}"),
        ("n", "c", "And(ci, off)", "int64 n = {7}, bool c = {1}, bool off = {0}"),
    ],
)
def test_one_iteration_is_known_in_many_ways(
    trips: str, condition: str, end: str, constants: str
) -> None:
    model = loop(trips, condition, end, constants)
    assert "Loop" not in op_types(optimize(model, PASS, feed(2, 3)))


@pytest.mark.parametrize(
    ("trips", "condition", "end", "constants", "inputs"),
    [
        ("n", "c", "Identity(ci)", "int64 n = {2}, bool c = {1}", ""),
        ("n", "c", "Identity(ci)", "bool c = {1}", ", int64 n"),
        ("n", "c", "Identity(ci)", "int64 n = {1}", ", bool c"),
        ("n", "c", "Not(ci)", "bool c = {1}", ", int64 n"),
        ("n", "c", "Identity(off)", "bool c = {1}, bool off = {0}", ", int64 n"),
        ("n", "", "Identity(off)", "int64 n = {7}, bool off = {0}", ""),
        ("n", "c", "Identity(on)", "int64 n = {7}, bool c = {1}, bool on = {1}", ""),
    ],
)
def test_a_loop_that_may_run_more_or_less_often_stays(
    trips: str, condition: str, end: str, constants: str, inputs: str
) -> None:
    model = loop(trips, condition, end, constants, inputs=inputs)
    untouched(model, PASS, "more than one iteration")


@pytest.mark.parametrize(
    ("trips", "condition", "constants", "inputs"),
    [
        ("n", "c", "int64 n = {0}, bool c = {1}", ""),
        ("n", "", "int64 n = {-3}", ""),
        ("n", "c", "int64[1] n = {0}", ", bool c"),
        ("n", "c", "bool c = {0}", ", int64 n"),
        ("", "c", "bool c = {0}", ""),
    ],
)
def test_no_iteration_hands_on_the_initial_values(
    trips: str, condition: str, constants: str, inputs: str
) -> None:
    model = loop(trips, condition, constants=constants, inputs=inputs)
    extra = {"n": np.array(3), "c": np.array(True)}
    given = {name: value for name, value in extra.items() if f" {name}" in inputs}
    optimized = optimize(model, PASS, {**feed(2, 3), **given})
    assert op_types(optimized) == ["Identity", "Identity"]


def test_empty_scan_outputs_have_the_type_of_the_body() -> None:
    model = loop(
        constants="int64 n = {0}, bool c = {1}", scan="int64[2, 3] so", stacked="int64[k, 2, 3] s"
    )
    body = model.graph.node[1].attribute[0].g
    body.node[-1].CopyFrom(onnx.helper.make_node("Cast", ["w"], ["so"], to=onnx.TensorProto.INT64))
    optimized = optimize(model, PASS, feed(2, 3))
    s = run(to_proto(optimized), feed(2, 3))[1]
    assert s.shape == (0, 2, 3)
    assert s.dtype == np.int64


def test_an_empty_scan_output_of_unknown_shape_stays() -> None:
    model = loop(constants="int64 n = {0}, bool c = {1}", scan="float[k, 3] so")
    untouched(model, PASS, "shape of an empty scan output")


def test_an_unread_scan_output_of_unknown_shape_does_not_matter() -> None:
    model = loop(constants="int64 n = {0}, bool c = {1}", scan="float[k, 3] so")
    del model.graph.output[1]
    assert op_types(optimize(model, PASS, feed(2, 3))) == ["Identity"]


def test_values_that_pass_through_the_body_untouched() -> None:
    model = parse(
        """g (float[2] x) => (float[2] y, float[2] z, int64[k] s) <int64 n = {1}, bool c = {1}> {
            y, z, s = Loop (n, c, x, x) <body = b
                (int64 i, bool ci, float[2] v, float[2] w)
                    => (bool ci, float[2] w, float[2] v, int64 j) { j = Abs(i) }
            >
        }"""
    )
    optimized = optimize(model, PASS, feed(2))
    assert sorted(op_types(optimized)) == ["Abs", "Identity", "Identity", "Unsqueeze"]


def test_a_loop_in_a_loop_with_captured_values() -> None:
    model = parse(
        """g (float[2] x, int64 m) => (float[2] y) <int64 n = {1}, bool c = {1}> {
            a = Exp(x)
            y = Loop (m, c, x) <body = outer
                (int64 i, bool ci, float[2] v) => (bool co, float[2] vo) {
                    co = Identity(ci)
                    d = Neg(v)
                    vo = Loop (n, c, v) <body = inner
                        (int64 j, bool cj, float[2] w) => (bool ck, float[2] wo) {
                            ck = Identity(cj) e = Add(w, d) wo = Mul(e, a)
                        }
                    >
                }
            >
        }"""
    )
    feeds = [{**feed(2), "m": np.array(trips)} for trips in (0, 1, 3)]
    optimized = optimize(model, PASS, *feeds)
    assert op_types(optimized) == ["Exp", "Loop", "Identity", "Neg", "Add", "Mul"]


def test_control_flow_that_is_read_by_a_body_is_resolved() -> None:
    model = parse(
        """g (float[2] x, bool d) => (float[2] y) <int64 n = {0}, bool c = {1}> {
            a = Loop (n, c, x) <body = b
                (int64 i, bool ci, float[2] v) => (bool co, float[2] vo) {
                    co = Identity(ci) vo = Exp(v)
                }
            >
            y = If (d) <
                then_branch = t () => (float[2] p) { p = Neg(a) },
                else_branch = e () => (float[2] q) { q = Abs(a) }
            >
        }"""
    )
    yes, no = ({**feed(2), "d": np.array(answer)} for answer in (True, False))
    assert op_types(optimize(model, PASS, yes, no)) == ["If", "Neg", "Abs"]


def test_scan_and_the_other_control_flow_is_left_alone() -> None:
    model = parse(
        """g (float[2] x, float[1, 2] xs) => (float[2] y, float[1, 2] s) {
            y, s = Scan <num_scan_inputs = 1, body = b (float[2] v, float[2] e)
                => (float[2] vo, float[2] so) { vo = Add(v, e) so = Neg(vo) }> (x, xs)
        }"""
    )
    untouched(model, PASS)


def test_a_long_nest_is_resolved_without_deep_recursion_in_the_rules() -> None:
    inner = "p0 = Exp(x)"
    for level in range(1, 12):
        inner = f"""p{level} = If (c) <
            then_branch = t{level} () => (float[n] p{level - 1}) {{ {inner} }},
            else_branch = e{level} () => (float[n] q{level}) {{ q{level} = Neg(x) }}
        >"""
    model = parse(f"g (float[n] x) => (float[n] p11) <bool c = {{1}}> {{ {inner} }}")
    assert op_types(optimize(model, PASS, feed(2))) == ["Exp"]


def test_moved_nodes_stand_in_order() -> None:
    optimized, _ = apply(loop(constants=ONE), PASS)
    before = op_types(optimized)
    optimized.graph.sort()
    assert op_types(optimized) == before
    assert from_proto(to_proto(optimized)).graph.num_nodes() == len(before)


@pytest.mark.parametrize("count", [0, 1])
def test_a_loop_that_nothing_reads_is_left_to_other_passes(count: int) -> None:
    text = f"""g (float[2] x) => (float[2] y) <int64 m = {{{count}}}> {{
        z = Loop (m, "", x) <
            body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) {{
                d = Identity(c)
                t = Neg(s)
            }}
        >
        y = Abs(x)
    }}"""
    untouched(parse(text), PASS)
    optimized = optimize(parse(text), "exact", {"x": np.ones(2, np.float32)})
    assert op_types(optimized) == ["Abs"]
