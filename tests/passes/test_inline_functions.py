import numpy as np
import onnx
import pytest

from onnxopt.errors import OptionError
from onnxopt.model import Interface, from_proto, to_proto
from onnxopt.pass_contract import Outcome
from onnxopt.pass_manager import PassManager, parse_pipeline
from tests.differential import Feed, apply, op_types, optimize, parse, run

PASS = "inline-functions"
HEADER = '<ir_version: 9, opset_import: ["" : 18, "local" : 1]>\n'
X = {"x": np.array([-1.5, 2], np.float32)}


def inlined(text: str, *feeds: Feed, header: str = HEADER) -> onnx.ModelProto:
    """Inline, compare with the original, and give the result, which has no functions left."""
    model = parse(header + text)
    onnx.checker.check_model(model)
    optimized = optimize(model, PASS, *(feeds or (X,)), rtol=0, atol=0)
    assert not optimized.functions
    assert Interface.of(optimized) == Interface.of(from_proto(model))
    return to_proto(optimized)


def kept(text: str, reason: str, header: str = HEADER) -> None:
    """Assert that the calls stay as they are, for this reason."""
    model = parse(header + text)
    optimized, outcomes = apply(model, PASS)
    assert not outcomes[PASS].modified
    assert to_proto(optimized) == to_proto(from_proto(model))
    assert any(reason in each for each in reasons(outcomes[PASS])), reasons(outcomes[PASS])


def reasons(outcome: Outcome) -> set[str]:
    return {refusal.reason for refusal in outcome.refusals}


def types(model: onnx.ModelProto) -> list[str]:
    return op_types(from_proto(model))


def test_a_call_becomes_the_body() -> None:
    model = inlined(
        """g (float[2] x) => (float[2] y) { a = local.f(x) y = Neg(a) }
        <domain: "local", opset_import: ["" : 18]>
        f (p) => (r) { q = Relu(p) r = Exp(q) }"""
    )
    assert types(model) == ["Relu", "Exp", "Neg"]
    assert [node.output[0] for node in model.graph.node] == ["q", "a", "y"]


def test_several_calls_get_names_of_their_own() -> None:
    model = inlined(
        """g (float[2] x) => (float[2] y) { q = local.f(x) b = local.f(q) y = local.f(b) }
        <domain: "local", opset_import: ["" : 18]>
        f (p) => (r) { q = Relu(p) r = Exp(q) }"""
    )
    assert types(model) == ["Relu", "Exp"] * 3
    names = [name for node in model.graph.node for name in node.output]
    assert len(set(names)) == 6


def test_names_in_later_bodies_are_not_used_twice() -> None:
    model = inlined(
        """g (bool c, float[2] x) => (float[2] y) {
            s = local.f(x)
            y = If (c) <
                then_branch = t () => (float[2] t1) { q = Neg(s) t1 = Abs(q) },
                else_branch = e () => (float[2] e1) { e1 = local.f(s) }
            >
        }
        <domain: "local", opset_import: ["" : 18]>
        f (p) => (r) { q = Relu(p) r = Exp(q) }""",
        {"c": np.array(True), **X},
        {"c": np.array(False), **X},
    )
    assert types(model) == ["Relu", "Exp", "If", "Neg", "Abs", "Relu", "Exp"]


def test_functions_that_call_functions_are_inlined() -> None:
    model = inlined(
        """g (float[2] x) => (float[2] y) { y = local.outer(x) }
        <domain: "local", opset_import: ["" : 18, "local" : 1]>
        outer (p) => (r) { a = local.inner(p) b = local.inner(a) r = Neg(b) }
        <domain: "local", opset_import: ["" : 18]>
        inner (p) => (r) { r = Exp(p) }"""
    )
    assert types(model) == ["Exp", "Exp", "Neg"]


def test_attributes_are_bound() -> None:
    text = """g (float[2] x) => (float[2] y) {{ y = local.f{given}(x) }}
        <domain: "local", opset_import: ["" : 18]>
        f <alpha: float = 0.5> (p) => (r) {{ r = LeakyRelu<alpha: float = @alpha>(p) }}"""
    for given, expected in (("", 0.5), ("<alpha = 0.25>", 0.25)):
        model = inlined(text.format(given=given))
        (node,) = model.graph.node
        assert [(each.name, each.f) for each in node.attribute] == [("alpha", expected)]


