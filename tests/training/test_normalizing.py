"""Normalizations that are put in, change nothing, and are folded again."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from onnxopt.errors import OptionError
from onnxopt.model import from_proto, to_proto
from onnxopt.training import import_model, write_back
from onnxopt.training.data import Batch
from onnxopt.training.distillation import DistillSettings, distill
from onnxopt.training.normalizing import fold, insert
from onnxopt.training.settings import TrainingSettings
from tests.differential import parse, run
from tests.training import models

_SEQUENCE = """g (float[n, 3, l] x) => (float[n, 4, l] c, float[n, 4, l] y) {
    c = Conv<pads=[1, 1]>(x, w, b)
    y = Relu(c)
}"""
_VOLUME = """g (float[n, 2, d, h, w] x) => (float[n, e, f, i, j] y) {
    y = Conv<group=2>(x, w, b)
}"""


def batch(name: str, *shape: int) -> Batch:
    return Batch({name: models.random(3, *shape)}, ())


@pytest.mark.parametrize(
    ("model", "feed", "count"),
    [
        (models.convolutional(), batch("image", 40, 1, 8, 8), 2),
        (
            parse(_SEQUENCE, {"w": models.random(0, 4, 3, 3), "b": models.random(1, 4)}),
            batch("x", 5, 3, 7),
            1,
        ),
        (
            parse(_VOLUME, {"w": models.random(0, 4, 1, 2, 2, 1), "b": models.random(1, 4)}),
            batch("x", 3, 2, 4, 3, 5),
            1,
        ),
    ],
)
def test_nothing_changes_and_out_again_every_byte_is_as_before(
    model: onnx.ModelProto, feed: Batch, count: int
) -> None:
    held = from_proto(model)
    before = to_proto(held).SerializeToString(deterministic=True)
    found = insert(held, [feed])
    assert len(found) == count
    with_them = to_proto(held)
    onnx.checker.check_model(with_them, full_check=True)
    assert sum(node.op_type == "BatchNormalization" for node in with_them.graph.node) == count
    for one, other in zip(run(model, feed.feed), run(with_them, feed.feed), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5 * np.abs(one).max())
    assert fold(held, found, []) == []
    assert to_proto(held).SerializeToString(deterministic=True) == before


def test_what_was_trained_is_folded_into_the_same_graph() -> None:
    model = models.convolutional()
    held = from_proto(model)
    found = insert(held, [batch("image", 40, 1, 8, 8)])
    module = import_model(held, batch_statistics=True)
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    images = torch.from_numpy(models.images(64))
    for _ in range(5):
        optimizer.zero_grad()
        module(images).square().mean().backward()
        optimizer.step()
    module.eval()
    with torch.no_grad():
        wanted = module(images).numpy()
    changed = write_back(module, held)
    assert any("normalization/mean" in name for name in changed)
    folded = fold(held, found, changed)
    assert sorted(folded) == ["b1", "b2", "b3", "w1", "w2", "w3"]
    result = to_proto(held)
    assert [node.SerializeToString() for node in result.graph.node] == [
        node.SerializeToString() for node in to_proto(from_proto(model)).graph.node
    ]
    given = run(result, {"image": images.numpy()})[0]
    np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_zeros_stay_zeros_whatever_the_sign_of_a_scale() -> None:
    kernel = models.random(0, 8, 1, 3, 3)
    kernel[:, :, 1] = 0
    held = from_proto(models.convolutional(w1=kernel))
    found = insert(held, [batch("image", 40, 1, 8, 8)])
    module = import_model(held)
    scale = found[0].node.inputs[1]
    assert scale is not None
    with torch.no_grad():
        module.weights[str(scale.name)].mul_(-1.0)
    fold(held, found, write_back(module, held))
    tensor = held.graph.initializers["w1"].const_value
    assert tensor is not None
    folded = tensor.numpy()
    assert np.array_equal(folded == 0, kernel == 0)
    assert not np.signbit(folded[folded == 0]).any()


_LEFT_ALONE = {
    "no bias": "y = Conv(x, w)",
    "a normalization of its own": "c = Conv(x, w, b)\n y = BatchNormalization(c, b, b, b, v)",
    "a shared kernel": "c = Conv(x, w, b)\n d = Conv(x, w, v)\n y = Add(c, d)",
    "a computed kernel": "k = Relu(w)\n y = Conv(x, k, b)",
    "no convolution": "y = ConvTranspose(x, w, b)",
}


@pytest.mark.parametrize("why", _LEFT_ALONE)
def test_left_alone(why: str) -> None:
    text = f"g (float[n, 4, h, w] x) => (float[n, c, i, j] y) {{ {_LEFT_ALONE[why]} }}"
    weights = {
        "w": models.random(0, 4, 4, 3, 3),
        "b": models.random(1, 4),
        "v": np.abs(models.random(2, 4)),
    }
    held = from_proto(parse(text, weights))
    found = insert(held, [batch("x", 2, 4, 5, 5)])
    assert [str(each.convolution.outputs[0].name) for each in found] == []


SETTINGS = DistillSettings(
    training=TrainingSettings(steps=60, batch_size=32, evaluations=4, learning_rate=0.03),
    renormalize=True,
)


@pytest.fixture
def paths(tmp_path: pathlib.Path) -> dict[str, pathlib.Path]:
    teacher = models.balanced(models.convolutional())
    return models.write(tmp_path, teacher=teacher, student=models.noisy(teacher))


def distilled(paths: dict[str, pathlib.Path], settings: DistillSettings = SETTINGS) -> Any:
    out = paths["data"].with_name("out.onnx")
    return distill(paths["teacher"], paths["student"], out, paths["data"], settings), out


def test_a_student_learns_with_normalizations_and_has_none_afterwards(
    paths: dict[str, pathlib.Path],
) -> None:
    report, out = distilled(paths)
    assert report.after.main > report.before.main + 0.1
    assert report.after.main == pytest.approx(report.training.best.score.main, abs=0.04)
    assert "2 convolutions were normalized for the training; that is folded again." in report.notes
    one, other = onnx.load(paths["student"]), onnx.load(out)
    assert [node.op_type for node in one.graph.node] == [node.op_type for node in other.graph.node]
    assert {each.name for each in one.graph.initializer} == {
        each.name for each in other.graph.initializer
    }


def test_a_training_that_does_not_help_gives_the_student_byte_by_byte(
    paths: dict[str, pathlib.Path],
) -> None:
    paths["student"] = paths["teacher"]
    _, out = distilled(paths)
    assert out.read_bytes() == paths["teacher"].read_bytes()


def test_bad_settings(paths: dict[str, pathlib.Path]) -> None:
    small = dataclasses.replace(SETTINGS.training, batch_size=4)
    with pytest.raises(OptionError, match="train with batches of 16 or more"):
        distilled(paths, dataclasses.replace(SETTINGS, training=small))
    bare = parse(
        "g (float[n, 1, 8, 8] image) => (float[n, 2] logits) { f = Flatten(image)\n"
        " logits = MatMul(f, w) }",
        {"w": models.random(0, 64, 2)},
    )
    onnx.save(bare, paths["teacher"])
    onnx.save(models.noisy(bare), paths["student"])
    with pytest.raises(OptionError, match=r"no convolution of .* can be normalized"):
        distilled(paths)
