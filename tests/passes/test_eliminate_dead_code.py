from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx
import pytest

from onnxopt.model import from_proto, to_proto
from onnxopt.pass_manager import make_pass
from tests.differential import Feed, apply, op_types, optimize, parse, run, untouched

PASS = "eliminate-dead-code"


def feed(*shape: int) -> Feed:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def test_nodes_that_lead_nowhere_go() -> None:
    model = parse(
        """g (float[n] x) => (float[n] y) {
            a = Exp(x) b = Sin(a) c = Add(a, b) y = Neg(x) d = Sqrt(y) e = Bernoulli(d) }"""
    )
    assert op_types(optimize(model, PASS, feed(3))) == ["Neg"]


def test_what_an_output_or_a_node_reads_stays() -> None:
    model = parse("g (float[n] x) => (float[n] y, float[n] z) { z = Exp(x) a = Sin(z) y = Cos(a) }")
    untouched(model, PASS)


def test_initializers_that_nobody_reads_go() -> None:
    model = parse(
        """g (float[n] x) => (float[n] y)
        <float used = {2}, float unused = {3}, float upstream = {4}> {
            a = Add(x, upstream) y = Mul(x, used) }"""
    )
    assert list(optimize(model, PASS, feed(3)).graph.initializers) == ["used"]


def test_interface_stays() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "unused" : 3]>
        g (float[n] x, float[m] unused, float over) => (float[n] y, float out)
        <float over = {1}, float out = {2}> { y = Neg(x) }"""
    )
    optimized, outcomes = apply(model, PASS)
    assert not outcomes[PASS].modified
    assert [value.name for value in optimized.graph.inputs] == ["x", "unused", "over"]
    assert list(optimized.graph.initializers) == ["over", "out"]
    assert optimized.opset_imports == {"": 18, "unused": 3}


OTHER = '<ir_version: 8, opset_import: ["" : 18, "other" : 1]>'


def test_node_of_an_unknown_domain_stays_with_what_it_reads() -> None:
    model = parse(
        f"{OTHER} g (float[n] x) => (float[n] y) {{ a = Exp(x) b = other.Print(a) y = Neg(x) }}"
    )
    untouched(model, PASS, "unknown domain")


def test_control_flow_around_an_unknown_domain_stays() -> None:
    model = parse(
        f"""{OTHER} g (bool c, float[n] x) => (float[n] y) {{
            a = If (c) <then_branch = t () => (float[n] t1) {{ t1 = other.Print(x) }},
                        else_branch = e () => (float[n] e1) {{ e1 = Exp(x) }}>
            y = Neg(x) }}"""
    )
    untouched(model, PASS, "unknown domain")


def test_calls_of_functions_that_only_compute_go() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "f" : 1, "other" : 1]>
        g (float[n] x) => (float[n] y) {
            a = f.outer(x) b = f.exp(a) c = f.shown(b) y = Neg(x) d = f.exp(c) }
        <domain: "f", opset_import: ["" : 18, "f" : 1]> outer(x) => (y) { y = f.exp(x) }
        <domain: "f", opset_import: ["" : 18]> exp(x) => (y) { y = Exp(x) }
        <domain: "f", opset_import: ["" : 18, "other" : 1]> shown(x) => (y) {
            y = other.Print(x) }"""
    )
    optimized, _ = apply(model, PASS)
    assert op_types(optimized) == ["outer", "exp", "shown", "Neg"]


def test_functions_that_nobody_calls_go_and_imports_stay() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "f" : 1]>
        g (float[n] x) => (float[n] y) { y = f.used(x) }
        <domain: "f", opset_import: ["" : 18, "f" : 1]> used(x) => (y) { y = f.inner(x) }
        <domain: "f", opset_import: ["" : 18]> inner(x) => (y) { a = Sin(x) y = Exp(x) }
        <domain: "f", opset_import: ["" : 18, "f" : 1]> unused(x) => (y) { y = f.alone(x) }
        <domain: "f", opset_import: ["" : 18]> alone(x) => (y) { y = Exp(x) }"""
    )
    optimized = optimize(model, PASS, feed(3))
    assert [name for _, name, _ in optimized.functions] == ["used", "inner"]
    inner = optimized.functions["f", "inner", ""]
    assert [node.op_type for node in inner] == ["Exp"]
    assert optimized.opset_imports == {"": 18, "f": 1}


@pytest.mark.parametrize("opset", [8, 12, 22])
def test_indices_of_max_pool_are_left_out(opset: int) -> None:
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[1, 1, 4] x) => (float[1, 1, 2] y) {{
            a, i = MaxPool<kernel_shape = [2], strides = [2]>(x) y = Neg(a) }}"""
    )
    optimized = optimize(model, PASS, feed(1, 1, 4))
    assert len(optimized.graph.node(0).outputs) == 1


