"""Weights go back into the very tensors that they came from."""

import pathlib

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from onnxopt.errors import ModelError
from onnxopt.model import load, save
from onnxopt.training import import_model, write_back, write_back_file

MODEL = pathlib.Path("models/fashion_mnist/fashion_mnist.onnx")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.from_numpy(np.load(MODEL.with_name("test.npz"))["image"][:8])


def test_the_module_gives_what_the_runtime_gives(images: torch.Tensor) -> None:
    (expected,) = onnxruntime.InferenceSession(MODEL).run(None, {"image": images.numpy()})
    with torch.no_grad():
        given = import_model(MODEL)(images)
    np.testing.assert_allclose(given.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_without_a_step_the_file_is_the_same(tmp_path: pathlib.Path) -> None:
    assert write_back_file(import_model(MODEL), MODEL, tmp_path / "same.onnx") == []
    assert (tmp_path / "same.onnx").read_bytes() == MODEL.read_bytes()
    (tmp_path / "old.onnx").write_bytes(b"what was there")
    write_back_file(import_model(MODEL), MODEL, tmp_path / "old.onnx")
    assert (tmp_path / "old.onnx").read_bytes() == MODEL.read_bytes()
    write_back_file(import_model(MODEL), tmp_path / "old.onnx", tmp_path / "old.onnx")
    assert (tmp_path / "old.onnx").read_bytes() == MODEL.read_bytes()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["old.onnx", "same.onnx"]


def test_weights_beside_the_model_go_back(tmp_path: pathlib.Path) -> None:
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    save(load(MODEL), source, "always")
    module = import_model(source)
    with torch.no_grad():
        module.weights["head.weight"].mul_(2.0)
    assert write_back_file(module, source, target) == ["head.weight"]
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == ["source.onnx", "source.onnx.data", "target.onnx", "target.onnx.data"]
    again = import_model(target).weights
    for name, tensor in import_model(source).weights.items():
        factor = 2.0 if name == "head.weight" else 1.0
        assert torch.equal(again[name], tensor * factor)


def test_a_folder_that_is_not_there_is_said(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        write_back_file(import_model(MODEL), MODEL, tmp_path / "nowhere" / "m.onnx")


def test_without_a_step_no_tensor_is_replaced() -> None:
    model = load(MODEL)
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    write_back(import_model(MODEL), model)
    assert all(before[name] is each.const_value for name, each in model.graph.initializers.items())


def test_a_step_changes_weights_and_nothing_else(
    tmp_path: pathlib.Path, images: torch.Tensor
) -> None:
    module = import_model(MODEL)
    optimizer = torch.optim.SGD(module.parameters(), 1e-3)
    module(images).square().mean().backward()
    optimizer.step()
    changed = write_back_file(module, MODEL, tmp_path / "trained.onnx")
    assert set(changed) <= set(module.weights)
    assert len(changed) > 30
    before, after = onnx.load(MODEL), onnx.load(tmp_path / "trained.onnx")
    assert _tensors(before).keys() == _tensors(after).keys()
    for name, tensor in _tensors(before).items():
        assert np.array_equal(tensor, _tensors(after)[name]) == (name not in changed)
    del before.graph.initializer[:], after.graph.initializer[:]
    assert before.graph == after.graph
    (expected,) = onnxruntime.InferenceSession(tmp_path / "trained.onnx").run(
        None, {"image": images.numpy()}
    )
    with torch.no_grad():
        np.testing.assert_allclose(module(images).numpy(), expected, rtol=1e-4, atol=1e-4)


def _tensors(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}


def test_weights_that_are_no_longer_finite_are_not_written() -> None:
    module, model = import_model(MODEL), load(MODEL)
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match="no longer finite"):
        write_back(module, model)
    assert write_back(import_model(MODEL), model) == []


def test_weights_of_another_model_are_refused() -> None:
    model = load(MODEL)
    model.graph.initializers["head.weight"].name = "another"
    with pytest.raises(ModelError, match=r"has no weight 'head.weight'"):
        write_back(import_model(MODEL), model)
