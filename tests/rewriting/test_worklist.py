"""The driver: what it wakes, what it removes, when it stops, and how much it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.errors import OnnxoptError
from onnxopt.model import from_proto, to_proto
from onnxopt.rewriting import Context, Refuse, RewritePass, Rewriter, RewriteRule, rewrite
from tests.differential import assert_same, op_types, parse, run


class _DropDoubleNeg(RewriteRule[ir.Value]):
    """-(-x) = x, counting how often it looks."""

    name = "drop-double-neg"
    anchors: ClassVar[tuple[str, ...]] = ("Neg",)
    depth = 1

    def __init__(self) -> None:
        self.looks = 0

    def match(self, node: ir.Node, context: Context) -> ir.Value | None:
        self.looks += 1
        assert node.inputs[0] is not None
        inner = node.inputs[0].producer()
        if inner is None or inner.op_type != "Neg":
            return None
        self.outer = node
        return inner.inputs[0]

    def check(self, match: ir.Value, context: Context) -> str | None:
        if self.outer.outputs[0].is_graph_output():
            return "the outer one is an output"
        return None

    def rewrite(self, match: ir.Value, rewriter: Rewriter) -> None:
        rewriter.replace(self.outer.outputs[0], match)


class _Rename(RewriteRule[ir.Node]):
    """One operator becomes another, with the same inputs."""

    depth = 0

    def __init__(self, before: str, after: str) -> None:
        self.name = f"{before.lower()}-to-{after.lower()}"  # type: ignore[misc]
        self.anchors = (before,)  # type: ignore[misc]
        self.after = after

    def match(self, node: ir.Node, context: Context) -> ir.Node | None:
        return node

    def rewrite(self, match: ir.Node, rewriter: Rewriter) -> None:
        rewriter.replace(match.outputs[0], rewriter.op(self.after, match.inputs))


class _Idle(_Rename):
    def rewrite(self, match: ir.Node, rewriter: Rewriter) -> None:
        del match, rewriter


def _chain(ops: Sequence[str]) -> ir.Model:
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [
                onnx.helper.make_node(op, [f"v{index}"], [f"v{index + 1}"])
                for index, op in enumerate(ops)
            ],
            "g",
            [onnx.helper.make_tensor_value_info("v0", 1, [2])],
            [onnx.helper.make_tensor_value_info(f"v{len(ops)}", 1, [2])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
    )
    return from_proto(model)


class TestWaking:
    def test_a_change_wakes_the_readers(self) -> None:
        # Removing the inner pair makes a pair of the outer two.
        model = _chain(["Neg", "Neg", "Neg", "Neg", "Relu"])
        outcome = rewrite(model, [_DropDoubleNeg()])
        assert op_types(model) == ["Relu"]
        assert outcome.modified
        assert outcome.rewritten == {"drop-double-neg": 2}

    def test_one_rules_work_wakes_another(self) -> None:
        model = _chain(["Neg", "Abs", "Relu"])
        outcome = rewrite(model, [_DropDoubleNeg(), _Rename("Abs", "Neg")])
        assert op_types(model) == ["Relu"]
        assert outcome.rewritten == {"abs-to-neg": 1, "drop-double-neg": 1}

    def test_a_lost_reader_wakes_those_that_remain(self) -> None:
        class OnlyReader(_Rename):
            def match(self, node: ir.Node, context: Context) -> ir.Node | None:
                assert node.inputs[0] is not None
                return node if len(node.inputs[0].uses()) == 1 else None

        class ToInput(_Rename):
            def match(self, node: ir.Node, context: Context) -> ir.Node | None:
                return node if node.inputs[0] is not context.model.graph.inputs[0] else None

            def rewrite(self, match: ir.Node, rewriter: Rewriter) -> None:
                rewriter.replace_input(match, 0, rewriter.context.model.graph.inputs[0])

        proto = parse(
            "g (float[2] x) => (float[2] y) { a = Exp(x) s = Sin(a) n = Abs(a) y = Add(s, n) }"
        )
        model = from_proto(proto)
        rewrite(model, [OnlyReader("Sin", "Cos")])
        assert "Cos" not in op_types(model)
        rewrite(model, [OnlyReader("Sin", "Cos"), ToInput("Abs", "")])
        assert "Cos" in op_types(model)

    def test_max_rewrites(self) -> None:
        model = _chain(["Abs"] * 5)
        outcome = rewrite(model, [_Rename("Abs", "Neg")], max_rewrites=3)
        assert op_types(model).count("Neg") == 3
        assert outcome.rewritten["abs-to-neg"] == 3
        assert not rewrite(_chain(["Abs"]), [_Rename("Abs", "Neg")], max_rewrites=0).modified

    def test_pass_hands_on_max_rewrites(self) -> None:
        class Renames(RewritePass):
            name = "renames"

            def rules(self) -> Sequence[RewriteRule[Any]]:
                return [_Rename("Abs", "Neg")]

        model, pass_ = _chain(["Abs"] * 5), Renames()
        pass_.max_rewrites = 2
        assert pass_(model).modified
        assert op_types(model).count("Neg") == 2

    def test_circles_are_found(self) -> None:
        with pytest.raises(OnnxoptError, match=r"do not come to an end: .*abs-to-neg"):
            rewrite(_chain(["Abs"]), [_Rename("Abs", "Neg"), _Rename("Neg", "Abs")])

    def test_a_rule_that_changes_nothing_is_found(self) -> None:
        with pytest.raises(OnnxoptError, match="'abs-to-neg' changed nothing"):
            rewrite(_chain(["Abs"]), [_Idle("Abs", "Neg")])

    def test_other_domains_are_not_looked_at(self) -> None:
        model = from_proto(
            parse(
                '<ir_version: 8, opset_import: ["" : 18, "corp" : 1]>'
                "g (float[2] x) => (float[2] y) { y = corp.Abs(x) }"
            )
        )
        assert not rewrite(model, [_Rename("Abs", "Neg")]).modified


class TestCost:
    @pytest.mark.parametrize("count", [100, 400])
    def test_a_chain_where_nothing_matches_is_looked_at_once(self, count: int) -> None:
        rule = _DropDoubleNeg()
        rewrite(_chain(["Neg", "Relu"] * count), [rule])
        assert rule.looks == count

    @pytest.mark.parametrize("count", [100, 400, 1600])
    def test_looks_grow_with_the_changes(self, count: int) -> None:
        rule = _DropDoubleNeg()
        model = _chain(["Neg", "Neg", "Relu"] * count)
        outcome = rewrite(model, [rule])
        assert outcome.rewritten["drop-double-neg"] == count
        assert rule.looks <= 6 * count

    @pytest.mark.parametrize("count", [100, 400, 1600])
    def test_one_change_in_a_long_chain_wakes_a_few(self, count: int) -> None:
        rule = _DropDoubleNeg()
        middle = ["Neg", "Abs"] * count
        middle[count + 1 - count % 2] = "Floor"
        rename = _Rename("Floor", "Neg")
        looks = []
        both: tuple[list[RewriteRule[Any]], ...] = ([rule], [rule, rename])
        for rules in both:
            rule.looks = 0
            rewrite(_chain([*middle, "Relu"]), rules)
            looks.append(rule.looks)
        assert looks[1] - looks[0] <= 8

    def test_a_value_with_many_readers(self) -> None:
        rule = _DropDoubleNeg()
        count = 2000
        nodes = [onnx.helper.make_node("Abs", ["x"], ["a"])]
        nodes += [onnx.helper.make_node("Neg", ["a"], [f"n{index}"]) for index in range(count)]
        nodes.append(onnx.helper.make_node("Sum", [f"n{index}" for index in range(count)], ["y"]))
        infos = [onnx.helper.make_tensor_value_info(name, 1, [2]) for name in "xy"]
        graph = onnx.helper.make_graph(nodes, "g", infos[:1], infos[1:])
        model = from_proto(
            onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
        )
        rewrite(model, [_Rename("Abs", "Relu"), rule])
        assert rule.looks <= 2 * count


class TestDeadCode:
    def test_what_only_the_replaced_needed_goes(self) -> None:
        weights = {"w": np.ones(2, np.float32), "kept": np.ones(2, np.float32)}
        model = from_proto(
            parse(
                """
                g (float[2] x) => (float[2] y, float[2] z) {
                    a = Add(x, w) b = Mul(a, kept) c = Neg(b)
                    d = Neg(c) y = Relu(x) z = Mul(d, kept)
                }
                """,
                weights,
            )
        )

        class Forget(_Rename):
            def rewrite(self, match: ir.Node, rewriter: Rewriter) -> None:
                assert match.inputs[1] is not None
                rewriter.replace_input(match, 0, match.inputs[1])

            def match(self, node: ir.Node, context: Context) -> ir.Node | None:
                return (
                    node
                    if node.outputs[0].name == "z" and node.inputs[0] is not node.inputs[1]
                    else None
                )

        rewrite(model, [Forget("Mul", "")])
        assert op_types(model) == ["Relu", "Mul"]
        assert list(model.graph.initializers) == ["kept"]

    def test_captured_values_go_with_the_body(self) -> None:
        model = from_proto(
            parse(
                """
                g (bool c, float[2] x) => (float[2] y) {
                    captured = Exp(x)
                    branch = If (c) <
                        then_branch = a () => (float[2] t) { t = Add(captured, w) },
                        else_branch = b () => (float[2] e) { e = Neg(x) }
                    >
                    s = Sin(branch)
                    y = Add(x, s)
                }
                """,
                {"w": np.ones(2, np.float32)},
            )
        )

        class Forget(_Rename):
            def match(self, node: ir.Node, context: Context) -> ir.Node | None:
                return node if node.inputs[0] is not node.inputs[1] else None

            def rewrite(self, match: ir.Node, rewriter: Rewriter) -> None:
                rewriter.replace_input(match, 1, match.inputs[0])

        rewrite(model, [Forget("Add", "")])
        assert op_types(model) == ["Add"]
        assert not model.graph.initializers
        assert not model.graph.inputs[0].uses()

    def test_operators_of_unknown_domains_stay(self) -> None:
        model = from_proto(
            parse(
                '<ir_version: 8, opset_import: ["" : 18, "corp" : 1]>'
                "g (float[2] x) => (float[2] y)"
                "{ a = corp.Log(x) b = Neg(a) c = Neg(b) y = Relu(c) }"
            )
        )

        class ToInput(_Rename):
            def match(self, node: ir.Node, context: Context) -> ir.Node | None:
                return node if node.inputs[0] is not context.model.graph.inputs[0] else None

            def rewrite(self, match: ir.Node, rewriter: Rewriter) -> None:
                rewriter.replace_input(match, 0, rewriter.context.model.graph.inputs[0])

        rewrite(model, [ToInput("Relu", "")])
        assert op_types(model) == ["Log", "Relu"]

    def test_interface_values_stay(self) -> None:
        model = from_proto(
            parse(
                "g (float[2] x, float[2] w) => (float[2] y) { a = Abs(w) b = Relu(a) y = Sin(b) }"
            )
        )
        value = model.graph.inputs[1]
        value.const_value = ir.tensor(np.ones(2, np.float32))
        model.graph.register_initializer(value)

        class Forget(_Rename):
            def rewrite(self, match: ir.Node, rewriter: Rewriter) -> None:
                rewriter.replace_input(match, 0, rewriter.context.model.graph.inputs[0])

            def match(self, node: ir.Node, context: Context) -> ir.Node | None:
                return node if node.inputs[0] is not context.model.graph.inputs[0] else None

        rewrite(model, [Forget("Sin", "")])
        assert op_types(model) == ["Sin"]
        assert [each.name for each in model.graph.inputs] == ["x", "w"]
        assert list(model.graph.initializers) == ["w"]


class TestRefusals:
    def test_are_recorded_with_their_node(self) -> None:
        model = _chain(["Neg", "Neg"])
        outcome = rewrite(model, [_DropDoubleNeg()])
        assert not outcome.modified
        assert outcome.matched == {"drop-double-neg": 1}
        [refusal] = outcome.refusals
        assert (refusal.rule, refusal.reason) == ("drop-double-neg", "the outer one is an output")
        assert refusal.node == (model.graph[1].name or "Neg")

    def test_may_be_raised(self) -> None:
        class Raises(_Rename):
            def match(self, node: ir.Node, context: Context) -> ir.Node | None:
                raise Refuse("it is not for us")

        outcome = rewrite(_chain(["Abs"]), [Raises("Abs", "Neg")])
        assert [refusal.reason for refusal in outcome.refusals] == ["it is not for us"]

    @pytest.mark.parametrize("anchor_is_renamed", [True, False])
    def test_are_withdrawn_when_the_reason_or_the_node_goes(self, anchor_is_renamed: bool) -> None:
        class AfterExp(_Rename):
            def match(self, node: ir.Node, context: Context) -> ir.Node | None:
                assert node.inputs[0] is not None
                producer = node.inputs[0].producer()
                if producer is not None and producer.op_type == "Exp":
                    raise Refuse("it follows an Exp")
                return None

            depth = 1

        first = AfterExp("Abs", "Neg")
        second = _Rename("Abs" if anchor_is_renamed else "Exp", "Sin")
        model = _chain(["Exp", "Abs"])
        outcome = rewrite(model, [first, second])
        assert outcome.modified
        assert outcome.refusals == []


class TestPlaces:
    def test_bodies_and_functions_are_rewritten(self) -> None:
        proto = parse(
            """
            <ir_version: 10, opset_import: ["" : 18, "local" : 1]>
            g (bool c, float[2] x) => (float[2] y) {
                a = If (c) <
                    then_branch = a () => (float[2] t) { t = Abs(x) },
                    else_branch = b () => (float[2] e) {
                        e = If (c) <
                            then_branch = d () => (float[2] f) { f = Abs(x) },
                            else_branch = h () => (float[2] i) { i = Exp(x) }
                        >
                    }
                >
                y = local.f(a)
            }
            <domain: "local", opset_import: ["" : 18]>
            f (v) => (w) { w = Abs(v) }
            """
        )
        model = from_proto(proto)
        outcome = rewrite(model, [_Rename("Abs", "Neg")])
        assert outcome.rewritten["abs-to-neg"] == 3
        after = to_proto(model)
        onnx.checker.check_model(after)
        for choice in (True, False):
            feed = {"c": np.array(choice), "x": np.array([1, -2], np.float32)}
            expected = -feed["x"] if choice else np.exp(feed["x"])
            assert_same([-expected], run(after, feed))

    def test_context_knows_the_opset_and_the_place(self) -> None:
        model = from_proto(
            parse(
                """
                <ir_version: 10, opset_import: ["" : 18, "local" : 1]>
                g (float[2] x) => (float[2] y) { a = Relu(x) y = local.f(a) }
                <domain: "local", opset_import: ["" : 15]>
                f (v) => (w) { w = Abs(v) }
                """
            )
        )
        context = Context(model)
        [function] = model.functions.values()
        relu, call = model.graph
        assert (context.opset(relu), context.in_function(relu)) == (18, False)
        assert context.opset(call) == 1
        assert (context.opset(function[0]), context.in_function(function[0])) == (15, True)