@pytest.mark.parametrize("opset", [7, 13])
def test_mask_of_dropout_is_left_out(opset: int) -> None:
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[n] x) => (float[n] y) {{ a, m = Dropout(x) y = Neg(a) }}"""
    )
    optimized = optimize(model, PASS, feed(4))
    assert len(optimized.graph.node(0).outputs) == 1


LSTM = """g (float[t, b, 2] x) => (float[1, b, 1] y) {{
    {outputs} = LSTM<hidden_size = 1>(x, w, r) y = Neg({read}) }}"""
WEIGHTS = {"w": np.ones((1, 4, 2), np.float32), "r": np.ones((1, 4, 1), np.float32)}


@pytest.mark.parametrize(
    ("outputs", "read", "left"),
    [
        ("a, h, c", "h", ["", "h"]),
        ("a, h, c", "c", ["", "", "c"]),
        ("a, h", "h", ["", "h"]),
    ],
)
def test_sequences_and_states_of_lstm_are_left_out(
    outputs: str, read: str, left: list[str]
) -> None:
    model = parse(LSTM.format(outputs=outputs, read=read), WEIGHTS)
    optimized = optimize(model, PASS, feed(3, 2, 2))
    assert [value.name for value in optimized.graph.node(0).outputs] == left
    assert not make_pass(PASS).run(from_proto(to_proto(optimized))).modified


def test_optional_outputs_that_are_read_or_left_out_already_stay() -> None:
    untouched(parse(LSTM.format(outputs=", h", read="h"), WEIGHTS), PASS)
    model = parse(
        """g (float[1, 1, 4] x) => (float[1, 1, 2] y, int64[1, 1, 2] i) {
            a, i = MaxPool<kernel_shape = [2], strides = [2]>(x) y = Neg(a) }"""
    )
    untouched(model, PASS)


def test_number_of_outputs_of_split_and_batch_normalization_stays() -> None:
    untouched(
        parse(
            """<ir_version: 8, opset_import: ["" : 13]>
            g (float[4] x) => (float[2] y) { a, b = Split(x) y = Neg(a) }"""
        ),
        PASS,
    )
    model = parse(
        """<ir_version: 8, opset_import: ["" : 9]>
        g (float[n, 1] x, float[1] s) => (float[n, 1] y) {
            y, m, v, p, q = BatchNormalization(x, s, s, s, s) }"""
    )
    untouched(model, PASS)


def both_ways(model: onnx.ModelProto, *shape: int) -> list[str]:
    feeds = [{"c": np.array(truth), **feed(*shape)} for truth in (True, False)]
    return op_types(optimize(model, PASS, *feeds))


def test_branches_are_swept() -> None:
    model = parse(
        """g (bool c, float[n] x) => (float[n] y) <float k = {1}> {
            a = Exp(x) b = Add(x, k)
            y = If (c) <
                then_branch = t () => (float[n] t1) <float[1] p = {1}> { d = Sin(a) t1 = Neg(b) },
                else_branch = e () => (float[n] e1) { e1 = Sqrt(x) }> }"""
    )
    assert both_ways(model, 3) == ["Add", "If", "Neg", "Sqrt"]
    optimized, _ = apply(model, PASS)
    assert [list(graph.initializers) for graph in optimized.graphs()] == [["k"], [], []]


def test_dead_control_flow_sets_free_what_it_read() -> None:
    model = parse(
        """g (bool c, float[n] x) => (float[n] y) {
            a = Exp(x)
            b = If (c) <then_branch = t () => (float[n] t1) { t1 = Neg(a) },
                        else_branch = e () => (float[n] e1) { e1 = Sqrt(a) }>
            y = Sin(x) }"""
    )
    assert both_ways(model, 3) == ["Sin"]


@pytest.mark.parametrize(
    ("read", "left"),
    [("p", ["Exp", "Sqrt"]), ("q", ["Sin", "Cos"]), ("r", ["Neg", "Abs"])],
)
def test_outputs_of_if_that_nobody_reads_go(read: str, left: list[str]) -> None:
    model = parse(
        f"""g (bool c, float[n] x) => (float[n] y) {{
            p, q, r = If (c) <
                then_branch = t () => (float[n] t1, float[n] t2, float[n] t3)
                    {{ t1 = Exp(x) t2 = Sin(x) t3 = Neg(x) }},
                else_branch = e () => (float[n] e1, float[n] e2, float[n] e3)
                    {{ e1 = Sqrt(x) e2 = Cos(x) e3 = Abs(x) }}>
            y = Mul({read}, x) }}"""
    )
    assert both_ways(model, 3) == ["If", *left, "Mul"]


def test_outputs_of_if_that_are_graph_outputs_keep_their_names() -> None:
    model = parse(
        """g (bool c, float[n] x) => (float[n] y, float[n] z) {
            y, q, z = If (c) <
                then_branch = t () => (float[n] t1, float[n] t2, float[n] t3)
                    { t1 = Exp(x) t2 = Sin(t1) t3 = Neg(t2) },
                else_branch = e () => (float[n] e1, float[n] e2, float[n] e3)
                    { e1 = Sqrt(x) e2 = Cos(x) e3 = Abs(x) }> }"""
    )
    assert both_ways(model, 3) == ["If", "Exp", "Sin", "Neg", "Sqrt", "Abs"]


LOOP = """g (float[2] x, int64 k) => ({y} y) {{
    t = Constant<value_int = 1>() go = Cast<to = 9>(t)
    a, b, s, u = Loop (k, go, x, x) <
        body = turn (int64 i, bool c, float[2] v, float[2] w)
            => (bool d, float[2] v1, float[2] w1, float[2] s1, float[2] u1) {{
            d = Identity(c) v1 = {v} w1 = {w} s1 = Exp(v) u1 = Sin(x) }}
    >
    y = Neg({read}) }}"""


def loop(read: str, v: str, w: str) -> list[str]:
    y = "float[2]" if read in "ab" else "float[n, 2]"
    model = parse(LOOP.format(read=read, v=v, w=w, y=y))
    feeds = [{"k": np.array(turns), **feed(2)} for turns in (0, 1, 3)]
    return op_types(optimize(model, PASS, *feeds))[2:]


@pytest.mark.parametrize(
    ("read", "v", "w", "left"),
    [
        ("a", "Tanh(v)", "Add(w, x)", ["Identity", "Tanh"]),
        ("b", "Tanh(v)", "Add(w, x)", ["Identity", "Add"]),
        ("b", "Tanh(v)", "Add(w, v)", ["Identity", "Tanh", "Add"]),
        ("a", "Tanh(w)", "Cos(v)", ["Identity", "Tanh", "Cos"]),
        ("a", "Tanh(v)", "Mul(w, v)", ["Identity", "Tanh"]),
        ("s", "Tanh(v)", "Add(w, v)", ["Identity", "Tanh", "Exp"]),
        ("u", "Tanh(v)", "Add(w, v)", ["Identity", "Sin"]),
    ],
)
def test_states_and_sequences_of_loop_that_nobody_reads_go(
    read: str, v: str, w: str, left: list[str]
) -> None:
    assert loop(read, v, w) == ["Loop", *left, "Neg"]


def test_state_that_decides_when_the_loop_ends_stays() -> None:
    model = parse(
        """g (float[2] x, int64 k) => (float[n, 2] y) <float one = {1}, float most = {2.5}> {
            t = Constant<value_int = 1>() go = Cast<to = 9>(t)
            a, s = Loop (k, go, one) <
                body = turn (int64 i, bool c, float v) => (bool d, float v1, float[2] s1) {
                    v1 = Add(v, one) d = Less(v1, most) s1 = Mul(x, v) }
            >
            y = Neg(s) }"""
    )
    values = {"k": np.array(9), **feed(2)}
    optimized = optimize(model, PASS, values)
    assert len(optimized.graph.node(2).outputs) == 2
    assert run(model, values)[0].shape == (2, 2)


def test_state_that_an_unknown_operator_reads_stays() -> None:
    model = parse(
        f"""{OTHER} g (float[2] x, int64 k) => (float[2] y) {{
            t = Constant<value_int = 1>() go = Cast<to = 9>(t)
            y, b = Loop (k, go, x, x) <
                body = turn (int64 i, bool c, float[2] v, float[2] w)
                    => (bool d, float[2] v1, float[2] w1) {{
                    d = Identity(c) v1 = Tanh(v) w1 = Add(w, x) p = other.Print(w) }}
            > }}"""
    )
    untouched(model, PASS)


def test_loop_without_states_or_condition() -> None:
    model = parse(
        """g (float[2] x, int64 k) => (float[n, 2] y) {
            a, s = Loop (k) <
                body = turn (int64 i, bool c) => (bool d, float[2] a1, float[2] s1) {
                    d = Identity(c) a1 = Exp(x) s1 = Sin(x) }
            >
            y = Neg(s) }"""
    )
    model.graph.node[0].input.append("")
    optimized = optimize(model, PASS, {"k": np.array(3), **feed(2)})
    assert op_types(optimized) == ["Loop", "Identity", "Sin", "Neg"]


@pytest.mark.parametrize(
    ("read", "y", "left"),
    [
        ("a", "float[2]", ["Add"]),
        ("b", "float[2]", ["Mul"]),
        ("s", "float[n, 2]", ["Add", "Exp"]),
        ("u", "float[2, n]", ["Sin"]),
    ],
)
def test_states_and_sequences_of_scan_that_nobody_reads_go(
    read: str, y: str, left: list[str]
) -> None:
    model = parse(
        f"""g (float[n, 2] x, float[2] z) => ({y} y) {{
            a, b, s, u = Scan<
                num_scan_inputs = 1, scan_output_axes = [0, 1], scan_output_directions = [0, 1],
                body = turn (float[2] v, float[2] w, float[2] e)
                    => (float[2] v1, float[2] w1, float[2] s1, float[2] u1) {{
                    v1 = Add(v, e) w1 = Mul(w, e) s1 = Exp(v) u1 = Sin(e) }}
            >(z, z, x)
            y = Neg({read}) }}"""
    )
    optimized = optimize(model, PASS, {**feed(3, 2), "z": np.ones(2, np.float32)})
    assert op_types(optimized) == ["Scan", *left, "Neg"]


def test_loops_inside_branches_are_narrowed_once_the_branch_is() -> None:
    model = parse(
        """g (bool c, float[2] x) => (float[2] y) <int64 k = {2}> {
            p, q = If (c) <
                then_branch = t () => (float[2] t1, float[2] t2) {
                    t1, t2 = Loop (k, c, x, x) <
                        body = turn (int64 i, bool g, float[2] v, float[2] w)
                            => (bool h, float[2] v1, float[2] w1) {
                            h = Identity(g) v1 = Tanh(v) w1 = Cos(w) }>
                },
                else_branch = e () => (float[2] e1, float[2] e2) { e1 = Exp(x) e2 = Sin(x) }>
            y = Neg(p) }"""
    )
    assert both_ways(model, 2) == ["If", "Loop", "Identity", "Tanh", "Exp", "Neg"]


def test_bisection_can_stop_anywhere_and_leaves_a_whole_model() -> None:
    text = LOOP.format(read="a", v="Tanh(v)", w="Add(w, x)", y="float[2]")
    model = parse(text.replace("y = Neg", "e = Exp(x) f = Exp(e) y = Neg"))
    values = {"k": np.array(2), **feed(2)}
    total = make_pass(PASS).run(from_proto(model)).rewritten.total()
    assert total > 4
    for most in range(total + 1):
        limited, optimized = make_pass(PASS), from_proto(model)
        limited.max_rewrites = most
        outcome = limited.run(optimized)
        assert outcome.modified == (most > 0)
        np.testing.assert_array_equal(run(to_proto(optimized), values)[0], run(model, values)[0])


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=20),
    st.integers(0, 99),
)
def test_exactly_what_is_reached_stays(pairs: list[tuple[int, int]], output: int) -> None:
    names = ["x", "c"]
    reads: dict[str, set[str]] = {"x": set(), "c": set()}
    lines = []
    for number, (left, right) in enumerate(pairs):
        first, second = names[left % len(names)], names[right % len(names)]
        names.append(f"v{number}")
        reads[names[-1]] = {first, second}
        lines.append(f"v{number} = Add({first}, {second})")
    read = names[output % len(names)]
    body = f"{' '.join(lines)} y = Neg({read})"
    text = f"g (float[2] x) => (float[2] y) <float[2] c = {{1, 2}}> {{ {body} }}"
    reached: set[str] = set()
    pending = [read]
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending.extend(reads[name])
    optimized = optimize(parse(text), PASS, feed(2))
    assert {value.name for node in optimized.graph for value in node.outputs} == {
        "y",
        *(reached - {"x", "c"}),
    }
    assert ("c" in optimized.graph.initializers) == ("c" in reached)
