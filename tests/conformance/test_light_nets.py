"""The architectures that the onnx package ships with made-up weights, through the whole road.

They are of IR version 3, so that their initializers are graph inputs too, and their weights are
``ConstantOfShape`` nodes: folding those would let a file of a few kilobytes grow to megabytes.
"""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import onnx.backend.test
import pytest

import onnxopt
from onnxopt.model import Interface, load
from tests.differential import assert_same, run

_FOLDER = pathlib.Path(onnx.backend.test.__file__).parent / "data" / "light"
_NETS = sorted(path.stem for path in _FOLDER.glob("*.onnx"))


def test_there_are_nets() -> None:
    assert len(_NETS) == 9


@pytest.mark.parametrize("name", _NETS)
def test_light_net(name: str, tmp_path: pathlib.Path) -> None:
    source, target = _FOLDER / f"{name}.onnx", tmp_path / "out.onnx"
    report = onnxopt.optimize(source, target, guard_speed=False)
    # On a few kilobytes, a name or a folded constant can be one byte too many; nothing else may.
    assert all("the file grows" in each.reason for each in report.undone), report.undone
    assert report.changed
    assert report.verified
    assert report.after.nodes < report.before.nodes
    assert target.stat().st_size <= source.stat().st_size
    assert Interface.of(load(target)) == Interface.of(load(source))
    model = onnx.load(target)
    onnx.checker.check_model(model)
    [data] = load(source).graph.inputs
    assert data.shape is not None
    feed = np.random.default_rng(7).random(data.shape.numpy(), np.float32)
    expected = run(onnx.load(source), {data.name or "": feed})
    assert_same(expected, run(model, {data.name or "": feed}))
