"""Loop and Scan against ONNX Runtime, and weights that bodies read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from onnxopt.errors import UnsupportedModelError
from onnxopt.model import from_proto, to_proto
from onnxopt.training import import_model, write_back
from tests.conformance.cases import Case, node_cases
from tests.differential import parse
from tests.training.test_operators import assert_alike, run

RNG = np.random.default_rng(3)
WEIGHTS = {"w": RNG.normal(0, 0.5, (4, 4)).astype(np.float32)}

COUNTED = """
agraph (float[n, 4] x, int64 most, bool go) => (float[n, 4] y, float[t, n, 4] all)
{
  y, all = Loop <body = body (int64 i, bool going, float[n, 4] h)
                    => (bool next, float[n, 4] h_out, float[n, 4] part) {
    product = MatMul(h, w)
    h_out = Tanh(product)
    step = Cast <to = 1> (i)
    part = Mul(h_out, step)
    limit = Constant <value_float = 4.0> ()
    size = ReduceMax <keepdims = 0> (h_out)
    next = Less(size, limit)
  }> (most, go, x)
}
"""

WHILE = """
agraph (float[n, 4] x) => (float[n, 4] y, int64 count)
{
  go = Constant <value = bool {1}> ()
  zero = Constant <value = int64 {0}> ()
  y, count = Loop <body = body (int64 i, bool going, float[n, 4] h, int64 k)
                      => (bool next, float[n, 4] h_out, int64 k_out) {
    two = Constant <value_float = 1.5> ()
    h_out = Mul(h, two)
    one = Constant <value = int64 {1}> ()
    k_out = Add(k, one)
    absolute = Abs(h_out)
    largest = ReduceMax <keepdims = 0> (absolute)
    limit = Constant <value_float = 30.0> ()
    next = Less(largest, limit)
  }> ("", go, x, zero)
}
"""

SCANNED = """
agraph (float[n, 4] x, float[n, t, 4] xs) => (float[n, 4] y, float[n, t, 4] all)
{
  y, all = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
                 scan_input_directions = [WAY], scan_output_directions = [WAY],
                 body = body (float[n, 4] h, float[n, 4] now)
                     => (float[n, 4] h_out, float[n, 4] o) {
    product = MatMul(h, w)
    sum = Add(product, now)
    h_out = Tanh(sum)
    o = Identity(h_out)
  }> (x, xs)
}
"""

X = RNG.normal(size=(3, 4)).astype(np.float32)
XS = RNG.normal(size=(3, 5, 4)).astype(np.float32)


def text(source: str, way: int = 0) -> onnx.ModelProto:
    return parse(source.replace("WAY", str(way)), WEIGHTS if "w)" in source else None)


def alike(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    expected: list[Any] = session.run(None, feeds)
    given = run(import_model(from_proto(model)), feeds)
    for mine, wanted in zip(given, expected, strict=True):
        assert tuple(mine.shape) == np.shape(wanted)
        np.testing.assert_allclose(mine.numpy(), wanted, rtol=1e-4, atol=1e-5)
    return expected


@pytest.mark.parametrize("rounds", [0, 1, 6])
@pytest.mark.parametrize("go", [True, False])
def test_a_counted_loop(rounds: int, go: bool) -> None:
    feeds = {"x": X, "most": np.array(rounds, np.int64), "go": np.array(go)}
    _, parts = alike(text(COUNTED), feeds)
    assert len(parts) == (rounds if go else 0)


def test_a_loop_that_ends_by_its_condition() -> None:
    _, few = alike(text(WHILE), {"x": X})
    _, more = alike(text(WHILE), {"x": X / 10})
    assert few < more


@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.parametrize("length", [1, 5])
def test_a_scan(way: int, length: int) -> None:
    alike(text(SCANNED, way), {"x": X, "xs": XS[:, :length]})


def test_a_loop_in_a_loop() -> None:
    inner = """
    agraph (float[4] x, int64 most) => (float[4] y)
    {
      go = Constant <value = bool {1}> ()
      y = Loop <body = outer (int64 i, bool a, float[4] h) => (bool b, float[4] h_out) {
        b = Identity(a)
        h_out = Loop <body = inside (int64 j, bool c, float[4] k) => (bool d, float[4] k_out) {
          d = Identity(c)
          both = Add(i, j)
          step = Cast <to = 1> (both)
          k_out = Add(k, step)
        }> (most, a, h)
      }> (most, go, x)
    }
    """
    (found,) = alike(parse(inner), {"x": X[0], "most": np.array(3, np.int64)})
    assert found[0] == pytest.approx(X[0, 0] + sum(i + j for i in range(3) for j in range(3)))


@pytest.mark.parametrize(
    ("source", "feeds"),
    [
        (COUNTED, {"x": X, "most": np.array(3, np.int64), "go": np.array(True)}),
        (SCANNED, {"x": X, "xs": XS}),
    ],
)
def test_weights_of_a_body_train_and_go_back(source: str, feeds: dict[str, Any]) -> None:
    model = from_proto(text(source))
    module = import_model(model)
    assert list(module.weights) == ["w"]
    given = {name: torch.from_numpy(array) for name, array in feeds.items()}
    weight = module.weights["w"]

    def loss() -> torch.Tensor:
        return sum(each.square().sum() for each in module(**given))

    loss().backward()
    assert weight.grad is not None
    slope = float(weight.grad[1, 2])
    with torch.no_grad():
        weight[1, 2] += 1e-2
        above = float(loss())
        weight[1, 2] -= 2e-2
        below = float(loss())
    assert slope == pytest.approx((above - below) / 2e-2, rel=2e-2)
    assert write_back(module, model) == ["w"]
    alike(to_proto(model), feeds)


def loops() -> list[Case]:
    kinds = {"Loop", "Scan"}
    return [
        case
        for case in node_cases()
        if any(node.op_type in kinds for node in case.model.graph.node)
    ]


@pytest.mark.parametrize("case", loops(), ids=lambda case: case.name)
def test_cases_of_the_standard(case: Case) -> None:
    try:
        module = import_model(from_proto(case.model))
    except UnsupportedModelError as error:
        said = str(error)
        assert "Sequence" in said or "batch axis" in said or "optional" in said.lower()
        return
    for feeds, expected in zip(case.feeds, case.expected, strict=True):
        for given, wanted in zip(run(module, feeds), expected, strict=True):
            assert_alike(given, wanted, case)
