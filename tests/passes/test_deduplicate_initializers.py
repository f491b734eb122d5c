from __future__ import annotations

import pathlib

import hypothesis
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.analysis.scopes import Scopes
from onnxopt.model import from_proto, load
from onnxopt.pass_manager import make_pass
from tests.differential import Feed, apply, op_types, optimize, parse

PASS = "deduplicate-initializers"
MODULE = "onnxopt.passes.deduplicate_initializers"
SUM = "g (float[n] x) => (float[n] y) { a = Add(x, p) y = Mul(a, q) }"


def feed(*shape: int) -> Feed:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def names(model: ir.Model) -> list[str]:
    return list(model.graph.initializers)


def kept(one: onnx.TensorProto, other: onnx.TensorProto) -> int:
    """How many of two initializers are left, in a model that puts both out."""
    nodes = [
        onnx.helper.make_node("Identity", [tensor.name], [f"{tensor.name}_out"])
        for tensor in (one, other)
    ]
    outputs = [
        onnx.helper.make_tensor_value_info(f"{each.name}_out", each.data_type, each.dims)
        for each in (one, other)
    ]
    graph = onnx.helper.make_graph(nodes, "g", [], outputs, [one, other])
    model = onnx.helper.make_model(graph)
    onnx.checker.check_model(model)
    return len(names(apply(model, PASS)[0]))


def tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(array, name)


@pytest.mark.parametrize("size", [1, 3, 1023, 5000])
def test_equal_initializers_become_one(size: int) -> None:
    array = np.arange(size, dtype=np.float32)
    model = parse(SUM, {"p": array, "q": array})
    assert names(optimize(model, PASS, feed(size))) == ["p"]


@pytest.mark.parametrize("where", [0, 2047, 2500, 4999])
def test_one_element_makes_a_difference_wherever_it_is(where: int) -> None:
    array = np.arange(5000, dtype=np.float32)
    other = array.copy()
    other[where] = -1
    assert kept(tensor("p", array), tensor("q", other)) == 2
    assert kept(tensor("p", array), tensor("q", array)) == 1


@pytest.mark.parametrize(
    "dtype",
    [
        *("float16", "float64", "int8", "uint16", "int64", "bool", "complex64"),
        *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4, ml_dtypes.uint4),
    ],
)
def test_all_element_types(dtype: str | type) -> None:
    array = np.array([0, 1, 1]).astype(dtype)
    other = np.array([0, 1, 0]).astype(dtype)
    assert kept(tensor("p", array), tensor("q", array)) == 1
    assert kept(tensor("p", array), tensor("q", other)) == 2


def test_storage_of_the_numbers_in_the_file_does_not_matter() -> None:
    listed = onnx.helper.make_tensor("p", onnx.TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    raw = tensor("q", np.array([1, 2, 3], np.float32))
    assert listed.float_data
    assert raw.raw_data
    assert kept(listed, raw) == 1


def test_other_type_or_shape_makes_two() -> None:
    zeros = np.zeros(4, np.float32)
    assert kept(tensor("p", zeros), tensor("q", zeros.view(np.int32))) == 2
    assert kept(tensor("p", zeros), tensor("q", zeros.reshape(2, 2))) == 2
    assert kept(tensor("p", zeros[:1]), tensor("q", zeros[:1].reshape(()))) == 2


def test_bytes_decide_on_zeros_and_nan() -> None:
    zero, nan = np.zeros(1, np.float32), np.full(1, np.nan, np.float32)
    assert kept(tensor("p", zero), tensor("q", -zero)) == 2
    assert kept(tensor("p", nan), tensor("q", nan)) == 1


def test_initializers_without_elements() -> None:
    none = np.zeros((0, 3), np.float32)
    assert kept(tensor("p", none), tensor("q", none)) == 1
    assert kept(tensor("p", none), tensor("q", none.reshape(3, 0))) == 2


@pytest.mark.parametrize(
    ("one", "other", "left"),
    [
        ([b"a", b"bc"], [b"a", b"bc"], 1),
        ([b"a", b"bc"], [b"ab", b"c"], 2),
        ([b"a", b"b"], [b"a", b"b\0"], 2),
    ],
)
def test_strings(one: list[bytes], other: list[bytes], left: int) -> None:
    string = onnx.TensorProto.STRING
    first, second = (
        onnx.TensorProto(name=name, data_type=string, dims=[2], string_data=values)
        for name, values in (("p", one), ("q", other))
    )
    assert kept(first, second) == left


def test_equal_digests_are_not_taken_at_their_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MODULE}._digest", lambda tensor: b"same")
    monkeypatch.setattr(f"{MODULE}._sample", lambda tensor: b"same")
    array = np.arange(5000, dtype=np.float32)
    other = array.copy()
    other[2500] = -1
    assert kept(tensor("p", array), tensor("q", other)) == 2
    for dtype in (ml_dtypes.int4, np.int8):
        small = [np.array(numbers).astype(dtype) for numbers in ([1, 2], [1, 3])]
        assert kept(tensor("p", small[0]), tensor("q", small[1])) == 2


def test_initializer_that_can_be_overridden_stays() -> None:
    array = np.ones(1, np.float32)
    model = parse("g (float[n] x, float[1] p) => (float[n] y) { a = Add(x, p) y = Mul(a, q) }")
    model.graph.initializer.extend([tensor("p", array), tensor("q", array)])
    optimized, outcomes = apply(model, PASS)
    assert names(optimized) == ["p", "q"]
    assert not outcomes[PASS].modified