def test_an_attribute_that_nobody_gives_is_left_out() -> None:
    model = inlined(
        """g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 18]>
        f <alpha> (p) => (r) { r = LeakyRelu<alpha: float = @alpha>(p) }"""
    )
    assert not model.graph.node[0].attribute


def test_attributes_go_through_two_functions_under_other_names() -> None:
    model = inlined(
        """g (float[2] x) => (float[2] y) { y = local.outer<slope = 0.125>(x) }
        <domain: "local", opset_import: ["" : 18, "local" : 1]>
        outer <slope> (p) => (r) { r = local.inner<alpha: float = @slope>(p) }
        <domain: "local", opset_import: ["" : 18]>
        inner <alpha: float = 0.5> (p) => (r) { r = LeakyRelu<alpha: float = @alpha>(p) }"""
    )
    (node,) = model.graph.node
    assert [each.f for each in node.attribute] == [0.125]


def test_constants_of_parameters_become_constants() -> None:
    model = inlined(
        """g (float[2] x) => (float[2] y) { y = local.f<by = 3.0>(x) }
        <domain: "local", opset_import: ["" : 18]>
        f <by> (p) => (r) { c = Constant<value_float: float = @by>() r = Mul(p, c) }"""
    )
    assert types(model) == ["Constant", "Mul"]


def test_bodies_inside_functions_capture_what_they_did() -> None:
    model = inlined(
        """g (bool c, float[2] x) => (float[2] y) { a = local.f(c, x) y = local.f(c, a) }
        <domain: "local", opset_import: ["" : 18]>
        f <alpha: float = 0.5> (c, p) => (r) {
            q = Exp(p)
            r = If (c) <
                then_branch = t () => (float[2] t1) {
                    k = Neg(q) t1 = LeakyRelu<alpha: float = @alpha>(k) },
                else_branch = e () => (float[2] e1) { e1 = Add(p, q) }
            >
        }""",
        {"c": np.array(True), **X},
        {"c": np.array(False), **X},
    )
    assert types(model) == ["Exp", "If", "Neg", "LeakyRelu", "Add"] * 2


def test_calls_in_loops_inside_functions_are_inlined() -> None:
    model = inlined(
        """g (float[2] x, int64 n) => (float[2] y) { y = local.outer(x, n) }
        <domain: "local", opset_import: ["" : 18, "local" : 1]>
        outer (p, n) => (r) {
            on = Constant<value = bool {1}>()
            r = Loop (n, on, p) <
                body = b (int64 i, bool go, float[2] a) => (bool go2, float[2] a2) {
                    go2 = Identity(go) a2 = local.inner(a, p) }
            >
        }
        <domain: "local", opset_import: ["" : 18]>
        inner (p, k) => (r) { q = Tanh(p) r = Add(q, k) }""",
        {"n": np.array(3), **X},
    )
    assert types(model) == ["Constant", "Loop", "Identity", "Tanh", "Add"]


def test_inputs_may_be_left_out() -> None:
    model = inlined(
        """g (float[2] x, float low) => (float[2] y, float[2] z) {
            y, u = local.f(x, , low) z, v = local.f(x)
        }
        <domain: "local", opset_import: ["" : 18]>
        f (p, top, low) => (r, s) { r = Clip(p, low, top) s = Neg(p) }""",
        {"low": np.array(0, np.float32), **X},
    )
    assert types(model) == ["Clip", "Neg", "Clip", "Neg"]
    assert list(model.graph.node[0].input) == ["x", "low"]
    assert list(model.graph.node[2].input) == ["x"]


def test_outputs_may_be_left_out() -> None:
    """ONNX Runtime does not load the original of this one, so there is nothing to compare with."""
    model = parse(
        HEADER
        + """g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 18]>
        f (p) => (r, s) { r = Relu(p) s = Neg(p) }"""
    )
    optimized = to_proto(apply(model, PASS)[0])
    assert types(optimized) == ["Relu", "Neg"]
    np.testing.assert_array_equal(run(optimized, X)[0], [0, 2])


def test_an_input_that_is_an_output_keeps_its_name() -> None:
    """ONNX Runtime does not load the original of this one, so there is nothing to compare with."""
    model = parse(
        HEADER
        + """g (float[2] x) => (float[2] y, float[2] z, float[2] w) {
            y, v, z = local.f(x) w = Neg(v)
        }
        <domain: "local", opset_import: ["" : 18]>
        f (p) => (p, r, p) { r = Relu(p) }"""
    )
    optimized = to_proto(apply(model, PASS)[0])
    assert [each.name for each in optimized.graph.input] == ["x"]
    assert sorted(types(optimized)) == ["Identity", "Identity", "Neg", "Relu"]
    y, z, w = run(optimized, X)
    np.testing.assert_array_equal(y, X["x"])
    np.testing.assert_array_equal(z, X["x"])
    np.testing.assert_array_equal(w, [0, -2])


