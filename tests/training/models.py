"""Small ONNX models of a teacher and its students, and samples for them."""

import pathlib
from typing import Any

import numpy as np
import onnx

from tests.differential import parse

CLASSES, CHANNELS = 5, 8

_CONVOLUTIONAL = """g (float[n, 1, 8, 8] image) => (float[n, 5] logits) {
    a = Conv<pads=[1, 1, 1, 1]>(image, w1, b1)
    r = Relu(a)
    c = Conv<pads=[1, 1, 1, 1], strides=[2, 2]>(r, w2, b2)
    s = Relu(c)
    p = GlobalAveragePool(s)
    f = Flatten(p)
    logits = Gemm(f, w3, b3)
}"""


def random(seed: int, *shape: int, scale: float = 1.0) -> Any:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def convolutional(channels: int = CHANNELS, seed: int = 0, **changed: Any) -> onnx.ModelProto:
    weights = {
        "w1": random(seed, channels, 1, 3, 3),
        "b1": random(seed + 1, channels),
        "w2": random(seed + 2, channels, channels, 3, 3),
        "b2": random(seed + 3, channels),
        "w3": random(seed + 4, channels, CLASSES),
        "b3": random(seed + 5, CLASSES),
    }
    return parse(_CONVOLUTIONAL, {**weights, **changed})


def balanced(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with a head that tells images apart."""
    from tests.differential import run

    logits = run(model, {"image": images()})[0]
    scale = (4 / logits.std(axis=0)).astype(np.float32)
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if tensor.name == "w3":
            tensor.CopyFrom(onnx.numpy_helper.from_array(array * scale, "w3"))
        elif tensor.name == "b3":
            tensor.CopyFrom(
                onnx.numpy_helper.from_array((array - logits.mean(axis=0)) * scale, "b3")
            )
    return model


def noisy(model: onnx.ModelProto, noise: float = 0.4) -> onnx.ModelProto:
    """The same with other numbers: what careless compression leaves."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    generator = np.random.default_rng(9)
    for tensor in changed.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        moved = array + noise * array.std() * generator.normal(size=array.shape)
        tensor.CopyFrom(onnx.numpy_helper.from_array(moved.astype(np.float32), tensor.name))
    return changed


def images(count: int = 300) -> Any:
    return random(7, count, 1, 8, 8)


def write(folder: pathlib.Path, **models: onnx.ModelProto) -> dict[str, pathlib.Path]:
    """Write models and a file of samples with labels, by name."""
    from tests.differential import run

    paths = {}
    for name, model in models.items():
        paths[name] = folder / f"{name}.onnx"
        onnx.save(model, paths[name])
    inputs = images()
    labels = run(models["teacher"], {"image": inputs})[0].argmax(axis=1)
    paths["data"] = folder / "train.npz"
    np.savez(paths["data"], image=inputs, label=labels)
    return paths
