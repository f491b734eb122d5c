"""If of which one branch would give a rank that what reads it fails for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.analysis.ranks import Ranks
from onnxopt.analysis.symbolic import SymbolicFacts
from onnxopt.model import from_proto
from tests.differential import op_types, optimize, parse, run, untouched

PASS = "resolve-control-flow"
_NOT_KNOWN = "only known when the model runs"


def floats(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


_WEIGHTS = {"w": floats(1, 20, 3), "r": floats(1, 20, 5), "k": floats(4, 3, 3)}
_CONSTANTS = "<int64[1] zero = {0}, int64[1] one = {1}, int64 i2 = {2}>"


def model(
    tail: str,
    inputs: str = "float[n, 3, l] x, bool c",
    weights: Any = None,
    output: str = "float[o, p, q]",
) -> onnx.ModelProto:
    """A squeeze that only happens where ``c`` says so, and what reads its result."""
    text = f"""g ({inputs}) => ({output} y) {_CONSTANTS} {{
        b = If (c) <
            then_branch = t () => (float[p] t1) {{ t1 = Squeeze(x, zero) }},
            else_branch = e () => (float[q] e1) {{ e1 = Identity(x) }}
        >
        {tail}
    }}"""
    proto = parse(text, _WEIGHTS if weights is None else weights)
    for attribute in proto.graph.node[0].attribute:
        attribute.g.output[0].type.tensor_type.ClearField("shape")
    return proto


@pytest.mark.parametrize("dynamic", [2, 5])
def test_a_reader_that_takes_one_rank_only(dynamic: int) -> None:
    proto = model("y = Conv(b, k)")
    optimized = optimize(proto, PASS, {"x": floats(2, 3, 3 + dynamic), "c": np.array(False)})
    assert op_types(optimized) == ["Identity", "Conv"]


def test_the_other_branch_where_that_one_fits() -> None:
    proto = model("u = Unsqueeze(b, zero) s = Neg(u) q = Transpose<perm = [1, 0, 2]>(s) y = Abs(q)")
    optimized = optimize(proto, PASS, {"x": floats(1, 3, 4), "c": np.array(True)})
    assert op_types(optimized)[0] == "Squeeze"
    assert "If" not in op_types(optimized)


def test_branches_in_a_row_as_an_exporter_writes_them() -> None:
    """Like `nn.LSTM` on a squeezed tensor: each If alone may give two ranks."""
    text = f"""g (float[n, m, l] x) => (float[s, d, n, 5] y) {_CONSTANTS} {{
        shape = Shape(x)
        size = Gather(shape, one)
        c = Equal(size, one)
        b = If (c) <
            then_branch = t () => (float[n, l] t1) {{ t1 = Squeeze(x, one) }},
            else_branch = e () => (float[n, m, l] e1) {{ e1 = Identity(x) }}
        >
        s = Shape(b)
        r2 = Size(s)
        two = Equal(r2, i2)
        many = Not(two)
        d = If (many) <
            then_branch = t2 () => (float[p] t3) {{ t3 = Unsqueeze(b, zero) }},
            else_branch = e2 () => (float[q] e3) {{ e3 = Identity(b) }}
        >
        u = Unsqueeze(d, zero)
        y, h, z = LSTM<hidden_size = 5>(u, w, r)
    }}"""
    proto = parse(text, _WEIGHTS)
    for node in (node for node in proto.graph.node if node.op_type == "If"):
        for attribute in node.attribute:
            attribute.g.output[0].type.tensor_type.ClearField("shape")
    optimized = optimize(proto, f"{PASS},infer-shapes,fold-shapes", {"x": floats(2, 1, 3)})
    assert "If" not in op_types(optimized)


@pytest.mark.parametrize(
    "tail",
    [
        "y = Neg(b)",  # any rank will do
        "y = Gemm(b, m)",  # the runtime takes a vector too
        "y = Neg(b) z = Conv(b, k)",  # the runtime need not run what nothing depends on
        "z = Shape(b) y = Cast<to = 1>(z)",
        """y = If (c) <
            then_branch = t2 () => (float[p2] t3) { t3 = Conv(b, k) },
            else_branch = e2 () => (float[q2] e3) { e3 = Identity(b) }
        >""",  # does not always run
        "y = Conv(b, f)",  # the rank of the weight is not known
    ],
)
def test_where_both_branches_may_run(tail: str) -> None:
    weights = _WEIGHTS | {"m": floats(3, 2)}
    inputs = "float[n, 3, l] x, bool c, float f"
    proto = model(tail, inputs, weights)
    proto.graph.input[2].type.tensor_type.ClearField("shape")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    untouched(proto, PASS, _NOT_KNOWN)


def test_where_neither_branch_may_run() -> None:
    untouched(model("y = Transpose<perm = [3, 2, 1, 0]>(b)"), PASS, _NOT_KNOWN)


def test_what_the_file_states_of_a_branch_is_not_believed() -> None:
    proto = model("u = Unsqueeze(b, a) y = Conv(u, k)", "float[n, 3, l] x, bool c, int64[z] a")
    for attribute in proto.graph.node[0].attribute:
        attribute.g.output[0].type.tensor_type.shape.dim.add(dim_value=3)
    untouched(proto, PASS, _NOT_KNOWN)


def test_a_reader_in_a_body_whose_result_nothing_reads() -> None:
    text = """g (float[n, 3, l] x, bool c, bool c2) => (float[o] y) {
        u, y = If (c2) <
            then_branch = t () => (float[p] t1, float[p2] t2) {
                b = If (c) <
                    then_branch = t3 () => (float[p] t4) { t4 = Squeeze(x) },
                    else_branch = e3 () => (float[q] e4) { e4 = Identity(x) }
                >
                t1 = Transpose<perm = [1, 0]>(b)
                t2 = Neg(b)
            },
            else_branch = e () => (float[q] e1, float[q2] e2) { e1 = Neg(x) e2 = Abs(x) }
        >
    }"""
    model = from_proto(parse(text))
    ranks = Ranks(model, SymbolicFacts())
    [inner] = [node for node in model.graph.all_nodes() if node.name == "" and _holds(node, "t4")]
    assert ranks.required(inner.outputs[0]) is None
    text = text.replace("u, y = If", "y, u = If")
    model = from_proto(parse(text))
    [inner] = [node for node in model.graph.all_nodes() if node.name == "" and _holds(node, "t4")]
    assert Ranks(model, SymbolicFacts()).required(inner.outputs[0]) == frozenset((2,))


def test_a_reader_in_a_function_of_which_not_all_outputs_are_read() -> None:
    text = """<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
        g (float[n, 3, l] x, bool c) => (float[o, p, q] y) { z, y = local.f(x, c) }
        <domain: "local", opset_import: ["" : 18]>
        f (x, c) => (z, y) {
            b = If (c) <
                then_branch = t () => (t1) { t1 = Squeeze(x) },
                else_branch = e () => (e1) { e1 = Identity(x) }
            >
            z = Transpose<perm = [1, 0]>(b)
            y = Neg(b)
        }"""
    untouched(parse(text), PASS, _NOT_KNOWN)


def _holds(node: ir.Node, output: str) -> bool:
    attribute = node.attributes.get("then_branch")
    return attribute is not None and attribute.as_graph().outputs[0].name == output


_IMAGE = floats(1, 3, 8, 8)
_FAILING = [
    ("Transpose", [_IMAGE], {"perm": [0, 2, 1, 3]}),
    ("Conv", [_IMAGE, floats(4, 3, 1, 1)], {}),
    ("ConvTranspose", [_IMAGE, floats(3, 4, 1, 1)], {}),
    ("MaxPool", [_IMAGE], {"kernel_shape": [2, 2]}),
    ("AveragePool", [_IMAGE], {"kernel_shape": [2, 2]}),
    ("LSTM", [floats(2, 1, 3), floats(1, 20, 3), floats(1, 20, 5)], {"hidden_size": 5}),
    ("GRU", [floats(2, 1, 3), floats(1, 15, 3), floats(1, 15, 5)], {"hidden_size": 5}),
    ("RNN", [floats(2, 1, 3), floats(1, 5, 3), floats(1, 5, 5)], {"hidden_size": 5}),
]


@pytest.mark.parametrize(("operator", "arrays", "attributes"), _FAILING)
def test_the_runtime_does_insist(
    operator: str, arrays: list[np.ndarray[Any, Any]], attributes: dict[str, Any]
) -> None:
    """The ranks of the table are those that run; the ranks beside them fail."""
    names = [f"i{index}" for index in range(len(arrays))]
    any_shape = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    ]
    node = onnx.helper.make_node(operator, names, ["y"], **attributes)
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    weights = list(map(onnx.numpy_helper.from_array, arrays[1:], names[1:]))
    graph = onnx.helper.make_graph([node], "g", any_shape[:1], [output], weights)
    opset = [onnx.helper.make_opsetid("", 18)]
    proto = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    model = from_proto(proto)
    assert Ranks(model, SymbolicFacts()).required(model.graph.inputs[0]) == frozenset(
        (arrays[0].ndim,)
    )
    assert _runs(proto, arrays[0])
    assert not _runs(proto, arrays[0][None])
    assert not _runs(proto, arrays[0][0])


def _runs(proto: onnx.ModelProto, array: np.ndarray[Any, Any]) -> bool:
    try:
        run(proto, {"i0": array})
    except Exception:  # the runtime has no one type for its refusals
        return False
    return True
