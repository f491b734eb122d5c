"""What `fold-constants` must leave alone, and what it does when the runtime fails."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from onnxopt.errors import RuntimeCrashError, RuntimeRefusalError
from onnxopt.model import from_proto, to_proto
from onnxopt.pass_manager import PassManager, parse_pipeline
from onnxopt.runtime.worker import shared_worker
from tests.differential import apply, op_types, parse, run, untouched
from tests.passes.folding import PASS, WEIGHT, WORKER, assert_not_larger, one_run, reasons

# What is left alone


@pytest.mark.parametrize(
    ("line", "dtype"),
    [
        ("r = RandomNormalLike(c)", "float[2]"),
        ("r = RandomUniformLike(c)", "float[2]"),
        ("r = Bernoulli(c)", "float[2]"),
        ("r = Dropout(c, half, yes)", "float[2]"),
    ],
)
def test_random_results_are_not_frozen(line: str, dtype: str) -> None:
    model = parse(
        f"""g (float[2] x) => ({dtype} y)
        <float[2] c = {{0.5, 0.5}}, float half = {{0.5}}, bool yes = {{1}}> {{
            {line} y = Mul(x, r)
        }}"""
    )
    untouched(model, PASS, "differ from run to run")


def test_quantization_is_not_folded() -> None:
    model = parse(
        """g (float[n, 64] x) => (float[n, 48] y) <float s = {0.02}, int8 z = {0}> {
            q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) y = MatMul(x, d)
        }""",
        {"w": WEIGHT},
    )
    untouched(model, PASS, "quantization")


def test_dequantization_of_small_weights_is_not_folded() -> None:
    model = parse(
        """g (float[2] x) => (float[2] y) <int8[2] w = {3, 4}, float s = {0.02}, int8 z = {0}> {
            d = DequantizeLinear(w, s, z) e = Neg(d) y = Mul(x, e)
        }"""
    )
    untouched(model, PASS, "quantization")


def test_dynamic_quantization_is_not_folded() -> None:
    model = parse(
        """g (float[2] x) => (float[2] y) <float[2] w = {3, 4}> {
            q, s, z = DynamicQuantizeLinear(w) d = DequantizeLinear(q, s, z) y = Mul(x, d)
        }"""
    )
    untouched(model, PASS, "quantization")


def test_overridable_initializers_are_not_constant() -> None:
    model = parse(
        "g (float[2] x, float[2] c) => (float[2] y) { e = Exp(c) y = Mul(x, e) }",
        {"c": np.ones(2, np.float32)},
    )
    untouched(model, PASS)


def test_strings_and_sequences_stay() -> None:
    strings = onnx.helper.make_tensor("s", onnx.TensorProto.STRING, [2], [b"1.5", b"2"])
    model = parse("g (float[2] x) => (float[2] y) { f = Cast<to = 1>(s) y = Mul(x, f) }")
    model.graph.initializer.append(strings)
    untouched(model, PASS, "strings")
    to_text = parse("g () => (string[2] y) <float[2] c = {1, 2}> { y = Cast<to = 8>(c) }")
    untouched(to_text, PASS)
    sequence = parse(
        """g (float[2] x) => (float[2] y) <float[2] c = {1, 2}, int64 i = {0}> {
            s = SequenceConstruct(c, c) a = SequenceAt(s, i) y = Mul(x, a)
        }"""
    )
    untouched(sequence, PASS, "sequences")


def test_other_domains_stay() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "other" : 1]>
        g (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { e = other.Exp(c) y = Mul(x, e) }"""
    )
    untouched(model, PASS, "standard domain")


def test_control_flow_stays() -> None:
    model = parse(
        """g (float[2] x) => (float[2] y) <bool c = {1}> {
            i = If (c) <
                then_branch = t () => (float[2] t1) <float[2] t1 = {1, 2}> { },
                else_branch = e () => (float[2] e1) <float[2] e1 = {3, 4}> { }
            >
            y = Mul(x, i)
        }"""
    )
    untouched(model, PASS, "control flow")


