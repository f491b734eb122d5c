"""A trained module as a new graph."""

import pathlib

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnxopt.errors import ModelError
from onnxopt.model import from_proto
from onnxopt.training import OnnxModule, import_model
from onnxopt.training.export import export


def text_classifier() -> onnx.ModelProto:
    """Embedding, product, shapes computed from shapes, LayerNormalization, classifier."""
    rng = np.random.default_rng(0)
    tensors = {
        "embeddings.weight": rng.standard_normal((20, 8)).astype(np.float32),
        "dense.weight": rng.standard_normal((8, 8)).astype(np.float32),
        "norm.weight": rng.uniform(0.5, 2, 8).astype(np.float32),
        "norm.bias": rng.standard_normal(8).astype(np.float32),
        "head.weight": rng.standard_normal((8, 3)).astype(np.float32),
        "zero": np.array(0),
        "one": np.array(1),
        "axis": np.array([0]),
        "heads": np.array([2, 4]),
        "whole": np.array([8]),
        "middle": np.array([1]),
    }
    make = helper.make_node
    nodes = [
        make("Gather", ["embeddings.weight", "ids"], ["e"]),
        make("MatMul", ["e", "dense.weight"], ["d"]),
        make("Shape", ["ids"], ["shape"]),
        make("Gather", ["shape", "zero"], ["n"]),
        make("Gather", ["shape", "one"], ["l"]),
        make("Unsqueeze", ["n", "axis"], ["n1"]),
        make("Unsqueeze", ["l", "axis"], ["l1"]),
        make("Concat", ["n1", "l1", "heads"], ["split"], axis=0),
        make("Concat", ["n1", "l1", "whole"], ["joined"], axis=0),
        make("Reshape", ["d", "split"], ["s"]),
        make("Softmax", ["s"], ["p"]),
        make("Reshape", ["p", "joined"], ["j"]),
        make("LayerNormalization", ["j", "norm.weight", "norm.bias"], ["z"]),
        make("ReduceMean", ["z", "middle"], ["m"], keepdims=0),
        make("MatMul", ["m", "head.weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture(scope="module")
def module() -> OnnxModule:
    module = import_model(from_proto(text_classifier()))
    with torch.no_grad():
        for each in module.parameters():
            each.mul_(1.1)
    return module


def test_the_exported_graph_takes_other_sizes(module: OnnxModule, tmp_path: pathlib.Path) -> None:
    target = tmp_path / "exported.onnx"
    export(module, target, {"ids": np.arange(10).reshape(2, 5)})
    names = {each.name for each in onnx.load(target).graph.initializer}
    assert {"embeddings.weight", "dense.weight", "norm.weight"} <= names
    session = onnxruntime.InferenceSession(target)
    for shape in ((3, 4), (4, 7)):
        ids = np.random.default_rng(1).integers(0, 20, shape)
        with torch.no_grad():
            expected = module(torch.from_numpy(ids)).numpy()
        (given,) = session.run(None, {"ids": ids})
        np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)
    assert module.training


def test_sizes_may_be_kept(module: OnnxModule, tmp_path: pathlib.Path) -> None:
    target = tmp_path / "exported.onnx"
    export(module, target, {"ids": np.arange(10).reshape(2, 5)}, dynamic=False)
    sizes = onnx.load(target).graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_value for size in sizes] == [2, 5]


def test_a_trained_quantized_module_is_exported_with_its_quantizers(
    tmp_path: pathlib.Path,
) -> None:
    tensors = [
        numpy_helper.from_array(np.float32(0.05), "s"),
        numpy_helper.from_array(np.uint8(128), "z"),
        numpy_helper.from_array(np.arange(-6, 6, dtype=np.int8).reshape(4, 3), "w"),
        numpy_helper.from_array(np.array([0.1, 0.2, 0.3], np.float32), "ws"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], axis=1),
        helper.make_node("MatMul", ["d", "wd"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    target = tmp_path / "exported.onnx"
    feed = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    export(import_model(from_proto(model)), target, feed)
    kinds = [node.op_type for node in onnx.load(target).graph.node]
    assert kinds.count("QuantizeLinear") >= 1
    assert kinds.count("DequantizeLinear") >= 2


def test_what_cannot_be_exported_is_said_and_nothing_is_written(tmp_path: pathlib.Path) -> None:
    """Which branch runs depends on the data."""
    one = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["p"])],
        "one",
        [],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Exp", ["x"], ["q"])],
        "other",
        [],
        [helper.make_tensor_value_info("q", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], keepdims=0),
        helper.make_node("Cast", ["top"], ["condition"], to=TensorProto.BOOL),
        helper.make_node("If", ["condition"], ["y"], then_branch=one, else_branch=other),
    ]
    graph = helper.make_graph(
        nodes,
        "untraceable",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    target = tmp_path / "exported.onnx"
    with pytest.raises(ModelError, match="PyTorch cannot export the module"):
        export(import_model(from_proto(model)), target, {"x": np.ones(2, np.float32)})
    assert list(tmp_path.iterdir()) == []
