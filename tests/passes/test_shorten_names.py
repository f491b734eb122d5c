from __future__ import annotations

import numpy as np
import onnx

from onnxopt.model import Interface, from_proto, to_proto
from onnxopt.pass_manager import make_pass
from tests.differential import apply, optimize, parse, untouched
from tests.passes.test_compact_weights import weights

SHORTEN = "shorten-names"

TEXT = """g (bool choose, float[n, 64] the_input) => (float[n, 64] the_output) {
    module_path_of_first = MatMul(the_input, weight_of_first)
    module_path_of_choice = If (choose) <
        then_branch = t () => (float[n, 64] inner_result) {
            inner_step = Relu(module_path_of_first)
            inner_result = Add(inner_step, weight_of_second)
        },
        else_branch = e () => (float[n, 64] other_result) {
            other_result = Neg(module_path_of_first)
        }>
    the_output = Mul(module_path_of_choice, a)
}"""


def example() -> onnx.ModelProto:
    arrays = {
        "weight_of_first": weights((64, 64), 0.9),
        "weight_of_second": np.ones(64, np.float32),
        "a": np.full(1, 3, np.float32),
    }
    proto = parse(TEXT, arrays)
    for index, node in enumerate(proto.graph.node):
        node.name = f"/module/path/of/node{index}"
    return proto


def feeds() -> list[dict[str, np.ndarray]]:
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    return [{"choose": np.array(choose), "the_input": x} for choose in (True, False)]


def names(proto: onnx.ModelProto) -> set[str]:
    return {name for node in proto.graph.node for name in (*node.input, *node.output)}


def test_names_inside_become_short_and_the_interface_stays() -> None:
    proto = example()
    after = to_proto(optimize(proto, SHORTEN, *feeds(), rtol=0, atol=0))
    onnx.checker.check_model(after, full_check=True)
    assert Interface.of(from_proto(after)) == Interface.of(from_proto(proto))
    assert {"the_input", "the_output", "choose", "a"} <= names(after)
    assert all(len(name) == 1 for name in names(after) - {"the_input", "the_output", "choose"})
    assert not [node.name for node in after.graph.node if node.name]
    assert after.ByteSize() < proto.ByteSize() - 300
    inner = after.graph.node[1].attribute[0].g
    assert (
        len({*inner.node[0].output, *inner.node[1].output} | names(after)) == len(names(after)) + 2
    )


def test_running_twice_changes_nothing() -> None:
    once, _ = apply(example(), SHORTEN)
    untouched(to_proto(once), SHORTEN)


def test_names_of_weights_may_stay() -> None:
    kept, _ = apply(example(), f"{SHORTEN}{{initializers=false}}")
    assert set(kept.graph.initializers) == {"weight_of_first", "weight_of_second", "a"}


def test_short_names_and_compact_weights_go_together() -> None:
    proto = example()
    for order in (f"{SHORTEN},compact-weights", f"compact-weights,{SHORTEN}"):
        coded = to_proto(optimize(proto, order, *feeds(), rtol=0, atol=0))
        assert coded.ByteSize() < proto.ByteSize() / 4
        dense, outcomes = apply(coded, "decode-weights")
        assert outcomes["decode-weights"].modified
        found = [each.const_value for each in dense.graph.initializers.values()]
        contents = [tensor.tobytes() for tensor in found if tensor is not None]
        assert weights((64, 64), 0.9).tobytes() in contents
        assert len(dense.graph.initializers) == 3


def test_annotations_that_tell_values_by_name_keep_them() -> None:
    proto = example()
    annotation = proto.graph.quantization_annotation.add(tensor_name="weight_of_first")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="a")
    untouched(proto, SHORTEN, "by name")


def test_at_most_so_many_are_renamed() -> None:
    model = from_proto(example())
    pass_ = make_pass(SHORTEN)
    pass_.max_rewrites = 2
    assert pass_.run(model).rewritten.total() == 2
