from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxopt.model import from_proto, to_proto
from tests.differential import apply, op_types, optimize, parse, untouched
from tests.passes.test_compact_weights import MATMULS, compact, model, weights

DECODE = "decode-weights"


def renamed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with other names inside, as other tools would leave it."""
    changed = from_proto(proto)
    for index, value in enumerate(list(changed.graph.initializers.values())):
        changed.graph.initializers.pop(value.name or "")
        value.name = f"initializer{index}"
        changed.graph.initializers.add(value)
    for index, node in enumerate(changed.graph):
        node.name = f"node{index}"
        for output in node.outputs:
            if not output.is_graph_output():
                output.name = f"value{index}"
    return to_proto(changed)


@pytest.mark.parametrize(
    "options", ["", *(f"codes={c}" for c in ("bitmask", "gaps", "elias-fano"))]
)
def test_decoders_are_known_by_their_looks(options: str) -> None:
    array = weights((61, 67), 0.9)
    coded, codes = compact(model(array), options)
    assert codes
    decoded, _ = apply(renamed(coded), f"{DECODE},fold-constants{{max-bytes=100000}}")
    found = [value.const_value for value in decoded.graph.initializers.values()]
    assert array.tobytes() in [tensor.tobytes() for tensor in found if tensor is not None]
    assert set(op_types(decoded)) <= {"Reshape", "Gather"}


@pytest.mark.parametrize("colours", [2, 5, 17, 200])
def test_palettes_are_known_by_their_looks(colours: int) -> None:
    array = (np.arange(71 * 67).reshape(71, 67) * 7 % colours / 3).astype(np.float32)
    array[np.random.default_rng(0).random(array.shape) < 0.5] = 0
    coded, codes = compact(model(array))
    assert "palette" in codes[0]
    decoded, outcomes = apply(renamed(coded), DECODE)
    assert outcomes[DECODE].modified
    assert set(op_types(decoded)) <= {"Reshape", "Gather"}


def test_parts_as_constant_nodes() -> None:
    array = weights((64, 64), 0.9)
    coded = from_proto(compact(model(array))[0])
    for value in list(coded.graph.initializers.values()):
        assert value.const_value is not None
        node = ir.node("Constant", [], {"value": value.const_value})
        coded.graph.insert_before(coded.graph[0], node)
        value.replace_all_uses_with(node.outputs[0])
        coded.graph.initializers.pop(value.name or "")
    decoded, _ = apply(to_proto(coded), DECODE)
    tensor = decoded.graph.initializers["w"].const_value
    assert tensor is not None
    assert tensor.tobytes() == array.tobytes()
    assert op_types(decoded) == ["Constant", "Reshape", "Gather"]


def test_dense_models_are_left_alone() -> None:
    untouched(parse(MATMULS, {"p": weights((64, 64), 0.8), "q": weights((64, 64), 0.9)}), DECODE)


@pytest.mark.parametrize(
    "body",
    [
        "w = Cast <to = 1> (h)",
        "w = ConstantOfShape <value = float {2}> (shape)",
        "w = Gather(table, places)",
        "k = CumSum(places, axis) w = Gather(table, k)",
    ],
)
def test_what_others_compute_of_constants_is_left_alone(body: str) -> None:
    arrays = {
        "h": np.ones((64, 64), np.float16),
        "shape": np.array([64, 64]),
        "table": np.ones((80, 64), np.float32),
        "places": np.ones(64, np.int32),
        "axis": np.array(0, np.int32),
    }
    used = {name: array for name, array in arrays.items() if name in body}
    text = f"g (float[n, 64] x) => (float[n, 64] y) {{ {body} y = MatMul(x, w) }}"
    untouched(parse(text, used), DECODE)


def test_parts_that_callers_can_override_make_it_no_decoder() -> None:
    coded, _ = compact(model(weights((64, 64), 0.9)))
    part = next(
        each for each in coded.graph.initializer if each.data_type == onnx.TensorProto.UINT8
    )
    coded.graph.input.append(
        onnx.helper.make_tensor_value_info(part.name, part.data_type, part.dims)
    )
    untouched(coded, DECODE)


def test_tampered_parts_are_refused() -> None:
    array = weights((64, 64), 0.9)
    coded, _ = compact(model(array), "codes=gaps")
    part = next(
        each for each in coded.graph.initializer if each.data_type == onnx.TensorProto.UINT8
    )
    part.CopyFrom(onnx.numpy_helper.from_array(np.full(part.dims, 255, np.uint8), part.name))
    untouched(coded, DECODE, "cannot run")


def test_compact_pipeline_loses_nothing_by_running_twice() -> None:
    text = """g (float[n, 64] x) => (float[n, 64] y) {
        a = MatMul(x, p) b = Identity(a) c = Mul(b, s) y = Relu(c)
    }"""
    arrays = {"p": weights((64, 64), 0.9), "s": np.linspace(1, 2, 64).astype(np.float32)}
    feed = {"x": np.ones((2, 64), np.float32)}
    coded, _ = compact(parse(text, arrays))
    once = optimize(coded, "compact", feed)
    direct = optimize(parse(text, arrays), "compact", feed)
    assert op_types(once) == op_types(direct)
    assert op_types(optimize(coded, "exact", feed)) == op_types(direct)
    assert op_types(apply(to_proto(once), DECODE)[0]) == ["MatMul", "Relu"]
    again = optimize(to_proto(once), "compact", feed)
    assert to_proto(again).ByteSize() == to_proto(once).ByteSize()


def test_compact_only_what_was_compact() -> None:
    dense = model(weights((64, 64), 0.9))
    coded, _ = compact(dense)
    pipeline = "decode-weights,compact-weights{only-again=true}"
    untouched(dense, pipeline)
    again, _ = apply(coded, pipeline)
    assert to_proto(again).ByteSize() == coded.ByteSize()