def test_an_output_that_is_named_twice_is_made_twice() -> None:
    model = parse(
        HEADER
        + """g (float[2] x) => (float[2] y, float[2] z) { y, z = local.f(x) }
        <domain: "local", opset_import: ["" : 18]>
        f (p) => (r, r) { r = Relu(p) }"""
    )
    optimized = to_proto(apply(model, PASS)[0])
    assert types(optimized) == ["Relu", "Identity"]
    y, z = run(optimized, X)
    np.testing.assert_array_equal(y, z)


def test_an_output_that_is_an_input_that_is_left_out_keeps_the_call() -> None:
    kept(
        """g (float[2] x) => (float[2] y) { y, z = local.f(x) }
        <domain: "local", opset_import: ["" : 18]>
        f (p, q) => (r, q) { r = Relu(p) }""",
        "an input that the call leaves out",
    )


def test_unused_functions_are_dropped() -> None:
    model = inlined(
        """g (float[2] x) => (float[2] y) { y = Neg(x) }
        <domain: "local", opset_import: ["" : 18, "local" : 1]>
        outer (p) => (r) { r = local.inner(p) }
        <domain: "local", opset_import: ["" : 18]>
        inner (p) => (r) { r = Exp(p) }"""
    )
    assert types(model) == ["Neg"]
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18), ("local", 1)]


def test_another_opset_is_no_obstacle_when_the_operators_are_the_same() -> None:
    model = inlined(
        """g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 15]>
        f (p) => (r) { r = Relu(p) }"""
    )
    assert types(model) == ["Relu"]


def test_another_meaning_of_an_operator_keeps_the_call() -> None:
    kept(
        """g (float[2] x) => (float[1] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 17]>
        f (p) => (r) { r = ReduceMax<axes = [0]>(p) }""",
        "another one in the caller's opset",
    )


def test_a_domain_that_the_caller_does_not_import_keeps_the_call() -> None:
    kept(
        """g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 18, "other" : 1]>
        f (p) => (r) { r = other.Thing(p) }""",
        "does not import",
    )


def test_another_version_of_an_unknown_domain_keeps_the_call() -> None:
    kept(
        """g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 18, "other" : 1]>
        f (p) => (r) { r = other.Thing(p) }""",
        "another one in the caller's opset",
        header='<ir_version: 9, opset_import: ["" : 18, "local" : 1, "other" : 2]>\n',
    )


def test_functions_in_domains_of_the_runtime_stay() -> None:
    for domain in ("com.microsoft", "ai.onnx.ml"):
        kept(
            f"""g (float[2] x) => (float[2] y) {{ y = {domain}.Smooth(x) }}
            <domain: "{domain}", opset_import: ["" : 18]>
            Smooth (p) => (r) {{ r = Tanh(p) }}""",
            "the runtime may have a kernel",
            header=f'<ir_version: 9, opset_import: ["" : 18, "{domain}" : 1]>\n',
        )


def test_functions_that_call_themselves_stay() -> None:
    text = """g (float[2] x) => (float[2] y) { a = local.f(x) y = local.k(a) }
        <domain: "local", opset_import: ["" : 18, "local" : 1]>
        f (p) => (r) { r = local.h(p) }
        <domain: "local", opset_import: ["" : 18, "local" : 1]>
        h (p) => (r) { r = local.f(p) }
        <domain: "local", opset_import: ["" : 18]>
        k (p) => (r) { r = Neg(p) }"""
    optimized, outcomes = apply(parse(HEADER + text), PASS)
    assert op_types(optimized) == ["f", "Neg"]
    assert {name for _, name, _ in optimized.functions} == {"f", "h"}
    assert "the function calls itself, or one that does" in reasons(outcomes[PASS])


def test_overloads_are_told_apart() -> None:
    model = parse(
        '<ir_version: 10, opset_import: ["" : 18, "local" : 1]>\n'
        """g (float[2] x) => (float[2] y) { a = local.f(x) y = local.f(a) }
        <domain: "local", opset_import: ["" : 18]>
        f (p) => (r) { r = Neg(p) }
        <domain: "local", opset_import: ["" : 18]>
        f (p) => (r) { r = Exp(p) }"""
    )
    model.functions[1].overload = model.graph.node[1].overload = "second"
    optimized, _ = apply(model, PASS)
    assert op_types(optimized) == ["Neg", "Exp"]


