"""Saliencies against what they estimate."""

import pathlib
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from onnxopt.errors import FeedError, OptionError
from onnxopt.model import from_proto
from onnxopt.training import OnnxModule, import_model
from onnxopt.training.saliency import saliency, save_saliency

RNG = np.random.default_rng(3)
INPUTS, OUTPUTS, SAMPLES = 5, 3, 16


def linear() -> onnx.ModelProto:
    """y = x W + b, then a weight that no output depends on by gradients."""
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "layer.weight", "layer.bias"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", OUTPUTS])],
        [
            numpy_helper.from_array(
                RNG.standard_normal((INPUTS, OUTPUTS)).astype(np.float32), "layer.weight"
            ),
            numpy_helper.from_array(RNG.standard_normal(OUTPUTS).astype(np.float32), "layer.bias"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def module() -> OnnxModule:
    return import_model(from_proto(linear()))


def batches(size: int) -> list[tuple[dict[str, np.ndarray], Any]]:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((SAMPLES, INPUTS)).astype(np.float32)
    target = rng.standard_normal((SAMPLES, OUTPUTS)).astype(np.float32)
    return [
        ({"x": x[at : at + size]}, torch.from_numpy(target[at : at + size]))
        for at in range(0, SAMPLES, size)
    ]


def squared_error(y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (y - target).square().sum(1).mean() / 2


def errors(module: OnnxModule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, residuals and weights, for the formulas below."""
    weight = module.weights["layer.weight"].detach().numpy()
    ((feed, target),) = batches(SAMPLES)
    with torch.no_grad():
        residual = module(torch.from_numpy(feed["x"])) - target
    return feed["x"], residual.numpy(), weight


def test_taylor_is_weight_times_gradient(module: OnnxModule) -> None:
    x, residual, weight = errors(module)
    found = saliency(module, batches(SAMPLES), "taylor", squared_error)
    gradient = x.T @ residual / SAMPLES
    np.testing.assert_allclose(found["layer.weight"], np.abs(weight * gradient), rtol=1e-4)
    assert set(found) == {"layer.weight", "layer.bias"}


def test_fisher_is_the_mean_square_of_gradients_by_sample(module: OnnxModule) -> None:
    x, residual, weight = errors(module)
    found = saliency(module, batches(1), "fisher", squared_error)
    fisher = np.einsum("ni,nj->ij", x**2, residual**2) / SAMPLES
    np.testing.assert_allclose(found["layer.weight"], fisher * weight**2 / 2, rtol=1e-4)


def test_hessian_of_squared_error_is_the_second_moment_of_the_input(module: OnnxModule) -> None:
    x, _, weight = errors(module)
    found = saliency(module, batches(SAMPLES), "hessian", squared_error, probes=2000)
    expected = (x**2).mean(0)[:, None] * weight**2 / 2
    np.testing.assert_allclose(found["layer.weight"], expected, rtol=0.15, atol=1e-3)


def test_output_needs_no_loss_and_is_the_change_of_the_output(module: OnnxModule) -> None:
    x, _, weight = errors(module)
    found = saliency(module, batches(SAMPLES), "output", probes=2000)
    expected = (x**2).sum(0)[:, None] * weight**2 / 2
    np.testing.assert_allclose(found["layer.weight"], expected, rtol=0.2, atol=1e-3)


def test_the_module_is_as_before_and_the_result_repeats(module: OnnxModule) -> None:
    before = {name: tensor.clone() for name, tensor in module.weights.items()}
    one = saliency(module, batches(4), "hessian", squared_error)
    other = saliency(module, batches(4), "hessian", squared_error)
    assert module.training
    for name, tensor in module.weights.items():
        assert torch.equal(tensor, before[name])
        assert tensor.grad is None
        np.testing.assert_array_equal(one[name], other[name])


def test_the_file_keeps_any_name(tmp_path: pathlib.Path) -> None:
    found = {
        name: np.arange(3.0) for name in ("a/b.weight", "file", "onnx::Conv_9", "allow_pickle")
    }
    save_saliency(tmp_path / "s.npz", found)
    with np.load(tmp_path / "s.npz") as loaded:
        assert set(loaded.files) == set(found)
        np.testing.assert_array_equal(loaded["a/b.weight"], np.arange(3.0))
    assert [each.name for each in tmp_path.iterdir()] == ["s.npz"]


def test_what_is_missing_is_said(module: OnnxModule) -> None:
    with pytest.raises(OptionError, match="'taylor' needs a loss"):
        saliency(module, batches(4), "taylor")
    with pytest.raises(OptionError, match="takes no loss"):
        saliency(module, batches(4), "output", squared_error)
    with pytest.raises(OptionError, match="one number for a batch"):
        saliency(module, batches(4), "taylor", lambda y, target: y - target)
    with pytest.raises(FeedError, match="no samples"):
        saliency(module, [], "output")
    with pytest.raises(FeedError, match="batch 0 is not finite"):
        saliency(module, batches(4), "taylor", lambda y, target: y.sum() * float("inf"))