def test_initializer_that_is_an_output_stays() -> None:
    array = np.ones(1, np.float32)
    model = parse("g (float[n] x) => (float[n] y, float[1] p) { a = Add(x, p) y = Mul(a, q) }")
    model.graph.initializer.extend([tensor("p", array), tensor("q", array)])
    assert names(optimize(model, PASS, feed(3))) == ["p", "q"]


BRANCHES = """g (bool c, float[n] x) => (float[n] y) <float[2] o = {1, 2}> {
    a = Add(x, o)
    y = If (c) <
        then_branch = t () => (float[n] t1) <float[2] p = {1, 2}, float[2] q = {3, 4}>
            { b = Mul(a, p) t1 = Add(b, q) },
        else_branch = e () => (float[n] e1) <float[2] r = {3, 4}, float[2] s = {3, 4}>
            { d = Mul(a, r) e1 = Add(d, s) }
    >
}"""


def test_body_reads_the_initializer_of_the_graph_around_it() -> None:
    model = parse(BRANCHES)
    feeds = [{"c": np.array(truth), **feed(2)} for truth in (True, False)]
    optimized = optimize(model, PASS, *feeds)
    assert [list(graph.initializers) for graph in optimized.graphs()] == [["o"], ["q"], ["r"]]
    _, outcomes = apply(model, PASS)
    assert "not visible" in outcomes[PASS].refusals[0].reason


def test_initializer_of_a_body_may_have_the_name_of_the_one_it_gives_way_to() -> None:
    model = from_proto(parse(BRANCHES))
    _, then, _ = Scopes(model.graph).graphs
    then.initializers["p"].name = "o"
    outcome = make_pass(PASS).run(model)
    assert outcome.modified
    assert list(then.initializers) == ["q"]
    assert then.node(0).inputs[1] is model.graph.initializers["o"]


def test_hidden_name_is_not_read() -> None:
    model = from_proto(parse(BRANCHES))
    _, then, _ = Scopes(model.graph).graphs
    then.initializers["q"].name = "o"
    make_pass(PASS).run(model)
    assert list(then.initializers) == ["p", "o"]


def test_bodies_inside_functions() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 18, "f" : 1]>
        g (bool c, float[n] x) => (float[n] y) { y = f.choose(c, x) }
        <domain: "f", opset_import: ["" : 18]> choose(c, x) => (y) {
            y = If (c) <
                then_branch = t () => (float[n] t1) <float[2] p = {1, 2}, float[2] q = {1, 2}>
                    { b = Mul(x, p) t1 = Add(b, q) },
                else_branch = e () => (float[n] e1) { e1 = Neg(x) }
            >
        }"""
    )
    feeds = [{"c": np.array(truth), **feed(2)} for truth in (True, False)]
    optimized = optimize(model, PASS, *feeds)
    (function,) = optimized.functions.values()
    assert [len(graph.initializers) for graph in function.subgraphs()] == [1, 0]


def external(folder: pathlib.Path, arrays: dict[str, np.ndarray]) -> ir.Model:
    """A model on disk that adds up initializers kept in a file beside it."""
    terms = ", ".join(["x", *arrays])
    model = parse(f"g (float[n] x) => (float[n] y) {{ y = Sum({terms}) }}", arrays)
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="data", size_threshold=0)
    return load(path)


def test_external_data(tmp_path: pathlib.Path) -> None:
    big = np.arange(100_000, dtype=np.float32)
    other = big.copy()
    other[77_777] = 0
    model = external(tmp_path, {"p": big, "q": other, "r": big, "s": big})
    outcome = make_pass(PASS).run(model)
    assert names(model) == ["p", "q"]
    assert outcome.rewritten.total() == 2
    assert op_types(model) == ["Sum"]


def test_what_differs_in_kind_is_not_read(tmp_path: pathlib.Path) -> None:
    arrays = {f"p{size}": np.zeros(size, np.float32) for size in range(5000, 5010)}
    model = external(tmp_path, arrays)
    (tmp_path / "data").unlink()
    assert not make_pass(PASS).run(model).modified


def test_tensors_are_digested_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = from_proto(parse(BRANCHES))
    assert make_pass(PASS).run(model).modified
    monkeypatch.setattr(f"{MODULE}._Sink", None)
    assert not make_pass(PASS).run(model).modified


def test_bisection_can_stop_after_some_merges() -> None:
    array = np.ones(3, np.float32)
    model = from_proto(
        parse("g (float[3] x) => (float[3] y) { y = Sum(x, p, q, r) }", dict.fromkeys("pqr", array))
    )
    limited = make_pass(PASS)
    limited.max_rewrites = 1
    assert limited.run(model).rewritten.total() == 1
    assert len(names(model)) == 2


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=8))
def test_as_many_stay_as_differ(kinds: list[tuple[int, int]]) -> None:
    arrays = {f"p{i}": np.array(kind, np.float32) for i, kind in enumerate(kinds)}
    model = parse(f"g (float[2] x) => (float[2] y) {{ y = Sum({', '.join(arrays)}) }}", arrays)
    assert len(names(optimize(model, PASS, feed(2)))) == len(set(kinds))