def test_copies_that_grow_the_file_too_much_are_not_made() -> None:
    text = """g (float[2000] x) => (float[2000] y) { a = local.f(x) b = local.f(a) y = local.k(b) }
        <domain: "local", opset_import: ["" : 18]>
        f (p) => (r) { c = Constant<value = float[1] {1}>() r = Add(p, c) }
        <domain: "local", opset_import: ["" : 18]>
        k (p) => (r) { r = Neg(p) }"""
    model = parse(HEADER + text)
    big = onnx.numpy_helper.from_array(np.arange(2000, dtype=np.float32))
    model.functions[0].node[0].attribute[0].t.CopyFrom(big)
    optimized, outcomes = apply(model, "inline-functions{max-growth-bytes=4000}")
    assert op_types(optimized) == ["f", "f", "Neg"]
    assert "copies of the function would make the file larger" in reasons(outcomes[PASS])
    generous = optimize(
        model, "inline-functions{max-growth-bytes=9000}", {"x": np.ones(2000, np.float32)}
    )
    assert op_types(generous) == ["Constant", "Add", "Constant", "Add", "Neg"]
    assert to_proto(generous).ByteSize() <= to_proto(from_proto(model)).ByteSize() + 9000


def test_the_limit_is_on_all_copies_together() -> None:
    functions = "\n".join(
        f"""<domain: "local", opset_import: ["" : 18]>
        f{index} (p) => (r) {{ q = Relu(p) s = Exp(q) t = Neg(s) u = Abs(t) r = Sqrt(u) }}"""
        for index in range(4)
    )
    lines = " ".join(f"x{i + 1} = local.f{i % 4}(x{i})" for i in range(40))
    model = parse(HEADER + f"g (float[2] x0) => (float[2] x40) {{ {lines} }}\n{functions}")
    optimized, _ = apply(model, "inline-functions{max-growth-bytes=2000}")
    growth = to_proto(optimized).ByteSize() - to_proto(from_proto(model)).ByteSize()
    assert 0 < growth <= 2000
    assert 0 < len(optimized.functions) < 4


def test_the_limit_is_not_negative() -> None:
    with pytest.raises(OptionError, match="max-growth-bytes must not be negative"):
        parse_pipeline("inline-functions{max-growth-bytes=-1}")


def test_stops_when_told_to() -> None:
    model = parse(
        HEADER
        + """g (float[2] x) => (float[2] y) { a = local.f(x) y = local.f(a) }
        <domain: "local", opset_import: ["" : 18]>
        f (p) => (r) { r = Neg(p) }"""
    )
    passes = parse_pipeline(PASS)
    passes[0].max_rewrites = 1
    optimized = from_proto(model)
    PassManager(passes, rounds=1).run(optimized)
    assert op_types(optimized) == ["Neg", "f"]
    assert len(optimized.functions) == 1
    np.testing.assert_array_equal(run(to_proto(optimized), X)[0], X["x"])


def test_calls_that_pass_a_graph_stay() -> None:
    text = """g (bool c, float[2] x) => (float[2] y) { y = local.f(c, x) }
        <domain: "local", opset_import: ["" : 18]>
        f (c, p) => (r) { r = Neg(p) }"""
    model = parse(HEADER + text)
    body = parse("b () => (float[2] o) { o = Constant<value = float[2] {1, 2}>() }").graph
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("branch", body))
    optimized, outcomes = apply(model, PASS)
    assert op_types(optimized)[0] == "f"
    assert "the call passes a graph as an attribute" in reasons(outcomes[PASS])


def test_types_and_shapes_of_the_call_are_kept() -> None:
    model = parse(
        HEADER
        + """g (float[n] x) => (float[m] y) { a = local.f(x) y = Neg(a) }
        <domain: "local", opset_import: ["" : 18]>
        f (p) => (r) { r = Exp(p) }"""
    )
    info = onnx.helper.make_tensor_value_info("a", 1, ["n"])
    model.graph.value_info.append(info)
    assert to_proto(apply(model, PASS)[0]).graph.value_info == [info]


def test_a_model_without_functions_is_not_touched() -> None:
    _, outcomes = apply(parse("g (float[2] x) => (float[2] y) { y = Neg(x) }"), PASS)
    assert not outcomes[PASS].modified