def test_functions_stay_as_they_are() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
        g (float[2] x) => (float[2] y) { y = local.f(x) }
        <domain: "local", opset_import: ["" : 18]>
        f (a) => (b) { c = Constant<value_float = 2.0>() d = Exp(c) b = Mul(a, d) }"""
    )
    optimized, outcomes = apply(model, PASS)
    assert not outcomes[PASS].modified
    (function,) = optimized.functions.values()
    assert [node.op_type for node in function] == ["Constant", "Exp", "Mul"]


# Crashes, hangs, refusals


class FragileWorker:
    """Passes requests on, except that one operator makes it fail."""

    def __init__(self, op_type: str, error: Exception) -> None:
        self.op_type, self.error, self.requests = op_type, error, 0

    def evaluate(self, model: bytes, feed: Mapping[str, Any], seconds: float) -> list[Any]:
        self.requests += 1
        nodes = onnx.ModelProto.FromString(model).graph.node
        if any(node.op_type == self.op_type for node in nodes):
            raise self.error
        return shared_worker().evaluate(model, feed, seconds)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeCrashError("died"), "crashes or hangs"),
        (RuntimeRefusalError("no"), "refuses to compute"),
    ],
)
def test_a_node_that_fails_is_found_and_left(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    worker = FragileWorker("Erf", error)
    monkeypatch.setattr(WORKER, lambda: worker)
    lines = [f"a{i} = {op}(c) x{i + 1} = Mul(x{i}, a{i})" for i, op in enumerate(FIVE_OPS)]
    model = parse(
        f"g (float[2] x0) => (float[2] x5) <float[2] c = {{1, 2}}> {{ {' '.join(lines)} }}"
    )
    optimized, outcome = one_run(model)
    assert sorted(op_types(optimized)) == ["Erf", "Mul", "Mul", "Mul", "Mul", "Mul"]
    assert any(reason in each for each in reasons(outcome))
    assert worker.requests < 10
    feed = {"x0": np.ones(2, np.float32)}
    np.testing.assert_allclose(run(model, feed)[0], run(to_proto(optimized), feed)[0])


FIVE_OPS = ("Exp", "Log", "Erf", "Tanh", "Sigmoid")


def test_too_many_hangs_end_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = FragileWorker("Exp", RuntimeCrashError("hung"))
    monkeypatch.setattr(WORKER, lambda: worker)
    monkeypatch.setattr("onnxopt.passes.fold_constants.runtime_evaluation._MOST_LOST_SECONDS", 0.0)
    lines = [f"a{i} = Exp(c) x{i + 1} = Mul(x{i}, a{i})" for i in range(8)]
    model = parse(
        f"g (float[2] x0) => (float[2] x8) <float[2] c = {{1, 2}}> {{ {' '.join(lines)} }}"
    )
    optimized = from_proto(model)
    reports = PassManager(parse_pipeline(f"{PASS},{PASS}"), rounds=3).run(optimized)
    assert op_types(optimized) == op_types(from_proto(model))
    assert all("crashes or hangs" in reason for reason in reasons(reports[-1].outcome))
    assert worker.requests == 1


def test_a_group_whose_evaluation_fails_does_not_make_the_file_larger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Writing one of two halves is only worth it when the other half is written too."""
    monkeypatch.setattr(WORKER, lambda: FragileWorker("Erf", RuntimeRefusalError("-")))
    weight = np.random.default_rng(0).standard_normal((256, 512)).astype(np.float32)
    model = parse(
        """g (float[n, 256] x) => (float[n, 256] y) <int64[2] halves = {256, 256}> {
            a, b = Split<axis = 1>(w, halves) c = Exp(a) d = Erf(b)
            p = MatMul(x, c) q = MatMul(x, d) y = Add(p, q)
        }""",
        {"w": weight},
    )
    optimized, outcomes = apply(model, "fold-constants{max-bytes=0}")
    assert "Erf" in op_types(optimized)
    assert_not_larger(model, optimized)
    assert "the runtime refuses to compute it" in reasons(outcomes[PASS])
