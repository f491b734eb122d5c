"""Quantized models: rounded forward, straight through backward, back onto the same grid."""

import pathlib
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnxopt.errors import ModelError, UnsupportedModelError
from onnxopt.model import from_proto, save, to_proto
from onnxopt.training import import_model, write_back
from onnxopt.training.grids import FakeQuantize, Quantize


def quantized_convolution(kind: str = "int8", per_channel: bool = True) -> onnx.ModelProto:
    """u8 activations, integer weights, int32 bias, each with its DequantizeLinear; two layers."""
    rng = np.random.default_rng(7)  # the same model whatever ran before
    low, high = {"int8": (-127, 127), "uint8": (0, 255), "int4": (-7, 7)}[kind]
    element = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "int4": TensorProto.INT4}[kind]
    weights = rng.integers(low, high, (4, 3, 3, 3), endpoint=True)
    scale = rng.uniform(0.005, 0.02, 4 if per_channel else ()).astype(np.float32)
    zero = rng.integers(low // 4, high // 4 + 1, scale.shape)
    bias = rng.integers(-500, 500, 4)
    x_scale = np.float32(0.04)
    tensors = [
        numpy_helper.from_array(x_scale, "x_scale"),
        numpy_helper.from_array(np.uint8(110), "x_zero"),
        helper.make_tensor("w", element, weights.shape, weights.reshape(-1).tolist()),
        numpy_helper.from_array(scale, "w_scale"),
        helper.make_tensor("w_zero", element, zero.shape, zero.reshape(-1).tolist()),
        numpy_helper.from_array(bias.astype(np.int32), "b"),
        numpy_helper.from_array((scale * x_scale).astype(np.float32), "b_scale"),
        numpy_helper.from_array(rng.standard_normal((4, 5)).astype(np.float32), "head"),
    ]
    axis = {"axis": 0} if per_channel else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], **axis),
        helper.make_node("DequantizeLinear", ["b", "b_scale"], ["bd"], **axis),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "head"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        tensors,
    )
    opset = helper.make_opsetid("", 21)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)


def in_runtime(model: onnx.ModelProto, x: np.ndarray, optimized: bool = False) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return np.asarray(session.run(None, {"x": x})[0])


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(8).standard_normal(shape).astype(np.float32) * 3


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", ["int8", "uint8", "int4"])
def test_a_quantized_model_trains_and_goes_back(kind: str, per_channel: bool) -> None:
    proto = quantized_convolution(kind, per_channel)
    model = from_proto(proto)
    module = import_model(model)
    assert set(module.weights) == {"w", "b", "head"}
    assert module.integer_weights == {"w", "b"}
    x = images(2, 3, 6, 7)
    with torch.no_grad():
        given = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(given, in_runtime(proto, x), rtol=1e-4, atol=1e-4)

    assert write_back(module, model) == []
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    module(torch.from_numpy(x)).square().mean().backward()
    assert all(each.grad is not None and each.grad.any() for each in module.parameters())
    optimizer.step()
    assert set(write_back(module, model)) == {"w", "b", "head"}
    after = to_proto(model)
    before = {each.name: each for each in proto.graph.initializer}
    for tensor in after.graph.initializer:
        assert tensor.data_type == before[tensor.name].data_type
        if tensor.name not in module.weights:
            assert tensor == before[tensor.name]
    with torch.no_grad():
        trained = module(torch.from_numpy(x)).numpy()
    assert not np.allclose(trained, given, atol=1e-3)
    np.testing.assert_allclose(trained, in_runtime(after, x), rtol=1e-3, atol=1e-3)


def test_trained_scales_are_followed_by_that_of_the_bias() -> None:
    proto = quantized_convolution()
    model = from_proto(proto)
    module = import_model(model, learned_scales=True)
    assert {"x_scale", "w_scale"} < set(module.weights)
    assert write_back(module, model) == []
    x = images(4, 3, 8, 8)
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.from_numpy(x)).square().mean().backward()
        optimizer.step()
    changed = write_back(module, model)
    assert {"x_scale", "w_scale", "b_scale", "w"} <= set(changed)
    after = to_proto(model)
    tensors = {each.name: numpy_helper.to_array(each) for each in after.graph.initializer}
    np.testing.assert_array_equal(tensors["b_scale"], tensors["x_scale"] * tensors["w_scale"])
    with torch.no_grad():
        trained = module(torch.from_numpy(x)).numpy()
    for optimized in (False, True):  # the integer kernel assumes the bias's scale
        result = in_runtime(after, x, optimized)
        np.testing.assert_allclose(trained, result, rtol=1e-2, atol=1e-2)


def test_scales_that_are_not_positive_are_not_written() -> None:
    model = from_proto(quantized_convolution())
    module = import_model(model, learned_scales=True)
    with torch.no_grad():
        module.weights["x_scale"].neg_()
        module.weights["head"].add_(1.0)
    before = to_proto(model)
    with pytest.raises(ModelError, match="scale 'x_scale' is no longer positive"):
        write_back(module, model)
    assert to_proto(model) == before


def test_gradients_pass_inside_the_range_only() -> None:
    x = torch.tensor([-30.0, -1.0, 0.2, 0.9, 500.0], requires_grad=True)
    scale, zero = torch.tensor(0.1), torch.tensor(10.0)
    y = FakeQuantize.apply(x, scale, -10, 245)
    y.sum().backward()
    assert y.tolist() == pytest.approx([-1.0, -1.0, 0.2, 0.9, 24.5])
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    x.grad = None
    q = Quantize.apply(x, scale, zero, 0, 255)
    q.sum().backward()
    assert q.tolist() == [0.0, 0.0, 12.0, 19.0, 255.0]
    assert x.grad.tolist() == pytest.approx([0.0, 10.0, 10.0, 10.0, 0.0])


def test_both_ways_to_round_have_the_same_gradients() -> None:
    """Quantize then dequantize by hand, and at once: gradients of the number and of the scale."""
    x = torch.linspace(-3, 30, 40, dtype=torch.float64).reshape(4, 10).requires_grad_()
    scale = torch.tensor([[0.1], [0.13], [0.07], [0.11]], dtype=torch.float64, requires_grad=True)
    zero = torch.tensor(5.0, dtype=torch.float64)
    weight = torch.arange(40, dtype=torch.float64).reshape(4, 10)
    at_once = (FakeQuantize.apply(x, scale, 0 - zero, 255 - zero) * weight).sum()
    by_hand = ((Quantize.apply(x, scale, zero, 0, 255) - zero) * scale * weight).sum()
    torch.testing.assert_close(at_once, by_hand)
    for one, other in zip(
        torch.autograd.grad(at_once, (x, scale)),
        torch.autograd.grad(by_hand, (x, scale)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_blocks_of_four_bit_weights_train() -> None:
    """One scale for each 16 rows of a matrix, as block-wise quantizers write it."""
    rng = np.random.default_rng(9)
    weights = rng.integers(-8, 7, (32, 6), endpoint=True)
    scale = rng.uniform(0.01, 0.1, (2, 6)).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wd"], axis=0, block_size=16),
        helper.make_node("MatMul", ["x", "wd"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "blocks",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])],
        [
            helper.make_tensor("w", TensorProto.INT4, (32, 6), weights.reshape(-1).tolist()),
            numpy_helper.from_array(scale, "s"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = from_proto(proto)
    module = import_model(model)
    x = images(3, 32)
    with torch.no_grad():
        np.testing.assert_allclose(
            module(torch.from_numpy(x)).numpy(), in_runtime(proto, x), rtol=1e-4, atol=1e-4
        )
        module.weights["w"].mul_(0.5)
        trained = module(torch.from_numpy(x)).numpy()
    assert write_back(module, model) == ["w"]
    np.testing.assert_allclose(trained, in_runtime(to_proto(model), x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("exact", [np.int8, np.uint8])
def test_every_integer_comes_back(exact: Any, tmp_path: pathlib.Path) -> None:
    """No weight moves because float32 cannot tell: all 256 of them, with awkward scales."""
    limits = np.iinfo(exact)
    values = np.arange(limits.min, limits.max + 1).astype(exact)
    scale = np.geomspace(1e-7, 1e3, 64).astype(np.float32)
    value = ir.Value(name="w", const_value=ir.tensor(np.tile(values, (64, 1))))
    graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 13}, name="g")
    scales = ir.Value(name="s", const_value=ir.tensor(scale))
    graph.register_initializer(scales)
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=[1, 64])
    graph.inputs.append(x)
    dq = ir.node("DequantizeLinear", [value, scales], attributes={"axis": 0})
    product = ir.node("MatMul", [x, dq.outputs[0]])
    graph.extend([dq, product])
    graph.outputs.append(product.outputs[0])
    model = ir.Model(graph, ir_version=8)
    module = import_model(model)
    with torch.no_grad():
        module.weights["w"][0, 0] += 40 * scale[0]  # so that the tensor is rounded anew
    assert write_back(module, model) == ["w"]
    assert value.const_value is not None
    back = value.const_value.numpy()
    assert back[0, 0] == limits.min + 40
    np.testing.assert_array_equal(back.reshape(-1)[1:], np.tile(values, (64, 1)).reshape(-1)[1:])
    save(model, tmp_path / "m.onnx")


def test_quantization_to_eight_bit_floats_is_refused_by_name() -> None:
    zero = helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, (), [0.0])
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="to_float8"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "float8",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(np.float32(0.1), "s"), zero],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with pytest.raises(UnsupportedModelError, match=r"to_float8.*quantization to FLOAT8E4M3FN"):
        import_model(from_proto(model))
